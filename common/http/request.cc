#include "common/http/request.h"

namespace signvote {

bool IsWholeHead(std::string_view bytes) {
  return bytes.find("\r\n\r\n") != std::string_view::npos;
}

absl::StatusOr<HttpRequest> ParseHttpRequest(std::string_view head) {
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  const bool three_words = first != std::string_view::npos && first > 0 && first < last;
  const std::string_view version = three_words ? line.substr(last + 1) : std::string_view();
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return absl::InvalidArgumentError("this is no request of HTTP/1.1");
  }
  const std::string_view target = line.substr(first + 1, last - first - 1);
  if (!target.starts_with('/') || target.find(' ') != std::string_view::npos) {
    return absl::InvalidArgumentError("the request names no path");
  }
  return HttpRequest{.method = std::string(line.substr(0, first)),
                     .path = std::string(target.substr(0, target.find('?')))};
}

}  // namespace signvote
