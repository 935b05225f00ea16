#pragma once
// The gRPC services: each call is handed to a reactor or to the engine's thread; nothing is decided
// here.

#include <memory>

#include <grpcpp/impl/service_type.h>

#include "common/file_system.h"
#include "server/rpc/coordinator.h"

namespace signvote::rpc {

// signvote.v1.Training. `coordinator` must outlive the server that the service is registered with.
std::unique_ptr<grpc::Service> MakeTrainingService(Coordinator* coordinator);

// signvote.v1.Admin. With `tls` callers need a certificate of the admin role, without it they must
// call from this machine.
std::unique_ptr<grpc::Service> MakeAdminService(Coordinator* coordinator, bool tls);

}  // namespace signvote::rpc
