#include "server/rpc/identity.h"

#include <gtest/gtest.h>

namespace signvote::rpc {
namespace {

TEST(HostOfTest, AnIpv4AddressIsAHostWhateverItsPort) {
  EXPECT_EQ(HostOf("ipv4:10.0.0.7:4711"), "10.0.0.7");
  EXPECT_EQ(HostOf("ipv4:10.0.0.7:12"), "10.0.0.7");
  EXPECT_EQ(HostOf("ipv6:[::ffff:10.0.0.7]:12"), "10.0.0.7") << "as dual-stack sockets say it";
}

TEST(HostOfTest, AllAddressesOfOneIpv6NetworkAreOneHost) {
  EXPECT_EQ(HostOf("ipv6:[2001:db8:0:7:1:2:3:4]:4711"), "2001:db8:0:7::/64");
  EXPECT_EQ(HostOf("ipv6:%5B2001:db8:0:7:ffff::9%5D:12"), "2001:db8:0:7::/64");
  EXPECT_EQ(HostOf("ipv6:[2001:db8:0:8::1]:12"), "2001:db8:0:8::/64");
  EXPECT_EQ(HostOf("ipv6:[fe80::1%eth0]:12"), "fe80::/64");
}

TEST(HostOfTest, WhatIsNoAddressIsAHostOfItsOwn) {
  EXPECT_EQ(HostOf("unix:/run/x"), "unix:/run/x");
  EXPECT_EQ(HostOf(""), "");
}

}  // namespace
}  // namespace signvote::rpc
