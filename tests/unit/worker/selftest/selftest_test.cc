#include "worker/selftest/selftest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "common/cpu.h"
#include "common/status.h"

namespace signvote {
namespace {

// The CPU in everything but one thing that it gets wrong.
class WrongDevice : public HostDevice {
 public:
  enum class Wrong {
    kNothing,
    kBit,
    kPadding,
    kMargin,
    kSum,
    kCount,
    kNorm,
    kState,
    kRestore,
    kReset,
    kReplica,
    kRescale,
    kScales,
    kDecay,
    kCounts,
    kDense,
    kRewind,
    kX0Sums,
    kStep,
    kDigest
  };
  explicit WrongDevice(Wrong wrong) : wrong_(wrong) {}

  absl::StatusOr<std::unique_ptr<ReplicaMemory>> MakeReplica(const Layout* layout,
                                                             TensorPointers x) override {
    return std::make_unique<Replica>(wrong_, *HostDevice::MakeReplica(layout, x));
  }
  absl::StatusOr<std::unique_ptr<BallotPacker>> MakePacker(const Layout* layout, ChunkPlan plan,
                                                           const DirectionConfig& config) override {
    return std::make_unique<Packer>(wrong_, *HostDevice::MakePacker(layout, plan, config), plan);
  }

 private:
  // The least that can be wrong: the last bit.
  template <typename Float, typename Bits>
  static void Nudge(Float* value) {
    *value = std::bit_cast<Float>(std::bit_cast<Bits>(*value) ^ Bits{1});
  }

  class Replica : public ReplicaMemory {
   public:
    Replica(Wrong wrong, std::unique_ptr<ReplicaMemory> right)
        : wrong_(wrong), right_(std::move(right)) {}
    uint64_t coordinates() const override { return right_->coordinates(); }
    absl::Status Write(uint64_t first, std::span<const float> values) override {
      return right_->Write(first, values);
    }
    absl::Status Read(uint64_t first, std::span<float> values) override {
      return right_->Read(first, values);
    }
    absl::Status Apply(const Layout& layout, const StepArguments& step, uint64_t first,
                       uint64_t count, const uint8_t* verdict) override {
      StepArguments wrong = step;
      if (wrong_ == Wrong::kRescale) wrong.rho = step.rho * 0.5f;
      if (wrong_ == Wrong::kScales) wrong.scales = {};
      if (wrong_ == Wrong::kDecay) wrong.decay_step.reset();
      SIGNVOTE_RETURN_IF_ERROR(right_->Apply(layout, wrong, first, count, verdict));
      return wrong_ == Wrong::kReplica ? NudgeLast(first, count) : absl::OkStatus();
    }
    absl::Status ApplyCounts(const Layout& layout, const StepArguments& step, uint64_t first,
                             uint64_t count, const CountsView& counts) override {
      SIGNVOTE_RETURN_IF_ERROR(right_->ApplyCounts(layout, step, first, count, counts));
      return wrong_ == Wrong::kCounts ? NudgeLast(first, count) : absl::OkStatus();
    }
    absl::Status ApplyDense(const Layout& layout, const StepArguments& step, uint64_t first,
                            uint64_t count, const DenseView& dense) override {
      SIGNVOTE_RETURN_IF_ERROR(right_->ApplyDense(layout, step, first, count, dense));
      return wrong_ == Wrong::kDense ? NudgeLast(first, count) : absl::OkStatus();
    }
    absl::Status KeepX0() override { return right_->KeepX0(); }
    bool keeps_x0() const override { return right_->keeps_x0(); }
    absl::Status WriteX0(uint64_t first, std::span<const float> values) override {
      return right_->WriteX0(first, values);
    }
    absl::Status ReadX0(uint64_t first, std::span<float> values) override {
      return right_->ReadX0(first, values);
    }
    absl::Status Rewind(uint64_t first, uint64_t count) override {
      return right_->Rewind(first, wrong_ == Wrong::kRewind ? count - 1 : count);
    }
    absl::StatusOr<X0Sums> SumsAboutX0(const Layout& layout, ConstTensorPointers g) override {
      SIGNVOTE_ASSIGN_OR_RETURN(X0Sums sums, right_->SumsAboutX0(layout, g));
      if (wrong_ == Wrong::kX0Sums) Nudge<double, uint64_t>(&sums.inner);
      return sums;
    }
    absl::StatusOr<uint64_t> Digest() override {
      SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, right_->Digest());
      return wrong_ == Wrong::kDigest ? digest + 1 : digest;
    }

   private:
    absl::Status NudgeLast(uint64_t first, uint64_t count) {
      if (count == 0) return absl::OkStatus();
      float last = 0;
      SIGNVOTE_RETURN_IF_ERROR(right_->Read(first + count - 1, std::span(&last, 1)));
      if (last != last) return absl::OkStatus();  // of a NaN the bits are free
      Nudge<float, uint32_t>(&last);
      return right_->Write(first + count - 1, std::span(&last, 1));
    }

    const Wrong wrong_;
    const std::unique_ptr<ReplicaMemory> right_;
  };

