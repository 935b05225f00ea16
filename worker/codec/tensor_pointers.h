#pragma once
// Values of a whole model that do not lie in one array: one pointer per tensor of a layout.
//
// Frameworks keep each parameter and each gradient where they like, and a gradient may be missing;
// nothing here asks for them to be neighbours.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/layout.h"

namespace signvote {

// Entry k points to the tensor's `count` values, in order of coordinate. Threads: plain views; the
// array of pointers and what it points to are the caller's.
using TensorPointers = std::span<float* const>;
// The same to read. Where the header that takes it says so, an entry may be null: no such tensor.
using ConstTensorPointers = std::span<const float* const>;

// The pointers of values that do lie in one array, [d] in layout order.
template <typename Float>
std::vector<Float*> PointersInto(const Layout& layout, Float* flat) {
  std::vector<Float*> pointers;
  pointers.reserve(layout.tensors().size());
  for (const TensorSpec& tensor : layout.tensors()) pointers.push_back(flat + tensor.first);
  return pointers;
}

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
