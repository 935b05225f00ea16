#pragma once
// One HTTP port for machines and people: civetweb behind one file. Server and worker add their own
// routes.
//
// Ownership: owns the routes; what they refer to must outlive the server.
// Threads:   routes are called on the server's own threads, several at once.
// Strangers: each connection that is heard takes a thread and a descriptor until it has said what it
//            wants, for half a second at most. Those beyond `connections` wait in the kernel's queue,
//            in order: for half a second times their number divided by `connections`.
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

// Connections that are heard at a time.
inline constexpr uint32_t kHttpConnectionsMin = 32, kHttpConnectionsMax = 512;
// As many as fit a process that may have so many descriptors open: a thirty-second of them.
uint32_t HttpConnectionsFor(uint64_t descriptors_max);
// Descriptors that a port takes at most, its own included.
uint64_t HttpDescriptors(uint32_t connections);

inline constexpr char kPrometheusContentType[] = "text/plain; version=0.0.4; charset=utf-8";

class HttpServer {
 public:
  // `address` is HOST:PORT, an IPv6 host in brackets; port 0 takes a free one. Errors call it --http.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, HttpRoutes routes, uint32_t connections = kHttpConnectionsMin);
  // Stops; waits for what is being answered, and half a second at most for what is being read.
  virtual ~HttpServer() = default;
  virtual uint16_t port() const = 0;
  virtual std::string address() const = 0;  // HOST:PORT as bound
};

}  // namespace signvote
