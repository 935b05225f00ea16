#pragma once
// Where minibatches come from. Torch-free.
//
// Minibatch = f(seed, share, data_step): a keyed permutation says which windows it holds
// (window_order.h), so a worker that takes over a share, or a run that is rewound, sees the same
// data, and no position has to be saved. Formats: docs/data.md.

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/ids.h"

namespace signvote {

// One micro-batch in host memory. Reused between calls, so that nothing is allocated per round.
struct Batch {
  uint64_t rows = 0;
  uint64_t length = 0;           // tokens per row; 0 for feature rows
  std::vector<int64_t> inputs;   // [rows, length] tokens
  std::vector<float> values;     // [rows, features]
  std::vector<int64_t> targets;  // [rows, length] next tokens, or [rows] classes

  uint64_t targets_count() const { return targets.size(); }  // what the mean loss is a mean of
};

// Names one micro-batch of the run.
struct BatchKey {
  uint64_t seed = 0;
  Share share;
  DataStep data_step;
  uint32_t micro = 0;   // index within a gradient accumulation
  uint32_t micros = 1;  // of the accumulation; micro < micros
};

// Threads: thread-safe; reads only.
class Dataset {
 public:
  virtual ~Dataset() = default;
  // INVALID_ARGUMENT with exit code kBadInput when a token is not in the model's vocabulary.
  virtual absl::Status TrainBatch(const BatchKey& key, Batch* batch) const = 0;
  // How many windows, or samples, the held-out loss is measured on; 0: none is wanted. The same ones
  // for every worker, seed and run, whatever a minibatch is; they never overlap training data
  // (held_out_windows.h).
  virtual uint64_t held_out_windows() const = 0;
  // Windows [first, first + count) of them, a row each. INVALID_ARGUMENT as TrainBatch.
  // REQUIRES: first + count <= held_out_windows(), count > 0.
  virtual absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const = 0;
  // Reads all there is to read, which takes as long as the disk does. INVALID_ARGUMENT as
  // TrainBatch, CANCELLED when a stop was asked for.
  virtual absl::Status CheckAll(const std::stop_token& stop) const = 0;
  virtual std::string description() const = 0;  // one line for the log
  virtual std::string target_unit()
      const = 0;  // "byte", "token" or "sample": what a loss in nats is per
};

enum class DataFormat { kText, kNanoGpt, kLlmc, kSynthetic };
// "text", "nanogpt", "llmc", "synthetic". INVALID_ARGUMENT names the accepted words.
absl::StatusOr<DataFormat> ParseDataFormat(const std::string& text);

struct DatasetOptions {
  DataFormat format = DataFormat::kText;
  std::string path;   // file or folder; empty with kText: the C++ headers of the installed LibTorch
  uint64_t rows = 8;  // per micro-batch
  uint64_t length = 128;  // tokens per row
  // Tokens, or samples, of the held-out windows, at least one window's; 0: none are wanted.
  uint64_t eval_targets = 0;
  uint64_t eval_length = 128;  // tokens per held-out window; kSynthetic: not read
  uint64_t vocabulary = 256;   // of the model
  uint64_t features = 64;      // kSynthetic
  uint64_t classes = 10;       // kSynthetic
};

// NOT_FOUND, PERMISSION_DENIED: the path. INVALID_ARGUMENT or DATA_LOSS with exit code kBadInput:
// no data, too little (the message says how much is needed), or a malformed shard.
absl::StatusOr<std::unique_ptr<Dataset>> OpenDataset(FileSystem* fs, const DatasetOptions& options);

// $LIBTORCH/include, else the include folder beside the LibTorch that this process has loaded; ""
// without either.
std::string DefaultCorpusPath();

}  // namespace signvote
