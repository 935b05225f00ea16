#pragma once
// The same run through the lab, and over gRPC by a server and a Trainer per thread.

#include <cstdint>
#include <string>
#include <vector>

#include "lab/tasks/task.h"
#include "server/run/run.h"

namespace signvote::lab {

struct LocalRunCase {
  const char* name;
  const char* task;
  uint32_t workers = 1;
  std::vector<std::string> flags;  // of signvote-server, over those of OptionsOf()
  uint32_t accumulate = 1;
};

// Short, with evaluations and digests, and with deadlines that a machine which others use cannot miss.
run::RunOptions OptionsOf(const LocalRunCase& run);

struct LocalRunOutcome {
  std::vector<float> x;
  uint64_t digest = 0;
  double held_out_first = 0, held_out_last = 0;
  std::vector<float> stepsizes;
  std::vector<double> losses;
  std::vector<CommitKind> kinds;
  uint64_t bytes_up = 0, bytes_down = 0;  // locally alone
};
Task MustMakeTask(const std::string& name, const TorchMakers& torch);
LocalRunOutcome RunLocally(const std::string& task, const run::RunOptions& options,
                           const TorchMakers& torch, uint32_t accumulate = 1);
LocalRunOutcome RunOverGrpc(const std::string& task, const run::RunOptions& options,
                            const TorchMakers& torch, uint32_t accumulate = 1);

// Both, and that they agree to the last bit.
void ExpectSameBits(const LocalRunCase& run, const TorchMakers& torch);

}  // namespace signvote::lab
