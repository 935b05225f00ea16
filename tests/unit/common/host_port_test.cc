#include "common/host_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>

#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

TEST(HostPort, NamesAddressesAndBracketsAreTaken) {
  const std::tuple<const char*, const char*, uint16_t, const char*> cases[] = {
      {"localhost:7070", "localhost", 7070, "localhost:7070"},
      {"192.0.2.1:1", "192.0.2.1", 1, "192.0.2.1:1"},
      {"[::1]:65535", "::1", 65535, "[::1]:65535"},
      {"0.0.0.0:0", "0.0.0.0", 0, "0.0.0.0:0"},
  };
  for (const auto& [text, host, port, again] : cases) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort("--listen", text, PortZero::kAllowed);
    ASSERT_TRUE(parsed.ok()) << Describe(parsed.status());
    EXPECT_EQ(parsed->host, host);
    EXPECT_EQ(parsed->port, port);
    EXPECT_EQ(parsed->ToText(), again);
  }
}

TEST(HostPort, WhatIsNoneIsNamedWithItsFlag) {
  for (const char* text : {"", ":", "x", "x:", ":1", "x:65536", "x:99999999999999999999", "x:-1",
                           "x:+1", "x:0x10", "x:1 ", "a b:1", "[::1:0", "[]:1", "[::1]", "::1:x"}) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort("--http", text, PortZero::kAllowed);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(ExitCodeFor(parsed.status()), ExitCode::kUsage);
    EXPECT_THAT(Describe(parsed.status()),
                HasSubstr("--http '" + std::string(text) +
                          "' is not HOST:PORT with a port from 0 to 65535"));
  }
}

TEST(HostPort, AnAddressOfIpv6NeedsItsBrackets) {
  for (const char* text : {"::1", "::1:7070", "2001:db8::1:7070", "fe80::1%eth0:7070"}) {
    EXPECT_THAT(Describe(ParseHostPort("--server", text, PortZero::kRefused).status()),
                HasSubstr("in brackets: [ADDRESS]:PORT"))
        << text;
  }
  EXPECT_THAT(Describe(ParseHostPort("--server", "[host]:1", PortZero::kRefused).status()),
              HasSubstr("only an address of IPv6 stands in brackets"));
}

TEST(HostPort, WhatStandsInBracketsIsAnAddressOfIpv6) {
  EXPECT_EQ(ParseHostPort("--server", "[fe80::1%eth0]:1", PortZero::kRefused)->host,
            "fe80::1%eth0");
  for (const char* text : {"[zz::1]:1", "[1:2]:1", "[::1::]:1", "[::1/64]:1"}) {
    EXPECT_THAT(Describe(ParseHostPort("--server", text, PortZero::kRefused).status()),
                HasSubstr("in the brackets is no address of IPv6"))
        << text;
  }
}

TEST(HostPort, AnAddressOfLinkLocalScopeNeedsItsInterface) {
  EXPECT_THAT(Describe(ParseHostPort("--server", "[fe80::1]:1", PortZero::kRefused).status()),
              HasSubstr("an address of link-local scope needs its interface: [fe80::1%eth0]"));
  for (const char* text : {"[fe80::1%]:1", "[fe80::1%a b]:1", "[fe80::1%/]:1"}) {
    EXPECT_THAT(Describe(ParseHostPort("--server", text, PortZero::kRefused).status()),
                HasSubstr("in the brackets is no address of IPv6"))
        << text;
  }
  // As a name alone it may be a certificate's.
  EXPECT_TRUE(ParseHost("--server-name", "fe80::1").ok());
}

TEST(HostPort, AMissingPortIsSaidToBeMissing) {
  for (const char* text : {"localhost", "192.0.2.1", "[::1]", "[2001:db8::1]"}) {
    EXPECT_THAT(Describe(ParseHostPort("--server", text, PortZero::kRefused).status()),
                HasSubstr("from 1 to 65535; the port is missing"))
        << text;
  }
}

TEST(HostPort, AUrlIsToldWhatToLeaveOut) {
  const std::pair<const char*, const char*> cases[] = {
      {"http://train.example.net:7070/x", "; leave out 'http://' and '/x': train.example.net:7070"},
      {"https://[::1]:7070", "; leave out 'https://': [::1]:7070"},
      {"grpc://head:1?a=b", "; leave out 'grpc://' and '?a=b': head:1"},
  };
  for (const auto& [text, remedy] : cases) {
    const absl::Status status = ParseHostPort("--server", text, PortZero::kRefused).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage);
    EXPECT_TRUE(Describe(status).ends_with(remedy)) << status;
  }
}

TEST(HostPort, PartsOfAUrlOrOfAListAreNoHost) {
  for (const char* text : {"head/x:1", "me@head:1", "head,other:1", "head#x:1", "'head':1"}) {
    EXPECT_FALSE(ParseHostPort("--server", text, PortZero::kRefused).ok()) << text;
  }
}

TEST(Host, ANameOrAnAddressIsTakenWithOrWithoutBrackets) {
  const std::pair<const char*, const char*> cases[] = {
      {"localhost", "localhost"}, {"gpu_1.example", "gpu_1.example"},
      {"0.0.0.0", "0.0.0.0"},     {"::", "::"},
      {"[::1]", "::1"},           {"fe80::1%eth0", "fe80::1%eth0"},
  };
  for (const auto& [text, host] : cases) {
    const absl::StatusOr<std::string> parsed = ParseHost("--insecure-bind", text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, host);
  }
}

TEST(Host, WhatIsNoneIsNamedWithWhatToLeaveOut) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "' is not the name or the address of a host"},
      {"127.0.0.1:7070", "of a host; leave out ':7070'"},
      {"[::1]:7070", "of a host; leave out ':7070'"},
      {"http://head", "of a host; leave out 'http://': head"},
      {"[head]", "of a host"},
      {"a b", "of a host"},
  };
  for (const auto& [text, what] : cases) {
    const absl::Status status = ParseHost("--insecure-bind", text).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage);
    EXPECT_TRUE(Describe(status).ends_with(what)) << status;
    EXPECT_THAT(Describe(status), HasSubstr("--insecure-bind '" + std::string(text) + "'"));
  }
}

TEST(HostPort, NobodyDialsPortZero) {
  const absl::StatusOr<HostPort> parsed = ParseHostPort("--server", "x:0", PortZero::kRefused);
  ASSERT_FALSE(parsed.ok());
  EXPECT_THAT(Describe(parsed.status()), HasSubstr("a port from 1 to 65535"));
}

}  // namespace
}  // namespace signvote
