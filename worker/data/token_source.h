#pragma once
// A corpus as one long sequence of tokens, whatever files it lies in.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "worker/data/dataset.h"

namespace signvote {

// Ownership: owns the maps and copies of the files.
// Threads:   thread-safe; reads only.
class TokenSource {
 public:
  // Text: every file is a run of bytes. Shards: the file, or a folder's files whose name ends in
  // ".bin". A folder's files follow each other in order of path, those that are held out by their
  // name last (corpus_files.h). INVALID_ARGUMENT: a file of another kind (data_kind.h); DATA_LOSS: a
  // malformed shard, or one without tokens.
  static absl::StatusOr<std::unique_ptr<TokenSource>> Open(FileSystem* fs, const std::string& path,
                                                           DataFormat format);

  uint64_t tokens() const { return tokens_; }
  uint64_t files() const { return segments_.size(); }
  // Tokens [0, train_tokens()) may be trained on: what lies in files that are held out is not, or
  // else the last 5 %.
  uint64_t train_tokens() const { return train_tokens_; }
  // No token is larger, whatever the files hold: 255 of bytes.
  uint64_t largest_possible_token() const { return (uint64_t{1} << (8 * width_max_)) - 1; }
  // Which files are held out, and which of a folder are no part of the corpus, as ListedFiles(); "":
  // none.
  const std::string& held_out_files() const { return held_out_files_; }
  const std::string& left_out_files() const { return left_out_files_; }
  // The position of each file's first token.
  std::vector<uint64_t> file_starts() const;
  // Copies tokens [first, first + count). REQUIRES: first + count <= tokens().
  void Read(uint64_t first, uint64_t count, int64_t* out) const;
  // DATA_LOSS: a file was cut since it was opened, and tokens that were read were not its own. To be
  // asked after reading.
  absl::Status CheckWhole() const;

 private:
  struct Segment {
    uint64_t first = 0;  // token
    uint64_t count = 0;
    const std::byte* data = nullptr;  // null: in pool_ at offset
    uint64_t offset = 0;
    uint32_t width = 1;  // bytes per token
  };

  absl::Status AddText(FileSystem* fs, const std::string& path);
  absl::Status AddShard(FileSystem* fs, const std::string& path, DataFormat format);

  struct Map {
    std::string path;
    std::unique_ptr<MappedFile> file;
  };

  std::vector<Map> maps_;
  std::vector<std::byte>
      // small text files, one behind the other: thousands of maps would hit the kernel's limit
      pool_;
  std::vector<Segment> segments_;
  uint64_t tokens_ = 0;
  uint64_t train_tokens_ = 0;
  uint32_t width_max_ = 1;  // of the segments
  std::string held_out_files_;
  std::string left_out_files_;
};

}  // namespace signvote
