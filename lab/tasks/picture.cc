#include "lab/tasks/picture.h"

#include <stb/stb_image.h>
#include <stb/stb_image_resize.h>
#include <turbojpeg.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint32_t kScaledSideMax = 1024;
constexpr std::string_view kJpegMark = "\xff\xd8\xff"sv;
constexpr std::string_view kGreyMark = "P5"sv, kColourMark = "P6"sv;
constexpr std::string_view kOtherMarks[] = {"\x89PNG\r\n\x1a\n"sv, "BM"sv};
constexpr size_t kNumberDigitsMax = 9;

absl::Status Broken(std::string_view why) {
  return absl::DataLossError(absl::StrCat("a picture that cannot be read (", std::string(why),
                                          "); write it anew, or take it out of the folder"));
}

absl::Status CheckPixels(int width, int height) {
  if (width <= 0 || height <= 0) return Broken("no pixel");
  if (FitsPicture(static_cast<uint64_t>(width), static_cast<uint64_t>(height)))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "a picture of ", width, " x ", height, " pixels, of which at most ", kPictureSideMax,
      " a side and ", kPixelsMax, " in all are read; make it smaller"));
}

// Grey values, and how they lie.
struct Decoded {
  std::vector<uint8_t> grey;  // [height, width]
  int width = 0, height = 0;
};

absl::StatusOr<Decoded> DecodeJpeg(std::string_view bytes) {
  const std::unique_ptr<void, int (*)(tjhandle)> jpeg(tjInitDecompress(), tjDestroy);
  if (jpeg == nullptr) return absl::ResourceExhaustedError("no memory to read a JPEG; free some");
  const auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
  Decoded out;
  int subsampling = 0, colours = 0;
  if (tjDecompressHeader3(jpeg.get(), data, bytes.size(), &out.width, &out.height, &subsampling,
                          &colours) != 0)
    return Broken(tjGetErrorStr2(jpeg.get()));
  SIGNVOTE_RETURN_IF_ERROR(CheckPixels(out.width, out.height));
  out.grey.resize(static_cast<size_t>(out.width) * static_cast<size_t>(out.height));
  // A file that was cut is only a warning otherwise; one of endless scans would take hours.
  if (tjDecompress2(jpeg.get(), data, bytes.size(), out.grey.data(), out.width, 0, out.height,
                    TJPF_GRAY, TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS) != 0)
    return Broken(tjGetErrorStr2(jpeg.get()));
  return out;
}

// PGM and PPM, netpbm.sourceforge.net/doc/pgm.html: numbers in text, then bytes.
class PnmReader {
 public:
  explicit PnmReader(std::string_view bytes) : bytes_(bytes) {}

  absl::StatusOr<Decoded> Read() {
    const size_t channels = bytes_.starts_with(kColourMark) ? 3 : 1;
    at_ = kGreyMark.size();
    const std::optional<uint32_t> width = Number(), height = Number(), largest = Number();
    if (!largest.has_value() || *largest == 0 || *largest > UINT16_MAX)
      return Broken("no size and largest value");
    Decoded out{.width = static_cast<int>(*width), .height = static_cast<int>(*height)};
    SIGNVOTE_RETURN_IF_ERROR(CheckPixels(out.width, out.height));
    const size_t pixels = size_t{*width} * *height;
    const size_t wide = *largest > UINT8_MAX ? 2 : 1;
    ++at_;  // one white space
    if (at_ > bytes_.size() || bytes_.size() - at_ < pixels * channels * wide)
      return Broken("fewer values than it says");
    out.grey.reserve(pixels);
    for (size_t k = 0; k < pixels; ++k) {
      const auto value = [&] {
        uint32_t sum = 0;
        for (size_t i = 0; i < wide; ++i) sum = sum << 8 | static_cast<uint8_t>(bytes_[at_++]);
        return std::min(sum, *largest) * UINT8_MAX / *largest;
      };
      if (channels == 1) {
        out.grey.push_back(static_cast<uint8_t>(value()));
        continue;
      }
      // The weights of stb_image, 1/256 each.
      uint32_t sum = 0;
      for (const uint32_t weight : {77u, 150u, 29u}) sum += weight * value();
      out.grey.push_back(static_cast<uint8_t>(sum >> 8));
    }
    return out;
  }

