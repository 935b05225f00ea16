#pragma once
// Pictures of one's own as a data set: a folder with a folder for each class, or the files of MNIST and
// what is written like it. docs/lab.md, "Pictures".

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "worker/data/dataset.h"

namespace signvote::lab {

struct PicturesOptions {
  uint32_t side = 16;  // of the pictures that a model sees
  uint64_t rows = 16;  // of a micro-batch
  uint64_t held_out =
      1024;  // at most so many are measured, spread over what is held out; at least 1
};

struct Pictures {
  // Values about 0: those of all pictures to train on have mean 0 and deviation 1. A share meets each
  // of these once in an epoch, in the order of worker/data/window_order.h.
  std::unique_ptr<Dataset> data;
  uint32_t classes = 0;
};

// Reads and shrinks every picture, and keeps side · side + 2 bytes of each.
// Failure: one line with the file or folder and what to do; exit code kBadInput, or kNoMemory where they
//          would not fit, which is known before the first is read.
absl::StatusOr<Pictures> OpenPictures(FileSystem* fs, const std::string& path,
                                      const PicturesOptions& options);

}  // namespace signvote::lab
