#include "common/host_port.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr char kSpaceAndBrackets[] = " \t\r\n[]";

bool IsHost(const std::string& host) {
  return !host.empty() && host.find_first_of(kSpaceAndBrackets) == std::string::npos;
}

bool IsPort(const std::string& text, PortZero zero, uint16_t* port) {
  uint32_t value = 0;
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || !absl::SimpleAtoi(text, &value) || value > 65535) return false;
  if (value == 0 && zero == PortZero::kRefused) return false;
  *port = static_cast<uint16_t>(value);
  return true;
}

}  // namespace

std::string HostPort::ToText() const {
  return absl::StrCat(host.find(':') != std::string::npos ? "[" + host + "]" : host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view flag, const std::string& text,
                                       PortZero zero) {
  const auto refused = [&](const std::string& remedy) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(flag), " '", text, "' is not HOST:PORT with a port from ",
                     zero == PortZero::kAllowed ? 0 : 1, " to 65535", remedy));
  };
  if (const size_t scheme = text.find("://"); scheme != std::string::npos) {
    const std::string rest = text.substr(scheme + 3);
    return refused(absl::StrCat("; leave out '", text.substr(0, scheme + 3), "' and what follows ",
                                "the port: ", rest.substr(0, rest.find('/'))));
  }
  HostPort out;
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return refused("");
  out.host = text.substr(0, colon);
  const bool bracketed = out.host.size() >= 2 && out.host.front() == '[' && out.host.back() == ']';
  if (bracketed) out.host = out.host.substr(1, out.host.size() - 2);
  const bool ipv6 = out.host.find(':') != std::string::npos;
  if (ipv6 && !bracketed) {
    return refused("; the address of IPv6 stands in brackets: [ADDRESS]:PORT, such as [::1]:7070");
  }
  if (bracketed && !ipv6) return refused("; only an address of IPv6 stands in brackets");
  if (IsHost(out.host) && IsPort(text.substr(colon + 1), zero, &out.port)) return out;
  return refused("");
}

}  // namespace signvote
