#pragma once
// The little of HTTP/1.x that a port for metrics needs of a request: its first line. RFC 9112.

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

struct HttpRequest {
  std::string method;  // as sent: "GET"
  std::string path;    // without the query: "/metrics"
};

// Whether these first bytes of a connection hold the whole head of a request.
bool IsWholeHead(std::string_view bytes);

// INVALID_ARGUMENT: it is no request of HTTP/1.0 or 1.1, or asks for something without a path.
absl::StatusOr<HttpRequest> ParseHttpRequest(std::string_view head);

}  // namespace signvote
