#pragma once
// The gRPC services: each call is handed to a reactor or to the run's thread; nothing is decided
// here.

#include <memory>

#include <grpcpp/impl/service_type.h>

#include "common/file_system.h"
#include "server/rpc/state_transfer.h"
#include "server/rpc/stream_table.h"
#include "server/run/run_thread.h"

namespace signvote::rpc {

// signvote.v1.Training. What it is given must outlive the server that it is registered with.
std::unique_ptr<grpc::Service> MakeTrainingService(run::RunThread* run, StreamTable* table,
                                                   Transfers* transfers, FileSystem* fs);

// signvote.v1.Admin. With `tls` callers need a certificate of the admin role, without it they must
// call from this machine.
std::unique_ptr<grpc::Service> MakeAdminService(run::RunThread* run, bool tls);

}  // namespace signvote::rpc
