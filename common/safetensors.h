#pragma once
// Reader of safetensors files, and the header of those that are written: 8-byte little-endian header
// length, a JSON header, then the tensors' bytes without holes. F32, BF16 and F16 are read, F32 and
// BF16 written. Format: https://github.com/huggingface/safetensors (README). Models of several files:
// common/checkpoint.h; their writer: common/model_writer.h.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"

namespace signvote {

enum class TensorDtype : uint8_t { kF32, kBf16, kF16 };
uint64_t BytesOf(TensorDtype dtype);  // of one element

// The length that stands before the header, and the longest header that is taken.
inline constexpr uint64_t kSafetensorsPrefixBytes = 8;
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;

// What a header says.
struct SafetensorsContents {
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    TensorDtype dtype = TensorDtype::kF32;
    uint64_t begin = 0, end = 0;  // bytes behind the header
  };
  std::vector<Tensor> tensors;  // in order of offset, from 0 to the end without holes
  std::map<std::string, std::string> metadata;
};

// The header of the file `path` with `data_bytes` behind it. Failure: DATA_LOSS, naming path and
// culprit, for what is not JSON, holes, overlaps, offsets outside the file, repeated keys;
// INVALID_ARGUMENT for any other dtype.
absl::StatusOr<SafetensorsContents> ParseSafetensorsHeader(const std::string& path,
                                                           std::string_view json,
                                                           uint64_t data_bytes);

// A mapped, checked file. Failure: Open returns what ParseSafetensorsHeader() does, DATA_LOSS also for
// a truncated file and a header over 100 MB, and INVALID_ARGUMENT for what is clearly something else
// (common/file_kind.h).
class SafetensorsFile {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    TensorDtype dtype = TensorDtype::kF32;
    // Little-endian elements, row-major; lives as long as the file.
    std::span<const std::byte> data;

    uint64_t count() const;
    // Element i as fp32, exactly. REQUIRES: i < count().
    float At(uint64_t i) const;
    // Those from `first` on. REQUIRES: first + out.size() <= count().
    void WidenInto(uint64_t first, std::span<float> out) const;
  };
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(FileSystem* fs,
                                                               const std::string& path);
  const std::string& path() const { return path_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in order of offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // DATA_LOSS names the first number that is not finite. Reads the whole file. CANCELLED: `give_up`
  // said so, which is asked now and then; null: nobody does.
  absl::Status RequireFinite(const std::function<bool()>& give_up) const;
  // DATA_LOSS: the file was cut since it was opened, and numbers that were read were not its own. To
  // be asked after reading.
  absl::Status CheckWhole() const;

 private:
  std::string path_;
  std::unique_ptr<MappedFile> map_;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// The header bytes (length prefix included, padded with spaces to 64 bytes) of a file that holds these
// neighbours of a layout, in order; their values follow it. For writers that stream.
std::string SafetensorsHeader(std::span<const TensorSpec> tensors, TensorDtype dtype,
                              const std::map<std::string, std::string>& metadata);

}  // namespace signvote
