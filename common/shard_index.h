#pragma once
// The index of a model in several safetensors files, "shards": which file holds which tensor. It bears
// the name of the file that the whole model would be, with ".index.json" behind it, as transformers
// writes it:
//   {"metadata": {"total_size": 12, …}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", …}}

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

inline constexpr std::string_view kShardIndexSuffix = ".index.json";
inline constexpr uint64_t kShardIndexBytesMax = uint64_t{64} << 20;

struct ShardIndex {
  std::map<std::string, std::string> files;     // tensor → name of a file beside the index
  std::map<std::string, std::string> metadata;  // of "metadata": texts only
  bool operator==(const ShardIndex&) const = default;
};

// Invariant of what it returns: at least one tensor; every file is a name without a slash, so that an
// index reaches no other folder. Failure: DATA_LOSS, naming `path` and the culprit: a line, a key that
// stands twice, a tensor. INVALID_ARGUMENT: it is clearly something else (common/file_kind.h).
absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& path, std::string_view text);

// As a file's text. total_bytes: of all tensors.
std::string ShardIndexText(const ShardIndex& index, uint64_t total_bytes);

}  // namespace signvote
