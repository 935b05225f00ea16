#pragma once
// A grey picture of a given side from the bytes of a file: JPEG, read by libjpeg-turbo; PNG and BMP, by
// stb_image; PGM and PPM. Debian's stb_image (libstb-dev) knows JPEG, PGM and PPM too, and reads beyond its
// memory when such a file is broken (tests/fuzz/corpus/picture: jpeg_wild_table, ppm_wide_without_values).

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote::lab {

// Beyond these nothing is unpacked.
inline constexpr uint64_t kPictureBytesMax = 64 << 20;  // of a file
inline constexpr uint64_t kPixelsMax = 1 << 25;
inline constexpr uint64_t kPictureSideMax = 1 << 15;
constexpr bool FitsPicture(uint64_t width, uint64_t height) {
  return width <= kPictureSideMax && height <= kPictureSideMax && width * height <= kPixelsMax;
}

// side × side values from 0, black, to 255, row after row: the whole picture, stretched where it is no
// square. Of colours their brightness (0.30 red, 0.59 green, 0.11 blue); of 16 bits the upper eight; what
// is transparent counts as its colour.
// Threads: thread-safe.
// Memory:  while it works the file's bytes and at most 24 bytes per pixel.
// INVALID_ARGUMENT: no picture of a kind that is known, or more pixels than kPixelsMax or kPictureSideMax a
// side. DATA_LOSS: it is one, and broken. The messages say what is wrong and what to do, without a name.
// REQUIRES: bytes.size() <= kPictureBytesMax, 0 < side <= 1024.
absl::StatusOr<std::vector<uint8_t>> DecodePicture(std::string_view bytes, uint32_t side);

// The same of width × height grey values. REQUIRES: grey.size() = width · height > 0; sizes as above.
absl::StatusOr<std::vector<uint8_t>> ScaleGrey(std::span<const uint8_t> grey, uint32_t width,
                                               uint32_t height, uint32_t side);

}  // namespace signvote::lab
