#include "worker/direction/direction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/coin.h"
#include "common/rng.h"
#include "tests/support/device_refusals.h"

namespace signvote {
namespace {

Layout MakeLayout(const std::vector<uint64_t>& counts) {
  std::vector<TensorSpec> tensors;
  for (size_t k = 0; k < counts.size(); ++k) {
    TensorSpec tensor;
    tensor.name = "tensor" + std::to_string(k);
    tensor.shape = {counts[k]};
    tensor.step_scale = static_cast<float>(k + 1);
    tensors.push_back(std::move(tensor));
  }
  return *Layout::Make(std::move(tensors));
}

std::vector<float> Gradient(uint64_t count, uint64_t stream) {
  Rng rng(0xD1, stream);
  std::vector<float> g(count);
  for (float& v : g) v = rng.Below(50) == 0 ? 0.0f : static_cast<float>(rng.Uniform() - 0.5);
  return g;
}

struct Packed {
  std::vector<uint8_t> ballot;
  std::vector<ChunkScalars> scalars;
};

Packed PackAll(Direction& direction, const ChunkPlan& plan, const Direction::ChunkInput& input) {
  Packed packed{.ballot = std::vector<uint8_t>(plan.TotalBytes(), 0xFF), .scalars = {}};
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    packed.scalars.push_back(direction.PackChunk(
        ChunkIndex(k), input, packed.ballot.data() + plan.ByteOffset(ChunkIndex(k))));
  }
  return packed;
}

std::vector<float> StateOf(const Direction& direction, uint64_t count) {
  std::vector<float> state(count);
  EXPECT_TRUE(direction.SaveState(0, 0, std::as_writable_bytes(std::span(state))).ok());
  return state;
}

DirectionConfig Config(std::string_view name, double beta = 0.9, double beta2 = 0.99) {
  return *ParseDirection(name, beta, beta2);
}

TEST(HostDeviceTest, RefusesWhatDoesNotFitAndChangesNothing) {
  HostDevice device;
  std::vector<float> values(2000, 1.0f);
  refusals::ExpectRefusals(&device, values.data());
}

// The layout cuts chunks in the middle of words and chunks cut tensors; neither may show in the
// ballot.
TEST(DirectionTest, ChunksAndTensorsDoNotShowInTheBallot) {
  const Layout layout = MakeLayout({1, 700, 3, 64, 1000, 5, 901});
  const ChunkPlan plan(layout.coordinates(), 512);
  for (const char* name : {"signsgd", "signum", "nesterov", "lion"}) {
    Direction direction(&layout, plan, Config(name));
    std::vector<float> m(layout.coordinates(), 0.0f);
    for (uint64_t round = 0; round < 4; ++round) {
      const std::vector<float> g = Gradient(layout.coordinates(), round);
      const auto pointers = PointersInto(layout, g.data());
      const Packed packed = PackAll(
          direction, plan, {.g = pointers, .seed = 3, .round = Round(round), .share = Share(1)});
      std::vector<uint8_t> whole(plan.TotalBytes(), 0);
      PackReference({.coefficients = CoefficientsOf(Config(name)),
                     .seed = 3,
                     .round = Round(round),
                     .share = Share(1)},
                    {.g = g.data(),
                     .state = {m.data()},
                     .bits = whole.data(),
                     .count = layout.coordinates()});
      ASSERT_EQ(packed.ballot, whole) << name << ", round " << round;
      ASSERT_TRUE(PaddingIsZero(packed.ballot.data(), layout.coordinates()));
    }
  }
}

TEST(DirectionTest, ScalarsAreSumsOverTheChunkWithScaledInnerProducts) {
  const Layout layout = MakeLayout({300, 700, 500});  // scales 1, 2, 3
  const ChunkPlan plan(layout.coordinates(), 512);
  Direction direction(&layout, plan, Config("signum"));
  const std::vector<float> g = Gradient(layout.coordinates(), 1);
  std::vector<float> h = g;
  for (float& v : h) v += 0.25f;
  std::vector<float> bad = g;
  bad[600] = std::numeric_limits<float>::infinity();
  std::vector<uint8_t> verdict(plan.TotalBytes(), 0x5A);
  verdict.back() &= static_cast<uint8_t>((1u << (layout.coordinates() % 8)) - 1);
  const Packed packed = PackAll(direction, plan,
                                {.g = PointersInto(layout, std::as_const(bad).data()),
                                 .h = PointersInto(layout, std::as_const(h).data()),
                                 .prev_verdict = verdict.data()});
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    ChunkScalars expected;
    for (uint64_t i = plan.First(ChunkIndex(k));
         i < plan.First(ChunkIndex(k)) + plan.Count(ChunkIndex(k)); ++i) {
      if (i == 600) {
        ++expected.nonfinite;
        continue;
      }
      const double scale = i < 300 ? 1 : i < 1000 ? 2 : 3;
      const double value = static_cast<double>(g[i]);
      expected.g_l1 += std::fabs(value);
      expected.g_l2_squared += value * value;
      expected.probe_l1 += static_cast<double>(std::fabs(g[i] - h[i]));
      expected.prev_inner += scale * (GetBit(verdict.data(), i) ? value : -value);
    }
    // Only the order of the sums differs: at most 512 roundings of sums below 512.
    const ChunkScalars& actual = packed.scalars[k];
    EXPECT_NEAR(actual.g_l1, expected.g_l1, 512 * 512 * 2.3e-16);
    EXPECT_NEAR(actual.g_l2_squared, expected.g_l2_squared, 512 * 512 * 2.3e-16);
    EXPECT_NEAR(actual.probe_l1, expected.probe_l1, 512 * 512 * 2.3e-16);
    EXPECT_NEAR(actual.prev_inner, expected.prev_inner, 3 * 512 * 512 * 2.3e-16);
    EXPECT_EQ(actual.nonfinite, expected.nonfinite);
  }
}

