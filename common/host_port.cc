#include "common/host_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {
namespace {

// What no host has: parts of a URL, of a list, of a command line.
constexpr char kNoHost[] = " \t\r\n[]/?#@,;\"'";
constexpr char kScheme[] = "://";

bool IsName(const std::string& host) {
  return !host.empty() && host.find_first_of(kNoHost) == std::string::npos;
}

// With or without the interface of a link-local address (%eth0).
bool IsIpv6(const std::string& host) {
  const size_t percent = host.find('%');
  in6_addr address;
  return ::inet_pton(AF_INET6, host.substr(0, percent).c_str(), &address) == 1 &&
         (percent == std::string::npos ||
          (percent + 1 < host.size() && IsName(host.substr(percent + 1))));
}

// Such an address stands for another machine behind each interface.
bool LacksInterface(const std::string& host) {
  in6_addr address;
  return host.find('%') == std::string::npos &&
         ::inet_pton(AF_INET6, host.c_str(), &address) == 1 && IN6_IS_ADDR_LINKLOCAL(&address);
}

bool IsPort(const std::string& text, PortZero zero, uint16_t* port) {
  uint32_t value = 0;
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || !absl::SimpleAtoi(text, &value) || value > 65535) return false;
  if (value == 0 && zero == PortZero::kRefused) return false;
  *port = static_cast<uint16_t>(value);
  return true;
}

// Without the brackets around the whole; nullopt: there are none.
std::optional<std::string> WithinBrackets(const std::string& text) {
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') return std::nullopt;
  return text.substr(1, text.size() - 2);
}

// What of a URL is not its host and port: "; leave out 'http://' and '/x': host:7070"; "": it is none.
std::string UrlRemedy(const std::string& text) {
  const size_t scheme = text.find(kScheme);
  if (scheme == std::string::npos) return "";
  const size_t begin = scheme + sizeof(kScheme) - 1;
  const size_t end = text.find_first_of("/?#", begin);
  const std::string tail = end == std::string::npos ? "" : text.substr(end);
  return absl::StrCat("; leave out '", text.substr(0, begin), "'",
                      tail.empty() ? "" : absl::StrCat(" and '", tail, "'"), ": ",
                      text.substr(begin, end == std::string::npos ? end : end - begin));
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
  if (const std::string remedy = UrlRemedy(text); !remedy.empty()) return refused(remedy);
  const size_t colon = text.rfind(':');
  if (const std::optional<std::string> alone = WithinBrackets(text);
      colon == std::string::npos ? IsName(text) : alone.has_value() && IsIpv6(*alone)) {
    return refused("; the port is missing");
  }
  if (colon == std::string::npos) return refused("");
  HostPort out;
  out.host = text.substr(0, colon);
  const std::optional<std::string> bracketed = WithinBrackets(out.host);
  if (bracketed.has_value()) out.host = *bracketed;
  const bool ipv6 = out.host.find(':') != std::string::npos;
  if (ipv6 && !bracketed.has_value()) {
    return refused("; the address of IPv6 stands in brackets: [ADDRESS]:PORT, such as [::1]:7070");
  }
  if (bracketed.has_value() && !ipv6)
    return refused("; only an address of IPv6 stands in brackets");
  if (ipv6 && !IsIpv6(out.host)) return refused("; in the brackets is no address of IPv6");
  if (LacksInterface(out.host)) {
    return refused(absl::StrCat("; an address of link-local scope needs its interface: [", out.host,
                                "%eth0]"));
  }
  if (!ipv6 && !IsName(out.host)) return refused("");
  if (!IsPort(text.substr(colon + 1), zero, &out.port)) return refused("");
  return out;
}

absl::StatusOr<std::string> ParseHost(std::string_view flag, const std::string& text) {
  const std::string host = WithinBrackets(text).value_or(text);
  if (host.find(':') != std::string::npos ? IsIpv6(host) : host == text && IsName(host))
    return host;
  std::string remedy = UrlRemedy(text);
  uint16_t port = 0;
  if (const size_t colon = text.rfind(':');
      remedy.empty() && colon != std::string::npos &&
      IsPort(text.substr(colon + 1), PortZero::kAllowed, &port)) {
    remedy = absl::StrCat("; leave out '", text.substr(colon), "'");
  }
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(flag), " '", text, "' is not the name or the address of a host", remedy));
}

}  // namespace signvote
