#include "server/stepsize/race.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace signvote {
namespace {

using testing::ElementsAre;

// The loss of one share after `step` steps at 10^x.
using LossOf = std::function<double(double x, uint64_t step, uint32_t share)>;

// A valley at 10^best, of a depth that grows with the steps; each share at a height of its own.
LossOf Valley(double best) {
  return [best](double x, uint64_t step, uint32_t share) {
    return 3 + share + 0.05 * static_cast<double>(step) * (std::pow(x - best, 2) - 1);
  };
}

constexpr RaceConfig kConfig = {
    .start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 1000};

struct Seen {
  std::vector<int> ks;  // of the trials, in order
  std::vector<uint64_t> rounds;
};

// One round of two workers; where a loss is not finite it closes without a verdict.
void Step(Race& race, const LossOf& loss, double start, Seen* seen) {
  if (race.step() == 0) {
    seen->ks.push_back(static_cast<int>(std::lround(2 * std::log10(race.gamma() / start))));
    seen->rounds.push_back(0);
  }
  ++seen->rounds.back();
  std::vector<WorkerScalars> workers(2);
  for (uint32_t share = 0; share < 2; ++share)
    workers[share].loss = loss(std::log10(race.gamma()), race.step(), share);
  if (std::isfinite(workers[0].loss)) {
    race.OnVerdict({.workers = workers});
  } else {
    race.OnNoVerdict({.nonfinite = true});
  }
}

Seen RunRace(Race& race, const LossOf& loss, double start = 1e-3) {
  Seen seen;
  while (!race.over()) Step(race, loss, start, &seen);
  return seen;
}

// The race runs the same trials, and ends in the same, if it is saved and restored before every round.
void ExpectSameWhereRestored(const LossOf& loss) {
  Race once(kConfig);
  const Seen expected = RunRace(once, loss);
  std::optional<Race> race(kConfig);
  Seen seen;
  while (!race->over()) {
    RuleStateWriter writer("race", 1);
    race->Save(writer);
    const std::string bytes = writer.Take();
    RuleStateReader reader(bytes, "race", 1);
    race.emplace(kConfig);
    ASSERT_TRUE(race->Restore(reader).ok());
    ASSERT_TRUE(reader.Finish().ok());
    Step(*race, loss, 1e-3, &seen);
  }
  EXPECT_EQ(seen.ks, expected.ks);
  EXPECT_EQ(seen.rounds, expected.rounds);
  EXPECT_EQ(race->winner(), once.winner());
  EXPECT_EQ(race->edge(), once.edge());
  EXPECT_EQ(race->below_still(), once.below_still());
}

TEST(RaceTest, ItExpandsUpwardsAndClimbsToTheBestOfItsNeighbours) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-1.9));  // between k = 2 and 3
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, 7, /* climbing */ 3, 2, 1));
  EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.03);
  EXPECT_EQ(race.trials(), 7u);
}

TEST(RaceTest, ItExpandsDownwardsWhereALargerStepIsWorse) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-5.1));  // k = −4.2
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, -1, -3, -7, /* climbing */ -3, -4, -5));
  EXPECT_NEAR(std::log10(race.winner()), -5.1, 0.03);
}

// Trials whose scores are these, by k; below and above all the others' the first's and the last's.
// Losses go up and down so much that no difference is significant, and no trial ends early; in the second
// halves of 18 and of 42 rounds as much up as down.
LossOf Scores(const std::map<int, double>& scores) {
  return [scores](double x, uint64_t step, uint32_t) {
    const int k = static_cast<int>(std::lround(2 * (x + 3)));
    const int known = std::clamp(k, scores.begin()->first, scores.rbegin()->first);
    const double swing = 64.0 * (k + 32);
    return scores.at(known) + (step % 3 == 0 ? 0 : step % 3 == 1 ? swing : -swing);
  };
}

constexpr RaceConfig kOfScores = {
    .start = 1e-3, .short_rounds = 18, .long_rounds = 42, .rounds_max = 1000};

TEST(RaceTest, TheWinnerIsTheVertexOfTheParabolaThroughTheLogScores) {
  Race race(kOfScores);
  RunRace(race, Scores({{0, 5}, {1, 2}, {2, 1}, {3, 4}, {4, 9}}));
  const double low = std::log(2.0), high = std::log(4.0);
  const double shift = (low - high) / (2 * (low + high));
  EXPECT_NEAR(race.winner(), 1e-3 * std::pow(10.0, (2 + shift) / 2), 1e-9);
}

