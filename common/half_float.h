#pragma once
// The two 16-bit floating point formats of model files. Widening to fp32 is exact: every value of
// either format, infinities and NaNs included, is one of fp32. Narrowing rounds.

#include <bit>
#include <cstdint>

namespace signvote {

// bfloat16: the upper half of an fp32.
constexpr float WidenBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// The nearest bfloat16, of two equally near ones that with an even mantissa (IEEE 754,
// roundTiesToEven); infinity from half a step beyond the largest on. A NaN stays one, made quiet.
constexpr uint16_t NarrowBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// IEEE 754 binary16: 1 sign bit, 5 exponent bits (bias 15), 10 mantissa bits.
constexpr float WidenF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // A denormal, m · 2⁻²⁴, is a normal number of fp32: its leading one becomes the implicit bit.
  const auto shift = static_cast<uint32_t>(std::countl_zero(mantissa)) - 21;
  mantissa = mantissa << shift & 0x3ffu;
  return std::bit_cast<float>(sign | (113 - shift) << 23 | mantissa << 13);
}

}  // namespace signvote
