#include "proto/wire/grpc_setup.h"

#include <cstdlib>
#include <string>

#include <grpc/support/log.h>

#include "absl/synchronization/mutex.h"
#include "common/log.h"

namespace signvote::wire {
namespace {

void ToDebugLog(gpr_log_func_args* line) {
  LogDebug("grpc", {{"severity", std::string(gpr_log_severity_string(line->severity))},
                    {"says", std::string(line->message)}});
}

}  // namespace

void SetUpGrpc() {
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function(&ToDebugLog);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

}  // namespace signvote::wire
