#include "worker/train/routes.h"

#include <utility>

namespace signvote {

HttpRoutes WorkerRoutes(std::function<std::string()> metrics, std::function<bool()> ready) {
  return {
      {"/healthz", [] { return HttpResponse{.body = "ok\n"}; }},
      {"/readyz",
       [ready = std::move(ready)] {
         if (ready()) return HttpResponse{.body = "ready\n"};
         return HttpResponse{.code = 503, .body = "not joined\n"};
       }},
      {"/metrics",
       [metrics = std::move(metrics)] {
         return HttpResponse{.content_type = kPrometheusContentType, .body = metrics()};
       }},
  };
}

}  // namespace signvote
