// What the papers on sign methods state about directions, vote and step together, through the real
// code.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/coin.h"
#include "common/rng.h"
#include "tests/golden/vote_loop.h"

namespace signvote {
namespace {

using Gradients = std::vector<std::vector<float>>;

DirectionConfig Config(std::string name, double beta = 0.9, double beta2 = 0.99) {
  DirectionConfig config = *ParseDirection({.name = std::move(name)});
  config.beta = beta;
  config.beta2 = beta2;
  return config;
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
  for (const char* name : {"signsgd", "signum", "nesterov", "lion", "stosign", "sgd"}) {
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

// ---- StoSignSGD (Yu, Pan, Liu, Zhang, arXiv 2604.15416): m an EMA, G = max(G, |m|), sign(m + G·n) ----

float Plane(const Direction& direction, size_t plane, uint64_t i) {
  float value = 0;
  EXPECT_TRUE(direction.SaveState(plane, i, std::as_writable_bytes(std::span(&value, 1))).ok());
  return value;
}

double NoiseAt(uint64_t seed, uint64_t round, uint64_t i) {
  return static_cast<double>(NoiseOf(Uniform16(seed, Round(round), Share(0), i)));
}

// The golden vector's noise is its author's. Ours comes from a seed; one is searched whose noise
// falls on the same side of the same thresholds and whose coins of coordinate 3, which never has a
// gradient, are 1.
uint64_t SeedLikeTheGoldenNoise() {
  for (uint64_t seed = 1;; ++seed) {
    bool alike = true;
    for (uint64_t t = 0; t < 3; ++t)
      alike = alike && ((OwnCoinWord(seed, Round(t), Share(0), 0) >> 3) & 1u) != 0;
    // Thresholds −m/G of the rounds 2 and 3.
    if (alike && NoiseAt(seed, 1, 0) < -.41 && NoiseAt(seed, 1, 1) < -.86 &&
        NoiseAt(seed, 1, 2) < -.44 && NoiseAt(seed, 2, 0) < .13 && NoiseAt(seed, 2, 1) > -.70)
      return seed;
  }
}

TEST(StoSign, FollowsTheGoldenVectorOfOneWorker) {
  const DirectionConfig config = *ParseDirection({.name = "stosign"});
  const uint64_t seed = SeedLikeTheGoldenNoise();
  VoteLoop loop({1.0f, -1.0f, 0.5f, 0.0f},
                {.direction = config, .weight_decay = 0.1f, .seed = seed});
  const Layout layout = *Layout::Make({{.name = "x", .shape = {4}}});
  const ChunkPlan plan(4, 512);
  Direction inside(&layout, plan, config);
  const std::vector<float> g[] = {
      {1.0f, 1.0f, -0.3f, 0.0f}, {-0.5f, -0.05f, 0.4f, 0.0f}, {-0.5f, -0.05f, 0.4f, 0.0f}};
  const double x[3][4] = {{.89, -1.09, .595, -.1},
                          {.9811, -.9791, .68905, -.199},
                          {1.071289, -1.069309, .5821595, -.29701}};
  const double m[3][4] = {{.1, .1, -.03, 0}, {.04, .085, .013, 0}, {-.014, .0715, .0517, 0}};
  const double r[3][4] = {{.1, .1, .03, 0}, {.1, .1, .03, 0}, {.1, .1, .0517, 0}};
  for (size_t t = 0; t < 3; ++t) {
    loop.Step({g[t]}, 0.1f);
    uint8_t bits = 0;
    inside.Begin();
    inside.PackChunk(
        ChunkIndex(0),
        {.g = PointersInto<const float>(layout, g[t].data()), .seed = seed, .round = Round(t)},
        &bits);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(static_cast<double>(loop.x()[i]), x[t][i], 1e-6) << t << ", " << i;
      EXPECT_NEAR(static_cast<double>(Plane(inside, 0, i)), m[t][i], 1e-7) << t << ", " << i;
      EXPECT_NEAR(static_cast<double>(Plane(inside, 1, i)), r[t][i], 1e-7) << t << ", " << i;
    }
  }
}

TEST(StoSign, TheMomentumNeverPassesItsEnvelope) {
  constexpr size_t kCoordinates = 600;
  const Layout layout = *Layout::Make({{.name = "x", .shape = {kCoordinates}}});
  const ChunkPlan plan(kCoordinates, 512);
  for (const double decay : {1.0, 0.9}) {
    for (const StateDtype dtype : {StateDtype::kFp32, StateDtype::kBf16}) {
      Direction direction(&layout, plan,
                          {.kind = DirectionKind::kStoSign,
                           .envelope = Envelope::kCoordinate,
                           .envelope_decay = decay,
                           .state_dtype = dtype});
      const size_t bytes = dtype == StateDtype::kBf16 ? 2 : 4;
      std::vector<uint8_t> ballot(plan.TotalBytes());
      for (uint64_t t = 0; t < 200; ++t) {
        Rng rng(19, t);
        std::vector<float> g(kCoordinates);
        for (float& v : g) v = static_cast<float>(rng.Uniform() - 0.5);
        direction.Begin();
        for (uint32_t k = 0; k < plan.chunks(); ++k) {
          direction.PackChunk(ChunkIndex(k),
                              {.g = PointersInto<const float>(layout, g.data()), .round = Round(t)},
                              ballot.data() + plan.ByteOffset(ChunkIndex(k)));
        }
        std::vector<std::byte> m(kCoordinates * bytes), r(kCoordinates * bytes);
        ASSERT_TRUE(direction.SaveState(0, 0, m).ok());
        ASSERT_TRUE(direction.SaveState(1, 0, r).ok());
        for (size_t i = 0; i < kCoordinates; ++i) {
          uint32_t m_bits = 0, r_bits = 0;
          // A bfloat16 is the upper half of an fp32.
          std::memcpy(reinterpret_cast<char*>(&m_bits) + 4 - bytes, m.data() + i * bytes, bytes);
          std::memcpy(reinterpret_cast<char*>(&r_bits) + 4 - bytes, r.data() + i * bytes, bytes);
          ASSERT_LE(std::fabs(std::bit_cast<float>(m_bits)), std::bit_cast<float>(r_bits))
              << t << ", " << i;
        }
      }
    }
  }
}

// P(+1) = (1 + m/G)/2 with m and G held: 10⁵ draws of each of several quotients, within four
// standard deviations.
TEST(StoSign, SignsPlusAsOftenAsItsQuotientSays) {
  constexpr uint64_t kCoordinates = 100000;
  const Layout layout = *Layout::Make({{.name = "x", .shape = {kCoordinates}}});
  const ChunkPlan plan(kCoordinates, 1 << 17);
  Direction direction(&layout, plan, *ParseDirection({.name = "stosign", .momentum = "off"}));
  std::vector<uint8_t> ballot(plan.TotalBytes());
  const auto vote = [&](float g, uint64_t round) {
    const std::vector<float> gradient(kCoordinates, g);
    direction.PackChunk(
        ChunkIndex(0),
        {.g = PointersInto<const float>(layout, gradient.data()), .seed = 8, .round = Round(round)},
        ballot.data());
    uint64_t plus = 0;
    for (const uint8_t byte : ballot) plus += static_cast<uint64_t>(std::popcount(byte));
    return static_cast<double>(plus) / kCoordinates;
  };
  // A new maximum is deterministic, the first round with it.
  EXPECT_EQ(vote(-2.0f, 0), 0.0);
  EXPECT_EQ(vote(2.0f, 1), 1.0);
  uint64_t round = 2;
  for (const float g : {-1.9f, -1.0f, -0.25f, 0.0f, 0.1f, 0.5f, 1.5f}) {
    const double p = (1 + static_cast<double>(g) / 2) / 2;
    EXPECT_NEAR(vote(g, round++), p, 4 * std::sqrt(p * (1 - p) / kCoordinates)) << g;
  }
}

// Karimireddy's example again, on which raw signs stay at f = 1: the mean of StoSign's iterates
// comes to the optimum.
TEST(StoSign, LeavesTheLineOfKarimireddysCounterExample) {
  constexpr int kRounds = 20000;
  const auto sign = [](double v) { return v >= 0 ? 1.0 : -1.0; };
  const auto f = [](double x1, double x2) { return 0.5 * std::fabs(x1 + x2) + std::fabs(x1 - x2); };
  for (const char* momentum : {"on", "off"}) {
    VoteLoop loop({1.0f, 1.0f},
                  {.direction = *ParseDirection({.name = "stosign", .momentum = momentum})});
    double mean[2] = {0, 0};
    for (int t = 1; t <= kRounds; ++t) {
      const double x1 = static_cast<double>(loop.x()[0]), x2 = static_cast<double>(loop.x()[1]);
      const double sum = 0.5 * sign(x1 + x2), difference = sign(x1 - x2);
      loop.Step({{static_cast<float>(sum + difference), static_cast<float>(sum - difference)}},
                static_cast<float>(0.5 / std::sqrt(static_cast<double>(t))));
      for (size_t i = 0; i < 2; ++i) mean[i] += static_cast<double>(loop.x()[i]) / kRounds;
    }
    std::printf("momentum %s: f = %.4f at the mean of the iterates\n", momentum,
                f(mean[0], mean[1]));
    EXPECT_LE(f(mean[0], mean[1]), 0.02) << "momentum " << momentum;
  }
}

// Skewed noise: g = 4 with probability ¼, else −1, so that f = x/4 on [−1, 1] falls to −1 while most
// signs point to +1. Raw signs go to the wrong end; StoSign and a momentum longer than the skew to
// the right one. Momentum turns near β = 0.6: P(m > 0) is .454 at .5, .496 at .6, .521 at .65, .549
// at .7 and .672 at .9 (2·10⁶ draws).
double EndUnderSkewedNoise(const DirectionConfig& config) {
  VoteLoop loop({0.0f}, {.direction = config, .seed = 3});
  Rng rng(23, 0);
  double mean = 0;
  constexpr int kRounds = 24000, kTail = 4000;
  for (int t = 0; t < kRounds; ++t) {
    const float g = rng.Below(4) == 0 ? 4.0f : -1.0f;
    loop.Step({{g}}, 0.002f);
    loop.Clamp(1.0f);
    if (t >= kRounds - kTail) mean += static_cast<double>(loop.x()[0]) / kTail;
  }
  return mean;
}

TEST(SignMethods, SkewedNoiseTurnsRawSignsAndShortMomentumAndNeitherStoSignNorLongMomentum) {
  EXPECT_GT(EndUnderSkewedNoise(Config("signsgd")), 0.9);
  EXPECT_GT(EndUnderSkewedNoise(Config("signum", 0.5)), 0.9);
  EXPECT_LT(EndUnderSkewedNoise(Config("signum", 0.7)), -0.9);
  EXPECT_LT(EndUnderSkewedNoise(*ParseDirection({.name = "stosign", .momentum = "off"})), -0.9);
  EXPECT_LT(EndUnderSkewedNoise(*ParseDirection({.name = "stosign"})), -0.9);
}

// The deviation of what each worker's gradient has on top in a run of so many rounds.
using Noise = double (*)(int rounds);
double NoNoise(int) { return 0; }
double NoiseOfOneSize(int) { return 1; }
// Of a batch as large as the run is long, from 256 samples on: the mean of so many.
double NoiseOfAGrowingBatch(int rounds) { return 16 / std::sqrt(static_cast<double>(rounds)); }

// Slope of log mean ‖g‖₁ against log T, by least squares over runs of T = 2^8 … 2^14 rounds with
// γ = 0.5/√T.
double SlopeOfTheMeanGradient(size_t workers, Noise noise_of) {
  constexpr size_t kCoordinates = 64;
  const Quadratic f(kCoordinates);
  std::vector<double> log_t, log_g;
  for (int exponent = 8; exponent <= 14; ++exponent) {
    const int rounds = 1 << exponent;
    const double noise = noise_of(rounds);
    const double gamma = 0.5 / std::sqrt(static_cast<double>(rounds));
    VoteLoop loop(f.Start(), {.workers = workers, .direction = Config("signsgd")});
    Rng rng(0x51, static_cast<uint64_t>(exponent));
    double sum = 0.0;
    for (int t = 0; t < rounds; ++t) {
      const std::vector<float> g = f.Gradient(loop.x());
      for (const float v : g) sum += static_cast<double>(std::fabs(v));
      Gradients seen(workers, g);
      for (std::vector<float>& of_worker : seen) {
        for (float& v : of_worker)
          v += static_cast<float>(noise * std::sqrt(12.0) * (rng.Uniform() - 0.5));
      }
      loop.Step(seen, static_cast<float>(gamma));
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
  const double slope = covariance / variance;
  std::printf("%zu workers, noise %g and %g in the shortest and longest run: slope %.3f\n", workers,
              noise_of(1 << 8), noise_of(1 << 14), slope);
  return slope;
}

// Bernstein et al. (ICML 2018, arXiv 1802.04434), Theorem 1: with γ ∝ 1/√T and no noise the mean of
// ‖g‖₁ over a run of T rounds falls like 1/√T.
TEST(SignMethods, TheMeanGradientFallsWithTheRootOfTheRounds) {
  for (const size_t workers : {size_t{1}, size_t{3}})
    EXPECT_NEAR(SlopeOfTheMeanGradient(workers, NoNoise), -0.5, 0.03) << workers << " workers";
}

// The theorem's own setting: the batch grows with the run, so that the noise falls like 1/√T.
TEST(SignMethods, SoItDoesUnderNoiseOfABatchThatGrowsWithTheRun) {
  for (const size_t workers : {size_t{1}, size_t{3}}) {
    EXPECT_NEAR(SlopeOfTheMeanGradient(workers, NoiseOfAGrowingBatch), -0.5, 0.05)
        << workers << " workers";
  }
}

// With noise of one size in every round it falls like T^(−1/4) in the end: a step of γ meets a
// coordinate that is wrong nearly half of the time within √γ of its optimum. Runs of these lengths
// still have some of the way there in them.
TEST(SignMethods, UnderNoiseOfABatchThatDoesNotGrowItFallsWithTheFourthRoot) {
  for (const size_t workers : {size_t{1}, size_t{3}}) {
    const double slope = SlopeOfTheMeanGradient(workers, NoiseOfOneSize);
    EXPECT_GT(slope, -0.31) << workers << " workers";
    EXPECT_LT(slope, -0.25) << workers << " workers";
  }
}

}  // namespace
}  // namespace signvote
