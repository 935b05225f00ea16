#pragma once
// Checksums put right, so that a fuzzer comes behind them.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "common/checksum.h"

namespace signvote::fuzz {

// Writes the checksum of `count` bytes from `at` on behind them. False: they are not all there.
inline bool Repair(std::string* bytes, size_t at, uint64_t count, bool wanted) {
  if (at > bytes->size() || count > bytes->size() - at || bytes->size() - at - count < 8)
    return false;
  const uint64_t sum = Xxh3(bytes->data() + at, count);
  if (wanted) std::memcpy(bytes->data() + at + count, &sum, sizeof(sum));
  return true;
}

}  // namespace signvote::fuzz