TEST(RaceTest, ALossBelowZeroMakesItTheParabolaOfTheScores) {
  Race race(kOfScores);
  RunRace(race, Scores({{0, 5}, {1, 2}, {2, -1}, {3, 4}, {4, 9}}));
  const double shift = (2.0 - 4.0) / (2 * (2.0 + 2.0 + 4.0));
  EXPECT_NEAR(race.winner(), 1e-3 * std::pow(10.0, (2 + shift) / 2), 1e-9);
}

TEST(RaceTest, TheSecondHalfOfATrialScoresIt) {
  Race race(kConfig);
  // The larger stepsize is far ahead in the first half of a trial and a little behind in the second.
  const Seen seen = RunRace(race, [&](double x, uint64_t step, uint32_t) {
    if (x < -2.9) return 3.0;
    const bool second = step >= (race.state() == RaceState::kExpanding ? 8 : 20);
    return second ? 3.1 : 1.0;
  });
  EXPECT_THAT(seen.ks, testing::Contains(-1));
  EXPECT_LT(race.winner(), 1.1e-3);
}

TEST(RaceTest, OfATrialThatEndsEarlyTheDifferenceIsTakenToGrowOn) {
  // Differences that grow by the same amount in every step, as in a valley.
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-2.4));
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, /* climbing */ 1, 0, 2));
  EXPECT_EQ(seen.rounds.back(), 9u);
  EXPECT_NEAR(std::log10(race.winner()), -2.4, 0.03);
}

TEST(RaceTest, TiesGoUp) {
  Race race(kConfig);
  // Below 10^−1.2 every step is absorbed: the trials are the same to the last bit.
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t) {
    return x < -1.2 ? 4.0 : Valley(-0.5)(x, step, 0) + 1;
  });
  EXPECT_EQ(seen.ks[0], 0);
  EXPECT_EQ(seen.ks[1], 1);
  EXPECT_EQ(seen.ks[2], 3);
  EXPECT_NEAR(std::log10(race.winner()), -0.5, 0.1);
}

TEST(RaceTest, ATrialThatIsClearlyWorseEndsEarlyAndNotBeforeAQuarter) {
  Race race(kConfig);
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t) {
    if (step == 0) return 3.0;
    return 3 - 0.1 * static_cast<double>(step) + (x > -2.9 ? 5.0 : 0.0);
  });
  EXPECT_EQ(seen.rounds[0], 16u);
  EXPECT_LT(seen.rounds[1], 16u);
  EXPECT_GE(seen.rounds[1], 4u);
}

TEST(RaceTest, ALargerStepsizeEndsOnceItLostEightPairsInARow) {
  const auto rounds_of_second = [](const std::function<double(double)>& above) {
    Race race({.start = 1e-3, .short_rounds = 40, .long_rounds = 40, .rounds_max = 1000});
    const Seen seen = RunRace(race, [&](double x, uint64_t step, uint32_t) {
      return x > -2.9 && step > 0 ? 3 + above(static_cast<double>(step)) : 3.0;
    });
    EXPECT_EQ(seen.ks[1], 1);
    return seen.rounds[1];
  };
  // They grow so much that the standard error of their mean is as large as the mean.
  const auto diverging = [](double step) { return std::pow(8.0, step); };
  EXPECT_EQ(rounds_of_second(diverging), 9u);
  EXPECT_EQ(rounds_of_second([&](double step) { return step == 8 ? -1 : diverging(step); }), 17u)
      << "they count from the last one that it won";
}

TEST(RaceTest, ASmallerStepsizeThatIsBehindAtFirstHasAllItsRounds) {
  Race race({.start = 1e-3, .short_rounds = 40, .long_rounds = 40, .rounds_max = 1000});
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t) {
    const double t = static_cast<double>(step);
    if (x > -2.9) return 3 + 100 * t;
    return x < -3.1 ? 4.2 - 0.06 * t : 3.0;
  });
  ASSERT_GE(seen.ks.size(), 3u);
  EXPECT_EQ(seen.ks[2], -1);
  EXPECT_EQ(seen.rounds[2], 40u);
}

