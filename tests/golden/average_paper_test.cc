// What the papers state about averages of signs in place of a majority's, and about how both do as the
// number of workers grows, through the real directions, tally and apply.

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/coin.h"
#include "common/rng.h"
#include "tests/golden/vote_loop.h"

namespace signvote {
namespace {

using Gradients = std::vector<std::vector<float>>;

// Distributed Lion's "Avg" (Liu et al., NeurIPS 2024, arXiv 2404.00438) on the golden gradients: d = 4,
// n = 3, γ = .1, decay .1. The vector counts a zero as non-negative; worker 0's coin for the only one is 1 by
// the choice of the seed.
TEST(Average, OfLionsSignsFollowsTheGoldenVector) {
  uint64_t seed = 1;
  const auto coins = [&] {
    for (uint64_t t = 0; t < 3; ++t)
      if (((OwnCoinWord(seed, Round(t), Share(0), 0) >> 3) & 1u) == 0) return false;
    return true;
  };
  while (!coins()) ++seed;
  VoteLoop loop({1.0f, -1.0f, 0.5f, 0.0f}, {.workers = 3,
                                            .direction = *ParseDirection({.name = "lion"}),
                                            .weight_decay = 0.1f,
                                            .seed = seed,
                                            .aggregate = Aggregate::kAverage});
  const Gradients first = {
      {1.0f, 1.0f, -0.3f, 0.0f}, {1.0f, 0.8f, 0.2f, 0.5f}, {1.0f, 1.2f, -0.1f, -0.25f}};
  const Gradients later = {
      {-0.5f, -0.05f, 0.4f, 0.0f}, {-0.5f, -0.05f, -0.6f, 0.5f}, {-0.5f, -0.05f, 0.1f, -0.25f}};
  const double want[3][4] = {{.89, -1.09, .5283333333, -.0333333333},
                             {.9811, -1.1791, .4897166667, -.0663333333},
                             {1.071289, -1.267309, .4514861667, -.0990033333}};
  for (size_t t = 0; t < 3; ++t) {
    loop.Step(t == 0 ? first : later, 0.1f);
    for (size_t i = 0; i < 4; ++i)
      EXPECT_NEAR(static_cast<double>(loop.x()[i]), want[t][i], 1e-6) << t << ", " << i;
  }
}

// The mean over 10⁵ coordinates of what one step of γ = 1 moved them by against the gradient, and the mean
// of its square. Every worker of `workers` has the gradient that `of_worker` draws for it.
struct Moved {
  double mean = 0, square = 0;
};
constexpr size_t kCoordinates = 100000;
Moved MovedBy(VoteLoop* loop, const Gradients& gradients) {
  const std::vector<float> before = loop->x();
  loop->Step(gradients, 1.0f);
  Moved moved;
  for (size_t i = 0; i < kCoordinates; ++i) {
    const double by = static_cast<double>(before[i]) - static_cast<double>(loop->x()[i]);
    moved.mean += by / kCoordinates;
    moved.square += by * by / kCoordinates;
  }
  return moved;
}

// StoSignSGD (arXiv 2604.15416): E[sign] = m/G. With G = 2 at every worker and gradients ½ and 1½ the mean of
// m/G over three workers is (¼ + ¼ + ¾)/3; a majority of their signs has another expectation.
TEST(Average, OfStochasticSignsIsUnbiasedAndTheirMajorityIsNot) {
  const double p[] = {0.5 * (1 + .25), 0.5 * (1 + .25), 0.5 * (1 + .75)};
  const double unbiased = (.25 + .25 + .75) / 3;
  const double majority = 2 * (p[0] * p[1] * p[2] + p[0] * p[1] * (1 - p[2]) +
                               p[0] * (1 - p[1]) * p[2] + (1 - p[0]) * p[1] * p[2]) -
                          1;
  const Gradients largest(3, std::vector<float>(kCoordinates, 2.0f));
  const Gradients gradients = {std::vector<float>(kCoordinates, 0.5f),
                               std::vector<float>(kCoordinates, 0.5f),
                               std::vector<float>(kCoordinates, 1.5f)};
  for (const Aggregate aggregate : {Aggregate::kVote, Aggregate::kAverage}) {
    VoteLoop loop(std::vector<float>(kCoordinates, 0.0f),
                  {.workers = 3,
                   .direction = *ParseDirection({.name = "stosign", .momentum = "off"}),
                   .aggregate = aggregate});
    // A new maximum is signed without chance.
    EXPECT_NEAR(MovedBy(&loop, largest).mean, 1.0, 1e-9);
    const double mean = MovedBy(&loop, gradients).mean;
    const double sigma = 1 / std::sqrt(static_cast<double>(kCoordinates));  // at most
    if (aggregate == Aggregate::kAverage) {
      EXPECT_NEAR(mean, unbiased, 4 * sigma);
      EXPECT_GT(std::abs(mean - majority), 20 * sigma);
    } else {
      EXPECT_NEAR(mean, majority, 4 * sigma);
      EXPECT_GT(std::abs(mean - unbiased), 20 * sigma);
    }
  }
}

// Karimireddy's counter-example (arXiv 1901.09847), f = ½|x1 + x2| + |x1 − x2| from (1, 1), which is not smooth
// and on which raw signs stay at f = 1, with three workers: though a majority of stochastic signs is biased, its
// steps leave the line as those of an average do.
TEST(Average, AndMajorityOfStochasticSignsLeaveTheLineOfKarimireddysCounterExample) {
  constexpr int kRounds = 20000;
  const auto sign = [](double v) { return v >= 0 ? 1.0 : -1.0; };
  for (const Aggregate aggregate : {Aggregate::kVote, Aggregate::kAverage}) {
    VoteLoop loop(
        {1.0f, 1.0f},
        {.workers = 3, .direction = *ParseDirection({.name = "stosign"}), .aggregate = aggregate});
    double mean[2] = {0, 0};
    for (int t = 1; t <= kRounds; ++t) {
      const double x1 = static_cast<double>(loop.x()[0]), x2 = static_cast<double>(loop.x()[1]);
      const double sum = 0.5 * sign(x1 + x2), difference = sign(x1 - x2);
      const std::vector<float> g = {static_cast<float>(sum + difference),
                                    static_cast<float>(sum - difference)};
      loop.Step({g, g, g}, static_cast<float>(0.5 / std::sqrt(static_cast<double>(t))));
      for (size_t i = 0; i < 2; ++i) mean[i] += static_cast<double>(loop.x()[i]) / kRounds;
    }
    const double f = 0.5 * std::fabs(mean[0] + mean[1]) + std::fabs(mean[0] - mean[1]);
    std::printf("three workers, %s: f = %.4f at the mean of the iterates\n",
                aggregate == Aggregate::kVote ? "vote" : "average", f);
    EXPECT_LE(f, 0.02);
  }
}

// The step's mean and variance as workers are added, each of whom sees the sign wrong with p = .4: a vote's
// are 1 − 2w and 4w(1 − w), w the table's; an average's 1 − 2p and 4p(1 − p)/n.
TEST(Average, AndVoteVaryLessWithEveryTwoWorkersAsTheTableSays) {
  constexpr double kP = 0.4;
  struct Row {
    size_t n;
    double wrong;
  };
  double last_vote = 2;
  for (const Row& row : {Row{1, .400}, Row{3, .352}, Row{5, .3174}, Row{7, .2898}, Row{9, .2666},
                         Row{11, .2465}, Row{15, .2131}, Row{31, .1284}}) {
    Gradients gradients;
    for (size_t j = 0; j < row.n; ++j) {
      Rng rng(0xAE, j);
      std::vector<float>& g = gradients.emplace_back(kCoordinates);
      for (float& v : g) v = static_cast<float>(rng.Uniform() - kP);
    }
    for (const Aggregate aggregate : {Aggregate::kVote, Aggregate::kAverage}) {
      VoteLoop loop(std::vector<float>(kCoordinates, 0.0f),
                    {.workers = row.n,
                     .direction = *ParseDirection({.name = "signsgd"}),
                     .aggregate = aggregate});
      const Moved moved = MovedBy(&loop, gradients);
      const double n = static_cast<double>(row.n);
      const bool vote = aggregate == Aggregate::kVote;
      const double mean = vote ? 1 - 2 * row.wrong : 1 - 2 * kP;
      const double variance = vote ? 4 * row.wrong * (1 - row.wrong) : 4 * kP * (1 - kP) / n;
      // Four standard deviations, and the table's four digits.
      const double off = 4 * std::sqrt(variance / kCoordinates) + (vote ? 1e-4 : 0);
      EXPECT_NEAR(moved.mean, mean, off) << row.n;
      EXPECT_NEAR(moved.square - moved.mean * moved.mean, variance, 4 * off + 0.02 * variance)
          << row.n;
      if (!vote) continue;
      EXPECT_LT(moved.square - moved.mean * moved.mean, last_vote) << row.n;
      last_vote = moved.square - moved.mean * moved.mean;
    }
  }
}

}  // namespace
}  // namespace signvote
