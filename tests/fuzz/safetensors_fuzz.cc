// The reader of safetensors files (common/safetensors.h). What it opens can be read to the last
// byte, and copied into a layout of its own tensors.
//
// Input: the file.

#include <string>
#include <vector>

#include "common/check.h"
#include "common/safetensors.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/memory_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  fuzz::Input input(data, size);
  fuzz::MemoryFiles files({{"f", input.Rest()}});
  const auto file = SafetensorsFile::Open(&files, "f");
  if (!file.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(file.status()) || absl::IsInvalidArgument(file.status()));
    return 0;
  }
  const absl::Status finite = (*file)->RequireFinite(nullptr);
  SIGNVOTE_CHECK(finite.ok() || absl::IsDataLoss(finite));
  std::vector<TensorSpec> tensors;
  size_t bytes = 0;
  for (const SafetensorsFile::Tensor& tensor : (*file)->tensors()) {
    uint64_t count = 1;
    for (const uint64_t dimension : tensor.shape) count *= dimension;
    SIGNVOTE_CHECK(tensor.count() == count);
    bytes += tensor.data.size();
    tensors.push_back({.name = tensor.name, .shape = tensor.shape});
  }
  SIGNVOTE_CHECK(bytes <= size);
  // A layout refuses what safetensors allows, such as a dimension of zero.
  const auto layout = Layout::Make(std::move(tensors));
  if (!layout.ok()) return 0;
  uint64_t values = 0;
  for (const SafetensorsFile::Tensor& tensor : (*file)->tensors()) {
    std::vector<float> x(tensor.count());
    tensor.WidenInto(0, x);
    values += x.size();
  }
  SIGNVOTE_CHECK(values == layout->coordinates());
  return 0;
}
