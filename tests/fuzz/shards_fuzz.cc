// A model in shards, index and shard both at will (common/checkpoint.h, common/shard_index.h). An index that is taken is
// the same when it is written and read again, and names no file of another folder; a model that is
// opened is finite or says where it is not, and is copied into a layout of its own tensors, unless
// there can be no such layout.
//
// Input: two bytes, the low one first, that say how long the index is; the index; the shard "a".

#include <string>
#include <vector>

#include "common/check.h"
#include "common/checkpoint.h"
#include "common/shard_index.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/memory_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  fuzz::Input input(data, size);
  const size_t low = input.Byte();
  const std::string text = input.Text(low | static_cast<size_t>(input.Byte()) << 8);
  const std::string shard = input.Rest();
  const auto index = ParseShardIndex("m.index.json", text);
  if (index.ok()) {
    const auto again = ParseShardIndex("m.index.json", ShardIndexText(*index, size));
    SIGNVOTE_CHECK(again.ok() && *again == *index);
    for (const auto& [tensor, file] : index->files)
      SIGNVOTE_CHECK(file.find('/') == std::string::npos && file != "..");
  }
  fuzz::MemoryFiles files({{"m.index.json", text}, {"a", shard}});
  const auto model = Checkpoint::Open(&files, "m.index.json");
  if (!model.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(model.status()) || absl::IsInvalidArgument(model.status()) ||
                   absl::IsNotFound(model.status()));
    return 0;
  }
  SIGNVOTE_CHECK(index.ok() && !(*model)->empty());
  const absl::Status finite = (*model)->RequireFinite();
  SIGNVOTE_CHECK(finite.ok() || absl::IsDataLoss(finite));
  // Every tensor lies in the one file that there is.
  const auto file = SafetensorsFile::Open(&files, "a");
  SIGNVOTE_CHECK(file.ok());
  std::vector<TensorSpec> tensors;
  for (const SafetensorsFile::Tensor& tensor : (*file)->tensors())
    tensors.push_back({.name = tensor.name, .shape = tensor.shape});
  const auto layout = Layout::Make(std::move(tensors));
  if (!layout.ok()) return 0;
  std::vector<float> x(layout->coordinates());
  SIGNVOTE_CHECK((*model)->CopyInto(*layout, x).ok());
  return 0;
}
