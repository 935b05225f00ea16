#include "worker/train/http.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"

namespace signvote {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// The whole answer to GET `path`, head included.
std::string Get(const std::string& address, const std::string& path) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    EXPECT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;)
      answer.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return answer;
}

TEST(HttpServerTest, ServesMetricsHealthAndReadiness) {
  std::atomic<bool> ready{false};
  const auto server = HttpServer::Start(
      "127.0.0.1:0", {[] { return std::string("some_metric 1\n"); }, [&] { return ready.load(); }});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  EXPECT_THAT(address, StartsWith("127.0.0.1:"));
  EXPECT_NE(address, "127.0.0.1:0");
  EXPECT_THAT(Get(address, "/healthz"), StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(Get(address, "/readyz"), StartsWith("HTTP/1.1 503"));
  ready = true;
  EXPECT_THAT(Get(address, "/readyz"), StartsWith("HTTP/1.1 200 OK"));
  const std::string metrics = Get(address, "/metrics");
  EXPECT_THAT(metrics, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(metrics, HasSubstr("\r\n\r\nsome_metric 1\n"));
  EXPECT_THAT(Get(address, "/etc/passwd"), HasSubstr(" 404 "));
}

TEST(HttpServerTest, APortInUseAndABadAddressAreToldApart) {
  const HttpHandlers handlers{[] { return std::string(); }, [] { return true; }};
  const auto first = HttpServer::Start("127.0.0.1:0", handlers);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = HttpServer::Start((*first)->address(), handlers);
  EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kPortInUse) << second.status();
  EXPECT_NE(second.status().message().find((*first)->address()), absl::string_view::npos);
  for (const char* listen :
       {"8080", ":8080", "localhost", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:x"}) {
    const auto bad = HttpServer::Start(listen, handlers);
    EXPECT_EQ(ExitCodeFor(bad.status()), ExitCode::kUsage) << listen;
  }
}

}  // namespace
}  // namespace signvote
