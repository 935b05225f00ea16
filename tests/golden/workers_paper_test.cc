// What the majority-vote paper (Bernstein, Zhao, Azizzadenesheli, Anandkumar, ICLR 2019, arXiv 1810.05291)
// states about numbers of workers, honest and adversarial, in whole trainings: its toy problem, a
// quadratic with noise of deviation 1 on every coordinate of every worker's gradient (there in 1,000
// dimensions, here in 200), through the real directions, tally and apply.

#include <cmath>
#include <cstdio>
#include <vector>

#include <gtest/gtest.h>

#include "common/rng.h"
#include "tests/golden/vote_loop.h"

namespace signvote {
namespace {

constexpr size_t kDimensions = 200;

// f(x) = ½‖x‖₂² from (1, …, 1) at a constant γ: the mean of |g_i| over the last quarter of the rounds. The first
// `inverters` workers negate what they would send.
double MeanGradientAtTheEnd(size_t workers, size_t inverters, float gamma, int rounds) {
  VoteLoop loop(std::vector<float>(kDimensions, 1.0f),
                {.workers = workers, .direction = *ParseDirection({.name = "signsgd"})});
  std::vector<Rng> noise;
  for (size_t j = 0; j < workers; ++j) noise.emplace_back(0x70, j);
  std::vector<std::vector<float>> gradients(workers, std::vector<float>(kDimensions));
  double mean = 0;
  for (int t = 0; t < rounds; ++t) {
    for (size_t j = 0; j < workers; ++j) {
      for (size_t i = 0; i < kDimensions; ++i) {
        const float g = loop.x()[i] + static_cast<float>(noise[j].Bell());
        gradients[j][i] = j < inverters ? -g : g;
      }
    }
    loop.Step(gradients, gamma);
    if (t < rounds - rounds / 4) continue;
    for (const float x : loop.x())
      mean += static_cast<double>(std::fabs(x)) / (static_cast<double>(kDimensions) * (rounds / 4));
  }
  return mean;
}

// Theorem 2: fewer than half of blind inverters slow a run, by (1 − 2α) in the bound, and do not keep it from
// its end; four of seven take it the other way.
TEST(Workers, ThreeOfSevenWhoInvertTheirSignsDoNotKeepTheOthersFromLearning) {
  double last = 0;
  for (size_t inverters = 0; inverters <= 3; ++inverters) {
    const double end = MeanGradientAtTheEnd(7, inverters, 0.01f, 2000);
    std::printf("%zu of 7 invert: mean |g_i| from 1 to %.4f\n", inverters, end);
    EXPECT_GT(end, last);
    EXPECT_LT(end, 0.2);
    last = end;
  }
  EXPECT_GT(MeanGradientAtTheEnd(7, 4, 0.01f, 2000), 5.0);
}

// With a constant γ and noise of one size a run ends on a floor. Near its optimum a coordinate is voted wrong with
// probability ½ − φ·m_n·g, φ the noise's density at 0 and m_n = n·C(n−1, (n−1)/2)/2^(n−1), about √(2n/π): so it
// wanders within √(γ/(4φ·m_n)). More workers lower the floor like n^(−1/4), and all that they are good for under
// noise is in that.
TEST(Workers, LowerTheFloorOfANoisyRunWithTheFourthRootOfTheirNumber) {
  const double one = MeanGradientAtTheEnd(1, 0, 0.01f, 2000);
  for (const int workers : {3, 9, 27}) {
    double m = workers;
    for (int k = 1; k <= (workers - 1) / 2; ++k)
      m *= static_cast<double>((workers - 1) / 2 + k) / (4.0 * k);
    const double floor = MeanGradientAtTheEnd(static_cast<size_t>(workers), 0, 0.01f, 2000);
    std::printf("%d workers: floor %.4f of %.4f with one, %.3f of what follows from m_n = %.3f\n",
                workers, floor, one, floor / one * std::sqrt(m), m);
    EXPECT_NEAR(floor / one * std::sqrt(m), 1.0, 0.1) << workers;
  }
}

}  // namespace
}  // namespace signvote
