// What the kernels can and no device interface asks for yet: rescaled steps, arrays at any
// alignment. All else is held to the definitions by the self-test (cuda_device_test.cc).

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/apply.h"
#include "common/apply_kernels.h"
#include "common/bits.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/rng.h"
#include "worker/codec/cuda_kernels.h"
#include "worker/codec/cuda_memory.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote::cuda {
namespace {

// `values` in device memory, `shift` floats off the alignment of the allocator.
class OnDevice {
 public:
  OnDevice(const std::vector<float>& values, size_t shift)
      : buffer_(*DeviceBuffer<float>::Make(values.size() + shift)),
        data_(buffer_.data() + shift),
        count_(values.size()) {
    EXPECT_EQ(cudaMemcpyAsync(data_, values.data(), count_ * sizeof(float), cudaMemcpyHostToDevice,
                              nullptr),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  }
  float* data() { return data_; }
  std::vector<float> Read() {
    std::vector<float> values(count_);
    EXPECT_EQ(cudaMemcpyAsync(values.data(), data_, count_ * sizeof(float), cudaMemcpyDeviceToHost,
                              nullptr),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    return values;
  }

 private:
  DeviceBuffer<float> buffer_;
  float* data_;
  size_t count_;
};

float Draw(Rng* rng) {
  constexpr float kSpecial[] = {0.0f,
                                -0.0f,
                                std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::denorm_min(),
                                std::numeric_limits<float>::max()};
  if (rng->Below(4) == 0) return kSpecial[rng->Below(std::size(kSpecial))];
  return static_cast<float>((rng->Uniform() - 0.5) *
                            std::exp2(static_cast<double>(rng->Below(40)) - 20.0));
}

TEST(ApplyKernelTest, EveryRangeAlignmentAndRescalingEqualsTheDefinition) {
  Rng rng(7, 0);
  int cases = 0;
  for (const uint64_t d : {1, 31, 257, 4095, 4096, 4097, 13000}) {
    std::vector<TensorSpec> specs = {{.name = "a", .shape = {d}, .weight_decay = 0.1f},
                                     {.name = "b", .shape = {1 + d / 3}, .step_scale = 0.3f},
                                     {.name = "c", .shape = {9000}, .step_scale = 2.0f}};
    const Layout layout = *Layout::Make(specs);
    const uint64_t n = layout.coordinates();
    for (const size_t shift : {0, 1, 4}) {
      for (const float rho : {1.0f, 0.75f}) {
        emulator::Reset(static_cast<uint64_t>(++cases));
        std::vector<float> x(n), x0(n);
        for (float& v : x) v = Draw(&rng);
        for (float& v : x0) v = Draw(&rng);
        std::vector<uint8_t> verdict(WordsForBits(n) * 8);
        for (uint8_t& byte : verdict) byte = static_cast<uint8_t>(rng.Next());
        OnDevice device_x(x, shift), device_x0(x0, shift);
        auto bits = *DeviceBuffer<uint8_t>::Make(verdict.size());
        ASSERT_EQ(cudaMemcpyAsync(bits.data(), verdict.data(), verdict.size(),
                                  cudaMemcpyHostToDevice, nullptr),
                  cudaSuccess);
        const auto table = *MakeTensorTable(layout, nullptr);
        const std::vector<float*> pointers = PointersInto(layout, device_x.data());
        auto x_table = *DeviceBuffer<float*>::Make(pointers.size());
        ASSERT_EQ(cudaMemcpyAsync(x_table.data(), pointers.data(), x_table.bytes(),
                                  cudaMemcpyHostToDevice, nullptr),
                  cudaSuccess);
        const uint64_t first = rng.Below(n);
        const uint64_t count = 1 + rng.Below(n - first);
        ASSERT_EQ(LaunchApply({.x = x_table.data(),
                               .x0 = device_x0.data(),
                               .verdict = reinterpret_cast<const uint32_t*>(bits.data()),
                               .tensors = table.data(),
                               .tensor_count = 3,
                               .first = first,
                               .count = count,
                               .gamma = 0.01f,
                               .rho = rho,
                               .decay_step = 0.01f,
                               .scales = nullptr},
                              nullptr),
                  cudaSuccess);
        const std::vector<float> got = device_x.Read();
        for (const TensorSpec& t : layout.tensors()) {
          const TensorStep step = MakeTensorStep(0.01f, t);
          for (uint64_t i = std::max(t.first, first);
               i < std::min(t.first + t.count, first + count); ++i) {
            if (rho == 1.0f) {
              apply_kernels::kScalar.step(&x[i], 1, verdict.data(), i, step.a, step.c);
            } else {
              apply_kernels::kScalar.rescaled_step(&x[i], &x0[i], 1, verdict.data(), i, step.a,
                                                   step.c, rho);
            }
          }
        }
        for (uint64_t i = 0; i < n; ++i) {
          if (std::isnan(x[i]) && std::isnan(got[i])) continue;
          ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(x[i]))
              << "d " << d << ", shift " << shift << ", rho " << rho << ", first " << first
              << ", count " << count << ", at " << i;
        }
      }
    }
  }
}

TEST(ApplyCountsKernelTest, EveryRangeAndNumberOfBallotsEqualsTheDefinition) {
  Rng rng(9, 0);
  int cases = 0;
  for (const uint64_t d : {1, 257, 4097, 13000}) {
    const Layout layout = *Layout::Make({{.name = "a", .shape = {d}, .weight_decay = 0.1f},
                                         {.name = "b", .shape = {1 + d / 3}, .step_scale = 0.3f},
                                         {.name = "c", .shape = {5000}, .step_scale = 2.0f}});
    const uint64_t n = layout.coordinates();
    for (const uint32_t ballots : {1u, 3u, 4u, 100u, 1024u}) {
      const float rho = ballots % 2 == 0 ? 0.75f : 1.0f;
      emulator::Reset(static_cast<uint64_t>(++cases));
      std::vector<float> x(n), x0(n);
      for (float& v : x) v = Draw(&rng);
      for (float& v : x0) v = Draw(&rng);
      const uint32_t planes = CountPlanes(ballots);
      const uint64_t words = WordsForBits(n) * 2;
      std::vector<uint32_t> bits(planes * words);
      for (uint32_t& word : bits) word = static_cast<uint32_t>(rng.Next());
      OnDevice device_x(x, 0), device_x0(x0, 0);
      auto device_bits = *DeviceBuffer<uint32_t>::Make(bits.size());
      ASSERT_EQ(cudaMemcpyAsync(device_bits.data(), bits.data(), device_bits.bytes(),
                                cudaMemcpyHostToDevice, nullptr),
                cudaSuccess);
      const auto table = *MakeTensorTable(layout, nullptr);
      const std::vector<float*> pointers = PointersInto(layout, device_x.data());
      auto x_table = *DeviceBuffer<float*>::Make(pointers.size());
      ASSERT_EQ(cudaMemcpyAsync(x_table.data(), pointers.data(), x_table.bytes(),
                                cudaMemcpyHostToDevice, nullptr),
                cudaSuccess);
      const uint64_t first = rng.Below(n);
      const uint64_t count = 1 + rng.Below(n - first);
      const uint64_t planes_first = first / 8 * 8;
      ASSERT_EQ(LaunchApplyCounts({.step = {.x = x_table.data(),
                                            .x0 = device_x0.data(),
                                            .verdict = nullptr,
                                            .tensors = table.data(),
                                            .tensor_count = 3,
                                            .first = first,
                                            .count = count,
                                            .gamma = 0.01f,
                                            .rho = rho,
                                            .decay_step = 0.01f,
                                            .scales = nullptr},
                                   .planes = device_bits.data(),
                                   .plane_words = words,
                                   .plane_count = planes,
                                   .ballots = ballots,
                                   .first = planes_first},
                                  nullptr),
                cudaSuccess);
      const std::vector<float> got = device_x.Read();
      ApplyCounts(layout, {.gamma = 0.01f, .rho = rho}, first, count,
                  {.planes = reinterpret_cast<const uint8_t*>(bits.data()),
                   .plane_bytes = words * sizeof(uint32_t),
                   .ballots = ballots,
                   .first = planes_first},
                  x0.data() + first, x.data() + first);
      for (uint64_t i = 0; i < n; ++i) {
        if (std::isnan(x[i]) && std::isnan(got[i])) continue;
        ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(x[i]))
            << "d " << d << ", ballots " << ballots << ", first " << first << ", at " << i;
      }
    }
  }
}

TEST(ApplyDenseKernelTest, EveryRangeEqualsTheDefinition) {
  Rng rng(10, 0);
  int cases = 0;
  for (const uint64_t d : {1, 257, 4097, 9000}) {
    const Layout layout =
        *Layout::Make({{.name = "a", .shape = {d}, .weight_decay = 0.1f},
                       {.name = "b", .shape = {5000}, .step_scale = 2.0f, .dense = true}});
    const uint64_t n = layout.coordinates();
    for (const bool bf16 : {false, true}) {
      const float rho = d % 2 == 0 ? 0.75f : 1.0f;
      emulator::Reset(static_cast<uint64_t>(++cases));
      std::vector<float> x(n), x0(n);
      for (float& v : x) v = Draw(&rng);
      for (float& v : x0) v = Draw(&rng);
      std::vector<uint8_t> values(n * (bf16 ? 2 : 4));
      for (uint8_t& byte : values) byte = static_cast<uint8_t>(rng.Next());
      OnDevice device_x(x, 0), device_x0(x0, 0);
      auto device_values = *DeviceBuffer<uint8_t>::Make(values.size());
      ASSERT_EQ(cudaMemcpyAsync(device_values.data(), values.data(), values.size(),
                                cudaMemcpyHostToDevice, nullptr),
                cudaSuccess);
      const auto table = *MakeTensorTable(layout, nullptr);
      const std::vector<float*> pointers = PointersInto(layout, device_x.data());
      auto x_table = *DeviceBuffer<float*>::Make(pointers.size());
      ASSERT_EQ(cudaMemcpyAsync(x_table.data(), pointers.data(), x_table.bytes(),
                                cudaMemcpyHostToDevice, nullptr),
                cudaSuccess);
      const uint64_t first = rng.Below(n);
      const uint64_t count = 1 + rng.Below(n - first);
      ASSERT_EQ(LaunchApplyDense({.step = {.x = x_table.data(),
                                           .x0 = device_x0.data(),
                                           .verdict = nullptr,
                                           .tensors = table.data(),
                                           .tensor_count = 2,
                                           .first = first,
                                           .count = count,
                                           .gamma = 0.01f,
                                           .rho = rho,
                                           .decay_step = 0.01f,
                                           .scales = nullptr},
                                  .values = device_values.data(),
                                  .bf16 = bf16,
                                  .first = 0},
                                 nullptr),
                cudaSuccess);
      const std::vector<float> got = device_x.Read();
      ApplyDense(layout, {.gamma = 0.01f, .rho = rho}, first, count,
                 {.values = values.data(), .bf16 = bf16}, x0.data() + first, x.data() + first);
      for (uint64_t i = 0; i < n; ++i) {
        if (std::isnan(x[i]) && std::isnan(got[i])) continue;
        ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(x[i])) << d << " " << i;
      }
    }
  }
}

TEST(PieceSlotsTest, NoTwoPiecesShareASlot) {
  Rng rng(8, 0);
  for (int k = 0; k < 200; ++k) {
    uint64_t d = 0;
    std::vector<uint64_t> ends;
    for (uint64_t t = 1 + rng.Below(40); t > 0; --t) {
      d += rng.Below(4) == 0 ? kTileCoordinates : 1 + rng.Below(uint64_t{1} << rng.Below(15));
      ends.push_back(d);
    }
    std::vector<int> used(PieceSlots(d, ends.size()), 0);
    uint64_t begin = 0;
    for (uint64_t t = 0; t < ends.size(); begin = ends[t++]) {
      for (uint64_t tile = begin / kTileCoordinates; tile <= (ends[t] - 1) / kTileCoordinates;
           ++tile)
        ASSERT_EQ(used.at(tile + t)++, 0);
    }
  }
}

}  // namespace
}  // namespace signvote::cuda
