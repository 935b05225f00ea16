#include "common/apply.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/apply_kernels.h"
#include "common/check.h"

namespace signvote {
namespace apply_kernels {
namespace {

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

}  // namespace

const Table kScalar = {StepScalar, RescaledStepScalar};

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
  const auto tensors = layout.tensors();
  SIGNVOTE_CHECK(arguments.scales.empty() || arguments.scales.size() == tensors.size());
  const float rho = arguments.rho;
  SIGNVOTE_CHECK(rho == 1.0f || x0 != nullptr || count == 0);
  const apply_kernels::Table& table = ActiveTable();
  ForEachTensor(layout, first, count, [&](const TensorSpec& tensor, uint64_t from, uint64_t to) {
    const auto k = static_cast<size_t>(&tensor - tensors.data());
    const TensorStep step = MakeTensorStep(arguments, tensor, k);
    float* out = x + (from - first);
    if (rho == 1.0f) {
      table.step(out, to - from, bits, from - bits_first, step.a, step.c);
    } else {
      table.rescaled_step(out, x0 + (from - first), to - from, bits, from - bits_first, step.a,
                          step.c, rho);
    }
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
