#pragma once
// Writes a model front to back: as one safetensors file PATH, or, where that would be larger than its
// format says, as shards behind the index PATH.index.json. docs/models.md, "What is written".
//
// What stands under a name that a reader opens (PATH, PATH.index.json) is a whole model at any moment,
// the one before or this one, whatever ends the program: shards are written under names that are free,
// then the index is replaced. Only then goes what was replaced: PATH by an index, an index of ours and
// its shards by PATH or by the next index. While both PATH and an index are there, PATH is the model:
// that is what transformers and common/checkpoint.h open. What is not of the same run goes nowhere: it
// is kept under another name (common/standing_model.h).

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"
#include "common/safetensors.h"
#include "common/standing_model.h"

namespace signvote {

struct ModelFormat {
  TensorDtype dtype = TensorDtype::kF32;  // kF32, or kBf16: rounded to nearest even
  // A model of more bytes goes into several files of at most so many, tensors whole; a larger tensor
  // has a file of its own. 0: one file, whatever its size. The default is that of transformers.
  uint64_t shard_bytes = 5'000'000'000;
};

// "f32" or "bf16". INVALID_ARGUMENT names `flag` and what it takes.
absl::StatusOr<TensorDtype> ParseWrittenDtype(std::string_view flag, std::string_view text);

// What Commit() has made.
struct WrittenModel {
  std::string path;    // to be opened: the file, or the index
  uint64_t bytes = 0;  // of all tensors
  uint32_t files = 1;  // that hold them
};

// Ownership:  does not own the file system, which must outlive it. Memory: at most 4 MiB, whatever the
//             model's size.
// Threads:    thread-compatible.
// Links:      a PATH that is a symbolic link is followed; shards and index lie beside the file that it
//             points to.
// Durability: only after Commit() returned OK is the model there; it survives a power cut.
// Failure:    after any non-OK status every later call returns that status. Whatever was written is
//             removed by the destructor unless Commit() returned OK; what stood there before stays.
class ModelWriter {
 public:
  // The model of `layout`, all of whose coordinates follow in order. `metadata` goes into every file,
  // with {"format": "pt"} unless it has one; its signvote.run_id is the run of which a model is replaced.
  // Failure: as of RequireOwnIndex() where shards are needed,
  // and of FileSystem::CreateAtomic.
  static absl::StatusOr<std::unique_ptr<ModelWriter>> Create(
      FileSystem* fs, const std::string& path, Layout layout, const ModelFormat& format,
      std::map<std::string, std::string> metadata);
  ~ModelWriter();
  ModelWriter(const ModelWriter&) = delete;
  ModelWriter& operator=(const ModelWriter&) = delete;

  // The next coordinates. REQUIRES: no more than the layout has.
  absl::Status Append(std::span<const float> values);
  // REQUIRES: every coordinate was appended; called once.
  absl::StatusOr<WrittenModel> Commit();

 private:
  struct Shard {
    std::span<const TensorSpec> tensors;
    uint64_t end = 0;  // its last coordinate, and one
    std::string path;
  };

  ModelWriter(FileSystem* fs, std::string path, Layout layout, const ModelFormat& format,
              std::map<std::string, std::string> metadata);
  std::vector<std::span<const TensorSpec>> Split() const;
  absl::Status Begin();
  absl::Status NextFile();
  absl::Status Write(std::span<const float> values);
  absl::StatusOr<WrittenModel> CommitAll();
  absl::Status CommitIndex(uint64_t bytes);

  // Constant once Begin() has returned, but for former_.
  FileSystem* const fs_;
  const std::string path_;  // no link
  const Layout layout_;
  const ModelFormat format_;
  const std::map<std::string, std::string> metadata_;
  std::vector<Shard> shards_;     // one: the whole model as path_
  bool replaces_index_ = false;   // one of ours stands there
  std::set<std::string> former_;  // its files, beside it; none once they are a kept model's

  // Invariant: the first shard_ shards are committed, if there are several; file_ is that of shard_.
  size_t shard_ = 0;
  uint64_t next_ = 0;  // coordinate
  std::unique_ptr<AtomicFile> file_;
  std::vector<uint16_t> narrow_;
  bool committed_ = false;
  absl::Status poison_;  // OK until the first failure
};

}  // namespace signvote
