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
  // Text: every file is a run of bytes; a folder's files follow each other in order of path.
  // Shards: the files whose name ends in ".bin" (a folder) or the file; those with the word "val" or
  // "validation" in their name come last and are the held-out part.
  // INVALID_ARGUMENT: a file of another kind (compressed, UTF-16, an array with a header, tokens of
  // another width); DATA_LOSS: a malformed shard, or one without tokens.
  static absl::StatusOr<std::unique_ptr<TokenSource>> Open(FileSystem* fs, const std::string& path,
                                                           DataFormat format);

  uint64_t tokens() const { return tokens_; }
  uint64_t files() const { return segments_.size(); }
  // Tokens [0, train_tokens()) may be trained on: the val shards are left out, or else the last 5
  // %.
  uint64_t train_tokens() const { return train_tokens_; }
  // No token is larger, whatever the files hold: 255 of bytes.
  uint64_t largest_possible_token() const { return (uint64_t{1} << (8 * width_max_)) - 1; }
  // The position of each file's first token.
  std::vector<uint64_t> file_starts() const;
  // Copies tokens [first, first + count). REQUIRES: first + count <= tokens().
  void Read(uint64_t first, uint64_t count, int64_t* out) const;

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

  std::vector<std::unique_ptr<MappedFile>> maps_;
  std::vector<std::byte>
      // small text files, one behind the other: thousands of maps would hit the kernel's limit
      pool_;
  std::vector<Segment> segments_;
  uint64_t tokens_ = 0;
  uint64_t train_tokens_ = 0;
  uint32_t width_max_ = 1;  // of the segments
};

}  // namespace signvote
