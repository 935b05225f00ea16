#pragma once
// HOST:PORT as flags have it.

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

struct HostPort {
  std::string host;  // brackets of an IPv6 address removed
  uint16_t port = 0;

  std::string ToText() const;  // brackets put back
};

// A free port to listen on is asked for by 0; nobody can dial it.
enum class PortZero { kAllowed, kRefused };

// Failure: INVALID_ARGUMENT that names `flag` and `text`.
absl::StatusOr<HostPort> ParseHostPort(std::string_view flag, const std::string& text,
                                       PortZero zero);

}  // namespace signvote
