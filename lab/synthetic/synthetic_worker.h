#pragma once
// A worker without LibTorch: worker/session, worker/vote and a quadratic objective, for experiments and
// tests that are about processes, links and disks and not about a model. Everything but the gradient is
// the code of signvote-worker.
//
//   f(x) = 1/2 · mean_i (x_i/s − c_i)²        x_0,i = s · p_i        c, p seeded, the same at every
//                                             worker
//   g_i  = (x_i/s − c_i + noise_i) / (s·d)    noise = a function of (seed, share, data_step)
//
// All of it scales exactly for s a power of two. With random ballots there is no objective: a worker
// votes the same random bits every round, and keeps nothing but its replica; without a time to compute all
// chunks leave at once, so that a round takes what the network takes. Without a replica it keeps not
// even that: many large workers fit on one machine.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/every.h"
#include "common/file_system.h"
#include "worker/session/session.h"

namespace signvote {

struct SyntheticFlags {
  SessionOptions session;
  double server_timeout_seconds = 600, connect_timeout_seconds = 20;
  uint64_t coordinates = 100'000;  // d
  std::string tensor = "x";
  double scale = 1;  // s
  double noise = 0.1;
  uint64_t compute_ms = 0;  // that a gradient pretends to take, spread over the chunks
  std::string
      compute_ms_file;  // has another number of them, read before each minibatch; empty: none
  bool random_ballots = false;
  bool no_replica = false;
  int64_t nonfinite_from = -1;  // round from which on the loss is not finite; −1: it always is
  std::string config_json, identity_text;
  std::string report, round_log, save;  // files; empty: none
  std::string start_fifo;
  std::string ballots;     // folder in which ballots are before they are sent; empty: none
  std::string checkpoint;  // folder; empty: its state dies with it. Not with random ballots
  Every checkpoint_every;  // beside at the end
};

// Reads the command line. `print` gets the text of --help, --version or --describe when one of them was
// given, and is left alone otherwise. Failure: one line with exit code kUsage.
absl::Status ParseSyntheticFlags(int argc, const char* const* argv, FileSystem* fs,
                                 SyntheticFlags* flags, std::string* print);

// Takes part in a run until it is over, or until a stop was asked for (common/process.h).
// Threads: blocks. Failure: what ended it, with the exit code that docs/operations.md lists.
absl::Status RunSyntheticWorker(SyntheticFlags flags);

}  // namespace signvote
