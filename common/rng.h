#pragma once
// A counter-based random generator: value k of stream (seed, stream) is a pure function of the
// three, so that any part of a run can be replayed without its past. Not for keys or tokens (see
// file_system.h, RandomBytes).

#include <cstdint>

#include "common/coin.h"

namespace signvote {

// Threads: not thread-safe; copy it, it is three words.
class Rng {
 public:
  constexpr Rng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  constexpr uint64_t Next() { return Mix(seed_, stream_, counter_++); }
  // Uniform in [0, bound) without modulo bias worth naming (Lemire's multiply-shift, bias <
  // bound/2^64). bound > 0.
  constexpr uint64_t Below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(Next()) * bound) >> 64);
  }
  // Uniform in [0, 1) with 53 bits.
  constexpr double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  // Bell-shaped, mean 0, deviation 1, within ±3.47: four 16-bit uniforms of one draw. Only exact
  // operations and one rounded division, so that every machine gets the same bits (a normal by log
  // and cos would depend on libm).
  constexpr double Bell() {
    const uint64_t word = Next();
    const uint64_t sum =
        (word & 0xffff) + ((word >> 16) & 0xffff) + ((word >> 32) & 0xffff) + (word >> 48);
    constexpr double kMean = 2.0 * 65535.0;
    constexpr double kDeviation = 37837.22723720648;  // sqrt((2^32 − 1) / 3)
    return (static_cast<double>(sum) - kMean) / kDeviation;
  }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
};

}  // namespace signvote
