#pragma once
// One HTTP port: /metrics (Prometheus text), /healthz, /readyz, /api/v1/status and / (the same status, for people).
//
// Ownership: keeps the callbacks; what they refer to must outlive the server.
// Threads:   handlers run on the server's own threads; the callbacks must be thread-safe.
// Failure:   Start returns ALREADY_EXISTS "…address in use…" when the port is taken, INVALID_ARGUMENT for an address that is
//            not HOST:PORT.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace prometheus {
class Registry;
}  // namespace prometheus

namespace signvote {

struct HttpOptions {
  std::string address = "127.0.0.1:9151";  // HOST:PORT; port 0 picks a free one
  std::shared_ptr<prometheus::Registry> registry;
  std::function<bool()> ready;                // /readyz: 200 or 503
  std::function<std::string()> status_json;   // /api/v1/status; may be empty
};

class HttpServer {
 public:
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options);
  virtual ~HttpServer() = default;  // stops; bounded by the handlers in progress
  virtual uint16_t port() const = 0;
};

}  // namespace signvote
