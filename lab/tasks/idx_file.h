#pragma once
// The files of MNIST and of what is written like it: grey pictures and their classes, big-endian, in two
// files. Format: yann.lecun.com/exdb/mnist, "FILE FORMATS".

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace signvote::lab {

// `pictures` follow each other, rows from the top; views of what was parsed.
struct IdxPictures {
  uint32_t count = 0, height = 0, width = 0;
  std::span<const uint8_t> values;  // [count, height, width]

  std::span<const uint8_t> Picture(uint32_t k) const {
    const size_t size = size_t{height} * width;
    return values.subspan(k * size, size);
  }
};

// INVALID_ARGUMENT: not such a file, or pictures that do not FitsPicture(). DATA_LOSS: not as long as
// it says. The messages are without a name.
absl::StatusOr<IdxPictures> ParseIdxPictures(std::span<const std::byte> bytes);
// The classes of as many pictures, one byte each.
absl::StatusOr<std::span<const uint8_t>> ParseIdxLabels(std::span<const std::byte> bytes);

}  // namespace signvote::lab