  class Packer : public BallotPacker {
   public:
    Packer(Wrong wrong, std::unique_ptr<BallotPacker> right, ChunkPlan plan)
        : wrong_(wrong), right_(std::move(right)), plan_(plan) {}
    absl::Status Begin() override { return right_->Begin(); }
    absl::StatusOr<ChunkScalars> Sums(ConstTensorPointers g, const uint8_t* verdict) override {
      SIGNVOTE_ASSIGN_OR_RETURN(ChunkScalars sums, right_->Sums(g, verdict));
      if (wrong_ == Wrong::kNorm) Nudge<double, uint64_t>(&sums.g_l2_squared);
      return sums;
    }
    absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) override {
      SIGNVOTE_RETURN_IF_ERROR(right_->Start(k, input, ballot));
      const uint64_t last = plan_.Count(k) - 1;
      if (wrong_ == Wrong::kBit) ballot[last / 8] ^= static_cast<uint8_t>(1u << (last % 8));
      if (wrong_ == Wrong::kPadding && last % 8 != 7) ballot[last / 8] |= 0x80;
      if (wrong_ == Wrong::kMargin) ballot[plan_.Bytes(k)] = 0;
      return absl::OkStatus();
    }
    absl::StatusOr<bool> Ready(ChunkIndex k) override { return right_->Ready(k); }
    absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) override {
      SIGNVOTE_ASSIGN_OR_RETURN(ChunkScalars scalars, right_->Finish(k));
      if (wrong_ == Wrong::kSum) Nudge<double, uint64_t>(&scalars.prev_inner);
      if (wrong_ == Wrong::kCount) ++scalars.nonfinite;
      return scalars;
    }
    absl::Status Step(const Direction::StepInput& input) override {
      Direction::StepInput step = input;
      if (wrong_ == Wrong::kStep) step.eta *= 2;
      return right_->Step(step);
    }
    absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override {
      SIGNVOTE_RETURN_IF_ERROR(right_->SaveState(plane, first, bytes));
      if (wrong_ == Wrong::kState && !bytes.empty()) bytes.back() ^= std::byte{1};
      return absl::OkStatus();
    }
    absl::Status RestoreState(size_t plane, uint64_t first,
                              std::span<const std::byte> bytes) override {
      return right_->RestoreState(plane, first,
                                  wrong_ == Wrong::kRestore
                                      ? bytes.first(bytes.size() - std::min(bytes.size(), kWidest))
                                      : bytes);
    }
    absl::Status Reset() override {
      return wrong_ == Wrong::kReset ? absl::OkStatus() : right_->Reset();
    }

   private:
    static constexpr size_t kWidest = 8;  // bytes of an element
    const Wrong wrong_;
    const std::unique_ptr<BallotPacker> right_;
    const ChunkPlan plan_;
  };

  const Wrong wrong_;
};

absl::StatusOr<SelftestReport> RunOn(WorkerDevice* device, uint64_t rate_coordinates = 0) {
  HostSelftestMemory memory;
  return RunSelftest(device, &memory, Clock::System(),
                     {.seed = 3, .rate_coordinates = rate_coordinates, .repetitions = 2});
}

// Under each instruction set: CMake runs this test once more with SIGNVOTE_FORCE_KERNEL.
TEST(SelftestTest, TheCpuEqualsTheDefinitions) {
  if (const auto isa = ChooseIsa(); !isa.ok()) GTEST_SKIP() << isa.status();
  HostDevice device;
  const auto report = RunOn(&device, 1 << 16);
  ASSERT_TRUE(report.ok()) << Describe(report.status());
  EXPECT_GT(report->cases, 400u);
  ASSERT_EQ(report->rates.size(), 3u);
  for (const auto& rate : report->rates) {
    EXPECT_GT(rate.bytes_per_second, 0) << rate.name;
    EXPECT_GT(rate.of_copy, 0) << rate.name;
  }
  const std::string text = SelftestText(*report);
  EXPECT_NE(text.find(device.name()), std::string::npos) << text;
  EXPECT_NE(text.find("equal to the definitions"), std::string::npos) << text;
  EXPECT_NE(text.find("GB/s"), std::string::npos) << text;
}

TEST(SelftestTest, OneWrongBitAnywhereIsFound) {
  using Wrong = WrongDevice::Wrong;
  const std::pair<Wrong, const char*> kExpected[] = {
      {Wrong::kBit, "ballot of chunk"},
      {Wrong::kPadding, "ballot of chunk"},
      {Wrong::kMargin, "ballot of chunk"},
      {Wrong::kSum, "prev_inner of chunk"},
      {Wrong::kCount, "nonfinite of chunk"},
      {Wrong::kNorm, "the gradient's squared norm"},
      {Wrong::kState, "the direction's state differs at"},
      {Wrong::kRestore, "the direction's state differs at"},
      {Wrong::kReset, "the direction's state differs at"},
      {Wrong::kRescale, "the replica differs at coordinate"},
      {Wrong::kScales, "the replica differs at coordinate"},
      {Wrong::kDecay, "the replica differs at coordinate"},
      {Wrong::kCounts, "the replica behind counts differs at coordinate"},
      {Wrong::kDense, "the replica behind a dense step differs at coordinate"},
      {Wrong::kRewind, "the rewound replica differs at"},
      {Wrong::kX0Sums, "the sums about x0 differ"},
      {Wrong::kReplica, "the replica differs at coordinate"},
      {Wrong::kStep, "what a local step moves differs at coordinate"},
      {Wrong::kDigest, "the replica's digest differs"}};
  for (const auto& [wrong, text] : kExpected) {
    WrongDevice device(wrong);
    const auto report = RunOn(&device);
    ASSERT_EQ(report.status().code(), absl::StatusCode::kInternal) << text;
    EXPECT_NE(report.status().message().find(text), absl::string_view::npos) << report.status();
    EXPECT_NE(report.status().message().find("of seed 3"), absl::string_view::npos)
        << report.status();
  }
  WrongDevice right(Wrong::kNothing);
  EXPECT_TRUE(RunOn(&right).ok());
}

}  // namespace
}  // namespace signvote
