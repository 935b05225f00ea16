#pragma once
// The noise under a sign, as its envelope names it. Without any include, so that device code uses
// this very text. docs/algorithms/conversion.md.

#include <cstdint>

namespace signvote {

// What is signed is u + R·n, n uniform in (−1, 1): R is the envelope of u.
enum class Envelope : uint8_t {
  kNone,        // no noise: u itself
  kCoordinate,  // R_i ← max(ρ·R_i, |u_i|), kept from round to round
  kTensor,      // R = max |u_i| over the coordinate's tensor in this round
  kOne,         // R = 1
};

// The noise of a 16-bit uniform k (common/coin.h): (2k + 1)/65536 − 1, exact in fp32. It is never 0
// or ±1, and n and −n are equally likely.
constexpr float NoiseOf(uint16_t k) {
  return static_cast<float>(2 * static_cast<int32_t>(k) + 1 - 65536) * 0x1p-16f;
}

}  // namespace signvote
