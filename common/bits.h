#pragma once
// Packed bits: one bit per coordinate, least significant bit first. Bit i of a range is bit (i mod
// 8) of byte ⌊i/8⌋; the unused high bits of the last byte are zero. 1 means +1, 0 means −1.
// docs/wire_format.md, "Packed bits".

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace signvote {

static_assert(std::endian::native == std::endian::little, "packed words are read as little-endian");

inline constexpr size_t kBitsPerByte = 8;
inline constexpr size_t kBitsPerWord = 64;

constexpr size_t BytesForBits(size_t bits) { return (bits + kBitsPerByte - 1) / kBitsPerByte; }
constexpr size_t WordsForBits(size_t bits) { return (bits + kBitsPerWord - 1) / kBitsPerWord; }

inline bool GetBit(const uint8_t* bits, size_t i) { return (bits[i / 8] >> (i % 8)) & 1u; }

inline void SetBit(uint8_t* bits, size_t i, bool value) {
  const uint8_t mask = static_cast<uint8_t>(1u << (i % 8));
  bits[i / 8] = static_cast<uint8_t>(value ? (bits[i / 8] | mask) : (bits[i / 8] & ~mask));
}

// True when every bit at or above `bits` in the last byte of a BytesForBits(bits) buffer is zero.
inline bool PaddingIsZero(const uint8_t* data, size_t bits) {
  return bits % 8 == 0 || (data[bits / 8] >> (bits % 8)) == 0;
}

// The words [w, w + 1) of a packed buffer as uint64, whatever its alignment. REQUIRES 8 readable
// bytes.
inline uint64_t LoadWord(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}
inline void StoreWord(uint8_t* data, uint64_t word) { std::memcpy(data, &word, sizeof(word)); }

}  // namespace signvote
