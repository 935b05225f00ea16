#pragma once
// The bit reader that the apply kernels share.
//
// Everything here is static and always inlined: the kernel files are compiled with ISA flags of
// their own, and a shared inline function would be merged by the linker into one copy that older
// processors cannot run.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace signvote::apply_kernels {

// 64 bits starting at bit `offset` of `bits`. Reads exactly the bytes that hold them (8, or 9 when
// unaligned).
[[gnu::always_inline]] static inline uint64_t ReadWord(const uint8_t* bits, size_t offset) {
  const uint8_t* p = bits + offset / 8;
  const unsigned shift = static_cast<unsigned>(offset % 8);
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  if (shift != 0) word = (word >> shift) | (static_cast<uint64_t>(p[8]) << (64 - shift));
  return word;
}

// `count` bits (1 to 63) starting at bit `offset`; the bits above them are unspecified. Reads no
// byte beyond the one that holds the last of them.
[[gnu::always_inline]] static inline uint64_t ReadPartialWord(const uint8_t* bits, size_t offset,
                                                              size_t count) {
  const uint8_t* p = bits + offset / 8;
  const unsigned shift = static_cast<unsigned>(offset % 8);
  const size_t bytes = (shift + count + 7) / 8;  // 1 to 9
  uint64_t word = 0;
  for (size_t k = 0; k < bytes && k < 8; ++k) word |= static_cast<uint64_t>(p[k]) << (8 * k);
  word >>= shift;
  if (bytes == 9) word |= static_cast<uint64_t>(p[8]) << (64 - shift);
  return word;
}

}  // namespace signvote::apply_kernels
