// What the lab reads of pictures (lab/tasks): files of PNG, JPEG, BMP, PGM and PPM, and MNIST's. What can be
// read has the side that was asked for.
//
// Input: a file's bytes.

#include <string>

#include "common/check.h"
#include "lab/tasks/idx_file.h"
#include "lab/tasks/picture.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  constexpr uint32_t kSide = 4;
  // On the heap at its exact size: a sanitizer sees the first byte beyond.
  const std::vector<std::byte> bytes = [&] {
    std::vector<std::byte> copy;
    copy.reserve(size);
    for (size_t i = 0; i < size; ++i) copy.push_back(static_cast<std::byte>(data[i]));
    return copy;
  }();
  if (size <= lab::kPictureBytesMax) {
    const auto grey =
        lab::DecodePicture({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, kSide);
    if (grey.ok()) {
      SIGNVOTE_CHECK(grey->size() == kSide * kSide);
    } else {
      SIGNVOTE_CHECK(absl::IsDataLoss(grey.status()) || absl::IsInvalidArgument(grey.status()));
    }
  }
  if (const auto pictures = lab::ParseIdxPictures(bytes); pictures.ok() && pictures->count > 0) {
    const auto last = pictures->Picture(pictures->count - 1);
    SIGNVOTE_CHECK(last.data() + last.size() == pictures->values.data() + pictures->values.size());
    const auto grey = lab::ScaleGrey(last, pictures->width, pictures->height, kSide);
    SIGNVOTE_CHECK(grey.ok() && grey->size() == kSide * kSide);
  }
  if (const auto labels = lab::ParseIdxLabels(bytes); labels.ok())
    SIGNVOTE_CHECK(labels->size() + 8 == bytes.size());
  return 0;
}
