#include "common/http/http_server.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include <CivetServer.h>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/mutex.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr char kFlag[] = "--http";
// Whoever connects speaks at once: its request comes right behind the handshake, unless it was lost.
constexpr char kSilenceMs[] = "500";
// Who waits for a thread waits with the kernel, which turns nobody away before its queue is full
// (net.core.somaxconn); of civetweb's own queue each place takes a descriptor.
constexpr char kBacklog[] = "4096";
constexpr uint64_t kQueued = 20;
constexpr uint64_t kOwnDescriptors = 2;  // it listens, and wakes itself at the end
constexpr uint64_t kDescriptorsPerConnection = 32;
constexpr Duration kWakePeriod = std::chrono::milliseconds(10);

// Orders the making of a route before its first request. civetweb's own locks do that too, but
// ThreadSanitizer cannot see into the library.
Mutex publishing;

class RouteHandler : public CivetHandler {
 public:
  explicit RouteHandler(std::function<HttpResponse()> route) : route_(std::move(route)) {}
  bool handleGet(CivetServer*, mg_connection* connection) override {
    return Answer(connection, Body::kSent);
  }
  // The same headers; probes of load balancers ask like this.
  bool handleHead(CivetServer*, mg_connection* connection) override {
    return Answer(connection, Body::kLeftOut);
  }

 private:
  enum class Body { kSent, kLeftOut };

  bool Answer(mg_connection* connection, Body body) {
    { MutexLock ordered(&publishing); }
    const HttpResponse response = route_();
    mg_printf(
        connection,
        "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
        response.code, mg_get_response_code_text(connection, response.code),
        response.content_type.c_str(), response.body.size());
    if (body == Body::kSent) mg_write(connection, response.body.data(), response.body.size());
    return true;
  }

  const std::function<HttpResponse()> route_;
};

class CivetHttpServer final : public HttpServer {
 public:
  // Throws CivetException when the address cannot be bound; Start() catches it.
  CivetHttpServer(const std::string& host, const std::string& port, HttpRoutes routes,
                  uint32_t connections)
      : host_(host),
        server_(std::vector<std::string>{
            "listening_ports", absl::StrCat(host, ":", port), "num_threads",
            absl::StrCat(connections), "connection_queue", absl::StrCat(kQueued), "listen_backlog",
            kBacklog, "request_timeout_ms", kSilenceMs, "enable_directory_listing", "no"}) {
    MutexLock ordered(&publishing);
    handlers_.reserve(routes.size());
    for (auto& [path, route] : routes) {
      handlers_.push_back(std::make_unique<RouteHandler>(std::move(route)));
      server_.addHandler(path + "$", *handlers_.back());
    }
    const std::vector<int> ports = server_.getListeningPorts();
    port_ = ports.empty() ? 0 : static_cast<uint16_t>(ports[0]);
  }
  ~CivetHttpServer() override {
    // civetweb looks for its end when its poll returns: after 2 s, or at the next connection, which
    // comes from here.
    std::jthread waker([this](std::stop_token closed) {
      while (!closed.stop_requested()) {
        char error[128] = "";
        mg_connection* const connection =
            mg_connect_client(BareHost().c_str(), port_, 0, error, sizeof(error));
        if (connection != nullptr) mg_close_connection(connection);
        Clock::System()->SleepFor(kWakePeriod);
      }
    });
    server_.close();
  }

  uint16_t port() const override { return port_; }
  std::string address() const override { return absl::StrCat(host_, ":", port_); }

 private:
  // Without the brackets of an IPv6 address.
  std::string BareHost() const {
    return host_.starts_with('[') && host_.ends_with(']') ? host_.substr(1, host_.size() - 2)
                                                          : host_;
  }

  const std::string host_;
  std::vector<std::unique_ptr<RouteHandler>> handlers_;
  CivetServer server_;
  uint16_t port_ = 0;
};

}  // namespace

uint32_t HttpConnectionsFor(uint64_t descriptors_max) {
  return static_cast<uint32_t>(std::clamp<uint64_t>(descriptors_max / kDescriptorsPerConnection,
                                                    kHttpConnectionsMin, kHttpConnectionsMax));
}

uint64_t HttpDescriptors(uint32_t connections) { return connections + kQueued + kOwnDescriptors; }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              HttpRoutes routes,
                                                              uint32_t connections) {
  SIGNVOTE_ASSIGN_OR_RETURN(const HostPort parsed,
                            ParseHostPort(kFlag, address, PortZero::kAllowed));
  const bool ipv6 = parsed.host.find(':') != std::string::npos;
  if (ipv6 && mg_check_feature(MG_FEATURES_IPV6) == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        kFlag, " ", address, ": this machine's civetweb serves IPv4 only; give an IPv4 address"));
  }
  try {
    return std::unique_ptr<HttpServer>(std::make_unique<CivetHttpServer>(
        ipv6 ? absl::StrCat("[", parsed.host, "]") : parsed.host, absl::StrCat(parsed.port),
        std::move(routes), connections));
  } catch (const std::exception&) {
    return WithExitCode(
        absl::UnavailableError(absl::StrCat("cannot serve HTTP on ", address,
                                            ": the port is in use, or the address is "
                                            "another machine's; choose another address with ",
                                            kFlag, " (port 0 takes a free one)")),
        ExitCode::kPortInUse);
  }
}

}  // namespace signvote
