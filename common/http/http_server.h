#pragma once
// One HTTP port for machines and people: civetweb behind one file. Server and worker add their own
// routes.
//
// Ownership: owns the routes; what they refer to must outlive the server.
// Threads:   routes are called on the server's own threads, several at once.
// Failure:   Start returns INVALID_ARGUMENT when the address is not HOST:PORT, and UNAVAILABLE with
//            exit code kPortInUse when it cannot be bound. Other paths answer 404.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace signvote {

struct HttpResponse {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};
// By exact path, e.g. "/metrics". GET only.
using HttpRoutes = std::map<std::string, std::function<HttpResponse()>>;

inline constexpr char kPrometheusContentType[] = "text/plain; version=0.0.4; charset=utf-8";

class HttpServer {
 public:
  // `address` is HOST:PORT, an IPv6 host in brackets; port 0 takes a free one. `flag` names the
  // address in errors.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           HttpRoutes routes,
                                                           const std::string& flag = "--http");
  // Stops; waits for requests in progress, each bounded by the 5 s request timeout.
  virtual ~HttpServer() = default;
  virtual uint16_t port() const = 0;
  virtual std::string address() const = 0;  // HOST:PORT as bound
};

}  // namespace signvote
