#pragma once
// FetchState and UploadState over a connection of their own, so that their bytes can be told from the rounds'.
//
// Threads: block the calling thread; every wait is bounded by `progress_timeout`.

#include <functional>
#include <memory>
#include <span>
#include <string>

#include <grpcpp/channel.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "proto/wire/socket_bytes.h"

namespace signvote {

// Fetches the run's replica into x. on_part(round, first, count) is called after each part has been checked and written;
// parts come in ascending order and cover x when OK is returned. `moved` gets the connection's bytes in any case.
// DATA_LOSS: a checksum differs. INVALID_ARGUMENT: the server broke the protocol. DEADLINE_EXCEEDED: no progress.
// Otherwise the server's status.
absl::Status FetchState(
    const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
    Duration progress_timeout, std::span<float> x,
    const std::function<absl::Status(Round, uint64_t first, uint64_t count)>& on_part,
    wire::SocketBytes* moved);

// Sends x as the run's initial parameters.
absl::Status UploadState(const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
                         Duration progress_timeout, std::span<const float> x,
                         wire::SocketBytes* moved);

}  // namespace signvote
