#include "proto/wire/socket_bytes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace signvote::wire {
namespace {

// A TCP connection of this process to itself.
struct Loop {
  int listener = -1, client = -1, server = -1;
  uint16_t port = 0, client_port = 0;

  explicit Loop(int family = AF_INET) {
    sockaddr_storage storage{};
    socklen_t size;
    if (family == AF_INET) {
      auto* in = reinterpret_cast<sockaddr_in*>(&storage);
      in->sin_family = AF_INET;
      in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      size = sizeof(sockaddr_in);
    } else {
      auto* in6 = reinterpret_cast<sockaddr_in6*>(&storage);
      in6->sin6_family = AF_INET6;
      in6->sin6_addr = in6addr_loopback;
      size = sizeof(sockaddr_in6);
    }
    listener = socket(family, SOCK_STREAM, 0);
    if (bind(listener, reinterpret_cast<sockaddr*>(&storage), size) != 0 ||
        listen(listener, 4) != 0)
      return;
    getsockname(listener, reinterpret_cast<sockaddr*>(&storage), &size);
    port = ntohs(reinterpret_cast<sockaddr_in*>(&storage)->sin_port);
    client = socket(family, SOCK_STREAM, 0);
    if (connect(client, reinterpret_cast<sockaddr*>(&storage), size) != 0) return;
    server = accept(listener, nullptr, nullptr);
    getsockname(client, reinterpret_cast<sockaddr*>(&storage), &size);
    client_port = ntohs(reinterpret_cast<sockaddr_in*>(&storage)->sin_port);
  }
  ~Loop() {
    for (const int fd : {listener, client, server}) {
      if (fd >= 0) close(fd);
    }
  }
  std::string ServerAsPeer() const { return "ipv4:127.0.0.1:" + std::to_string(port); }
  void SendUp(size_t bytes) const {
    const std::string data(bytes, 'x');
    std::string back(bytes, 0);
    ASSERT_EQ(send(client, data.data(), bytes, 0), static_cast<ssize_t>(bytes));
    ASSERT_EQ(recv(server, back.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes));
  }
};

TEST(SocketByteCounterTest, CountsExactlyWhatTheConnectionMoved) {
  const Loop loop;
  ASSERT_GE(loop.server, 0);
  SocketByteCounter client(loop.ServerAsPeer(), 0);
  SocketByteCounter server("ipv4:127.0.0.1:" + std::to_string(loop.client_port), loop.port);
  const auto before = client.Read();
  const auto server_before = server.Read();
  ASSERT_TRUE(before.has_value());
  ASSERT_TRUE(server_before.has_value());
  loop.SendUp(10000);
  loop.SendUp(2345);
  EXPECT_EQ(server.Read()->received - server_before->received, 12345u);
  // Acknowledgements may trail behind by a delayed ACK.
  uint64_t sent = 0;
  for (int i = 0; i < 4000 && sent != 12345; ++i) {
    sent = client.Read()->sent - before->sent;
    usleep(5000);
  }
  EXPECT_EQ(sent, 12345u);
  EXPECT_EQ(client.Read()->received, before->received);
}

void Mark(int fd, uint32_t mark) {
  ASSERT_EQ(setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &mark, sizeof(mark)), 0);
}

TEST(SocketByteCounterTest, ConnectionsToOnePeerAreToldApartByTheirMarks) {
  const Loop loop;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(loop.port);
  const int second = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(connect(second, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  constexpr uint32_t kA = SocketByteCounter::kMarkFirst, kB = kA + SocketByteCounter::kMarks - 1;
  EXPECT_FALSE(SocketByteCounter(loop.ServerAsPeer(), 0).Read().has_value()) << "two are alike";
  EXPECT_FALSE(SocketByteCounter(loop.ServerAsPeer(), 0, kA).Read().has_value());
  Mark(loop.client, kA);
  Mark(second, kB);
  SocketByteCounter a(loop.ServerAsPeer(), 0, kA), b(loop.ServerAsPeer(), 0, kB);
  ASSERT_TRUE(a.Read().has_value());
  ASSERT_TRUE(b.Read().has_value());
  const std::string data(1000, 'x');
  std::string back(1000, 0);
  ASSERT_EQ(send(loop.server, data.data(), data.size(), 0), 1000);
  ASSERT_EQ(recv(loop.client, back.data(), back.size(), MSG_WAITALL), 1000);
  EXPECT_EQ(a.Read()->received, 1000u);
  EXPECT_EQ(b.Read()->received, 0u);
  EXPECT_FALSE(SocketByteCounter(loop.ServerAsPeer(), 0, kA + 1).Read().has_value())
      << "both are somebody else's";
  Mark(second, 0);
  EXPECT_TRUE(SocketByteCounter(loop.ServerAsPeer(), 0, kA + 1).Read().has_value())
      << "the one without a mark";
  close(second);
}

TEST(SocketByteCounterTest, AReusedDescriptorIsNotMistakenForTheConnection) {
  auto loop = std::make_unique<Loop>();
  SocketByteCounter counter(loop->ServerAsPeer(), 0);
  ASSERT_TRUE(counter.Read().has_value());
  loop.reset();
  const Loop other;  // takes the same descriptor numbers
  EXPECT_FALSE(counter.Read().has_value());
}

TEST(SocketByteCounterTest, Ipv6PeersAreFoundInBothSpellings) {
  const Loop loop(AF_INET6);
  if (loop.server < 0) GTEST_SKIP() << "no IPv6 on this machine";
  EXPECT_TRUE(
      SocketByteCounter("ipv6:%5B::1%5D:" + std::to_string(loop.port), 0).Read().has_value());
  EXPECT_TRUE(SocketByteCounter("ipv6:[::1]:" + std::to_string(loop.port), 0).Read().has_value());
}

TEST(SocketByteCounterTest, UnknownPeersHaveNoBytes) {
  const std::vector<std::string> peers = {
      "",          "unix:/tmp/x",     "ipv4:127.0.0.1:1", "ipv4:127.0.0.1:99999",
      "ipv4:x:80", "ipv6:[zz]:4711",  "ipv6:%5",          "ipv4:",
      ":",         "ipv4:127.0.0.1:", "ipv6:[]:1"};
  for (const std::string& peer : peers)
    EXPECT_FALSE(SocketByteCounter(peer, 0).Read().has_value()) << peer;
}

}  // namespace
}  // namespace signvote::wire
