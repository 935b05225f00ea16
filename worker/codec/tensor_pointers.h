#pragma once
// Values of a whole model that do not lie in one array: one pointer per tensor of a layout.
//
// Frameworks keep each parameter and each gradient where they like, and a gradient may be missing;
// nothing here asks for them to be neighbours.

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

}  // namespace signvote
