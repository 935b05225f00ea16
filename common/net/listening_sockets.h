#pragma once
// Sockets that listen on one HOST:PORT, which may stand for several addresses.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/host_port.h"
#include "common/net/unique_fd.h"

namespace signvote {

struct ListeningSockets {
  std::vector<UniqueFd> sockets;  // non-blocking, at least one
  uint16_t port = 0;              // the same of all
};

// Listens on every address that `at.host` names: both families where it is 0.0.0.0 or ::, and what a
// name resolves to. Port 0: one that is free. Connections have no delay of small segments, and end
// when what they were sent is not acknowledged within `unacknowledged_ms`.
// Failure: UNAVAILABLE with the system's reason when it can listen on none of them. Those that it
//          cannot listen on beside one that it can are left out, with a line in the log.
absl::StatusOr<ListeningSockets> ListenOn(const HostPort& at, uint32_t unacknowledged_ms);

}  // namespace signvote
