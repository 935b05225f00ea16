#pragma once
// A text made on the spot, and a data set of windows of it.

#include <cstdint>
#include <memory>
#include <string>

#include "worker/data/dataset.h"

namespace signvote::lab {

// At least `bytes` bytes of sentences of made-up words. Which word follows depends on the one before, so
// that there is more to learn than how words are spelt. The same for the same seed on every machine.
std::string MadeUpText(uint64_t bytes, uint64_t seed);

struct TextWindowsOptions {
  uint64_t rows = 4;       // of a micro-batch
  uint64_t length = 48;    // bytes of a row
  uint64_t held_out = 64;  // windows; 0: none
  std::string description;
};
// The windows of worker/data, of bytes in memory: the last 5 % are held out. REQUIRES: both parts are
// longer than a window.
std::unique_ptr<Dataset> MakeTextDataset(std::string text, const TextWindowsOptions& options);

}  // namespace signvote::lab
