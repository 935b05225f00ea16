#include "common/may_wait.h"

#if defined(SIGNVOTE_CHECK_WAITS)

#include <cstdio>
#include <cstdlib>

namespace signvote {
namespace {

thread_local int t_no_wait_scopes = 0;

}  // namespace

NoWaitScope::NoWaitScope() { ++t_no_wait_scopes; }
NoWaitScope::~NoWaitScope() { --t_no_wait_scopes; }

void CheckMayWait(const char* what) {
  if (t_no_wait_scopes == 0) return;
  std::fprintf(stderr, "%s on a thread that may wait for nothing\n", what);
  std::abort();
}

}  // namespace signvote

#endif
