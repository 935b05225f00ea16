// Goal: an update is the optimizer's of the mean gradient, its state moves from the buffer before to
// the one behind, and what is voted on in between is ±1 by the vote. Method: the papers' formulas in
// double beside it.
#include "server/tally/dense_tally.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/coin.h"
#include "common/dense_value.h"
#include "common/half_float.h"
#include "common/rng.h"

namespace signvote {
namespace {

constexpr uint64_t kD = 2100;      // beyond two blocks
constexpr uint64_t kVoted = 70;    // of them, first
constexpr uint64_t kFirst = 1024;  // of the chunk in the model
constexpr uint64_t kSeed = 11;

class DenseTallyTest : public ::testing::Test {
 protected:
  DenseTallyTest()
      : layout_(*Layout::Make({{.name = "v", .shape = {kFirst + kVoted}},
                               {.name = "w", .shape = {kD - kVoted - 30}, .dense = true},
                               {.name = "b", .shape = {30}, .dense = true}})) {}

  std::vector<std::vector<float>> Gradients(size_t n, uint64_t stream) {
    Rng rng(5, stream);
    std::vector<std::vector<float>> g(n, std::vector<float>(kD));
    for (auto& ballot : g) {
      for (uint64_t i = 0; i < kD; ++i) {
        const auto draw = static_cast<float>(rng.Uniform() - 0.4);
        ballot[i] = i >= kVoted ? draw : draw > 0 ? 1.0f : -1.0f;
      }
    }
    return g;
  }
  // One round; the state moves on.
  std::vector<float> Round1(const std::vector<std::vector<float>>& gradients, PayloadKind kind,
                            const DenseOptimizer& optimizer) {
    std::vector<std::vector<uint8_t>> ballots;
    std::vector<const uint8_t*> rows;
    for (const auto& g : gradients) ballots.push_back(Bytes(g, kind));
    for (const auto& ballot : ballots) rows.push_back(ballot.data());
    state_.resize(optimizer.planes() * kD, 0.0f);
    std::vector<float> next(state_.size(), std::numeric_limits<float>::quiet_NaN());
    std::vector<uint8_t> update(ballots[0].size());
    q_ = TallyDense({.ballots = rows,
                     .kind = kind,
                     .layout = &layout_,
                     .first_coordinate = kFirst,
                     .coordinates = kD,
                     .aggregate = aggregate_,
                     .seed = kSeed,
                     .round = Round(7),
                     .optimizer = optimizer,
                     .step = ++step_,
                     .scalars = FirstScalars(optimizer),
                     .planes = {.in = state_.data(), .out = next.data(), .stride = kD}},
                    update.data());
    state_ = std::move(next);
    return Values(update, kind);
  }
  static std::vector<uint8_t> Bytes(const std::vector<float>& values, PayloadKind kind) {
    std::vector<uint8_t> bytes(values.size() * (kind == PayloadKind::kBf16 ? 2 : 4));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t narrow = NarrowBf16(values[i]);
      if (kind == PayloadKind::kBf16) {
        std::memcpy(bytes.data() + 2 * i, &narrow, 2);
      } else {
        std::memcpy(bytes.data() + 4 * i, &values[i], 4);
      }
    }
    return bytes;
  }
  static std::vector<float> Values(const std::vector<uint8_t>& bytes, PayloadKind kind) {
    std::vector<float> values(kD);
    for (size_t i = 0; i < kD; ++i) {
      uint16_t narrow;
      if (kind == PayloadKind::kBf16) {
        std::memcpy(&narrow, bytes.data() + 2 * i, 2);
        values[i] = WidenBf16(narrow);
      } else {
        std::memcpy(&values[i], bytes.data() + 4 * i, 4);
      }
    }
    return values;
  }
  static double Mean(const std::vector<std::vector<float>>& gradients, uint64_t i) {
    double sum = 0;
    for (const auto& g : gradients) sum += static_cast<double>(g[i]);
    return sum / static_cast<double>(gradients.size());
  }

