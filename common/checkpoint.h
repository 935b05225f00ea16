#pragma once
// A trained model as others keep it: one safetensors file, or several behind an index
// (`model.safetensors.index.json`), in fp32, bfloat16 or fp16, with the tensors that some
// libraries write although they follow from others.

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"
#include "common/safetensors.h"

namespace signvote {

// Mapped, checked files. Threads: thread-compatible; reading from several threads is safe.
// Failure: Open() returns what SafetensorsFile::Open() and ParseShardIndex() do, NOT_FOUND for a
// folder without a model and for a shard that is not there, DATA_LOSS for an index whose tensors are
// not where it says, and INVALID_ARGUMENT for what is clearly something else (common/file_kind.h).
// Messages name file and tensor.
class Checkpoint {
 public:
  // `path`: a .safetensors file, an index (….json), or a folder that holds "model.safetensors" or, without
  // it, "model.safetensors.index.json": the order of transformers. A file that is not there while its
  // index is stands for the index, as exports in shards leave it.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(FileSystem* fs, const std::string& path);

  bool empty() const { return tensors_.empty(); }  // it holds no tensor
  // Of a single file; of an index: its own "metadata", texts only.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Where a config.json beside the model would lie; whether it is there is not looked at.
  const std::string& config_path() const { return config_path_; }

  // Asked now and then by what reads the model's numbers, which then returns CANCELLED; null: nobody
  // gives up.
  using GiveUp = std::function<bool()>;

  // Whether CopyInto() can fill such a layout, without reading a number. INVALID_ARGUMENT names the
  // first missing tensor or differing shape, and the file. A tensor that the layout does not have is
  // refused, but for
  //   NAME.rotary_emb.inv_freq   follows from the config: left out
  //   lm_head.weight             of a model whose head is tied: left out when it equals
  //                              model.embed_tokens.weight bit for bit, widened if their formats
  //                              differ; else refused. It stands for an embedding that is not there:
  //                              safetensors.torch.save_model leaves one name of the two
  absl::Status CheckFits(const Layout& layout) const;
  // Writes the tensors, widened exactly to fp32, into x[0, layout.coordinates()) by name. That of
  // CheckFits(); x is then untouched. DATA_LOSS: a file was cut meanwhile; x holds nothing of use, nor
  // when it was given up.
  absl::Status CopyInto(const Layout& layout, std::span<float> x, const GiveUp& give_up = {}) const;

  // DATA_LOSS names the first number that is not finite. Reads the whole model.
  absl::Status RequireFinite(const GiveUp& give_up = {}) const;

 private:
  // A tensor and the file that it lies in.
  struct Found {
    const SafetensorsFile::Tensor* tensor = nullptr;
    const SafetensorsFile* file = nullptr;
  };
  using ByName = absl::flat_hash_map<std::string, Found>;

  absl::Status ReadIndex(FileSystem* fs);
  void CompareHead();
  // A tensor for each of the layout's, in its order.
  absl::StatusOr<std::vector<const SafetensorsFile::Tensor*>> Sources(const Layout& layout) const;
  // The tensor of this layout, whatever name it bears in the file; INVALID_ARGUMENT: none.
  absl::StatusOr<Found> Find(const ByName& by_name, const Layout& layout,
                             const TensorSpec& spec) const;
  absl::Status CheckLeftOut(const ByName& by_name, const Found& found) const;

  std::string path_;  // the file or the index
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Found> tensors_;
  std::map<std::string, std::string> metadata_;
  std::string config_path_;
  bool head_is_embedding_ = false;  // both are there, and equal bit for bit
};

}  // namespace signvote
