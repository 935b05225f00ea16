#include "server/run/initial.h"

#include <utility>

#include "common/apply.h"

namespace signvote::run {

InitLoaded LoadInitial(const InitialParameters& init, MasterReplica& replica,
                       const std::function<bool()>& give_up) {
  if (absl::Status status = init.CopyInto(replica.layout(), replica.x(), give_up); !status.ok()) {
    return {.status = std::move(status)};
  }
  return {.status = absl::OkStatus(), .max_abs = MaxAbs(std::as_const(replica).x())};
}

}  // namespace signvote::run
