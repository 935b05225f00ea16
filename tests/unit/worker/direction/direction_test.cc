#include "worker/direction/direction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/coin.h"
#include "common/half_float.h"
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

DirectionConfig Config(std::string name, double beta = 0.9, double beta2 = 0.99) {
  DirectionConfig config = *ParseDirection({.name = std::move(name)});
  config.beta = beta;
  config.beta2 = beta2;
  return config;
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
  for (const char* name : {"signsgd", "signum", "nesterov", "lion", "sgd", "stosign"}) {
    Direction direction(&layout, plan, Config(name));
    std::vector<float> r(layout.coordinates(), 0.0f);
    std::vector<float> m(layout.coordinates(), 0.0f);
    for (uint64_t round = 0; round < 4; ++round) {
      const std::vector<float> g = Gradient(layout.coordinates(), round);
      const auto pointers = PointersInto(layout, g.data());
      const Packed packed = PackAll(
          direction, plan, {.g = pointers, .seed = 3, .round = Round(round), .share = Share(1)});
      std::vector<uint8_t> whole(plan.TotalBytes(), 0);
      PackReference({.coefficients = CoefficientsOf(Config(name)),
                     .formation = FormationOf(Config(name), round + 1),
                     .seed = 3,
                     .round = Round(round),
                     .share = Share(1)},
                    {.g = g.data(),
                     .state = {m.data(), nullptr, r.data()},
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
  EXPECT_EQ(signum.planes()[0].name(), "m");
  EXPECT_EQ(signum.planes()[0].element_bytes, sizeof(float));
}

// Every direction that packers form, with every kind of noise and state.
std::vector<DirectionConfig> FormedHere() {
  std::vector<DirectionConfig> configs;
  for (const DirectionKind kind : kDirectionKinds) {
    if (kind == DirectionKind::kMuon) continue;
    for (const Envelope envelope :
         {Envelope::kNone, Envelope::kCoordinate, Envelope::kTensor, Envelope::kOne}) {
      for (const StateDtype dtype : {StateDtype::kFp32, StateDtype::kBf16}) {
        configs.push_back({.kind = kind, .envelope = envelope, .state_dtype = dtype});
        EXPECT_TRUE(CheckDirection(configs.back()).ok());
      }
    }
  }
  return configs;
}

std::string NameOf(const DirectionConfig& config) {
  return std::string(DirectionName(config.kind)) + ", noise " +
         std::string(EnvelopeWord(config.envelope)) +
         (config.state_dtype == StateDtype::kBf16 ? ", bf16" : "");
}

void CopyState(const Direction& from, Direction* to, uint64_t d) {
  for (size_t plane = 0; plane < from.planes().size(); ++plane) {
    const StatePlane& p = from.planes()[plane];
    const uint64_t elements = p.elements(d), half = elements / 3;
    for (const auto& [first, count] :
         {std::pair(uint64_t{0}, half), std::pair(half, elements - half)}) {
      std::vector<std::byte> bytes(count * p.element_bytes);
      ASSERT_TRUE(from.SaveState(plane, first, bytes).ok());
      ASSERT_TRUE(to->RestoreState(plane, first, bytes).ok());
    }
  }
}

// A run that stops, saves in pieces and goes on elsewhere casts the ballots of one that does not.
TEST(DirectionTest, WhatIsSavedAndRestoredGoesOnAsIfNothingHadHappened) {
  const Layout layout = MakeLayout({600, 400});
  const ChunkPlan plan(1000, 512);
  for (const DirectionConfig& config : FormedHere()) {
    Direction before(&layout, plan, config), after(&layout, plan, config);
    const auto vote = [&](Direction& direction, uint64_t round) {
      direction.Begin();
      const std::vector<float> g = Gradient(1000, round);
      return PackAll(direction, plan,
                     {.g = PointersInto(layout, g.data()), .seed = 5, .round = Round(round)})
          .ballot;
    };
    for (uint64_t round = 0; round < 3; ++round) vote(before, round);
    CopyState(before, &after, 1000);
    for (uint64_t round = 3; round < 6; ++round)
      EXPECT_EQ(vote(before, round), vote(after, round)) << NameOf(config) << ", " << round;
    // And what was reset goes on as what is new.
    after.Reset();
    Direction fresh(&layout, plan, config);
    for (uint64_t round = 6; round < 9; ++round)
      EXPECT_EQ(vote(after, round), vote(fresh, round)) << NameOf(config) << ", " << round;
  }
}

// docs/algorithms.md has the table; a direction says itself what it keeps.
TEST(DirectionTest, TheStateIsAsLargeAsItSays) {
  const Layout layout = MakeLayout({600, 400});
  for (const DirectionConfig& config : FormedHere()) {
    const Direction direction(&layout, ChunkPlan(1000, 512), config);
    size_t bytes = 0;
    for (size_t plane = 0; plane < direction.planes().size(); ++plane) {
      const StatePlane& p = direction.planes()[plane];
      std::vector<std::byte> whole(p.elements(1000) * p.element_bytes);
      EXPECT_TRUE(direction.SaveState(plane, 0, whole).ok());
      EXPECT_FALSE(direction.SaveState(plane, 1, whole).ok());
      if (!p.single) bytes += whole.size();
    }
    EXPECT_EQ(bytes, 1000 * StateBytesPerCoordinate(config)) << NameOf(config);
  }
}

TEST(DirectionTest, AdamCountsABallotOnceHoweverManyChunksItHasAndNoneThatWasNotPacked) {
  const Layout layout = MakeLayout({1000});
  const ChunkPlan plan(1000, 512);
  Direction adam(&layout, plan, {.kind = DirectionKind::kAdam, .beta2 = 0.999});
  const std::vector<float> g = Gradient(1000, 1);
  const auto steps = [&adam] {
    uint64_t value = 0;
    EXPECT_EQ(adam.planes().back().name(), "t");
    EXPECT_TRUE(
        adam.SaveState(adam.planes().size() - 1, 0, std::as_writable_bytes(std::span(&value, 1)))
            .ok());
    return value;
  };
  EXPECT_EQ(steps(), 0u);
  for (uint64_t ballot = 1; ballot <= 3; ++ballot) {
    adam.Begin();
    adam.Begin();  // one that ended before its first chunk
    PackAll(adam, plan, {.g = PointersInto(layout, g.data())});
    EXPECT_EQ(steps(), ballot);
  }
}

// Kingma and Ba, "Adam" (ICLR 2015, arXiv 1412.6980), algorithm 1, in double precision: signs of
// u + R·n with R = 1 are those of Adam's update under that noise.
TEST(DirectionTest, AdamsUpdateIsThatOfItsPaper) {
  constexpr uint64_t kD = 500;
  const Layout layout = MakeLayout({kD});
  const ChunkPlan plan(kD, 512);
  Direction adam(&layout, plan,
                 {.kind = DirectionKind::kAdam, .beta2 = 0.999, .envelope = Envelope::kOne});
  std::vector<double> m(kD, 0.0), v(kD, 0.0);
  uint64_t unclear = 0, plus = 0;
  for (uint64_t t = 1; t <= 30; ++t) {
    const std::vector<float> g = Gradient(kD, t);
    adam.Begin();
    const Packed packed =
        PackAll(adam, plan, {.g = PointersInto(layout, g.data()), .seed = 2, .round = Round(t)});
    for (uint64_t i = 0; i < kD; ++i) {
      const double x = static_cast<double>(g[i]), n = static_cast<double>(t);
      m[i] = 0.9 * m[i] + 0.1 * x;
      v[i] = 0.999 * v[i] + 0.001 * x * x;
      const double u =
          (m[i] / (1 - std::pow(0.9, n))) / (std::sqrt(v[i] / (1 - std::pow(0.999, n))) + 1e-8);
      const double noise = static_cast<double>(NoiseOf(Uniform16(2, Round(t), Share(0), i)));
      if (std::fabs(u + noise) < 1e-5) {
        ++unclear;
        continue;
      }
      EXPECT_EQ(GetBit(packed.ballot.data(), i), u + noise > 0) << t << ", " << i;
      plus += u + noise > 0 ? 1 : 0;
    }
  }
  EXPECT_LT(unclear, 10u);
  EXPECT_GT(plus, 5000u);
}

TEST(DirectionTest, ASparseTensorCastsCoinsWhereItsGradientIsZeroAndKeepsItsState) {
  std::vector<TensorSpec> tensors = {
      {.name = "e", .shape = {128}, .treatment = TensorTreatment::kSparse},
      {.name = "w", .shape = {128}}};
  const Layout layout = *Layout::Make(std::move(tensors));
  const ChunkPlan plan(256, 512);
  Direction direction(&layout, plan, Config("signum"));
  std::vector<float> g(256, 1.0f);
  PackAll(direction, plan, {.g = PointersInto(layout, std::as_const(g).data())});
  const std::vector<float> before = StateOf(direction, 256);
  for (size_t i = 0; i < 256; i += 2) g[i] = 0.0f;
  const Packed packed =
      PackAll(direction, plan,
              {.g = PointersInto(layout, std::as_const(g).data()), .seed = 4, .round = Round(9)});
  const std::vector<float> after = StateOf(direction, 256);
  for (uint64_t i = 0; i < 256; ++i) {
    const bool left = i < 128 && i % 2 == 0;
    EXPECT_EQ(after[i] == before[i], left) << i;
    const bool coin = ((OwnCoinWord(4, Round(9), Share(0), i / 64) >> (i % 64)) & 1u) != 0;
    EXPECT_EQ(GetBit(packed.ballot.data(), i), left ? coin : true) << i;
  }
  EXPECT_EQ(packed.scalars[0].g_l1, 128.0) << "sums are the raw gradient's";
}

TEST(DirectionTest, AClippedGradientEntersTheMomentumShorterAndTheSumsAsItIs) {
  const Layout layout = MakeLayout({600});
  const ChunkPlan plan(600, 512);
  Direction direction(&layout, plan, Config("signum", 0.5));
  const std::vector<float> g(600, 2.0f);
  const auto pointers = PointersInto(layout, g.data());
  const std::vector<uint8_t> verdict(BytesForBits(600), 0xFF);
  const ChunkScalars sums = direction.Sums(pointers, verdict.data());
  EXPECT_EQ(sums.g_l2_squared, 2400.0);
  EXPECT_EQ(sums.prev_inner, 1200.0);
  EXPECT_EQ(direction.Sums(pointers, nullptr).prev_inner, 0.0);
  const Packed packed = PackAll(direction, plan, {.g = pointers, .clip = 0.25f});
  EXPECT_EQ(StateOf(direction, 600), std::vector<float>(600, 0.25f));
  EXPECT_EQ(packed.scalars[0].g_l1 + packed.scalars[1].g_l1, 1200.0);
}

// The envelope of a tensor is that of its whole u, whichever of its chunks comes first.
TEST(DirectionTest, AnEnvelopePerTensorIsTheLargestOfTheWholeTensorInEachBallot) {
  const Layout layout = MakeLayout({1400, 100});
  const ChunkPlan plan(1500, 512);
  const DirectionConfig config{.kind = DirectionKind::kMomentumSgd, .envelope = Envelope::kTensor};
  Direction forwards(&layout, plan, config), backwards(&layout, plan, config);
  std::vector<double> m(1500, 0.0);
  for (uint64_t round = 0; round < 4; ++round) {
    const std::vector<float> g = Gradient(1500, round);
    const auto pointers = PointersInto(layout, g.data());
    const Direction::ChunkInput input{.g = pointers, .seed = 3, .round = Round(round)};
    forwards.Begin();
    const std::vector<uint8_t> ballot = PackAll(forwards, plan, input).ballot;
    backwards.Begin();
    std::vector<uint8_t> other(plan.TotalBytes());
    for (uint32_t k = plan.chunks(); k-- > 0;)
      backwards.PackChunk(ChunkIndex(k), input, other.data() + plan.ByteOffset(ChunkIndex(k)));
    EXPECT_EQ(ballot, other) << round;
    double largest[2] = {0, 0};
    for (uint64_t i = 0; i < 1500; ++i) {
      m[i] = 0.9 * m[i] + static_cast<double>(g[i]);
      largest[i < 1400 ? 0 : 1] = std::max(largest[i < 1400 ? 0 : 1], std::fabs(m[i]));
    }
    for (uint64_t i = 0; i < 1500; ++i) {
      const double noise = static_cast<double>(NoiseOf(Uniform16(3, Round(round), Share(0), i)));
      const double s = m[i] + largest[i < 1400 ? 0 : 1] * noise;
      if (std::fabs(s) < 1e-5) continue;
      EXPECT_EQ(GetBit(ballot.data(), i), s > 0) << round << ", " << i;
    }
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

// docs/algorithms.md, "What bfloat16 costs a momentum".
TEST(DirectionTest, AMomentumInBfloat16EndsShortOfItsMeanByWhatThePageSays) {
  struct {
    double decay, ends_at;
    bool decays;
  } const kRows[] = {{0.9, 0.984375, true},   {0.95, 0.9609375, true}, {0.98, 0.90625, true},
                     {0.99, 0.8046875, true}, {0.995, 0.609375, true}, {0.998, 0.5, false},
                     {0.999, 0.25, false}};
  const Layout layout = *Layout::Make({{.name = "x", .shape = {8}}});
  const ChunkPlan plan(8, 512);
  for (const auto& row : kRows) {
    const DirectionConfig config{
        .kind = DirectionKind::kLion, .beta2 = row.decay, .state_dtype = StateDtype::kBf16};
    EXPECT_EQ(DirectionWarnings(config).empty(), row.decay <= 0.99) << row.decay;
    Direction direction(&layout, plan, config);
    const auto after = [&](float gradient) {
      const std::vector<float> g(8, gradient);
      for (int round = 0; round < 20000; ++round)
        PackAll(direction, plan, {.g = PointersInto<const float>(layout, g.data())});
      uint16_t m = 0;
      EXPECT_TRUE(direction.SaveState(0, 0, std::as_writable_bytes(std::span(&m, 1))).ok());
      return static_cast<double>(WidenBf16(m));
    };
    EXPECT_EQ(after(1.0f), row.ends_at) << row.decay;
    EXPECT_EQ(after(0.0f) < 1e-30, row.decays) << row.decay;
  }
}

TEST(DirectionTest, WhatIsAllowedAndSeldomMeantIsSaidToWhoeverChoseIt) {
  EXPECT_TRUE(DirectionWarnings(DirectionConfig()).empty());
  DirectionConfig signum{.beta = 0.999};
  EXPECT_TRUE(DirectionWarnings(signum).empty());
  signum.state_dtype = StateDtype::kBf16;
  ASSERT_EQ(DirectionWarnings(signum).size(), 1u);
  EXPECT_EQ(DirectionWarnings(signum)[0].find("--beta 0.999 with --state-dtype bf16: "), 0u);
  const DirectionConfig feedback{.kind = DirectionKind::kSignSgd, .error_feedback = true};
  ASSERT_EQ(DirectionWarnings(feedback).size(), 1u);
  EXPECT_NE(DirectionWarnings(feedback)[0].find("only with one worker is nothing lost"),
            std::string::npos);
}

TEST(DirectionTest, NamesAreReadAndWrittenAlike) {
  for (const DirectionKind kind : kDirectionKinds) {
    const auto config = ParseDirection({.name = std::string(DirectionName(kind))});
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->kind, kind);
  }
}

TEST(DirectionTest, BadNamesAndBetasAreRefusedWithTheRemedy) {
  const auto unknown = ParseDirection({.name = "rmsprop"});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(unknown.status().message()),
            "unknown direction \"rmsprop\"; use one of signsgd, signum, nesterov, lion, stosign, "
            "adam, sgd, muon");
  // 0.99999999999 is 1 in fp32, with which nothing would ever move.
  for (const double beta : {-0.1, 1.0, 1.5, 0.99999999999, std::nan("")}) {
    EXPECT_EQ(ParseDirection({.beta = beta}).status().code(), absl::StatusCode::kInvalidArgument)
        << beta;
    DirectionConfig lion{.kind = DirectionKind::kLion, .beta2 = beta};
    EXPECT_EQ(CheckDirection(lion).code(), absl::StatusCode::kInvalidArgument) << beta;
  }
}

}  // namespace
}  // namespace signvote
