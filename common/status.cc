#include "common/status.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/cord.h"
#include "common/check.h"

namespace signvote {

absl::Status WithContext(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  std::string message(context);
  message += ": ";
  message += ToStd(status.message());
  absl::Status out(status.code(), message);
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { out.SetPayload(url, payload); });
  return out;
}

std::string Describe(const absl::Status& status) {
  std::string text = absl::StatusCodeToString(status.code());
  if (!status.message().empty()) {
    text += ": ";
    text += ToStd(status.message());
  }
  return text;
}

void CheckFailed(const char* condition, const char* file, int line) {
  // stdio, not the log: a failed invariant must not depend on anything that can itself fail.
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace signvote
