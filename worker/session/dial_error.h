#pragma once
// Why a connection could not be made, in words that name the remedy. gRPC reports everything as
// UNAVAILABLE with the transport's text in it; what no retry can mend is recognised here.

#include <string>

#include "absl/status/status.h"

namespace signvote {

struct DialContext {
  std::string server;       // host:port
  bool insecure = false;    // this side speaks plaintext
  std::string ca;           // path
  std::string certificate;  // path
};

// True when the other side hung up before the connection was usable. In TLS 1.3 that is all a
// client sees of a server that rejects its certificate, and all a plaintext client sees of a TLS
// server; but a server that is just going down, a proxy without one, or a server that turns some away
// because strangers crowd its port looks the same. So several in a row are needed to be sure.
bool HungUpBeforeUsable(const absl::Status& status);
inline constexpr int kHangUpsToBeSure = 8;

// OK: worth a retry. PERMISSION_DENIED: a certificate is not accepted, by either side.
// FAILED_PRECONDITION: one side speaks TLS, the other does not. `hang_ups_in_a_row` counts those of
// HungUpBeforeUsable, this one included.
absl::Status ExplainDialFailure(const absl::Status& status, const DialContext& context,
                                int hang_ups_in_a_row);

}  // namespace signvote
