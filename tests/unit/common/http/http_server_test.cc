#include "common/http/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

std::string Ask(uint16_t port, const std::string& method, const std::string& path) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request =
      method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;)
    answer.append(buffer, static_cast<size_t>(n));
  ::close(fd);
  return answer;
}
std::string Get(uint16_t port, const std::string& path) { return Ask(port, "GET", path); }

TEST(HttpServerTest, HeadAnswersAsGetDoesWithoutTheBody) {
  auto server =
      HttpServer::Start("127.0.0.1:0", {{"/healthz", [] { return HttpResponse{.body = "ok\n"}; }}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string head = Ask((*server)->port(), "HEAD", "/healthz");
  EXPECT_TRUE(head.starts_with("HTTP/1.1 200 OK\r\n")) << head;
  EXPECT_NE(head.find("Content-Length: 3\r\n"), std::string::npos) << head;
  EXPECT_TRUE(head.ends_with("\r\n\r\n")) << head;
  EXPECT_EQ(head + "ok\n", Get((*server)->port(), "/healthz"));
}

TEST(HttpServerTest, RoutesAnswerWithTheirCodeTypeAndBody) {
  auto server =
      HttpServer::Start("127.0.0.1:0", {{"/a",
                                         [] {
                                           return HttpResponse{200, "text/x", "alpha"};
                                         }},
                                        {"/b", [] {
                                           return HttpResponse{503, "text/plain", "not yet"};
                                         }}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string a = Get((*server)->port(), "/a");
  EXPECT_TRUE(a.starts_with("HTTP/1.1 200 OK\r\n")) << a;
  EXPECT_NE(a.find("Content-Type: text/x\r\n"), std::string::npos);
  EXPECT_TRUE(a.ends_with("\r\n\r\nalpha"));
  EXPECT_TRUE(Get((*server)->port(), "/b").starts_with("HTTP/1.1 503 "));
}

TEST(HttpServerTest, UnknownPathsAnswerNotFound) {
  auto server = HttpServer::Start("127.0.0.1:0", {{"/a", [] { return HttpResponse{}; }}});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Get((*server)->port(), "/").starts_with("HTTP/1.1 404 "));
  EXPECT_TRUE(Get((*server)->port(), "/ab").starts_with("HTTP/1.1 404 "));
}

TEST(HttpServerTest, ATakenPortIsAnErrorWithItsExitCode) {
  auto first = HttpServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = HttpServer::Start((*first)->address(), {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kPortInUse);
}

// With 64 heard at a time those behind 300 wait for 2 s or so.
TEST(HttpServerTest, StrangersThatSayLittleKeepOthersWaitingForSecondsAtMost) {
  for (const std::string words : {"", "GET /healthz HT"}) {
    auto server = HttpServer::Start(
        "127.0.0.1:0", {{"/healthz", [] { return HttpResponse{.body = "ok\n"}; }}}, 64);
    ASSERT_TRUE(server.ok()) << server.status();
    std::vector<int> strangers;
    for (int i = 0; i < 300; ++i) {
      strangers.push_back(::socket(AF_INET, SOCK_STREAM, 0));
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons((*server)->port());
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      ASSERT_EQ(::connect(strangers.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)),
                0);
      ASSERT_EQ(::send(strangers.back(), words.data(), words.size(), 0),
                static_cast<ssize_t>(words.size()));
    }
    const Time start = Clock::System()->Now();
    EXPECT_NE(Get((*server)->port(), "/healthz").find("ok"), std::string::npos);
    EXPECT_LT(ToSeconds(Clock::System()->Now() - start), 8.0) << "'" << words << "'";
    for (const int fd : strangers) ::close(fd);
  }
}

TEST(HttpServerTest, ConnectionsAndDescriptorsFitTheProcess) {
  EXPECT_EQ(HttpConnectionsFor(20), 32u);
  EXPECT_EQ(HttpConnectionsFor(1024), 32u);
  EXPECT_EQ(HttpConnectionsFor(4096), 128u);
  EXPECT_EQ(HttpConnectionsFor(65'536), 512u);
  EXPECT_EQ(HttpConnectionsFor(UINT64_MAX), 512u);
  EXPECT_LE(HttpDescriptors(32), 54u);
}

// Every program pays this at its end. The poll lasts 2 s from the start on, every time; a machine
// that is busy with something else is not so every time.
TEST(HttpServerTest, StoppingDoesNotWaitForTheLibrarysPoll) {
  for (const char* address : {"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"}) {
    bool at_once = false;
    for (int i = 0; i < 5 && !at_once; ++i) {
      auto server = HttpServer::Start(address, {{"/a", [] { return HttpResponse{}; }}});
      if (!server.ok() && std::string(address).starts_with("[")) {
        // A civetweb or a machine without IPv6.
        EXPECT_NE(Describe(server.status()).find(address), std::string::npos);
        at_once = true;
        continue;
      }
      ASSERT_TRUE(server.ok()) << server.status();
      const Time start = Clock::System()->Now();
      server->reset();
      at_once = ToSeconds(Clock::System()->Now() - start) < 1.0;
    }
    EXPECT_TRUE(at_once) << address;
  }
}

TEST(HttpServerTest, AnAddressWithoutPortIsRefused) {
  for (const char* address : {"", "8080", "localhost", ":80", "127.0.0.1:", "h:port", "h:70000"}) {
    EXPECT_EQ(HttpServer::Start(address, {}).status().code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
}

}  // namespace
}  // namespace signvote
