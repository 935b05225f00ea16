#include "common/net/endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>

#include <gtest/gtest.h>

namespace signvote {
namespace {

sockaddr_storage Ipv4(const char* host, uint16_t port) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_port = htons(port);
  inet_pton(AF_INET, host, &in.sin_addr);
  sockaddr_storage storage{};
  std::memcpy(&storage, &in, sizeof(in));
  return storage;
}

sockaddr_storage Ipv6(const char* host, uint16_t port) {
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  inet_pton(AF_INET6, host, &in6.sin6_addr);
  sockaddr_storage storage{};
  std::memcpy(&storage, &in6, sizeof(in6));
  return storage;
}

TEST(EndpointTest, APeersTextNamesTheSocketsAddress) {
  EXPECT_EQ(EndpointOfPeer("ipv4:10.1.2.3:4711"), EndpointOf(Ipv4("10.1.2.3", 4711)));
  EXPECT_EQ(EndpointOfPeer("ipv6:%5B::1%5D:4711"), EndpointOf(Ipv6("::1", 4711)));
  EXPECT_EQ(EndpointOfPeer("ipv6:[2001:db8::7]:1"), EndpointOf(Ipv6("2001:db8::7", 1)));
  EXPECT_EQ(EndpointOfPeer("ipv6:%5Bfe80::1%25eth0%5D:9"), EndpointOf(Ipv6("fe80::1", 9)));
  EXPECT_NE(EndpointOfPeer("ipv4:10.1.2.3:4711"), EndpointOf(Ipv4("10.1.2.3", 4712)));
  EXPECT_NE(EndpointOfPeer("ipv4:10.1.2.3:4711"), EndpointOf(Ipv4("10.1.2.4", 4711)));
}

TEST(EndpointTest, AnIpv4PeerOfADualStackSocketIsTheSameOne) {
  EXPECT_EQ(EndpointOfPeer("ipv4:10.1.2.3:4711"), EndpointOf(Ipv6("::ffff:10.1.2.3", 4711)));
}

TEST(EndpointTest, WhatIsNoTcpPeerIsNone) {
  for (const char* text : {"", "unix:/run/x", "ipv4:10.1.2.3", "ipv4:10.1.2.3:0", "ipv4:a.b:1",
                           "ipv4:10.1.2.3:70000", "ipv6:::1:5", "ipv6:%5B::1%5D:", "fd:7"}) {
    EXPECT_FALSE(EndpointOfPeer(text).has_value()) << text;
  }
  EXPECT_FALSE(EndpointOf(sockaddr_storage{}).has_value());
}

}  // namespace
}  // namespace signvote