// What the coins at zero do not mend: docs/algorithms.md, "Why coins".
TEST(DirectionTest, MomentumGoesOnVotingWhereGradientsHaveEnded) {
  const Layout layout = MakeLayout({64});
  const ChunkPlan plan(64, 512);
  Direction direction(&layout, plan, Config("signum"));
  std::vector<float> g(64, 1e-3f);
  for (size_t i = 0; i < 64; i += 2) g[i] = -1e-3f;
  const auto vote = [&](uint64_t round) {
    return PackAll(direction, plan,
                   {.g = PointersInto(layout, std::as_const(g).data()), .round = Round(round)})
        .ballot;
  };
  const std::vector<uint8_t> first = vote(0);
  std::fill(g.begin(), g.end(), 0.0f);
  for (uint64_t round = 1; round <= 2000; ++round) ASSERT_EQ(vote(round), first) << round;
}

TEST(DirectionTest, NesterovSignumIsLionWithItsCoefficients) {
  const Layout layout = MakeLayout({2000});
  const ChunkPlan plan(2000, 512);
  for (const double beta : {0.5, 0.9, 0.95}) {
    Direction nesterov(&layout, plan, Config("nesterov", beta));
    Direction lion(&layout, plan, Config("lion", beta * beta, beta));
    Direction signum(&layout, plan, Config("signum", beta));
    bool signum_differs = false;
    for (uint64_t round = 0; round < 20; ++round) {
      const std::vector<float> g = Gradient(2000, round);
      const float* const pointers[] = {g.data()};
      const Direction::ChunkInput input{.g = pointers, .seed = 1, .round = Round(round)};
      const Packed of_nesterov = PackAll(nesterov, plan, input);
      ASSERT_EQ(of_nesterov.ballot, PackAll(lion, plan, input).ballot)
          << beta << ", round " << round;
      signum_differs = signum_differs || of_nesterov.ballot != PackAll(signum, plan, input).ballot;
    }
    EXPECT_TRUE(signum_differs) << "the comparison would not notice two equal directions";
    EXPECT_EQ(StateOf(nesterov, 2000), StateOf(lion, 2000));
  }
}

TEST(DirectionTest, ResetForgetsEveryGradient) {
  const Layout layout = MakeLayout({600});
  const ChunkPlan plan(600, 512);
  Direction used(&layout, plan, Config("lion")), fresh(&layout, plan, Config("lion"));
  const std::vector<float> first = Gradient(600, 1), second = Gradient(600, 2);
  const float* const one[] = {first.data()};
  const float* const two[] = {second.data()};
  PackAll(used, plan, {.g = one});
  EXPECT_NE(StateOf(used, 600), StateOf(fresh, 600));
  used.Reset();
  EXPECT_EQ(StateOf(used, 600), StateOf(fresh, 600));
  EXPECT_EQ(PackAll(used, plan, {.g = two}).ballot, PackAll(fresh, plan, {.g = two}).ballot);
}

TEST(DirectionTest, SignSgdKeepsNoState) {
  const Layout layout = MakeLayout({600});
  EXPECT_TRUE(Direction(&layout, ChunkPlan(600, 512), Config("signsgd")).planes().empty());
  const Direction signum(&layout, ChunkPlan(600, 512), Config("signum"));
  ASSERT_EQ(signum.planes().size(), 1u);
  EXPECT_EQ(signum.planes()[0].name, "m");
  EXPECT_EQ(signum.planes()[0].element_bytes, sizeof(float));
}

