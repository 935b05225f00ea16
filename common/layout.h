#pragma once
// The layout: the ordered list of trained tensors. Its digest says which tensors they are, whatever
// their order; the server refuses any others.
//
// The digest is XXH3-64 (seed 0) of these bytes, integers little-endian:
//   magic      17 bytes  "signvote-layout-2" in ASCII
//   tensors    u32       their number
//   then for each tensor, in ascending order of the bytes of its name:
//   name_bytes u32       length of the name
//   name                 UTF-8
//   rank       u32       number of dimensions; 0 for a scalar
//   dims       rank×u64  outermost first
// Order in the flat buffer, step_scale, weight_decay, treatment and dense are the run's and not part of
// it.
// The tensors w [2, 3] and b [], in either order, have the digest of the golden vector in
// layout_test.cc; page: docs/wire_format.md, "Layout digest".

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace signvote {

// A chunk's size is a multiple of this many coordinates, so that chunks start at whole 64-byte
// lines of packed bits.
inline constexpr uint64_t kChunkCoordinatesMultiple = 512;

// What of a tensor is signed, beside the direction that all of them have.
enum class TensorTreatment : uint8_t {
  kUsual,
  // Where the gradient is exactly zero the own coin is cast and the direction's state stays: for
  // embeddings, most rows of which get no gradient in a round.
  kSparse,
  // Not as a matrix, though it may be one: Muon signs its momentum as it is.
  kPlain,
};

struct TensorSpec {
  std::string name;             // the name in the exported safetensors file
  std::vector<uint64_t> shape;  // dimensions, outermost first; a scalar has none
  uint64_t first = 0;           // first coordinate in the flat buffer
  uint64_t count = 0;           // product of shape
  float step_scale = 1.0f;      // this tensor moves by γ·step_scale per round; > 0, finite
  float weight_decay = 0.0f;    // decoupled decay; ≥ 0, finite
  TensorTreatment treatment = TensorTreatment::kUsual;
  bool dense = false;  // moves by an update of its mean gradient, and is not voted on

  bool operator==(const TensorSpec&) const = default;
};

// Immutable once made. Threads: thread-compatible.
class Layout {
 public:
  Layout() = default;
  // Assigns `first` and `count` from the shapes, in order and without gaps.
  // INVALID_ARGUMENT: no tensor, more than 2^16 of them, an empty or repeated name, a zero
  // dimension, more than 64 dimensions, a scale or decay out of range, or more than 2^40
  // coordinates; the message names the tensor.
  static absl::StatusOr<Layout> Make(std::vector<TensorSpec> tensors);

  std::span<const TensorSpec> tensors() const { return tensors_; }
  uint64_t coordinates() const { return coordinates_; }  // d
  // Of names and shapes, as above. Equal digests: the same tensors, perhaps in another order and with
  // other scales; operator== compares those too.
  uint64_t digest() const { return digest_; }
  float step_scale_max() const { return step_scale_max_; }  // max_k scale_k: ‖x_t − x_{t−1}‖_∞ / γ

  bool operator==(const Layout& other) const { return tensors_ == other.tensors_; }

  // "" when names and shapes are the same, whatever their order; else one sentence that names the first
  // tensor, in order of the names, that is missing on a side or has another shape.
  std::string FirstDifference(const Layout& other) const;

 private:
  std::vector<TensorSpec> tensors_;
  uint64_t coordinates_ = 0;
  uint64_t digest_ = 0;
  float step_scale_max_ = 0.0f;
};

// Whether some tensor is dense.
inline bool HasDense(const Layout& layout) {
  const std::span<const TensorSpec> tensors = layout.tensors();
  return std::any_of(tensors.begin(), tensors.end(), [](const TensorSpec& t) { return t.dense; });
}

// How a layout's coordinates are cut into chunks. Every chunk but the last has chunk_coordinates of
// them.
class ChunkPlan {
 public:
  ChunkPlan() = default;
  // REQUIRES: coordinates > 0, chunk_coordinates a positive multiple of kChunkCoordinatesMultiple.
  ChunkPlan(uint64_t coordinates, uint64_t chunk_coordinates);
  // The default cut, in coordinates: 8 chunks of 2^15 (4 KiB packed) to 2^19 (64 KiB); beyond,
  // chunks of 2^19 up to 48 of them, then 48 larger ones up to 2^21 (256 KiB), and as many of these
  // as it takes.
  static uint64_t DefaultChunkCoordinates(uint64_t coordinates);

  uint64_t coordinates() const { return coordinates_; }
  uint64_t chunk_coordinates() const { return chunk_coordinates_; }
  uint32_t chunks() const { return chunks_; }
  uint64_t First(ChunkIndex k) const { return k.value() * chunk_coordinates_; }
  uint64_t Count(ChunkIndex k) const;  // coordinates in chunk k
  size_t Bytes(ChunkIndex k) const;    // packed bytes of chunk k
  size_t ByteOffset(ChunkIndex k) const { return First(k) / 8; }
  size_t TotalBytes() const;  // ⌈d/8⌉

 private:
  uint64_t coordinates_ = 0;
  uint64_t chunk_coordinates_ = 0;
  uint32_t chunks_ = 0;
};

// Coordinates of one tensor.
struct TensorRange {
  size_t tensor = 0;    // index in the layout
  uint64_t offset = 0;  // of its first coordinate within the tensor
  uint64_t first = 0;   // the same in the model
  uint64_t count = 0;   // > 0
};

// Calls visit(TensorRange) for each tensor that has coordinates in [first, first + count), in order.
template <typename Visit>
void ForEachTensorRange(const Layout& layout, uint64_t first, uint64_t count, const Visit& visit) {
  const std::span<const TensorSpec> tensors = layout.tensors();
  const uint64_t end = first + count;
  auto tensor = std::partition_point(tensors.begin(), tensors.end(), [first](const TensorSpec& t) {
    return t.first + t.count <= first;
  });
  for (; tensor != tensors.end() && tensor->first < end; ++tensor) {
    const uint64_t begin = std::max(first, tensor->first);
    const uint64_t stop = std::min(end, tensor->first + tensor->count);
    if (begin == stop) continue;  // count = 0
    visit(TensorRange{.tensor = static_cast<size_t>(tensor - tensors.begin()),
                      .offset = begin - tensor->first,
                      .first = begin,
                      .count = stop - begin});
  }
}

}  // namespace signvote
