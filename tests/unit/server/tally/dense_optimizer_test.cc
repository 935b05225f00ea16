// Goal: each optimizer's update is its paper's. Method: the paper's own variables in double beside it,
// over several steps, one of them split into blocks.
#include "server/tally/dense_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "common/rng.h"
#include "common/status.h"

namespace signvote {
namespace {

using Kind = DenseOptimizer::Kind;

constexpr size_t kD = 23;
constexpr size_t kBlock = 9;  // the first of three

// One optimizer's steps on gradients that do not depend on where it stands.
class DenseOptimizerTest : public ::testing::Test {
 protected:
  void Begin(const DenseOptimizer& optimizer) {
    optimizer_ = optimizer;
    ASSERT_TRUE(CheckDenseOptimizer(optimizer).ok());
    planes_.assign(optimizer.planes() * kD, 0.0f);
    scalars_ = FirstScalars(optimizer);
    t_ = 0;
  }
  // ḡ of step t, beyond ±1 in some coordinates and zero in one.
  std::vector<float> Gradient(uint64_t t) const {
    Rng rng(3, t);
    std::vector<float> g(kD);
    for (float& value : g) value = static_cast<float>(4 * rng.Uniform() - 1.5);
    g[5] = 0;
    return g;
  }
  // u of the next step; planes and scalars move on.
  std::vector<float> Step() {
    ++t_;
    std::vector<float> u = Gradient(t_);
    std::vector<float> next(planes_.size(), std::numeric_limits<float>::quiet_NaN());
    const DenseStep step(optimizer_, t_, scalars_);
    double q = 0;
    for (size_t at = 0; at < kD; at += kBlock) {
      q += step.Update({.in = planes_.data() + at, .out = next.data() + at, .stride = kD},
                       std::min(kBlock, kD - at), u.data() + at);
    }
    planes_ = std::move(next);
    scalars_ = NextScalars(optimizer_, t_, scalars_, q);
    EXPECT_TRUE(CanBe(optimizer_, scalars_)) << t_;
    return u;
  }
  static void ExpectNear(float got, double want, uint64_t t, size_t i) {
    EXPECT_NEAR(static_cast<double>(got), want, 3e-5 * std::max(1.0, std::fabs(want)))
        << "step " << t << ", coordinate " << i;
  }

