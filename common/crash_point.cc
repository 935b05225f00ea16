#include "common/crash_point.h"

#if defined(SIGNVOTE_CRASH_POINTS)

#include <signal.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "common/check.h"

namespace signvote {
namespace {

struct Plan {
  std::string name;  // empty: none
  uint64_t pass = 0;
};

Plan PlanFromEnvironment() {
  const char* const said = std::getenv("SIGNVOTE_CRASH_AT");
  if (said == nullptr) return {};
  const std::string text = said;
  const size_t colon = text.find(':');
  Plan plan{.name = text.substr(0, colon)};
  SIGNVOTE_CHECK(colon != std::string::npos && !plan.name.empty());
  SIGNVOTE_CHECK(absl::SimpleAtoi(text.substr(colon + 1), &plan.pass) && plan.pass > 0);
  return plan;
}

}  // namespace

void CrashPoint(std::string_view name) {
  static const Plan plan = PlanFromEnvironment();
  // Of the one point that counts; nothing else is ordered by it.
  static std::atomic<uint64_t> passes = 0;
  if (name != plan.name) return;
  if (passes.fetch_add(1, std::memory_order_relaxed) + 1 == plan.pass) (void)::raise(SIGKILL);
}

}  // namespace signvote

#else

namespace signvote {

void CrashPoint(std::string_view /*name*/) {}

}  // namespace signvote

#endif
