#pragma once
// FetchState and UploadState over a connection of their own, so that their bytes can be told from
// the rounds'.
//
// Threads: block the calling thread; every wait is bounded by `progress_timeout`.

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/channel.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "proto/wire/socket_bytes.h"
#include "worker/codec/replica_memory.h"

namespace signvote {

// Fetches the run's replica. on_part(round, first, count) is called after each part has been
// checked and written; parts come in ascending order and cover the replica when OK is returned.
// `moved` gets the connection's bytes in any case.
// DATA_LOSS: a checksum differs. INVALID_ARGUMENT: the server broke the protocol.
// DEADLINE_EXCEEDED: no progress. Otherwise the server's status, or that of the replica's memory.
absl::Status FetchState(
    const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
    Duration progress_timeout, ReplicaMemory* replica,
    const std::function<absl::Status(Round, uint64_t first, uint64_t count)>& on_part,
    wire::SocketBytes* moved);

// Sends the replica as the run's initial parameters.
absl::Status UploadState(const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
                         Duration progress_timeout, ReplicaMemory* replica,
                         wire::SocketBytes* moved);

}  // namespace signvote
