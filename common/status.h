#pragma once
// absl::Status for the whole project: the two macros, and the string edge between std and absl.
//
// Debian builds Abseil with its own string_view, which neither converts to nor from
// std::string_view. Our interfaces speak std types; these helpers are the one place that crosses
// over.

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace signvote {

inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }

// Returns `status` with "context: " put before its message; OK stays OK. Payloads are kept.
absl::Status WithContext(const absl::Status& status, std::string_view context);

// One line for a person: "INVALID_ARGUMENT: text".
std::string Describe(const absl::Status& status);

}  // namespace signvote

#define SIGNVOTE_CONCAT_INNER(a, b) a##b
#define SIGNVOTE_CONCAT(a, b) SIGNVOTE_CONCAT_INNER(a, b)

#define SIGNVOTE_RETURN_IF_ERROR(expr)                                               \
  do {                                                                               \
    if (absl::Status signvote_status = (expr); !signvote_status.ok()) [[unlikely]] { \
      return signvote_status;                                                        \
    }                                                                                \
  } while (false)

#define SIGNVOTE_ASSIGN_OR_RETURN(lhs, expr) \
  SIGNVOTE_ASSIGN_OR_RETURN_IMPL(SIGNVOTE_CONCAT(signvote_statusor_, __LINE__), lhs, expr)

#define SIGNVOTE_ASSIGN_OR_RETURN_IMPL(var, lhs, expr) \
  auto var = (expr);                                   \
  if (!var.ok()) [[unlikely]] {                        \
    return std::move(var).status();                    \
  }                                                    \
  lhs = *std::move(var)
