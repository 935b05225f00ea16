#pragma once
// The worker's own HTTP port: /metrics for Prometheus, /healthz (the process lives), /readyz (it has joined a run and
// is connected).

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace signvote {

struct HttpHandlers {
  std::function<std::string()> metrics;
  std::function<bool()> ready;
};

// Serves until destroyed. Threads: handlers are called on the server's own threads, several at once.
class HttpServer {
 public:
  virtual ~HttpServer() = default;
  virtual std::string address() const = 0;  // host:port, the port as bound

  // `listen` is HOST:PORT; port 0 takes a free one. INVALID_ARGUMENT when it is not of that form; UNAVAILABLE with exit
  // code kPortInUse when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen,
                                                           HttpHandlers handlers);
};

}  // namespace signvote
