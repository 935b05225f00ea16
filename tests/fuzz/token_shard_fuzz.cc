// The readers of texts and token shards (worker/data). What can be opened gives minibatches, or
// says that a token is not of the vocabulary.
//
// Input: one byte for format and files, then the file; or two files, each half of the rest.

#include <string>

#include "common/check.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/memory_files.h"
#include "worker/data/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  fuzz::Input input(data, size);
  constexpr DataFormat kFormats[] = {DataFormat::kText, DataFormat::kNanoGpt, DataFormat::kLlmc};
  const uint8_t choice = input.Byte();
  DatasetOptions options;
  options.format = kFormats[(choice & 0x7f) % 3];
  options.rows = 2;
  options.length = 4;
  options.eval_targets = 8;
  options.eval_length = 4;
  std::map<std::string, std::string> contents;
  if (choice & 0x80) {
    options.path = "d";
    contents["d/a.bin"] = input.Text((size - 1) / 2);
    contents["d/val.bin"] = input.Rest();
  } else {
    options.path = "f";
    contents["f"] = input.Rest();
  }
  fuzz::MemoryFiles files(std::move(contents));
  const auto dataset = OpenDataset(&files, options);
  if (!dataset.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(dataset.status()) || absl::IsInvalidArgument(dataset.status()));
    return 0;
  }
  const absl::Status all = (*dataset)->CheckAll({});
  SIGNVOTE_CHECK(all.ok() || absl::IsInvalidArgument(all));
  Batch batch;
  const auto check = [&](const absl::Status& status, size_t tokens) {
    SIGNVOTE_CHECK(status.ok() || (absl::IsInvalidArgument(status) && !all.ok()));
    if (!status.ok()) return;
    SIGNVOTE_CHECK(batch.inputs.size() == tokens && batch.targets.size() == tokens);
    for (const int64_t token : batch.inputs) SIGNVOTE_CHECK(token >= 0 && token < 256);
    for (const int64_t token : batch.targets) SIGNVOTE_CHECK(token >= 0 && token < 256);
  };
  for (uint64_t step = 0; step < 4; ++step) {
    check((*dataset)->TrainBatch({.seed = step, .data_step = DataStep(step)}, &batch), 8);
  }
  const uint64_t windows = (*dataset)->held_out_windows();
  SIGNVOTE_CHECK(windows == 1 || windows == 2);
  check((*dataset)->HeldOut(0, windows, &batch), 4 * windows);
  return 0;
}
