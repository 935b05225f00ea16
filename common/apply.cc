#include "common/apply.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/apply_kernels.h"
#include "common/check.h"
#include "common/half_float.h"
#include "common/payload_plan.h"

namespace signvote {
namespace apply_kernels {
namespace {

static_assert(kCountPlanesMax == CountPlanes(kBallotsMax));

inline bool BitAt(const uint8_t* bits, size_t i) { return (bits[i / 8] >> (i % 8)) & 1u; }

// The definition. std::fma is one rounding on every machine, in hardware or not.
void StepScalar(float* x, size_t n, const uint8_t* bits, size_t bit_offset, float a, float c) {
  for (size_t i = 0; i < n; ++i) {
    x[i] = std::fma(x[i], c, BitAt(bits, bit_offset + i) ? -a : a);
  }
}

void RescaledStepScalar(float* x, const float* x0, size_t n, const uint8_t* bits, size_t bit_offset,
                        float a, float c, float rho) {
  for (size_t i = 0; i < n; ++i) {
    const float delta = x[i] - x0[i];
    const float rescaled = std::fma(rho, delta, x0[i]);
    x[i] = std::fma(rescaled, c, BitAt(bits, bit_offset + i) ? -a : a);
  }
}

// −a·w, where w is the mean of the ballots' signs.
inline float CountsTerm(const Counts& counts, size_t i, float a) {
  uint32_t ones = 0;
  for (uint32_t p = 0; p < counts.planes; ++p) {
    const uint8_t* const plane = counts.bits + p * counts.plane_bytes;
    ones |= (BitAt(plane, counts.bit_offset + i) ? 1u : 0u) << p;
  }
  const float sum =
      static_cast<float>(2 * static_cast<int32_t>(ones) - static_cast<int32_t>(counts.ballots));
  const float w = sum / static_cast<float>(counts.ballots);
  const float t = a * w;
  return -t;
}

void CountsScalar(float* x, size_t n, const Counts& counts, float a, float c) {
  for (size_t i = 0; i < n; ++i) x[i] = std::fma(x[i], c, CountsTerm(counts, i, a));
}

void RescaledCountsScalar(float* x, const float* x0, size_t n, const Counts& counts, float a,
                          float c, float rho) {
  for (size_t i = 0; i < n; ++i) {
    const float delta = x[i] - x0[i];
    const float rescaled = std::fma(rho, delta, x0[i]);
    x[i] = std::fma(rescaled, c, CountsTerm(counts, i, a));
  }
}

template <bool kBf16>
inline float ValueAt(const uint8_t* values, size_t i) {
  if constexpr (kBf16) {
    uint16_t bits;
    std::memcpy(&bits, values + i * sizeof(bits), sizeof(bits));
    return WidenBf16(bits);
  } else {
    float value;
    std::memcpy(&value, values + i * sizeof(value), sizeof(value));
    return value;
  }
}

template <bool kBf16>
void DenseScalar(float* x, size_t n, const uint8_t* v, float a, float c) {
  for (size_t i = 0; i < n; ++i) {
    const float t = a * ValueAt<kBf16>(v, i);
    x[i] = std::fma(x[i], c, -t);
  }
}

template <bool kBf16>
void RescaledDenseScalar(float* x, const float* x0, size_t n, const uint8_t* v, float a, float c,
                         float rho) {
  for (size_t i = 0; i < n; ++i) {
    const float delta = x[i] - x0[i];
    const float rescaled = std::fma(rho, delta, x0[i]);
    const float t = a * ValueAt<kBf16>(v, i);
    x[i] = std::fma(rescaled, c, -t);
  }
}

}  // namespace

const Table kScalar = {StepScalar,
                       RescaledStepScalar,
                       CountsScalar,
                       RescaledCountsScalar,
                       DenseScalar<false>,
                       DenseScalar<true>,
                       RescaledDenseScalar<false>,
                       RescaledDenseScalar<true>};

}  // namespace apply_kernels

namespace {

// Calls f(tensor, from, to) for each tensor's part of coordinates [first, first + count), in order.
template <typename F>
void ForEachTensor(const Layout& layout, uint64_t first, uint64_t count, F f) {
  SIGNVOTE_CHECK(first <= layout.coordinates() && count <= layout.coordinates() - first);
  if (count == 0) return;
  const auto tensors = layout.tensors();
  const uint64_t end = first + count;
  auto it = std::upper_bound(tensors.begin(), tensors.end(), first,
                             [](uint64_t at, const TensorSpec& t) { return at < t.first; });
  for (--it; it != tensors.end() && it->first < end; ++it) {
    f(*it, std::max(first, it->first), std::min(end, it->first + it->count));
  }
}

const apply_kernels::Table& ActiveTable() {
  static const apply_kernels::Table& table = apply_kernels::kTables.For(ActiveIsa());
  return table;
}

// Calls f(of the tensor, from, to) for each tensor's part of coordinates [first, first + count).
template <typename F>
void ForEachStep(const Layout& layout, const StepArguments& arguments, uint64_t first,
                 uint64_t count, const float* x0, F f) {
  const auto tensors = layout.tensors();
  SIGNVOTE_CHECK(arguments.scales.empty() || arguments.scales.size() == tensors.size());
  SIGNVOTE_CHECK(arguments.rho == 1.0f || x0 != nullptr || count == 0);
  ForEachTensor(layout, first, count, [&](const TensorSpec& tensor, uint64_t from, uint64_t to) {
    const auto k = static_cast<size_t>(&tensor - tensors.data());
    f(MakeTensorStep(arguments, tensor, k), from, to);
  });
}

}  // namespace

TensorStep MakeTensorStep(const StepArguments& arguments, const TensorSpec& tensor, size_t k) {
  const float decay = arguments.decay_step.value_or(arguments.gamma) * tensor.step_scale;
  TensorStep step;
  step.a = arguments.gamma * tensor.step_scale;
  if (!arguments.scales.empty()) step.a *= arguments.scales[k];
  step.c = std::fma(-decay, tensor.weight_decay, 1.0f);
  return step;
}

void ApplyStep(const Layout& layout, const StepArguments& arguments, uint64_t first, uint64_t count,
               const uint8_t* bits, uint64_t bits_first, const float* x0, float* x) {
  SIGNVOTE_CHECK(bits_first <= first);
  const float rho = arguments.rho;
  const apply_kernels::Table& table = ActiveTable();
  ForEachStep(
      layout, arguments, first, count, x0, [&](const TensorStep& step, uint64_t from, uint64_t to) {
        float* const out = x + (from - first);
        const uint64_t offset = from - bits_first;
        if (rho == 1.0f) return table.step(out, to - from, bits, offset, step.a, step.c);
        table.rescaled_step(out, x0 + (from - first), to - from, bits, offset, step.a, step.c, rho);
      });
}

void ApplyCounts(const Layout& layout, const StepArguments& arguments, uint64_t first,
                 uint64_t count, const CountsView& counts, const float* x0, float* x) {
  SIGNVOTE_CHECK(counts.first <= first);
  const uint32_t planes = CountPlanes(counts.ballots);
  SIGNVOTE_CHECK(planes >= 1 && planes <= apply_kernels::kCountPlanesMax);
  const float rho = arguments.rho;
  const apply_kernels::Table& table = ActiveTable();
  ForEachStep(
      layout, arguments, first, count, x0, [&](const TensorStep& step, uint64_t from, uint64_t to) {
        float* const out = x + (from - first);
        const apply_kernels::Counts of_part{.bits = counts.planes,
                                            .plane_bytes = counts.plane_bytes,
                                            .planes = planes,
                                            .ballots = counts.ballots,
                                            .bit_offset = from - counts.first};
        if (rho == 1.0f) return table.counts(out, to - from, of_part, step.a, step.c);
        table.rescaled_counts(out, x0 + (from - first), to - from, of_part, step.a, step.c, rho);
      });
}

void ApplyDense(const Layout& layout, const StepArguments& arguments, uint64_t first,
                uint64_t count, const DenseView& dense, const float* x0, float* x) {
  SIGNVOTE_CHECK(dense.first <= first);
  const float rho = arguments.rho;
  const size_t value_bytes = dense.bf16 ? sizeof(uint16_t) : sizeof(float);
  const apply_kernels::Table& table = ActiveTable();
  ForEachStep(layout, arguments, first, count, x0,
              [&](const TensorStep& step, uint64_t from, uint64_t to) {
                float* const out = x + (from - first);
                const uint8_t* const v = dense.values + (from - dense.first) * value_bytes;
                if (rho == 1.0f) {
                  return (dense.bf16 ? table.bf16 : table.fp32)(out, to - from, v, step.a, step.c);
                }
                (dense.bf16 ? table.rescaled_bf16 : table.rescaled_fp32)(
                    out, x0 + (from - first), to - from, v, step.a, step.c, rho);
              });
}

void ApplyRewind(uint64_t count, const float* x0, float* x) {
  if (count != 0) std::memcpy(x, x0, count * sizeof(float));
}

float MaxAbs(std::span<const float> x) {
  // Without its sign bit a float orders like its bit pattern, and every NaN is above infinity.
  constexpr size_t kLanes = 16;
  uint32_t lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    uint32_t block[kLanes];
    std::memcpy(block, x.data() + i, sizeof(block));
    for (size_t k = 0; k < kLanes; ++k) lanes[k] = std::max(lanes[k], block[k] & 0x7FFFFFFFu);
  }
  uint32_t largest = *std::max_element(lanes, lanes + kLanes);
  for (; i < x.size(); ++i) {
    uint32_t pattern;
    std::memcpy(&pattern, &x[i], sizeof(pattern));
    largest = std::max(largest, pattern & 0x7FFFFFFFu);
  }
  float result;
  std::memcpy(&result, &largest, sizeof(result));
  return result;
}

}  // namespace signvote