TEST(RaceTest, ATrialWithoutAVerdictIsAtInfinity) {
  Race race(kConfig);
  // Everything above 10^−2.6 diverges in its third step.
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t share) {
    if (x > -2.6 && step > 2) return std::numeric_limits<double>::infinity();
    return Valley(-2.8)(x, step, share);
  });
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, -1, /* climbing */ 0, -1, 1));
  EXPECT_EQ(seen.rounds[1], 5u) << "two rounds in a row";
  // The upper neighbour is at +∞: half a step down.
  EXPECT_NEAR(race.winner(), 1e-3 * std::pow(10.0, -0.25), 1e-9);
}

TEST(RaceTest, ARoundThatNobodyVotedInForAnotherReasonRepeatsItsTrialOnce) {
  Race race(kConfig);
  const auto vote = [&race] {
    const std::vector<WorkerScalars> workers = {
        {.loss = Valley(-1.9)(std::log10(race.gamma()), race.step(), 0)}};
    race.OnVerdict({.workers = workers});
  };
  for (int i = 0; i < 16 + 5; ++i) vote();  // into the second trial
  const double second = race.gamma();
  race.OnNoVerdict({});
  EXPECT_EQ(race.gamma(), second);
  EXPECT_EQ(race.step(), 0u);
  vote();
  race.OnNoVerdict({});
  EXPECT_LT(race.gamma(), 1e-3) << "it counts as diverged now, and the race goes down";
}

TEST(RaceTest, WhereNobodyCouldVoteInAnyTrialTheFirstStepsizeOfThePartWins) {
  // One vote in each trial, without a loss, and an outage after it.
  const auto outage = [](Race& race) {
    while (!race.over()) {
      if (race.OnVerdict({}) == TrialMove::kStep) race.OnNoVerdict({});
    }
  };
  Race race(kConfig);
  outage(race);
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_DOUBLE_EQ(race.winner(), 1e-3);
  EXPECT_LE(race.rounds(), kConfig.rounds_max);

  // With a loss that is not finite in one of them there is something against it.
  Race other(kConfig);
  other.OnVerdict({});
  EXPECT_EQ(other.OnNoVerdict({.nonfinite = true}), TrialMove::kSkip);
  EXPECT_EQ(other.OnNoVerdict({.nonfinite = true}), TrialMove::kRewind);
  EXPECT_LT(other.gamma(), 1e-3);
}

// Every trial votes once, and then no loss is finite any more. The lowest stepsize that was tried.
double LowestOfADivergingRace(Race& race) {
  double lowest = race.gamma();
  while (!race.over()) {
    lowest = std::min(lowest, race.gamma());
    const TrialMove move = race.OnVerdict({});
    while (move == TrialMove::kStep && !race.over() &&
           race.OnNoVerdict({.nonfinite = true}) == TrialMove::kSkip) {
    }
  }
  return lowest;
}

TEST(RaceTest, WhereAShortRaceHeardOfNoFiniteLossTheNextStepsizeBelowAllTriedOnesWins) {
  Race race({.start = 1e-3, .short_rounds = 4, .long_rounds = 8, .rounds_max = 20});
  const double lowest = LowestOfADivergingRace(race);
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_FALSE(race.measured());
  EXPECT_EQ(race.edge(), RaceEdge::kNone);
  EXPECT_LE(race.rounds(), 20u);
  EXPECT_LT(lowest, 1e-3) << "several were tried";
  EXPECT_DOUBLE_EQ(race.winner(), lowest / std::sqrt(10.0));
}

TEST(RaceTest, WhereSixteenStepsizesDivergedNoOtherOneIsGuessed) {
  Race race({.start = 1e-3, .short_rounds = 4, .long_rounds = 8, .rounds_max = 100000});
  LowestOfADivergingRace(race);
  EXPECT_EQ(race.state(), RaceState::kFailed);
}

