#pragma once
// What a worker answers on its HTTP port: /metrics for Prometheus, /healthz (the process lives),
// /readyz (it has joined a run and is connected).

#include <functional>
#include <string>

#include "common/http/http_server.h"

namespace signvote {

// Threads: both are called on the port's threads, several at once.
HttpRoutes WorkerRoutes(std::function<std::string()> metrics, std::function<bool()> ready);

}  // namespace signvote
