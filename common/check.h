#pragma once
// SIGNVOTE_CHECK: always-on invariants. A failure is a bug of ours, never something that disk,
// network, GPU or flags can cause (those are an absl::Status).

namespace signvote {

// Prints the failed condition with its place on stderr and aborts.
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace signvote

#define SIGNVOTE_CHECK(condition)                              \
  do {                                                         \
    if (!(condition)) [[unlikely]] {                           \
      ::signvote::CheckFailed(#condition, __FILE__, __LINE__); \
    }                                                          \
  } while (false)