TEST(RaceTest, BeforeItsFirstVoteATrialWaitsForOneHoweverLong) {
  Race race(kConfig);
  EXPECT_TRUE(race.untouched());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(race.OnNoVerdict({}), TrialMove::kRewind);
  EXPECT_TRUE(race.untouched());
  const std::vector<WorkerScalars> workers = {{.loss = 1}};
  for (int i = 0; i < 16; ++i) race.OnVerdict({.workers = workers});
  ASSERT_EQ(race.trials(), 2u);
  const double second = race.gamma();
  for (int i = 0; i < 100; ++i) race.OnNoVerdict({});
  EXPECT_EQ(race.gamma(), second);
  EXPECT_EQ(race.trials(), 2u);
  EXPECT_EQ(race.rounds(), 16u);
  EXPECT_FALSE(race.untouched());
  // Nor does it stay at a minibatch whose loss is not finite; an outage behind it begins it again.
  EXPECT_EQ(race.OnNoVerdict({.nonfinite = true}), TrialMove::kSkip);
  EXPECT_EQ(race.OnNoVerdict({.nonfinite = true}), TrialMove::kSkip);
  EXPECT_EQ(race.step(), 2u);
  EXPECT_EQ(race.OnNoVerdict({}), TrialMove::kRewind);
  EXPECT_EQ(race.gamma(), second);
  EXPECT_EQ(race.step(), 0u);
  EXPECT_EQ(race.rounds(), 16u);
}

// One worker, and every trial meets a minibatch whose loss is not finite, at this step of it.
TEST(RaceTest, AMinibatchWithoutAFiniteLossCostsEveryTrialThatRoundAndNoTrial) {
  for (const uint64_t poisoned : {0u, 1u, 5u, 15u, 39u}) {
    Race race(kConfig);
    bool begun = false;
    while (!race.over()) {
      // The race begins behind what fails before its first vote.
      if (race.step() == poisoned && begun) {
        race.OnNoVerdict({.nonfinite = true});
        continue;
      }
      begun = true;
      const std::vector<WorkerScalars> workers = {
          {.loss = Valley(-1.9)(std::log10(race.gamma()), race.step(), 0)}};
      race.OnVerdict({.workers = workers});
    }
    ASSERT_EQ(race.state(), RaceState::kWon) << poisoned;
    EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.1) << poisoned;
  }
}

TEST(RaceTest, ATrialThatDivergesInItsLastRoundIsAtInfinityWhereTheBestDidNot) {
  Race race(kConfig);
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t share) {
    if (x > -2.6 && step == 15) return std::numeric_limits<double>::infinity();
    return 3 + share - 0.01 * (x + 9) * static_cast<double>(step);  // the larger, the better
  });
  EXPECT_THAT(std::vector(seen.ks.begin(), seen.ks.begin() + 3), ElementsAre(0, 1, -1));
}

TEST(RaceTest, WhereTheStartItselfDivergesItGoesDownUntilOneDoesNot) {
  Race race(kConfig);
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t share) {
    return x > -4.6 && step > 0 ? std::nan("") : Valley(-5.1)(x, step, share);
  });
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(std::vector(seen.ks.begin(), seen.ks.begin() + 4), ElementsAre(0, -1, -3, -7));
  EXPECT_NEAR(std::log10(race.winner()), -5.1, 0.3);
}

TEST(RaceTest, WhereEveryStepRaisesTheLossTheTrialsBecomeLongerAndThenItFails) {
  Race race({.start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 100000});
  race.set_floor(1e-6);
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t) {
    return 3 + static_cast<double>(step) * std::pow(10.0, x);
  });
  EXPECT_EQ(race.state(), RaceState::kFailed);
  std::vector<uint64_t> first;  // of each expansion
  for (size_t i = 0; i < seen.ks.size(); ++i) {
    if (seen.ks[i] == 0) first.push_back(seen.rounds[i]);
  }
  EXPECT_THAT(first, ElementsAre(16, 32, 64, 128));
}

TEST(RaceTest, LongerTrialsMayFindWhatShortOnesDoNot) {
  Race race({.start = 1e-3, .short_rounds = 18, .long_rounds = 40, .rounds_max = 100000});
  race.set_floor(1e-6);
  // The first votes copy the first minibatch: for eighteen steps every stepsize raises the loss a little,
  // a larger one more, and noise hides it.
  RunRace(race, [](double x, uint64_t step, uint32_t share) {
    if (step >= 19) return 6 + Valley(-2.2)(x, step, share);
    const double noise = 64 * (2 * (x + 3) + 32);
    return 9 + 0.1 * x + (step % 3 == 0 ? 0 : step % 3 == 1 ? noise : -noise);
  });
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_NEAR(std::log10(race.winner()), -2.2, 0.15);
}

