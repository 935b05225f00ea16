#include "worker/session/dial_error.h"

#include "absl/strings/str_cat.h"

namespace signvote {
namespace {

bool Contains(const absl::Status& status, const char* text) {
  return std::string(status.message()).find(text) != std::string::npos;
}

}  // namespace

bool HungUpBeforeUsable(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kUnavailable || !Contains(status, "failed to connect"))
    return false;
  return Contains(status, "Socket closed") || Contains(status, "Connection reset") ||
         Contains(status, "Broken pipe") || Contains(status, "HTTP/2") ||
         Contains(status, "http1.x");
}

absl::Status ExplainDialFailure(const absl::Status& status, const DialContext& context,
                                int hang_ups_in_a_row) {
  if (status.code() != absl::StatusCode::kUnavailable) return absl::OkStatus();
  if (Contains(status, "is not in peer certificate")) {
    return absl::PermissionDeniedError(
        absl::StrCat("the certificate of server ", context.server,
                     " does not name this address; dial it by a name that its "
                     "certificate holds, or issue it one with this name (signvote certs)"));
  }
  if (Contains(status, "certificate verify failed")) {
    return absl::PermissionDeniedError(absl::StrCat(
        "the certificate of server ", context.server, " is not accepted: it was not issued by ",
        context.ca, ", or it has expired; use the certificates of one authority (signvote certs)"));
  }
  if (Contains(status, "wrong version number") || Contains(status, "WRONG_VERSION_NUMBER")) {
    return absl::FailedPreconditionError(absl::StrCat(
        "server ", context.server,
        " does not speak TLS; start it without --insecure, or give this side --insecure "
        "too"));
  }
  if (Contains(status, "handshake failed")) {
    return absl::PermissionDeniedError(absl::StrCat("TLS handshake with server ", context.server,
                                                    " failed: ", std::string(status.message())));
  }
  if (HungUpBeforeUsable(status) && hang_ups_in_a_row >= kHangUpsToBeSure) {
    if (context.insecure) {
      return absl::FailedPreconditionError(
          absl::StrCat("server ", context.server,
                       " hangs up on plaintext; it wants TLS (leave --insecure away and give "
                       "certificates), or it is no signvote server"));
    }
    return absl::PermissionDeniedError(
        absl::StrCat("server ", context.server,
                     " hangs up during the TLS handshake: it does not accept certificate ",
                     context.certificate, " (another authority than the server's, or expired)"));
  }
  return absl::OkStatus();
}

}  // namespace signvote