// A run that stops, saves in pieces and goes on elsewhere casts the ballots of one that does not.
TEST(DirectionTest, WhatIsSavedAndRestoredGoesOnAsIfNothingHadHappened) {
  const Layout layout = MakeLayout({600, 400});
  const ChunkPlan plan(1000, 512);
  for (const char* name : {"signsgd", "signum", "nesterov", "lion"}) {
    Direction before(&layout, plan, Config(name)), after(&layout, plan, Config(name));
    const std::vector<float> first = Gradient(1000, 1), second = Gradient(1000, 2);
    PackAll(before, plan, {.g = PointersInto(layout, first.data())});
    for (size_t plane = 0; plane < before.planes().size(); ++plane) {
      for (const auto& [from, count] :
           {std::pair<uint64_t, uint64_t>(0, 333), std::pair<uint64_t, uint64_t>(333, 667)}) {
        std::vector<std::byte> bytes(count * before.planes()[plane].element_bytes);
        ASSERT_TRUE(before.SaveState(plane, from, bytes).ok());
        ASSERT_TRUE(after.RestoreState(plane, from, bytes).ok());
      }
    }
    const auto pointers = PointersInto(layout, second.data());
    EXPECT_EQ(PackAll(before, plan, {.g = pointers}).ballot,
              PackAll(after, plan, {.g = pointers}).ballot)
        << name;
  }
}

TEST(DirectionTest, ATensorWithoutGradientCastsCoinsAndOneWithoutProbeGradientCountsAsZero) {
  const Layout layout = MakeLayout({100, 300, 50});
  const ChunkPlan plan(450, 512);
  Direction direction(&layout, plan, Config("signsgd"));
  const std::vector<float> g(450, 1.0f), h(450, 0.75f);
  const float* const gradients[] = {g.data(), nullptr, g.data()};
  const float* const probes[] = {nullptr, h.data(), h.data()};
  const Packed packed =
      PackAll(direction, plan, {.g = gradients, .h = probes, .seed = 9, .share = Share(4)});
  for (uint64_t i = 0; i < 450; ++i) {
    const bool coin = ((OwnCoinWord(9, Round(0), Share(4), i / 64) >> (i % 64)) & 1u) != 0;
    EXPECT_EQ(GetBit(packed.ballot.data(), i), i < 100 || i >= 400 || coin) << i;
  }
  EXPECT_EQ(packed.scalars[0].g_l1, 150.0);
  EXPECT_EQ(packed.scalars[0].probe_l1, 100 * 1.0 + 300 * 0.75 + 50 * 0.25);
}

TEST(DirectionTest, WhatIsGivenIsSignedInPlaceOfTheGradient) {
  const Layout layout = MakeLayout({300, 300});
  const ChunkPlan plan(600, 512);
  Direction direction(&layout, plan, Config("signum"));
  const std::vector<float> g(300, 1.0f), u(300, -1.0f);
  const float* const gradients[] = {g.data(), nullptr};
  const float* const given[] = {u.data(), g.data()};
  const Packed packed = PackAll(direction, plan, {.g = gradients, .u = given});
  for (uint64_t i = 0; i < 600; ++i) EXPECT_EQ(GetBit(packed.ballot.data(), i), i >= 300) << i;
  EXPECT_EQ(packed.scalars[0].g_l1, 300.0);
  EXPECT_EQ(StateOf(direction, 600), std::vector<float>(600, 0.0f));
}

TEST(DirectionTest, NamesAreReadAndWrittenAlike) {
  for (const DirectionKind kind : {DirectionKind::kSignSgd, DirectionKind::kSignum,
                                   DirectionKind::kNesterovSignum, DirectionKind::kLion}) {
    const auto config = ParseDirection(DirectionName(kind), 0.9, 0.99);
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->kind, kind);
  }
}

TEST(DirectionTest, BadNamesAndBetasAreRefusedWithTheRemedy) {
  const auto unknown = ParseDirection("adam", 0.9, 0.99);
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(unknown.status().message()),
            "unknown direction \"adam\"; use one of signsgd, signum, nesterov, lion");
  // 0.99999999999 is 1 in fp32, with which nothing would ever move.
  for (const double beta : {-0.1, 1.0, 1.5, 0.99999999999, std::nan("")}) {
    EXPECT_EQ(ParseDirection("signum", beta, 0.99).status().code(),
              absl::StatusCode::kInvalidArgument)
        << beta;
    EXPECT_EQ(ParseDirection("lion", 0.9, beta).status().code(), absl::StatusCode::kInvalidArgument)
        << beta;
  }
}

}  // namespace
}  // namespace signvote
