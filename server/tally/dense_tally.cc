#include "server/tally/dense_tally.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/bits.h"
#include "common/check.h"
#include "common/coin.h"
#include "common/dense_value.h"
#include "common/half_float.h"

namespace signvote {
namespace {

// Coordinates at a time: what is summed stays in the first-level cache.
constexpr size_t kBlock = 1024;

float ReadValue(PayloadKind kind, const uint8_t* values, uint64_t i) {
  if (kind == PayloadKind::kBf16) {
    uint16_t bits;
    std::memcpy(&bits, values + i * sizeof(bits), sizeof(bits));
    return WidenBf16(bits);
  }
  float value;
  std::memcpy(&value, values + i * sizeof(value), sizeof(value));
  return value;
}

void WriteValue(PayloadKind kind, uint8_t* values, uint64_t i, float value) {
  if (kind == PayloadKind::kBf16) {
    const uint16_t bits = NarrowBf16(value);
    std::memcpy(values + i * sizeof(bits), &bits, sizeof(bits));
  } else {
    std::memcpy(values + i * sizeof(value), &value, sizeof(value));
  }
}

// The means of coordinates [first, first + count) of the chunk.
void Means(const DenseInput& input, uint64_t first, size_t count, float* mean) {
  double sum[kBlock] = {};
  for (const uint8_t* const ballot : input.ballots) {
    for (size_t i = 0; i < count; ++i)
      sum[i] += static_cast<double>(ReadValue(input.kind, ballot, first + i));
  }
  const auto n = static_cast<double>(input.ballots.size());
  for (size_t i = 0; i < count; ++i) mean[i] = static_cast<float>(sum[i] / n);
}

// What a vote on coordinate i of the chunk comes to.
float Voted(const DenseInput& input, uint64_t i) {
  const auto n = static_cast<uint32_t>(input.ballots.size());
  uint32_t ones = 0;
  for (const uint8_t* const ballot : input.ballots)
    ones += ReadValue(input.kind, ballot, i) > 0 ? 1u : 0u;
  if (input.aggregate == Aggregate::kAverage) {
    return static_cast<float>(2 * static_cast<int32_t>(ones) - static_cast<int32_t>(n)) /
           static_cast<float>(n);
  }
  const uint64_t at = input.first_coordinate + i;
  const bool coin =
      (TieCoinWord(input.seed, input.round, at / kBitsPerWord) >> (at % kBitsPerWord)) & 1u;
  return VerdictBit(ones, n, coin) ? 1.0f : -1.0f;
}

// The planes from a coordinate of the chunk on.
OptimizerPlanes PlanesAt(const DenseInput& input, uint64_t at) {
  if (input.optimizer.planes() == 0) return {};
  OptimizerPlanes planes = input.planes;
  planes.in += at;
  planes.out += at;
  return planes;
}

// What is voted on in a dense chunk has no state: its places, which are saved with the rest, are 0.
void ClearState(const DenseInput& input, uint64_t at, uint64_t count) {
  for (size_t plane = 0; plane < input.optimizer.planes(); ++plane)
    std::fill_n(input.planes.out + plane * input.planes.stride + at, count, 0.0f);
}

}  // namespace

double TallyDense(const DenseInput& input, uint8_t* update) {
  SIGNVOTE_CHECK(!input.ballots.empty());
  SIGNVOTE_CHECK(input.kind == PayloadKind::kFp32 || input.kind == PayloadKind::kBf16);
  const DenseStep step(input.optimizer, input.step, input.scalars);
  double q = 0;
  float block[kBlock];
  ForEachTensorRange(*input.layout, input.first_coordinate, input.coordinates,
                     [&](const TensorRange& range) {
                       const uint64_t begin = range.first - input.first_coordinate;
                       if (!input.layout->tensors()[range.tensor].dense) {
                         for (uint64_t i = begin; i < begin + range.count; ++i)
                           WriteValue(input.kind, update, i, Voted(input, i));
                         return ClearState(input, begin, range.count);
                       }
                       for (uint64_t at = begin; at < begin + range.count; at += kBlock) {
                         const size_t count = std::min<uint64_t>(kBlock, begin + range.count - at);
                         Means(input, at, count, block);
                         q += step.Update(PlanesAt(input, at), count, block);
                         for (size_t i = 0; i < count; ++i)
                           WriteValue(input.kind, update, at + i, block[i]);
                       }
                     });
  return q;
}

bool AreDenseValues(PayloadKind kind, const uint8_t* values, uint64_t coordinates) {
  for (uint64_t i = 0; i < coordinates; ++i) {
    if (!IsDenseValue(ReadValue(kind, values, i))) return false;
  }
  return true;
}

}  // namespace signvote
