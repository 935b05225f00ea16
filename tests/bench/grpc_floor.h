#pragma once
// The floor under a round: gRPC moving the same bytes in the same messages, with nobody looking
// into them. n streams up, chunk by chunk; a chunk that has come from all n goes down to all n.

#include <memory>
#include <string>

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include "common/layout.h"
#include "tests/bench/turns.h"

namespace signvote::bench {

// Serves until the process is ended. `port` gets the port once it listens.
void RunFloorServer(const std::shared_ptr<grpc::ServerCredentials>& credentials,
                    const ChunkPlan& plan, uint32_t clients, SharedCount* port);

// Takes its turns until told to leave.
void RunFloorClient(const std::string& server,
                    const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                    const ChunkPlan& plan, uint32_t index, Turns* turns);

}  // namespace signvote::bench
