#pragma once
// HOST:PORT, and HOST alone, as flags have them. A host is a name, an address of IPv4, or one of IPv6,
// which stands in brackets before a port. Whether there is such a host, only dialling tells.

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

// Failure: INVALID_ARGUMENT that names `flag` and `text`, and says what to give instead.
absl::StatusOr<HostPort> ParseHostPort(std::string_view flag, const std::string& text,
                                       PortZero zero);

// A host whose port is said elsewhere, or nowhere; the brackets of an IPv6 address, which may stand
// or not, are removed. Failure: as above.
absl::StatusOr<std::string> ParseHost(std::string_view flag, const std::string& text);

}  // namespace signvote