  DenseOptimizer optimizer_;
  OptimizerScalars scalars_;
  std::vector<float> planes_;
  uint64_t t_ = 0;
};

TEST_F(DenseOptimizerTest, NesterovsMomentumLooksAheadByOneStep) {
  Begin({.kind = Kind::kSgd, .momentum = 0.75f, .nesterov = true});
  std::vector<double> m(kD, 0.0);
  for (uint64_t t = 1; t <= 5; ++t) {
    const std::vector<float> g = Gradient(t), u = Step();
    for (size_t i = 0; i < kD; ++i) {
      m[i] = 0.75 * m[i] + static_cast<double>(g[i]);
      ExpectNear(u[i], static_cast<double>(g[i]) + 0.75 * m[i], t, i);
    }
  }
}

// Choi et al. 2019 (arXiv 1910.05446), Table 1, NAdam, with the bias correction that AlgoPerf gives it.
TEST_F(DenseOptimizerTest, NadamWIsAdamWithTheMomentumOfTheStepAhead) {
  Begin({.kind = Kind::kNadamW, .beta1 = 0.8f, .beta2 = 0.95f, .epsilon = 1e-3f});
  std::vector<double> m(kD, 0.0), v(kD, 0.0);
  for (uint64_t t = 1; t <= 6; ++t) {
    const std::vector<float> gradient = Gradient(t), u = Step();
    const auto power = static_cast<double>(t);
    for (size_t i = 0; i < kD; ++i) {
      const auto g = static_cast<double>(gradient[i]);
      m[i] = 0.8 * m[i] + 0.2 * g;
      v[i] = 0.95 * v[i] + 0.05 * g * g;
      const double ahead = (0.8 * m[i] + 0.2 * g) / (1 - std::pow(0.8, power));
      ExpectNear(u[i], ahead / (std::sqrt(v[i] / (1 - std::pow(0.95, power))) + 1e-3), t, i);
    }
  }
}

// Defazio et al. 2024 (arXiv 2405.15682), Algorithm 1 with its lines in their order: replicas are at y_t,
// and the last step leaves them at x.
TEST_F(DenseOptimizerTest, ScheduleFreeMovesReplicasAlongYAndAtLastToX) {
  constexpr uint64_t kSteps = 9, kWarmUp = 3;
  constexpr double kGamma = 0.02, kBeta = 0.9, kBeta2 = 0.95;
  Begin({.kind = Kind::kScheduleFree,
         .beta2 = 0.95f,
         .epsilon = 1e-3f,
         .warmup_steps = kWarmUp,
         .last_step = kSteps});
  std::vector<double> x(kD), z, v(kD, 0.0), replica;
  for (size_t i = 0; i < kD; ++i) x[i] = 0.1 * static_cast<double>(i);
  z = replica = x;
  double weights = 0;
  for (uint64_t t = 1; t <= kSteps; ++t) {
    const std::vector<float> gradient = Gradient(t), u = Step();
    const double warm = std::min(1.0, static_cast<double>(t) / static_cast<double>(kWarmUp));
    const double committed = kGamma * warm;  // the rule's
    const double gamma = committed * std::sqrt(1 - std::pow(kBeta2, static_cast<double>(t)));
    weights += gamma * gamma;
    const double c = gamma * gamma / weights;
    for (size_t i = 0; i < kD; ++i) {
      const auto g = static_cast<double>(gradient[i]);
      ASSERT_NEAR(replica[i], (1 - kBeta) * z[i] + kBeta * x[i], 1e-5) << "y before " << t;
      v[i] = kBeta2 * v[i] + (1 - kBeta2) * g * g;
      z[i] -= gamma * g / (std::sqrt(v[i]) + 1e-3);
      x[i] = (1 - c) * x[i] + c * z[i];
      replica[i] -= committed * static_cast<double>(u[i]);
    }
  }
  double farthest = 0;
  for (size_t i = 0; i < kD; ++i) {
    EXPECT_NEAR(replica[i], x[i], 1e-5) << i;
    // What is kept of the way to z is that from where the replica is now.
    EXPECT_NEAR(kGamma * static_cast<double>(planes_[kD + i]), x[i] - z[i], 1e-5) << i;
    farthest = std::max(farthest, std::fabs(x[i] - z[i]));
  }
  EXPECT_GT(farthest, 0.01);
  EXPECT_NEAR(scalars_.weights, weights / (kGamma * kGamma), 1e-6);
}

TEST_F(DenseOptimizerTest, ScheduleFreeWithoutALastStepStaysAlongY) {
  Begin({.kind = Kind::kScheduleFree, .last_step = 4});
  const std::vector<float> first = Step();
  Begin({.kind = Kind::kScheduleFree, .last_step = 2});
  EXPECT_EQ(Step(), first) << "before its last step";
  Step();
  const std::vector<float> to_x = planes_;
  Begin({.kind = Kind::kScheduleFree});
  Step();
  Step();
  for (size_t i = kD; i < 2 * kD; ++i) EXPECT_FLOAT_EQ(to_x[i], planes_[i] / 0.9f) << i;
}

// arXiv 2506.03725, Algorithm 3, but for d, which is that of the step before.
TEST_F(DenseOptimizerTest, AliasAdamStepsAtTheScaleToWhichTheStepsBeforeHaveCome) {
  Begin({.kind = Kind::kAliasAdam, .beta1 = 0.8f, .beta2 = 0.75f, .epsilon = 1e-3f, .d0 = 0.5f});
  std::vector<double> m(kD, 0.0), v(kD, 0.0), before(kD, 0.0);
  double r = 0, d = 0.5;
  const double root = std::sqrt(0.75);
  for (uint64_t t = 1; t <= 8; ++t) {
    const std::vector<float> gradient = Gradient(t), u = Step();
    double q = 0;
    for (size_t i = 0; i < kD; ++i) {
      const auto g = static_cast<double>(gradient[i]);
      q += g * (before[i] > 0 ? 1 : before[i] < 0 ? -1 : 0);
      before[i] = g;
      m[i] = 0.8 * m[i] + 0.2 * d * g;
      v[i] = 0.75 * v[i] + 0.25 * d * d * g * g;
      ExpectNear(u[i], d * m[i] / (std::sqrt(v[i]) + 1e-3), t, i);
    }
    r = root * r + (1 - root) * d * q;
    d = std::max(d, r);
    EXPECT_NEAR(scalars_.r, r, 1e-5 * std::fabs(r)) << t;
    EXPECT_NEAR(scalars_.d, d, 1e-5 * d) << t;
    if (t == 1) {
      EXPECT_EQ(q, 0) << "there is no gradient before the first";
    }
  }
  EXPECT_GT(d, 0.6) << "it has grown";
}

TEST_F(DenseOptimizerTest, StateIsAsLargeAsThePageSays) {
  const auto planes = [](const DenseOptimizer& optimizer) { return optimizer.planes(); };
  EXPECT_EQ(planes({.kind = Kind::kSgd}), 0u);
  EXPECT_EQ(planes({.kind = Kind::kSgd, .momentum = 0.5f}), 1u);
  EXPECT_EQ(planes({.kind = Kind::kAdamW}), 2u);
  EXPECT_EQ(planes({.kind = Kind::kNadamW}), 2u);
  EXPECT_EQ(planes({.kind = Kind::kScheduleFree}), 2u);
  EXPECT_EQ(planes({.kind = Kind::kAliasAdam}), 3u);
}

TEST_F(DenseOptimizerTest, ScalarsToWhichNoRunComesAreFound) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const DenseOptimizer adamw, free{.kind = Kind::kScheduleFree}, alias{.kind = Kind::kAliasAdam};
  EXPECT_TRUE(CanBe(adamw, {}));
  EXPECT_FALSE(CanBe(adamw, {.d = 1}));
  EXPECT_FALSE(CanBe(adamw, {.weights = 1}));
  EXPECT_TRUE(CanBe(free, {.weights = 1}));
  EXPECT_FALSE(CanBe(free, {.weights = -1}));
  EXPECT_FALSE(CanBe(free, {.weights = nan}));
  EXPECT_TRUE(CanBe(alias, {.r = -1, .d = 1}));
  EXPECT_FALSE(CanBe(alias, {.r = 1}));
  EXPECT_FALSE(CanBe(alias, {.d = nan}));
}

TEST_F(DenseOptimizerTest, NumbersOutOfTheirRangeAreNamedWithTheirFlag) {
  EXPECT_TRUE(CheckDenseOptimizer({}).ok());
  const auto words = [](const DenseOptimizer& optimizer) {
    return Describe(CheckDenseOptimizer(optimizer));
  };
  EXPECT_NE(words({.momentum = 1.0f}).find("--dense-momentum"), std::string::npos);
  EXPECT_NE(words({.beta1 = -0.5f}).find("--dense-beta1"), std::string::npos);
  EXPECT_NE(words({.kind = Kind::kScheduleFree, .beta1 = 0.0f}).find("--dense-beta1"),
            std::string::npos);
  EXPECT_NE(words({.beta2 = 1.5f}).find("--dense-beta2"), std::string::npos);
  EXPECT_NE(words({.epsilon = 0.0f}).find("--dense-epsilon"), std::string::npos);
  EXPECT_NE(words({.d0 = -1.0f}).find("--dense-d0"), std::string::npos);
  EXPECT_NE(words({.kind = Kind::kSgd, .nesterov = true}).find("--dense-nesterov"),
            std::string::npos);
}

}  // namespace
}  // namespace signvote
