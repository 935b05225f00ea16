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
    race.OnNoVerdict({.nonfinite_losses = true});
  }
}

Seen RunRace(Race& race, const LossOf& loss, double start = 1e-3) {
  Seen seen;
  while (!race.over()) Step(race, loss, start, &seen);
  return seen;
}

TEST(RaceTest, ItExpandsUpwardsAndClimbsToTheBestOfItsNeighbours) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-1.9));  // between k = 2 and 3
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, 3, 7, /* climbing */ 3, 4, 2, 1));
  EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.03);
  EXPECT_EQ(race.trials(), 8u);
}

TEST(RaceTest, ItExpandsDownwardsWhereALargerStepIsWorse) {
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-5.1));  // k = −4.2
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, -1, -3, -7, /* climbing */ -3, -2, -4, -5));
  EXPECT_NEAR(std::log10(race.winner()), -5.1, 0.03);
}

// Trials whose scores are these, by k; below and above all the others' the first's and the last's.
// Losses go up and down so much that no difference is significant, and no trial ends early.
LossOf Scores(const std::map<int, double>& scores) {
  return [scores](double x, uint64_t step, uint32_t) {
    const int k = static_cast<int>(std::lround(2 * (x + 3)));
    const int known = std::clamp(k, scores.begin()->first, scores.rbegin()->first);
    const double swing = 64.0 * (k + 32);
    return scores.at(known) + (step % 2 == 0 ? swing : -swing);
  };
}

TEST(RaceTest, TheWinnerIsTheVertexOfTheParabolaThroughTheLogScores) {
  Race race(kConfig);
  RunRace(race, Scores({{0, 5}, {1, 2}, {2, 1}, {3, 4}, {4, 9}}));
  const double low = std::log(2.0), high = std::log(4.0);
  const double shift = (low - high) / (2 * (low + high));
  EXPECT_NEAR(race.winner(), 1e-3 * std::pow(10.0, (2 + shift) / 2), 1e-9);
}

TEST(RaceTest, ALossBelowZeroMakesItTheParabolaOfTheScores) {
  Race race(kConfig);
  RunRace(race, Scores({{0, 5}, {1, 2}, {2, -1}, {3, 4}, {4, 9}}));
  const double shift = (2.0 - 4.0) / (2 * (2.0 + 2.0 + 4.0));
  EXPECT_NEAR(race.winner(), 1e-3 * std::pow(10.0, (2 + shift) / 2), 1e-9);
}

TEST(RaceTest, OfATrialThatEndsEarlyTheDifferenceIsTakenToGrowOn) {
  // Differences that grow by the same amount in every step, as in a valley: the mean over all 40 rounds
  // of a trial is 40/m times that over its first m.
  Race race(kConfig);
  const Seen seen = RunRace(race, Valley(-1.9));
  EXPECT_LT(seen.rounds.back(), 40u);
  EXPECT_NEAR(std::log10(race.winner()), -1.9, 0.03);
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

TEST(RaceTest, ATrialWithoutAVerdictIsAtInfinity) {
  Race race(kConfig);
  // Everything above 10^−2.6 diverges in its third step.
  const Seen seen = RunRace(race, [](double x, uint64_t step, uint32_t share) {
    if (x > -2.6 && step > 2) return std::numeric_limits<double>::infinity();
    return Valley(-2.8)(x, step, share);
  });
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_THAT(seen.ks, ElementsAre(0, 1, -1, /* climbing */ 0, 1, -1));
  EXPECT_EQ(seen.rounds[1], 4u);
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
  other.OnNoVerdict({.nonfinite_losses = true});
  EXPECT_LT(other.gamma(), 1e-3);
}

TEST(RaceTest, WhereAShortRaceHeardOfNoFiniteLossTheNextStepsizeBelowAllTriedOnesWins) {
  Race race({.start = 1e-3, .short_rounds = 2, .long_rounds = 4, .rounds_max = 10});
  while (!race.over()) {
    if (race.OnVerdict({}) == TrialMove::kStep) race.OnNoVerdict({.nonfinite_losses = true});
  }
  ASSERT_EQ(race.state(), RaceState::kWon);
  EXPECT_FALSE(race.measured());
  EXPECT_LE(race.rounds(), 10u);
  EXPECT_LE(race.trials(), 4u);
  EXPECT_LT(race.winner(), 1e-3 / 3);
  EXPECT_GT(race.winner(), 1e-3 / 1000);
}

TEST(RaceTest, BeforeItsFirstStepATrialWaitsForAVerdictHoweverLong) {
  Race race(kConfig);
  EXPECT_TRUE(race.untouched());
  for (int i = 0; i < 100; ++i) race.OnNoVerdict({.nonfinite_losses = i % 2 == 0});
  EXPECT_TRUE(race.untouched());
  const std::vector<WorkerScalars> workers = {{.loss = 1}};
  for (int i = 0; i < 16; ++i) race.OnVerdict({.workers = workers});
  ASSERT_EQ(race.trials(), 2u);
  const double second = race.gamma();
  for (int i = 0; i < 100; ++i) race.OnNoVerdict({.nonfinite_losses = i % 2 == 0});
  EXPECT_EQ(race.gamma(), second);
  EXPECT_EQ(race.trials(), 2u);
  EXPECT_EQ(race.rounds(), 16u);
  EXPECT_FALSE(race.untouched());
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
  Race race({.start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 100000});
  race.set_floor(1e-6);
  // The first votes copy the first minibatch: for twenty steps every stepsize raises the loss a little,
  // a larger one more, and noise hides it.
  RunRace(race, [](double x, uint64_t step, uint32_t share) {
    if (step >= 20) return 6 + Valley(-2.2)(x, step, share);
    const double noise = 64 * (2 * (x + 3) + 32);
    return 9 + 0.1 * x + (step % 2 == 0 ? noise : -noise);
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

TEST(RaceTest, WithLittleBudgetTheClimbIsShorterAndThenLeftAway) {
  Race tight({.start = 1e-3, .short_rounds = 16, .long_rounds = 40, .rounds_max = 110});
  const Seen seen = RunRace(tight, Valley(-2.6));
  ASSERT_GE(seen.ks.size(), 4u);
  EXPECT_LT(seen.rounds.back(), 40u);
  EXPECT_NEAR(std::log10(tight.winner()), -2.6, 0.2);
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

TEST(RaceTest, RestoredBeforeEveryRoundItRunsTheSameTrials) {
  for (const double best : {-1.9, -5.1, -0.3}) {
    Race once(kConfig);
    const Seen expected = RunRace(once, Valley(best));
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
      Step(*race, Valley(best), 1e-3, &seen);
    }
    EXPECT_EQ(seen.ks, expected.ks);
    EXPECT_EQ(seen.rounds, expected.rounds);
    EXPECT_EQ(race->winner(), once.winner());
  }
}

}  // namespace
}  // namespace signvote