TEST(RaceTest, NoRaceTakesMoreThanItsBudget) {
  for (const uint64_t budget : {80u, 100u, 150u, 300u, 1200u}) {
    for (double best = -9; best <= 4; best += 0.7) {
      for (const double start : {1e-7, 1e-3, 1e-2}) {
        Race race({.start = start, .short_rounds = 16, .long_rounds = 30, .rounds_max = budget});
        RunRace(race, Valley(best), start);
        EXPECT_LE(race.rounds(), budget) << best << " from " << start;
        EXPECT_EQ(race.state(), RaceState::kWon) << best << " from " << start;
      }
    }
  }
}

TEST(RaceTest, WithLittleBudgetTheClimbIsShorter) {
  Race tight({.start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 110});
  const Seen seen = RunRace(tight, Valley(-2.6));
  ASSERT_GE(seen.ks.size(), 4u);
  EXPECT_LT(seen.rounds.back(), 40u);
  EXPECT_NEAR(std::log10(tight.winner()), -2.6, 0.2);
}

TEST(RaceTest, WhereATrialThatIsRunOnceMoreTakesTheClimbsRoundsTheExpansionsWinnerIsTheWinner) {
  Race race({.start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 80});
  const auto vote = [&race](int rounds) {
    for (int i = 0; i < rounds; ++i) {
      const std::vector<WorkerScalars> workers = {
          {.loss = Valley(-2.6)(std::log10(race.gamma()), race.step(), 0)}};
      race.OnVerdict({.workers = workers});
    }
  };
  vote(16);
  EXPECT_EQ(race.trials(), 2u);
  vote(15);
  race.OnNoVerdict({});  // in its last round: 48 rounds are left, and 32 behind it once more
  vote(16);
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_EQ(race.trials(), 3u) << "no climb";
  EXPECT_EQ(race.rounds(), 48u);
  EXPECT_NEAR(std::log10(race.winner()), -2.5, 1e-9);
  EXPECT_EQ(race.edge(), RaceEdge::kUpper);
}

// Learns at the ks in `learns`, the faster the larger, and lies above those that do not for a few steps. Stands still at
// others, where larger ones come a bit lower, until they are too large. Losses go up and down so much that no trial ends
// early, but at the largest.
LossOf Collapse(const std::vector<int>& learns) {
  return [learns](double x, uint64_t step, uint32_t share) {
    const int k = static_cast<int>(std::lround(2 * (x + 3)));
    const bool moves = std::find(learns.begin(), learns.end(), k) != learns.end();
    const double fell = moves ? (0.02 + 0.004 * k) * static_cast<double>(step) - 0.2 : 0;
    const double swing = (step % 2 == 0 ? 1 : -1) * (1 + 0.2 * k);
    return step == 0 ? 4 : 10 + 0.01 * share - 0.001 * k + (k > 3 ? 1 : 0) - fell + swing;
  };
}

TEST(RaceTest, BelowALowerNeighbourThatStandsStillTheNextIsTriedAndWins) {
  // k = 3 learns by luck: 2, on which the run would begin, does not.
  Race race(kConfig);
  const Seen seen = RunRace(race, Collapse({0, 1, 3}));
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, 7, /* climbing */ 3, 2, 1));
  EXPECT_NEAR(race.winner(), 1e-3 * std::sqrt(10.0), 1e-9);
  EXPECT_FALSE(race.below_still()) << "nothing below it was tried";
}

TEST(RaceTest, WhereTheOneBelowStandsStillTooTheBestStays) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Collapse({3}));
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, 7, /* climbing */ 3, 2, 1, 4));
  EXPECT_NEAR(std::log10(race.winner()), -1.5, 0.25);
}

TEST(RaceTest, ALowerNeighbourThatFallsOnIsTheEnd) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Collapse({0, 1, 2, 3}));
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, 7, /* climbing */ 3, 2, 4));
  EXPECT_FALSE(race.below_still()) << "4 and 7 ended early";
}

TEST(RaceTest, WhatIsBestBetweenAWorseOneAndOneThatStandsStillIsRightBelowIt) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Collapse({0, 1, 2}));
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, /* climbing */ 1, 0, 2, 3));
  EXPECT_TRUE(race.below_still());
}

TEST(RaceTest, WhatIsWorseAndMovesDoesNotStandStill) {
  Race race(kConfig);
  RunRace(race, Valley(-1.9));
  EXPECT_FALSE(race.below_still());
}

