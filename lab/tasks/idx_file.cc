#include "lab/tasks/idx_file.h"

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file_kind.h"
#include "common/status.h"
#include "lab/tasks/picture.h"

namespace signvote::lab {
namespace {

// Two bytes 0, the type of a value (8: a byte without sign), and how many dimensions follow.
constexpr uint32_t kPicturesMagic = 0x0803, kLabelsMagic = 0x0801;
constexpr size_t kWord = 4;

// REQUIRES: (index + 1) words are there.
uint32_t Word(std::span<const std::byte> bytes, size_t index) {
  uint32_t word = 0;
  for (size_t k = 0; k < kWord; ++k)
    word = word << 8 | std::to_integer<uint32_t>(bytes[index * kWord + k]);
  return word;
}

absl::Status CheckMagic(std::span<const std::byte> bytes, uint32_t magic, size_t words,
                        const char* what) {
  if (bytes.size() >= words * kWord && Word(bytes, 0) == magic) return absl::OkStatus();
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::string kind = ForeignKind(head.substr(0, kFileKindBytes), GivenAs::kData);
  if (!kind.empty()) return absl::InvalidArgumentError(kind);
  return absl::InvalidArgumentError(absl::StrFormat(
      "no IDX file of %s, which begins with 0x%08x; download it anew", what, magic));
}

absl::Status NotAsLong(uint64_t says, uint64_t is) {
  return absl::DataLossError(absl::StrCat("its head says ", says, " bytes of values, and ", is,
                                          " follow; download it anew"));
}

}  // namespace

absl::StatusOr<IdxPictures> ParseIdxPictures(std::span<const std::byte> bytes) {
  constexpr size_t kHeadWords = 4;
  SIGNVOTE_RETURN_IF_ERROR(CheckMagic(bytes, kPicturesMagic, kHeadWords, "pictures"));
  IdxPictures pictures{.count = Word(bytes, 1), .height = Word(bytes, 2), .width = Word(bytes, 3)};
  if (pictures.height == 0 || pictures.width == 0 ||
      !FitsPicture(pictures.width, pictures.height)) {
    return absl::InvalidArgumentError(
        absl::StrCat("pictures of ", pictures.width, " x ", pictures.height, " pixels; 1 to ",
                     kPictureSideMax, " a side are read, and ", kPixelsMax, " in all"));
  }
  const uint64_t size = uint64_t{pictures.height} * pictures.width;
  const std::span<const std::byte> values = bytes.subspan(kHeadWords * kWord);
  // No overflow: 2^32 times 2^25.
  if (pictures.count * size != values.size())
    return NotAsLong(pictures.count * size, values.size());
  pictures.values = {reinterpret_cast<const uint8_t*>(values.data()), values.size()};
  return pictures;
}

absl::StatusOr<std::span<const uint8_t>> ParseIdxLabels(std::span<const std::byte> bytes) {
  constexpr size_t kHeadWords = 2;
  SIGNVOTE_RETURN_IF_ERROR(CheckMagic(bytes, kLabelsMagic, kHeadWords, "labels"));
  const std::span<const std::byte> values = bytes.subspan(kHeadWords * kWord);
  if (Word(bytes, 1) != values.size()) return NotAsLong(Word(bytes, 1), values.size());
  return std::span(reinterpret_cast<const uint8_t*>(values.data()), values.size());
}

}  // namespace signvote::lab
