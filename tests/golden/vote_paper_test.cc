// How good a majority is: the probabilities of Bernstein, Zhao, Azizzadenesheli, Anandkumar,
// "signSGD with Majority Vote is Communication Efficient and Fault Tolerant" (ICLR 2019, arXiv
// 1810.05291), from the real tally.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"
#include "server/tally/tally.h"

namespace signvote {
namespace {

constexpr double kTableRounding = 5.1e-5;  // the tables give four digits

// P(verdict wrong) when voter j is wrong with probability wrong[j], independently; an odd number of
// voters. Exact: one coordinate per pattern of right and wrong voters, tallied together and
// weighted by the pattern's probability.
double ExactWrongProbability(const std::vector<double>& wrong) {
  const size_t n = wrong.size();
  const uint64_t patterns = uint64_t{1} << n;
  std::vector<std::vector<uint8_t>> ballots(n, std::vector<uint8_t>(BytesForBits(patterns), 0));
  std::vector<const uint8_t*> pointers;
  for (size_t j = 0; j < n; ++j) {
    for (uint64_t p = 0; p < patterns; ++p)
      SetBit(ballots[j].data(), p, ((p >> j) & 1u) != 0);  // 1 is wrong
    pointers.push_back(ballots[j].data());
  }
  std::vector<uint8_t> verdict(BytesForBits(patterns));
  Tally({.ballots = pointers, .coordinates = patterns}, verdict.data());
  double probability = 0.0;
  for (uint64_t p = 0; p < patterns; ++p) {
    if (!GetBit(verdict.data(), p)) continue;
    double weight = 1.0;
    for (size_t j = 0; j < n; ++j) weight *= ((p >> j) & 1u) != 0 ? wrong[j] : 1.0 - wrong[j];
    probability += weight;
  }
  return probability;
}

// The same by drawing, for any number of voters; ties fall by the coin.
double DrawnWrongProbability(size_t n, double wrong, uint64_t coordinates) {
  std::vector<std::vector<uint8_t>> ballots(n, std::vector<uint8_t>(BytesForBits(coordinates), 0));
  std::vector<const uint8_t*> pointers;
  for (size_t j = 0; j < n; ++j) {
    Rng rng(101, j);
    for (uint64_t i = 0; i < coordinates; ++i) SetBit(ballots[j].data(), i, rng.Uniform() < wrong);
    pointers.push_back(ballots[j].data());
  }
  std::vector<uint8_t> verdict(BytesForBits(coordinates)), right(BytesForBits(coordinates), 0);
  Tally({.ballots = pointers, .coordinates = coordinates, .seed = 5, .round = Round(1)},
        verdict.data());
  return 1.0 - static_cast<double>(CountAgreement(verdict.data(), right.data(), coordinates)) /
                   static_cast<double>(coordinates);
}

double FourSigma(double p, uint64_t coordinates) {
  return 4.0 * std::sqrt(p * (1.0 - p) / static_cast<double>(coordinates));
}

struct Row {
  size_t n;
  double at_p45, at_p4, at_p3, at_p1;  // each voter wrong with p = .45, .4, .3 and .1
};
constexpr Row kWrongVote[] = {{1, .450, .400, .300, .100},     {3, .4253, .352, .216, .028},
                              {5, .4069, .3174, .1631, .0086}, {7, .3917, .2898, .126, .0027},
                              {9, .3786, .2666, .0988, .0009}, {11, .3669, .2465, .0782, .0003}};

TEST(MajorityVote, IsWrongAsOftenAsTheTableSays) {
  for (const Row& row : kWrongVote) {
    for (const auto& [p, wrong] : {std::pair(0.45, row.at_p45), std::pair(0.4, row.at_p4),
                                   std::pair(0.3, row.at_p3), std::pair(0.1, row.at_p1)})
      EXPECT_NEAR(ExactWrongProbability(std::vector<double>(row.n, p)), wrong, kTableRounding)
          << row.n << " voters, p = " << p;
  }
  EXPECT_NEAR(ExactWrongProbability(std::vector<double>(15, 0.45)), .3465, kTableRounding);
  EXPECT_NEAR(ExactWrongProbability(std::vector<double>(15, 0.4)), .2131, kTableRounding);
  EXPECT_NEAR(ExactWrongProbability(std::vector<double>(15, 0.3)), .050, kTableRounding);
}

TEST(MajorityVote, ThirtyOneVotersAreWrongAsOftenAsTheTableSays) {
  constexpr uint64_t kCoordinates = 1 << 18;
  EXPECT_NEAR(DrawnWrongProbability(31, 0.4, kCoordinates), .1284,
              FourSigma(.1284, kCoordinates) + kTableRounding);
  EXPECT_NEAR(DrawnWrongProbability(31, 0.3, kCoordinates), .0095,
              FourSigma(.0095, kCoordinates) + kTableRounding);
}

// A tie that falls by a fair coin makes an even number of voters exactly as good as one fewer.
TEST(MajorityVote, AnEvenNumberOfVotersIsAsGoodAsOneFewer) {
  constexpr uint64_t kCoordinates = 1 << 18;
  for (const size_t n : {2, 4, 6, 8, 16}) {
    const double odd = ExactWrongProbability(std::vector<double>(n - 1, 0.4));
    EXPECT_NEAR(DrawnWrongProbability(n, 0.4, kCoordinates), odd, FourSigma(odd, kCoordinates))
        << n;
  }
}

// Seven voters, the honest ones wrong with p = .1. Colluders know the right sign and always vote
// against it; blind inverters negate what an honest voter would say, so that they are wrong with
// .9.
TEST(MajorityVote, OutvotesByzantineVotersAsOftenAsTheTableSays) {
  struct Entry {
    double wrong;
    double rounding;  // half a unit of the last digit that the table gives
  };
  constexpr Entry kColluders[] = {{.0027, 5.1e-5}, {.016, 5.1e-4}, {.0815, 5.1e-5}, {.344, 5.1e-4}};
  constexpr Entry kInverters[] = {
      {.0027, 5.1e-5}, {.0144, 5.1e-5}, {.0675, 5.1e-5}, {.264, 5.1e-4}};
  for (size_t bad = 0; bad < 4; ++bad) {
    std::vector<double> colluding(7, 0.1), inverting(7, 0.1);
    for (size_t j = 0; j < bad; ++j) {
      colluding[j] = 1.0;
      inverting[j] = 0.9;
    }
    EXPECT_NEAR(ExactWrongProbability(colluding), kColluders[bad].wrong, kColluders[bad].rounding)
        << bad;
    EXPECT_NEAR(ExactWrongProbability(inverting), kInverters[bad].wrong, kInverters[bad].rounding)
        << bad;
  }
}

// The same colluders among seven whose honest voters are as unsure as late in a training: with p = .3 two of
// them make the vote little better than a coin, with p = .4 one does. "43 % are tolerated" is a statement
// about gradients that are much larger than their noise.
TEST(MajorityVote, FewColludersOutvoteHonestVotersWhoAreUnsure) {
  const double at_p3[] = {.126, .256, .472, .760}, at_p4[] = {.290, .456, .663, .870};
  for (size_t bad = 0; bad < 4; ++bad) {
    for (const auto& [p, table] : {std::pair(0.3, at_p3[bad]), std::pair(0.4, at_p4[bad])}) {
      std::vector<double> colluding(7, p);
      for (size_t j = 0; j < bad; ++j) colluding[j] = 1.0;
      EXPECT_NEAR(ExactWrongProbability(colluding), table, 5.1e-4) << bad << ", " << p;
    }
  }
}

// Bernstein et al. 2019, Theorem 2 needs fewer than half: with four colluders of seven the vote is
// theirs.
TEST(MajorityVote, FallsToAMajorityOfColluders) {
  EXPECT_EQ(ExactWrongProbability({1, 1, 1, 1, 0.1, 0.1, 0.1}), 1.0);
}

}  // namespace
}  // namespace signvote
