#pragma once
// Reader and writer of safetensors files: 8-byte little-endian header length, a JSON header, then
// the tensors' bytes without holes. F32, BF16 and F16 are read, F32 is written: that is what a
// replica is. Format: https://github.com/huggingface/safetensors (README). Models of several files:
// common/checkpoint.h.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"

namespace signvote {

// A mapped, checked file. Failure: Open returns DATA_LOSS, naming path and culprit, for a truncated
// file, a header over 100 MB or not JSON, holes, overlaps, offsets outside the file, repeated keys;
// INVALID_ARGUMENT for any other dtype.
class SafetensorsFile {
 public:
  enum class Dtype : uint8_t { kF32, kBf16, kF16 };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    Dtype dtype = Dtype::kF32;
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

// The header bytes (length prefix included, padded with spaces to 64 bytes) of a file that holds
// `layout` in order; the fp32 data of the flat buffer follows it unchanged. For writers that
// stream.
std::string SafetensorsHeader(const Layout& layout,
                              const std::map<std::string, std::string>& metadata);

// Writes x as `path`, atomically. metadata gets {"format":"pt"} unless it has one.
absl::Status WriteSafetensors(FileSystem* fs, const std::string& path, const Layout& layout,
                              std::span<const float> x,
                              const std::map<std::string, std::string>& metadata);

// The same of values that are read piece by piece: no second copy of the model is made.
// `read` fills values with those from `first` on; its failure is returned, and nothing is written.
using ReadValues = std::function<absl::Status(uint64_t first, std::span<float> values)>;
absl::Status WriteSafetensors(FileSystem* fs, const std::string& path, const Layout& layout,
                              const ReadValues& read,
                              const std::map<std::string, std::string>& metadata);

}  // namespace signvote
