#include "common/http/http_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <stop_token>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/http/request.h"
#include "common/mutex.h"
#include "common/net/listener.h"
#include "common/net/unique_fd.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote {
namespace {

// A route may take 2 s where the run's thread is busy; /healthz shall not wait for several of them.
constexpr int kThreads = 8;
// Connections that have not sent a whole request. Who asks does so with its first packet: a place need
// not last long, and the less it lasts the shorter is the queue outside.
constexpr WaitingRoom::Options kQuiet{.places = 128, .patience = std::chrono::milliseconds(40)};
// Those that are being answered.
constexpr size_t kAnswers = 32;
constexpr Duration kSilenceMax = std::chrono::seconds(2);
// A reader that takes nothing for this long is left.
constexpr int kSlowReaderMs = 2000;
// Descriptors that are left to files and logs.
constexpr uint64_t kReserve = 16;
// Wakes a thread that waits for work, should nobody: every wait has a bound.
constexpr Duration kLookEvery = std::chrono::seconds(10);

const char* Reason(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    default:
      return "Error";
  }
}

void SendAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (sent < 0 && errno == EAGAIN) {
      pollfd writable{fd, POLLOUT, 0};
      if (::poll(&writable, 1, kSlowReaderMs) <= 0) return;
    } else if (!(sent < 0 && errno == EINTR)) {
      return;  // the peer has gone
    }
  }
}

class ListeningHttpServer final : public HttpServer {
 public:
  ListeningHttpServer(HttpRoutes routes, HostPort at, std::unique_ptr<Listener> listener)
      : routes_(std::move(routes)),
        address_{std::move(at.host), listener->port()},
        listener_(std::move(listener)) {
    for (int i = 0; i < kThreads; ++i) {
      threads_.emplace_back([this](const std::stop_token& stop) { Work(stop); });
    }
    listener_->Start([this](int fd) {
      MutexLock lock(&mu_);
      asked_.emplace_back(fd);
      work_.NotifyOne();
    });
  }
  ~ListeningHttpServer() override {
    listener_->Stop();
    for (std::jthread& thread : threads_) thread.request_stop();
    {
      MutexLock lock(&mu_);
      asked_.clear();
    }
    work_.NotifyAll();
    threads_.clear();
  }

  uint16_t port() const override { return address_.port; }
  std::string address() const override { return address_.ToText(); }

 private:
  void Work(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      UniqueFd fd;
      {
        MutexLock lock(&mu_);
        (void)work_.WaitUntil(&mu_, Clock::System(), Clock::System()->Now() + kLookEvery,
                              [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                                return stop.stop_requested() || !asked_.empty();
                              });
        if (asked_.empty()) continue;
        fd = std::move(asked_.front());
        asked_.pop_front();
      }
      Answer(fd.get());
    }
  }

  void Answer(int fd) const {
    char head[Listener::kFirstWordsMax];
    const ssize_t got = ::recv(fd, head, sizeof(head), MSG_DONTWAIT);
    if (got <= 0) return;  // the peer has gone
    bool body = true;
    const HttpResponse response = Respond({head, static_cast<size_t>(got)}, &body);
    SendAll(fd, absl::StrCat("HTTP/1.1 ", response.code, " ", Reason(response.code),
                             "\r\nContent-Type: ", response.content_type,
                             "\r\nContent-Length: ", response.body.size(),
                             response.code == 405 ? "\r\nAllow: GET, HEAD" : "",
                             "\r\nConnection: close\r\n\r\n", body ? response.body : ""));
    (void)::shutdown(fd, SHUT_WR);  // fails where the peer has gone
    // Closed with bytes unread, a connection is reset, and the answer may be lost with it.
    for (int i = 0; i < 16 && ::recv(fd, head, sizeof(head), MSG_DONTWAIT) > 0; ++i) continue;
  }

  HttpResponse Respond(std::string_view head, bool* body) const {
    if (!IsWholeHead(head)) return {.code = 431, .body = "the head of the request is too long\n"};
    const absl::StatusOr<HttpRequest> request = ParseHttpRequest(head);
    if (!request.ok()) return {.code = 400, .body = Describe(request.status()) + "\n"};
    *body = request->method != "HEAD";
    if (request->method != "GET" && request->method != "HEAD") {
      return {.code = 405, .body = "only GET and HEAD are answered\n"};
    }
    const auto route = routes_.find(request->path);
    if (route == routes_.end()) return {.code = 404, .body = "there is nothing at this path\n"};
    return route->second();
  }

  // Constant after construction.
  const HttpRoutes routes_;
  const HostPort address_;
  const std::unique_ptr<Listener> listener_;

  Mutex mu_;
  CondVar work_;
  std::deque<UniqueFd> asked_ ABSL_GUARDED_BY(mu_);  // bounded by the listener's places

  std::vector<std::jthread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              HttpRoutes routes,
                                                              const std::string& flag) {
  SIGNVOTE_ASSIGN_OR_RETURN(HostPort at, ParseHostPort(flag, address, PortZero::kAllowed));
  Clock* const clock = Clock::System();
  // Who is drawn need not be a secret here.
  const Rng rng(static_cast<uint64_t>(clock->UnixMicros()), 0);
  absl::StatusOr<std::unique_ptr<Listener>> listener =
      Listener::Bind({.address = at,
                      .quiet = kQuiet,
                      .greeting = {.places = kAnswers, .patience = kSilenceMax},
                      .quiet_max = kSilenceMax,
                      .enough = &IsWholeHead,
                      .descriptors_max = DescriptorLimit(),
                      .descriptors_reserved = kReserve},
                     rng, clock);
  if (!listener.ok()) {
    return WithExitCode(absl::UnavailableError(absl::StrCat(
                            "cannot serve HTTP on ", address,
                            ": the port is in use, or the address is another machine's (",
                            listener.status().message(), "); choose another address with ", flag,
                            " (port 0 takes a free one)")),
                        ExitCode::kPortInUse);
  }
  return std::make_unique<ListeningHttpServer>(std::move(routes), std::move(at),
                                               *std::move(listener));
}

}  // namespace signvote
