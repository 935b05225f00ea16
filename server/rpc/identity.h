#pragma once
// Who is at the other end of a call, in the run's words.

#include <grpcpp/server_context.h>

#include "server/run/peer.h"

namespace signvote::rpc {

run::PeerIdentity IdentityOf(const grpc::ServerContextBase& context);

}  // namespace signvote::rpc
