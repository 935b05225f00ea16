#pragma once
// Who this worker is and how it shows that: name, token and credentials, from files and options that
// are checked here, before anything is dialled.
//
// Threads: pure but for the files that it reads.

#include <memory>
#include <string>

#include <grpcpp/security/credentials.h>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "worker/session/session.h"

namespace signvote {

struct WorkerIdentity {
  std::string name;
  std::string token;  // empty: none
  std::shared_ptr<grpc::ChannelCredentials> credentials;
};

// The failures of Session::Create() that its options cause. The clock tells whether certificates are
// valid.
absl::StatusOr<WorkerIdentity> LoadIdentity(const SessionOptions& options, FileSystem* fs,
                                            const Clock* clock);

}  // namespace signvote
