#pragma once
// Parameters that the operator brought (--init), and how they come into the replica: on another thread
// than the run's.

#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "common/layout.h"
#include "server/replica/master_replica.h"

namespace signvote::run {

// Behind an interface so that the run touches no file.
//
// Threads: thread-compatible.
class InitialParameters {
 public:
  virtual ~InitialParameters() = default;
  // Whether they are those of such a model, whatever the order of its tensors; reads no number. Not OK:
  // names the first tensor that is missing or has another shape.
  virtual absl::Status CheckFits(const Layout& layout) const = 0;
  // x ← the file's values. Reads the file and touches all of x: not for the run's thread. CANCELLED:
  // `give_up` said so, which is asked now and then. DATA_LOSS: the file is no longer whole. x then holds
  // nothing of use. REQUIRES: CheckFits(layout).
  virtual absl::Status CopyInto(const Layout& layout, std::span<float> x,
                                const std::function<bool()>& give_up) const = 0;
  // config.json beside the file; "" when there is none.
  virtual const std::string& config_json() const = 0;
  // For messages.
  virtual const std::string& path() const = 0;
};

// What became of reading them: max_abs is max |x_i| when the status is OK.
struct InitLoaded {
  absl::Status status;
  float max_abs = 0;
};
// Reads them into the replica, as CopyInto() says. REQUIRES: nobody else has the replica's values.
InitLoaded LoadInitial(const InitialParameters& init, MasterReplica& replica,
                       const std::function<bool()>& give_up);

}  // namespace signvote::run
