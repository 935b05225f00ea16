#include "common/host_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(HostPort, AUrlIsToldWhatToLeaveOut) {
  const absl::Status status =
      ParseHostPort("--server", "http://train.example.net:7070/x", PortZero::kRefused).status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage);
  EXPECT_THAT(Describe(status), HasSubstr("leave out 'http://' and what follows the port: "
                                          "train.example.net:7070"));
}

TEST(HostPort, NobodyDialsPortZero) {
  const absl::StatusOr<HostPort> parsed = ParseHostPort("--server", "x:0", PortZero::kRefused);
  ASSERT_FALSE(parsed.ok());
  EXPECT_THAT(Describe(parsed.status()), HasSubstr("a port from 1 to 65535"));
}

}  // namespace
}  // namespace signvote
