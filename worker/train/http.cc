#include "worker/train/http.h"

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

#include <CivetServer.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"

namespace signvote {
namespace {

class CivetHttpServer : public HttpServer {
 public:
  // Throws CivetException; Start() catches it.
  CivetHttpServer(const std::string& host, const std::string& port, HttpHandlers handlers)
      : host_(host),
        handlers_(std::move(handlers)),
        metrics_(this, &CivetHttpServer::Metrics),
        health_(this, &CivetHttpServer::Health),
        ready_(this, &CivetHttpServer::Ready),
        server_(std::vector<std::string>{"listening_ports", absl::StrCat(host, ":", port),
                                         "num_threads", "2", "request_timeout_ms", "5000",
                                         "enable_directory_listing", "no"}) {
    server_.addHandler("/metrics", metrics_);
    server_.addHandler("/healthz", health_);
    server_.addHandler("/readyz", ready_);
  }

  std::string address() const override {
    // Not const in civetweb's wrapper, although it only reads.
    const std::vector<int> ports = const_cast<CivetServer&>(server_).getListeningPorts();
    return absl::StrCat(host_, ":", ports.empty() ? 0 : ports[0]);
  }

 private:
  struct Answer {
    int code;
    const char* type;
    std::string body;
  };
  using Make = Answer (CivetHttpServer::*)() const;

  class Handler : public CivetHandler {
   public:
    Handler(const CivetHttpServer* server, Make make) : server_(server), make_(make) {}
    bool handleGet(CivetServer*, mg_connection* connection) override {
      const Answer answer = (server_->*make_)();
      mg_printf(
          connection,
          "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
          answer.code, answer.code == 200 ? "OK" : "Service Unavailable", answer.type,
          answer.body.size());
      mg_write(connection, answer.body.data(), answer.body.size());
      return true;
    }

   private:
    const CivetHttpServer* const server_;
    const Make make_;
  };

  Answer Metrics() const {
    return {200, "text/plain; version=0.0.4; charset=utf-8", handlers_.metrics()};
  }
  Answer Health() const { return {200, "text/plain", "ok\n"}; }
  Answer Ready() const {
    if (handlers_.ready()) return {200, "text/plain", "ready\n"};
    return {503, "text/plain", "not joined\n"};
  }

  const std::string host_;
  const HttpHandlers handlers_;
  Handler metrics_, health_, ready_;
  CivetServer server_;  // last: its threads use the handlers
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& listen,
                                                              HttpHandlers handlers) {
  const size_t colon = listen.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("--http ", listen, ": give HOST:PORT, or off"));
  }
  const std::string host = listen.substr(0, colon);
  try {
    return std::unique_ptr<HttpServer>(
        std::make_unique<CivetHttpServer>(host, listen.substr(colon + 1), std::move(handlers)));
  } catch (const std::exception& e) {
    return WithExitCode(
        absl::UnavailableError(absl::StrCat("--http ", listen,
                                            ": cannot listen there; is the port in "
                                            "use, or the address another machine's? Port 0 takes a "
                                            "free one")),
        ExitCode::kPortInUse);
  }
}

}  // namespace signvote
