#include "worker/codec/dense_chunk.h"

#include <algorithm>
#include <cstring>

#include "common/bits.h"
#include "common/check.h"
#include "common/dense_value.h"
#include "common/half_float.h"

namespace signvote {

bool MakeDenseChunk(const Layout& layout, PayloadKind kind, uint64_t first, const uint8_t* bits,
                    std::span<float> values, uint8_t* payload) {
  SIGNVOTE_CHECK(kind == PayloadKind::kFp32 || kind == PayloadKind::kBf16);
  ForEachTensorRange(layout, first, values.size(), [&](const TensorRange& range) {
    if (layout.tensors()[range.tensor].dense) return;
    for (uint64_t i = range.first - first; i < range.first - first + range.count; ++i)
      values[i] = GetBit(bits, i) ? 1.0f : -1.0f;
  });
  if (kind == PayloadKind::kFp32) {
    std::memcpy(payload, values.data(), values.size_bytes());
    return std::all_of(values.begin(), values.end(), IsDenseValue);
  }
  bool all = true;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t narrow = NarrowBf16(values[i]);
    std::memcpy(payload + i * sizeof(narrow), &narrow, sizeof(narrow));
    all = all && IsDenseValue(WidenBf16(narrow));
  }
  return all;
}

}  // namespace signvote
