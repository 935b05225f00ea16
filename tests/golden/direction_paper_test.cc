// What the papers on sign methods state about directions, vote and step together, through the real
// code.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/coin.h"
#include "common/rng.h"
#include "tests/golden/vote_loop.h"

namespace signvote {
namespace {

using Gradients = std::vector<std::vector<float>>;

DirectionConfig Config(std::string_view name, double beta = 0.9, double beta2 = 0.99) {
  return *ParseDirection(name, beta, beta2);
}

// The golden vectors count a zero as non-negative; here a zero casts the worker's own coin. Worker
// 0's last coordinate is the only zero, so a seed with which that coin is 1 in all three rounds
// makes both conventions agree, and the coin is exercised.
uint64_t SeedWithThreeCoinsOfOne() {
  for (uint64_t seed = 1;; ++seed) {
    bool all = true;
    for (uint64_t t = 0; t < 3; ++t)
      all = all && ((OwnCoinWord(seed, Round(t), Share(0), 0) >> 3) & 1u) != 0;
    if (all) return seed;
  }
}

struct Golden {
  const char* direction;
  double x[3][4];
};

class GoldenTrajectory : public testing::TestWithParam<Golden> {};

// d = 4, n = 3, x0 = [1, −1, .5, 0], γ = .1, decay .1; the vectors are in double precision. fp32:
// three rounds, in each of which x is rounded once (|x| < 2: 2^-24·2) and the coefficients a and c
// are off by 2^-25 relative, so 1e-6 is ample.
TEST_P(GoldenTrajectory, EqualsThePublishedIterates) {
  constexpr double kTolerance = 1e-6;
  VoteLoop loop({1.0f, -1.0f, 0.5f, 0.0f}, {.workers = 3,
                                            .direction = Config(GetParam().direction),
                                            .weight_decay = 0.1f,
                                            .seed = SeedWithThreeCoinsOfOne()});
  const Gradients first = {
      {1.0f, 1.0f, -0.3f, 0.0f}, {1.0f, 0.8f, 0.2f, 0.5f}, {1.0f, 1.2f, -0.1f, -0.25f}};
  const Gradients later = {
      {-0.5f, -0.05f, 0.4f, 0.0f}, {-0.5f, -0.05f, -0.6f, 0.5f}, {-0.5f, -0.05f, 0.1f, -0.25f}};
  for (int t = 0; t < 3; ++t) {
    loop.Step(t == 0 ? first : later, 0.1f);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(static_cast<double>(loop.x()[i]), GetParam().x[t][i], kTolerance)
          << "t = " << t + 1 << ", i = " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Directions, GoldenTrajectory,
                         testing::Values(Golden{"signsgd",
                                                {{.89, -1.09, .595, -.1},
                                                 {.9811, -.9791, .48905, -.199},
                                                 {1.071289, -.869309, .3841595, -.29701}}},
                                         Golden{"signum",
                                                {{.89, -1.09, .595, -.1},
                                                 {.7811, -1.1791, .48905, -.199},
                                                 {.873289, -1.267309, .3841595, -.29701}}},
                                         Golden{"lion",
                                                {{.89, -1.09, .595, -.1},
                                                 {.9811, -1.1791, .48905, -.199},
                                                 {1.071289, -1.267309, .3841595, -.29701}}}),
                         [](const auto& param) { return std::string(param.param.direction); });

// A quadratic f(x) = ½ Σ h_i x_i² with a little noise per worker.
class Quadratic {
 public:
  explicit Quadratic(size_t d) : h_(d) {
    for (size_t i = 0; i < d; ++i) h_[i] = 0.5f + static_cast<float>(i % 7) / 4.0f;
  }
  std::vector<float> Gradient(const std::vector<float>& x) const {
    std::vector<float> g(x.size());
    for (size_t i = 0; i < x.size(); ++i) g[i] = h_[i] * x[i];
    return g;
  }
  std::vector<float> Start() const {
    Rng rng(11, 0);
    std::vector<float> x(h_.size());
    for (float& v : x) v = static_cast<float>(2 * rng.Uniform() - 1);
    return x;
  }

 private:
  std::vector<float> h_;
};

// Sign methods see directions only: scaling every gradient by a power of two (exact in fp32)
// changes no iterate.
TEST(SignMethods, ScalingAllGradientsByAPowerOfTwoLeavesTheIteratesUnchanged) {
  constexpr size_t kCoordinates = 700;  // two chunks, the last one ragged
  const Quadratic f(kCoordinates);
  for (const char* name : {"signsgd", "signum", "nesterov", "lion"}) {
    for (const int exponent : {-30, -1, 1, 40}) {
      const VoteLoopOptions options{.workers = 3, .direction = Config(name), .weight_decay = 0.05f};
      VoteLoop plain(f.Start(), options), scaled(f.Start(), options);
      for (uint64_t t = 0; t < 50; ++t) {
        Gradients g(3, f.Gradient(plain.x())), g_scaled(3, f.Gradient(scaled.x()));
        for (size_t j = 0; j < 3; ++j) {
          Rng noise(13 + j, t);
          for (size_t i = 0; i < kCoordinates; ++i) {
            const float e = static_cast<float>(noise.Uniform() - 0.5);
            g[j][i] += e;
            g_scaled[j][i] = std::ldexp(g_scaled[j][i] + e, exponent);
          }
        }
        plain.Step(g, 0.01f);
        scaled.Step(g_scaled, 0.01f);
        ASSERT_EQ(plain.x(), scaled.x()) << name << ", 2^" << exponent << ", round " << t;
      }
    }
  }
}

// With decoupled decay and a constant γ every iterate stays in the box max(|x0|, 1/wd) (sign steps
// move by ±γ at most, and beyond 1/wd the decay takes more than γ). In fp32 the edge is where
// fma(x, c, a) = x, that is a/(1 − c), and rounding is monotonic, so no iterate passes the first
// number at or above it.
TEST(SignMethods, DecayKeepsEveryIterateInItsBox) {
  for (const float wd : {0.1f, 0.5f, 2.0f}) {
    for (const char* name : {"signsgd", "signum", "lion"}) {
      constexpr float kGamma = 0.05f;
      const std::vector<float> x0 = {0.0f, 3.0f, -0.1f, 40.0f, -40.0f, 1.0f / wd, -1.0f / wd, 0.7f};
      VoteLoop loop(x0, {.workers = 2, .direction = Config(name), .weight_decay = wd});
      const TensorStep step = MakeTensorStep(kGamma, loop.layout().tensors()[0]);
      const double edge = static_cast<double>(step.a) / (1.0 - static_cast<double>(step.c));
      EXPECT_NEAR(edge * static_cast<double>(wd), 1.0, 1e-5);
      const float bound = std::nextafter(static_cast<float>(edge), 1e9f);
      Rng rng(17, 0);
      float largest = 0.0f;
      for (int t = 0; t < 3000; ++t) {
        // Outwards, the worst there is, for the first third; then at random; then inwards and
        // through zero.
        Gradients g(2, std::vector<float>(x0.size()));
        for (size_t i = 0; i < x0.size(); ++i) {
          const float outwards = loop.x()[i] >= 0.0f ? -1.0f : 1.0f;
          for (auto& gradient : g) {
            gradient[i] = t < 1000   ? outwards
                          : t < 2000 ? static_cast<float>(rng.Uniform() - 0.5)
                                     : -outwards;
          }
        }
        loop.Step(g, kGamma);
        for (size_t i = 0; i < x0.size(); ++i) {
          const float magnitude = std::fabs(loop.x()[i]);
          ASSERT_LE(magnitude, std::max(std::fabs(x0[i]), bound))
              << name << ", wd " << wd << ", t " << t << ", i " << i;
          if (i == 0) largest = std::max(largest, magnitude);
        }
      }
      EXPECT_GT(static_cast<double>(largest), 0.98 * edge)
          << "the run never came near the bound it is held to";
    }
  }
}

// Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD" (ICML 2019, arXiv 1901.09847),
// the counter-example after Theorem I: f = ½|x1 + x2| + |x1 − x2| from (1, 1). The sign of every
// subgradient is ±(1, −1), along which x1 + x2 never changes: signSGD stays at f ≥ 1, though plain
// subgradient steps reach the minimum 0.
TEST(SignMethods, RawSignNeverLeavesTheLineOfKarimireddysCounterExample) {
  constexpr int kRounds = 20000;
  const auto sign = [](double v) {
    return v >= 0 ? 1.0 : -1.0;
  };  // never 0, as the example demands
  const auto f = [](double x1, double x2) { return 0.5 * std::fabs(x1 + x2) + std::fabs(x1 - x2); };
  const auto subgradient = [sign](double x1, double x2) {
    const double sum = 0.5 * sign(x1 + x2), difference = sign(x1 - x2);
    return std::vector<float>{static_cast<float>(sum + difference),
                              static_cast<float>(sum - difference)};
  };
  VoteLoop loop({1.0f, 1.0f}, {.workers = 1, .direction = Config("signsgd")});
  double least = 1e9;
  double control[2] = {1.0, 1.0}, control_mean[2] = {0.0, 0.0};
  for (int t = 1; t <= kRounds; ++t) {
    const double eta = 0.5 / std::sqrt(static_cast<double>(t));
    loop.Step({subgradient(static_cast<double>(loop.x()[0]), static_cast<double>(loop.x()[1]))},
              static_cast<float>(eta));
    least = std::min(least, f(static_cast<double>(loop.x()[0]), static_cast<double>(loop.x()[1])));
    const std::vector<float> g = subgradient(control[0], control[1]);
    for (size_t i = 0; i < 2; ++i) {
      control[i] -= eta * static_cast<double>(g[i]);
      control_mean[i] += control[i] / kRounds;
    }
  }
  // 20,000 roundings of numbers below 2 can move x1 + x2 by 2·20,000·2^-24 at most.
  constexpr double kRounding = 2.0 * kRounds * 0x1p-24;
  EXPECT_GE(least, 1.0 - kRounding);
  EXPECT_NEAR(f(static_cast<double>(loop.x()[0]), static_cast<double>(loop.x()[1])), 1.0, 0.01);
  EXPECT_LT(f(control_mean[0], control_mean[1]), 0.05);
}

// Bernstein et al. (ICML 2018, arXiv 1802.04434), Theorem 1: with γ ∝ 1/√T and no noise the mean of
// ‖g‖₁ over a run of T rounds falls like 1/√T. Method: runs of T = 2^8 … 2^14 rounds; slope of log
// mean ‖g‖₁ against log T by least squares.
TEST(SignMethods, TheMeanGradientFallsWithTheRootOfTheRounds) {
  constexpr size_t kCoordinates = 64;
  const Quadratic f(kCoordinates);
  for (const size_t workers : {size_t{1}, size_t{3}}) {
    std::vector<double> log_t, log_g;
    for (int exponent = 8; exponent <= 14; ++exponent) {
      const int rounds = 1 << exponent;
      const double gamma = 0.5 / std::sqrt(static_cast<double>(rounds));
      VoteLoop loop(f.Start(), {.workers = workers, .direction = Config("signsgd")});
      double sum = 0.0;
      for (int t = 0; t < rounds; ++t) {
        const std::vector<float> g = f.Gradient(loop.x());
        for (const float v : g) sum += static_cast<double>(std::fabs(v));
        loop.Step(Gradients(workers, g), static_cast<float>(gamma));
      }
      log_t.push_back(std::log(static_cast<double>(rounds)));
      log_g.push_back(std::log(sum / rounds));
    }
    double mean_t = 0, mean_g = 0, covariance = 0, variance = 0;
    for (size_t k = 0; k < log_t.size(); ++k) {
      mean_t += log_t[k] / static_cast<double>(log_t.size());
      mean_g += log_g[k] / static_cast<double>(log_t.size());
    }
    for (size_t k = 0; k < log_t.size(); ++k) {
      covariance += (log_t[k] - mean_t) * (log_g[k] - mean_g);
      variance += (log_t[k] - mean_t) * (log_t[k] - mean_t);
    }
    EXPECT_NEAR(covariance / variance, -0.5, 0.03) << workers << " workers";
  }
}

}  // namespace
}  // namespace signvote
