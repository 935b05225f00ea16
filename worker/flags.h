#pragma once
// The worker's command line.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/every.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/model_writer.h"
#include "worker/models/model.h"
#include "worker/session/session.h"
#include "worker/train/trainer.h"

namespace signvote {

struct WorkerFlags {
  SessionOptions session;
  std::string model = "nano";
  uint32_t vocabulary = 0;  // 0: the model's own
  ModelOptions model_options;
  float parameter_divisor = 1.0f;
  std::string data;
  std::string data_format;  // empty: text, or synthetic for the MLP
  uint32_t batch = 8;
  uint32_t sequence = 128;
  uint32_t eval_tokens = 8192;  // of the held-out windows
  uint32_t eval_sequence = 0;   // tokens of one; 0: as many as the model takes, up to 128
  TrainerOptions trainer;
  std::string http = "127.0.0.1:0";
  std::string progress = "auto";
  double progress_seconds = 10;
  std::string report, round_log, save;
  Every save_every;
  uint32_t save_keep = 2;
  ModelFormat save_format;
  struct {
    std::string folder;  // of this worker's own state; empty: none is kept
    Every every;
  } checkpoint;
  Duration save_linger = std::chrono::minutes(10);  // of a replica that cannot be written
  LogOptions log;
  bool selftest = false;
};

// Reads the command line and a --config file, which `fs` has. `print` gets the text of --help, --version or
// --print-config when one of them was given, and is left alone otherwise.
// Failure: one line with an exit code: kBadInput for a --config file that cannot be read, kUsage
// for all else.
absl::Status ParseWorkerFlags(int argc, const char* const* argv, FileSystem* fs, WorkerFlags* flags,
                              std::string* print);

// What no single flag can tell: flags that do not fit each other, this machine or the files that
// they name. Before the model and the data, which may take minutes.
absl::Status CheckWorkerFlags(const WorkerFlags& flags, FileSystem* fs, Clock* clock);

}  // namespace signvote