  const Layout layout_;
  Aggregate aggregate_ = Aggregate::kVote;
  std::vector<float> state_;
  uint64_t step_ = 0;
  double q_ = 0;  // of the last round
};

TEST_F(DenseTallyTest, PlainSgdIsTheMeanGradientRoundedOnce) {
  const auto g = Gradients(3, 1);
  const std::vector<float> u = Round1(g, PayloadKind::kFp32, {.kind = DenseOptimizer::Kind::kSgd});
  for (uint64_t i = kVoted; i < kD; ++i) ASSERT_EQ(u[i], static_cast<float>(Mean(g, i))) << i;
  EXPECT_TRUE(state_.empty());
}

TEST_F(DenseTallyTest, SgdWithMomentumAddsUpMeanGradients) {
  const DenseOptimizer optimizer{.kind = DenseOptimizer::Kind::kSgd, .momentum = 0.75f};
  std::vector<double> m(kD, 0.0);
  for (uint64_t round = 0; round < 4; ++round) {
    const auto g = Gradients(2, round);
    const std::vector<float> u = Round1(g, PayloadKind::kFp32, optimizer);
    for (uint64_t i = kVoted; i < kD; ++i) {
      m[i] = 0.75 * m[i] + Mean(g, i);
      ASSERT_NEAR(static_cast<double>(u[i]), m[i], 1e-6) << round << " " << i;
    }
  }
}

TEST_F(DenseTallyTest, AdamWIsTheOptimizerWithBiasCorrection) {
  const DenseOptimizer optimizer{.beta1 = 0.8f, .beta2 = 0.95f, .epsilon = 1e-3f};
  std::vector<double> m(kD, 0.0), v(kD, 0.0);
  for (uint64_t round = 0; round < 6; ++round) {
    const auto g = Gradients(3, round);
    const std::vector<float> u = Round1(g, PayloadKind::kFp32, optimizer);
    const double t = static_cast<double>(round + 1);
    for (uint64_t i = kVoted; i < kD; ++i) {
      const double mean = Mean(g, i);
      m[i] = 0.8 * m[i] + 0.2 * mean;
      v[i] = 0.95 * v[i] + 0.05 * mean * mean;
      const double want =
          m[i] / (1 - std::pow(0.8, t)) / (std::sqrt(v[i] / (1 - std::pow(0.95, t))) + 1e-3);
      ASSERT_NEAR(static_cast<double>(u[i]), want, 2e-5 * std::max(1.0, std::fabs(want)))
          << round << " " << i;
    }
  }
}

TEST_F(DenseTallyTest, TheInnerProductWithTheSignsBeforeIsThatOfDenseCoordinatesAlone) {
  const DenseOptimizer optimizer{.kind = DenseOptimizer::Kind::kAliasAdam};
  const auto before = Gradients(2, 1), now = Gradients(2, 2);
  Round1(before, PayloadKind::kFp32, optimizer);
  EXPECT_EQ(q_, 0);
  Round1(now, PayloadKind::kFp32, optimizer);
  double q = 0;
  for (uint64_t i = kVoted; i < kD; ++i) q += Mean(now, i) * (Mean(before, i) > 0 ? 1 : -1);
  EXPECT_NEAR(q_, q, 1e-4);
  EXPECT_GT(q, 1);
}

TEST_F(DenseTallyTest, InBf16BallotsAreWidenedAndTheUpdateIsRoundedOnce) {
  const auto g = Gradients(2, 3);
  const std::vector<float> u = Round1(g, PayloadKind::kBf16, {.kind = DenseOptimizer::Kind::kSgd});
  for (uint64_t i = kVoted; i < kD; ++i) {
    const double mean = (static_cast<double>(WidenBf16(NarrowBf16(g[0][i]))) +
                         static_cast<double>(WidenBf16(NarrowBf16(g[1][i])))) /
                        2;
    ASSERT_EQ(u[i], WidenBf16(NarrowBf16(static_cast<float>(mean)))) << i;
  }
}

TEST_F(DenseTallyTest, WhatIsVotedOnInBetweenIsTheVerdictOrTheAverage) {
  for (const size_t n : {3, 4}) {
    const auto g = Gradients(n, n);
    for (const Aggregate aggregate : {Aggregate::kVote, Aggregate::kAverage}) {
      aggregate_ = aggregate;
      step_ = 0;
      const std::vector<float> u =
          Round1(g, PayloadKind::kFp32, {.kind = DenseOptimizer::Kind::kSgd});
      for (uint64_t i = 0; i < kVoted; ++i) {
        int sum = 0;
        for (const auto& ballot : g) sum += ballot[i] > 0 ? 1 : -1;
        const uint64_t at = kFirst + i;
        const bool coin = (TieCoinWord(kSeed, Round(7), at / 64) >> (at % 64)) & 1u;
        const float verdict = sum > 0 || (sum == 0 && coin) ? 1.0f : -1.0f;
        const float average = static_cast<float>(sum) / static_cast<float>(n);
        ASSERT_EQ(u[i], aggregate == Aggregate::kVote ? verdict : average) << i;
      }
    }
  }
}

TEST_F(DenseTallyTest, WhatIsVotedOnInBetweenHasAStateOfZeros) {
  const DenseOptimizer optimizers[] = {{}, {.kind = DenseOptimizer::Kind::kSgd, .momentum = 0.5f}};
  for (const DenseOptimizer& optimizer : optimizers) {
    state_.clear();
    step_ = 0;
    (void)Round1(Gradients(2, 3), PayloadKind::kFp32, optimizer);
    for (size_t plane = 0; plane < optimizer.planes(); ++plane) {
      for (uint64_t i = 0; i < kVoted; ++i) ASSERT_EQ(state_[plane * kD + i], 0.0f) << i;
      for (uint64_t i = kVoted; i < kD; ++i) ASSERT_NE(state_[plane * kD + i], 0.0f) << i;
    }
  }
}

TEST_F(DenseTallyTest, ValuesThatAreNotFiniteOrNoGradientsAreFound) {
  std::vector<float> values(kD, 1.0f);
  for (const PayloadKind kind : {PayloadKind::kFp32, PayloadKind::kBf16}) {
    values[0] = -9.9e17f;
    EXPECT_TRUE(AreDenseValues(kind, Bytes(values, kind).data(), kD));
    for (const float bad : {std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(), 1e20f, -1e20f, 1.01e18f}) {
      values[kD - 1] = bad;
      EXPECT_FALSE(AreDenseValues(kind, Bytes(values, kind).data(), kD)) << bad;
    }
    values[kD - 1] = 1.0f;
  }
}

TEST_F(DenseTallyTest, TheLargestValueThatIsTakenEndsNoOptimizer) {
  const DenseOptimizer optimizers[] = {{},
                                       {.kind = DenseOptimizer::Kind::kSgd, .momentum = 0.9999f}};
  for (const PayloadKind kind : {PayloadKind::kFp32, PayloadKind::kBf16}) {
    for (const DenseOptimizer& optimizer : optimizers) {
      state_.clear();
      step_ = 0;
      for (const float value : {kDenseValueMax, kDenseValueMax, -kDenseValueMax, 0.5f, 0.5f}) {
        const std::vector<std::vector<float>> g(3, std::vector<float>(kD, value));
        const std::vector<float> u = Round1(g, kind, optimizer);
        for (uint64_t i = kVoted; i < kD; ++i) ASSERT_TRUE(std::isfinite(u[i])) << value;
        for (size_t plane = 0; plane < optimizer.planes(); ++plane) {
          for (uint64_t i = kVoted; i < kD; ++i)
            ASSERT_TRUE(std::isfinite(state_[plane * kD + i])) << value;
        }
      }
    }
  }
}

}  // namespace
}  // namespace signvote
