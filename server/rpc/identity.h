#pragma once
// Who is at the other end of a call, in the run's words.

#include <string>

#include <grpcpp/server_context.h>

#include "server/run/peer.h"

namespace signvote::rpc {

run::PeerIdentity IdentityOf(const grpc::ServerContextBase& context);

// The host of an address as gRPC writes it: "10.0.0.7" of "ipv4:10.0.0.7:4711", and "2001:db8:0:7::/64"
// of "ipv6:[2001:db8:0:7:1:2:3:4]:4711", because a network of that size is given to one machine and it
// takes addresses from it as it likes (RFC 4291, 2.5.4; RFC 8981). Anything else: all of it.
std::string HostOf(const std::string& address);

}  // namespace signvote::rpc