 private:
  // The next one, behind white space and comments; nullopt, and for good: there is none.
  std::optional<uint32_t> Number() {
    bool comment = false;
    for (; at_ < bytes_.size(); ++at_) {
      const auto c = static_cast<unsigned char>(bytes_[at_]);
      if (comment ? c == '\n' : c == '#') {
        comment = !comment;
      } else if (!comment && !absl::ascii_isspace(c)) {
        break;
      }
    }
    uint32_t number = 0;
    size_t digits = 0;
    while (at_ < bytes_.size() && absl::ascii_isdigit(static_cast<unsigned char>(bytes_[at_])) &&
           digits < kNumberDigitsMax) {
      number = 10 * number + static_cast<uint32_t>(bytes_[at_++] - '0');
      ++digits;
    }
    if (digits > 0) return number;
    at_ = bytes_.size();
    return std::nullopt;
  }

  const std::string_view bytes_;
  size_t at_ = 0;
};

absl::Status BrokenForStb() {
  const char* const why = stbi_failure_reason();
  return Broken(why == nullptr ? "no reason given" : why);
}

absl::StatusOr<Decoded> DecodeOther(std::string_view bytes) {
  const auto* const data = reinterpret_cast<const stbi_uc*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  Decoded out;
  int channels = 0;
  if (stbi_info_from_memory(data, size, &out.width, &out.height, &channels) == 0)
    return BrokenForStb();
  SIGNVOTE_RETURN_IF_ERROR(CheckPixels(out.width, out.height));
  const std::unique_ptr<stbi_uc, void (*)(void*)> grey(
      stbi_load_from_memory(data, size, &out.width, &out.height, &channels, STBI_grey),
      stbi_image_free);
  if (grey == nullptr) return BrokenForStb();
  const size_t pixels = static_cast<size_t>(out.width) * static_cast<size_t>(out.height);
  SIGNVOTE_CHECK(pixels <= kPixelsMax);
  out.grey.assign(grey.get(), grey.get() + pixels);
  return out;
}

absl::StatusOr<Decoded> Decode(std::string_view bytes) {
  if (bytes.empty()) return Broken("the file is empty");
  if (bytes.starts_with(kJpegMark)) return DecodeJpeg(bytes);
  if (bytes.starts_with(kGreyMark) || bytes.starts_with(kColourMark))
    return PnmReader(bytes).Read();
  for (const std::string_view mark : kOtherMarks)
    if (bytes.starts_with(mark)) return DecodeOther(bytes);
  return absl::InvalidArgumentError(
      "no picture that is known here; write it as PNG, JPEG, BMP, PGM or PPM, or take it out of "
      "the folder");
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> DecodePicture(std::string_view bytes, uint32_t side) {
  SIGNVOTE_CHECK(bytes.size() <= kPictureBytesMax);
  SIGNVOTE_ASSIGN_OR_RETURN(const Decoded picture, Decode(bytes));
  return ScaleGrey(picture.grey, static_cast<uint32_t>(picture.width),
                   static_cast<uint32_t>(picture.height), side);
}

absl::StatusOr<std::vector<uint8_t>> ScaleGrey(std::span<const uint8_t> grey, uint32_t width,
                                               uint32_t height, uint32_t side) {
  SIGNVOTE_CHECK(side > 0 && side <= kScaledSideMax && width > 0 && height > 0 &&
                 FitsPicture(width, height) && grey.size() == uint64_t{width} * height);
  // The filter for shrinking would blur it.
  if (width == side && height == side) return std::vector<uint8_t>(grey.begin(), grey.end());
  std::vector<uint8_t> scaled(size_t{side} * side);
  const int out = static_cast<int>(side);
  if (stbir_resize_uint8(grey.data(), static_cast<int>(width), static_cast<int>(height), 0,
                         scaled.data(), out, out, 0, 1) == 0)
    return absl::ResourceExhaustedError("no memory to shrink a picture; free some");
  return scaled;
}

}  // namespace signvote::lab
