// Layouts, which come from whoever joins (common/layout.h). What is taken has one digest in every
// order of its tensors, and differs from itself in nothing.
//
// Input: tensors; of each the length of its name, the name, its rank, and per dimension one byte
// that is shifted left by another.

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/layout.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  fuzz::Input input(data, size);
  std::vector<TensorSpec> tensors;
  while (!input.empty()) {
    TensorSpec tensor;
    tensor.name = input.Text(input.Byte());
    tensor.shape.resize(input.Byte());
    for (uint64_t& dimension : tensor.shape) {
      dimension = input.Byte();
      dimension <<= input.Byte() % 64;
    }
    tensors.push_back(std::move(tensor));
  }
  const auto layout = Layout::Make(tensors);
  std::reverse(tensors.begin(), tensors.end());
  const auto reversed = Layout::Make(tensors);
  SIGNVOTE_CHECK(layout.ok() == reversed.ok());
  if (!layout.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(layout.status()));
    return 0;
  }
  SIGNVOTE_CHECK(layout->digest() == reversed->digest());
  SIGNVOTE_CHECK(layout->coordinates() == reversed->coordinates());
  SIGNVOTE_CHECK(layout->FirstDifference(*reversed).empty());
  uint64_t next = 0;
  for (const TensorSpec& tensor : layout->tensors()) {
    SIGNVOTE_CHECK(tensor.first == next && tensor.count > 0);
    next += tensor.count;
  }
  SIGNVOTE_CHECK(next == layout->coordinates());
  return 0;
}