TEST(RaceTest, WhatStoodStillBelowTheBestSaysNothing) {
  // Steps of 1e-9 and less move nothing.
  Race race({.start = 1e-12, .short_rounds = 16, .long_rounds = 40, .rounds_max = 1000});
  RunRace(
      race,
      [](double x, uint64_t step, uint32_t) {
        return 3 - 0.02 * static_cast<double>(step) * std::pow(10, std::min(x, -3.4) + 3.4) +
               0.05 * static_cast<double>(step) * std::max(0.0, x + 3.4);
      },
      1e-12);
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_GT(race.winner(), 1e-5);
  EXPECT_FALSE(race.below_still());
}

TEST(RaceTest, WhetherATrialStandsStillIsSaved) {
  for (const std::vector<int>& learns : {std::vector{0, 1, 3}, std::vector{0, 1, 2}})
    ExpectSameWhereRestored(Collapse(learns));
}

TEST(RaceTest, TheWinnerIsAtAnEdgeWhereNoWorseStepsizeOnOneSideWasTried) {
  const auto edge = [](double start, double best, uint64_t budget) {
    Race race({.start = start, .short_rounds = 16, .long_rounds = 30, .rounds_max = budget});
    RunRace(race, Valley(best), start);
    EXPECT_EQ(race.state(), RaceState::kWon);
    return race.edge();
  };
  EXPECT_EQ(edge(1e-7, -2, 100), RaceEdge::kUpper);
  EXPECT_EQ(edge(1e-7, -2, 1000), RaceEdge::kNone);
  EXPECT_EQ(edge(1, -6, 80), RaceEdge::kLower);
  EXPECT_EQ(edge(1, -6, 1000), RaceEdge::kNone);
}

TEST(RaceTest, ItSaysHowEachTrialEnded) {
  Race race(kConfig);
  std::vector<std::string> ended;
  while (!race.over()) {
    Seen seen{.ks = {0}, .rounds = {0}};
    const uint64_t trials = race.trials();
    Step(
        race,
        [](double x, uint64_t step, uint32_t share) {
          return x > -1.6 && step > 2 ? std::nan("") : Valley(-2.4)(x, step, share);
        },
        1e-3, &seen);
    if (race.over() || race.trials() != trials) ended.push_back(race.ended());
  }
  ASSERT_GE(ended.size(), 5u);
  EXPECT_EQ(ended[0], "trial 1 at 0.001: 3.132");
  EXPECT_EQ(ended[1], "trial 2 at 0.00316: 2.931, -0.201 over the best");
  EXPECT_THAT(ended[2], testing::MatchesRegex("trial 3 at 0.0316: no finite loss"));
  EXPECT_THAT(ended, testing::Contains(testing::MatchesRegex("trial .*, early")));

  Race other(kConfig);
  other.OnVerdict({});
  other.OnNoVerdict({});
  EXPECT_EQ(other.ended(), "trial 1 at 0.001: nobody could vote, once more");
  other.OnVerdict({});
  other.OnNoVerdict({});
  EXPECT_EQ(other.ended(), "trial 2 at 0.001: nobody could vote, for the second time");
}

// The worker of share 0 dies behind the first round of the second trial, and another one comes as share
// 1: the two trials have one pair, at x_0, where they are alike whatever their stepsizes.
TEST(RaceTest, OnePairAtX0SaysNothingOfATrial) {
  Race race(kConfig);
  std::vector<double> gammas;
  const auto round = [&](uint32_t share, double loss) {
    if (race.step() == 0) gammas.push_back(race.gamma());
    const std::vector<WorkerScalars> workers = {{.loss = loss}};
    const std::vector<Share> shares = {Share(share)};
    race.OnVerdict({.workers = workers, .shares = shares});
  };
  for (int i = 0; i < 16; ++i) round(0, 3);
  round(0, 3);
  for (int i = 1; i < 16; ++i) round(1, 40);
  ASSERT_EQ(race.trials(), 3u);
  EXPECT_EQ(race.gamma(), gammas[1]) << "it is run once more";
  for (int i = 0; i < 16; ++i) round(1, 40);
  EXPECT_LT(race.gamma(), 1e-3) << "by its own mean it is worse, and the race goes down";
}

