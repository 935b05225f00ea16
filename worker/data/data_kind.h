#pragma once
// Whether a file is what --data-format says, by its first bytes: read as another kind it would train
// on noise without a word.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "worker/data/dataset.h"

namespace signvote {

// llm.c's shards: github.com/karpathy/llm.c, dev/data/data_common.py.
inline constexpr size_t kLlmcHeaderBytes = 256 * 4;
struct LlmcFormat {
  int32_t magic = 0;
  int32_t version = 0;
  uint32_t width = 0;  // bytes per token
};
inline constexpr LlmcFormat kLlmcFormats[] = {{20240520, 1, 2}, {20240801, 7, 4}};

// INVALID_ARGUMENT with exit code kBadInput, with the file, what it seems to be and what to do:
// compressed files, arrays and containers in any format; in a text also UTF-16, token shards and
// whatever else has a zero byte among its first 64 KiB; headerless shards with a header, or with
// tokens of 32 or 64 bits.
absl::Status CheckDataKind(const std::string& path, std::span<const std::byte> data,
                           DataFormat format);

}  // namespace signvote