TEST(RaceTest, PairsAtThreeStepsSayNothingOfATrialEitherHoweverShortItIs) {
  for (const int rounds : {8, 16}) {
    Race race({.start = 1e-3,
               .short_rounds = static_cast<uint64_t>(rounds),
               .long_rounds = 40,
               .rounds_max = 400});
    const auto round = [&](uint32_t share, double loss) {
      const std::vector<WorkerScalars> workers = {{.loss = loss}};
      const std::vector<Share> shares = {Share(share)};
      race.OnVerdict({.workers = workers, .shares = shares});
    };
    for (int i = 0; i < rounds; ++i) round(0, 3);
    for (int i = 0; i < 4; ++i) round(0, 2.9);
    for (int i = 4; i < rounds; ++i) round(1, 40);
    EXPECT_EQ(race.trials(), 3u) << rounds;
    EXPECT_NEAR(std::log10(race.gamma()), -2.5, 1e-9) << "it is run once more";
    // Four pairs do.
    for (int i = 0; i < 5; ++i) round(0, 2.9);
    for (int i = 5; i < rounds; ++i) round(1, 40);
    EXPECT_GT(race.gamma(), 1e-2) << "it was better, and the race goes on upwards";
  }
}

TEST(RaceTest, ATrialIsTakenToGrowOnFromTheStepsThatItsPairsAreOf) {
  // Pairs in the first steps of the climbing trials only, or in the last ones: the same vertex. The
  // rounds between have no loss at all.
  for (const bool early : {true, false}) {
    Race race(kConfig);
    while (!race.over()) {
      const uint64_t part = std::max<uint64_t>(10, race.trial_rounds() / 3);
      const bool heard = race.state() == RaceState::kExpanding ||
                         (early ? race.step() <= part : race.step() + part >= race.trial_rounds());
      std::vector<WorkerScalars> workers;
      if (heard) {
        const double x = std::log10(race.gamma());
        workers.push_back(
            {.loss = 3 + 0.05 * static_cast<double>(race.step()) * (std::pow(x + 1.9, 2) - 0.2)});
      }
      race.OnVerdict({.workers = workers});
    }
    EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.03) << early;
  }
}

TEST(RaceTest, ATrialWithoutACommonShareIsRunOnceMore) {
  Race race(kConfig);
  std::vector<double> gammas;
  const auto round = [&](uint32_t share) {
    if (race.step() == 0) gammas.push_back(race.gamma());
    const std::vector<WorkerScalars> workers = {
        {.loss = Valley(-2.2)(std::log10(race.gamma()), race.step(), 0)}};
    const std::vector<Share> shares = {Share(share)};
    race.OnVerdict({.workers = workers, .shares = shares});
  };
  for (int i = 0; i < 16; ++i) round(0);
  for (int i = 0; i < 16; ++i) round(1);
  ASSERT_EQ(gammas.size(), 2u);
  round(0);
  EXPECT_EQ(gammas[2], gammas[1]);
  for (int i = 1; i < 16; ++i) round(0);
  round(0);
  EXPECT_GT(gammas[3], gammas[2]) << "it was better, and the race goes on upwards";
}

TEST(RaceTest, ANewcomersLossesCountWhereBothTrialsHaveThem) {
  Race race(kConfig);
  // Share 2 comes in the middle of the first trial, at a height that would decide everything.
  const LossOf loss = Valley(-1.9);
  while (!race.over()) {
    std::vector<WorkerScalars> workers;
    std::vector<Share> shares;
    const double x = std::log10(race.gamma());
    for (uint32_t share = 0; share < 3; ++share) {
      const bool here = share < 2 || race.trials() > 1 || race.step() > 7;
      if (!here) continue;
      workers.push_back({.loss = loss(x, race.step(), share == 2 ? 900 : share)});
      shares.emplace_back(share);
    }
    race.OnVerdict({.workers = workers, .shares = shares});
  }
  EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.1);
}

// A race in which all happens that it remembers: an outage, a trial once more, poisoned minibatches, and
// expansions that fail.
TEST(RaceTest, RestoredBeforeEveryRoundItRunsTheSameTrialsThroughEveryMishap) {
  const auto run = [](bool restored, std::vector<double>* gammas) {
    const RaceConfig config{
        .start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 3000};
    std::optional<Race> race(config);
    race->set_floor(1e-6);
    uint64_t round = 0;
    while (!race->over()) {
      if (restored) {
        RuleStateWriter writer("race", 1);
        race->Save(writer);
        const std::string bytes = writer.Take();
        RuleStateReader reader(bytes, "race", 1);
        race.emplace(config);
        EXPECT_TRUE(race->Restore(reader).ok());
        EXPECT_TRUE(reader.Finish().ok());
      }
      gammas->push_back(race->gamma());
      const double x = std::log10(race->gamma());
      // At first every step raises the loss: h' doubles twice.
      const double loss = race->trial_rounds() < 64
                              ? 3 + static_cast<double>(race->step()) * std::pow(10.0, x)
                              : Valley(-2.1)(x, race->step(), 0);
      ++round;
      if (race->step() > 0 && round % 97 < 1) {
        race->OnNoVerdict({});  // an outage, now and then two in one trial
      } else if (race->step() == 7 || (x > -0.8 && race->step() > 20)) {
        race->OnNoVerdict({.nonfinite = true});
      } else {
        std::vector<WorkerScalars> workers = {{.loss = loss}};
        std::vector<Share> shares = {Share(round / 131 % 2 == 0 ? 0 : 1)};
        race->OnVerdict({.workers = workers, .shares = shares});
      }
    }
    return race->state() == RaceState::kWon ? race->winner() : 0;
  };
  std::vector<double> once, again;
  const double winner = run(false, &once);
  EXPECT_EQ(run(true, &again), winner);
  EXPECT_EQ(again, once);
  EXPECT_GT(winner, 0);
}

// A race that is in its second try of a trial, in its last failure, or in an outage, is the same after a
// restart: each of these is in what is saved.
TEST(RaceTest, AnOutageATrialOnceMoreAndAFailureAreSaved) {
  const auto restored = [](const Race& race, const RaceConfig& config) {
    RuleStateWriter writer("race", 1);
    race.Save(writer);
    const std::string bytes = writer.Take();
    RuleStateReader reader(bytes, "race", 1);
    Race copy(config);
    EXPECT_TRUE(copy.Restore(reader).ok());
    return copy;
  };
  Race race(kConfig);
  race.OnVerdict({});
  race.OnNoVerdict({});
  race = restored(race, kConfig);
  race.OnVerdict({});
  race.OnNoVerdict({});
  EXPECT_LT(race.gamma(), 1e-3) << "that was its second time";

  Race diverges(kConfig);
  diverges.OnVerdict({});
  diverges.OnNoVerdict({.nonfinite = true});
  diverges = restored(diverges, kConfig);
  EXPECT_EQ(diverges.OnNoVerdict({.nonfinite = true}), TrialMove::kRewind);
  diverges = restored(diverges, kConfig);
  EXPECT_LT(diverges.gamma(), 1e-3);

  // Losses were heard of in the first trial of a part that then sees outages only: no win for its start.
  const RaceConfig tight{.start = 1e-3, .short_rounds = 4, .long_rounds = 8, .rounds_max = 20};
  Race heard(tight);
  heard.OnVerdict({});
  heard.OnNoVerdict({.nonfinite = true});
  heard.OnNoVerdict({.nonfinite = true});
  while (!heard.over()) {
    heard = restored(heard, tight);
    if (heard.OnVerdict({}) == TrialMove::kStep) heard.OnNoVerdict({});
  }
  EXPECT_LT(heard.winner(), 1e-3);

  // Every step raises the loss: three more expansions, however often it is restored.
  const RaceConfig roomy{
      .start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 100000};
  Race fails(roomy);
  fails.set_floor(1e-6);
  std::vector<uint64_t> first;
  while (!fails.over()) {
    fails = restored(fails, roomy);
    if (fails.step() == 0 && fails.gamma() == 1e-3) first.push_back(fails.trial_rounds());
    const std::vector<WorkerScalars> workers = {
        {.loss = 3 + static_cast<double>(fails.step()) * fails.gamma()}};
    fails.OnVerdict({.workers = workers});
  }
  EXPECT_EQ(fails.state(), RaceState::kFailed);
  EXPECT_THAT(first, ElementsAre(16, 32, 64, 128));
}

TEST(RaceTest, RestoredBeforeEveryRoundItRunsTheSameTrials) {
  for (const double best : {-1.9, -5.1, -0.3}) ExpectSameWhereRestored(Valley(best));
}

}  // namespace
}  // namespace signvote
