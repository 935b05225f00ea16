// Goal: a run keeps its promises whatever workers, strangers and network do.
// Method: thousands of seeded runs of the product's Run and Follower with everything between them,
// over a fake network and clock; each seed draws its own faults. Safety is checked at every step,
// liveness after healing (simulation.h, checker.h; docs/simulation.md).
//
//   --seeds=N   seeds below N
//   --first=S   … from S on (default 0)
//   --seed=S    only this one, with what happens on stdout
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <set>
#include <string>

#include "common/log.h"
#include "tests/sim/simulation.h"

namespace signvote::sim {
namespace {

constexpr uint64_t kSeedsForEveryFault = 300;

uint64_t seeds = 300;
uint64_t first_seed = 0;
std::optional<uint64_t> only_seed;

TEST(RunSimulationTest, EverySeedStaysSafeAndFinishes) {
  StructCodec codec;
  SimCounters counters;
  SeedRange range{.first = first_seed, .last = seeds};
  if (only_seed.has_value()) {
    range = {.first = *only_seed, .last = *only_seed + 1, .trace = true};
  }
  const std::optional<std::string> failure = RunSeeds(range, &codec, &counters);
  ASSERT_FALSE(failure.has_value()) << *failure;
  if (counters.runs < kSeedsForEveryFault) return;  // too few to meet every fault
  for (size_t i = 0; i < kFaultCount; ++i) {
    EXPECT_GT(counters.struck[i], 0u) << "never struck: " << FaultName(static_cast<Fault>(i));
  }
  // What the faults are for came about.
  for (const auto& [what, count] : counters.Outcomes()) {
    EXPECT_GT(count, 0u) << "never came about: " << what;
  }
}

TEST(RunSimulationTest, SeedsDrawEveryDirectionThatThePackerMakesAloneAndEveryNoise) {
  std::set<DirectionKind> kinds;
  std::set<Envelope> envelopes;
  std::set<StateDtype> dtypes;
  bool sparse = false;
  for (uint64_t seed = 0; seed < kSeedsForEveryFault; ++seed) {
    const SimOptions options = DrawOptions(seed);
    kinds.insert(options.run.direction.kind);
    envelopes.insert(options.run.direction.envelope);
    dtypes.insert(options.run.direction.state_dtype);
    for (const run::TensorRule& rule : options.run.model.tensor_rules) {
      sparse = sparse || rule.treatment.has_value();
    }
  }
  EXPECT_EQ(kinds.size(), std::size(kDirectionKinds) - 1) << "all but Muon";
  EXPECT_EQ(envelopes.size(), 4u);
  EXPECT_EQ(dtypes.size(), 2u);
  EXPECT_TRUE(sparse);
}

TEST(RunSimulationTest, TheSameSeedGivesTheSameRun) {
  StructCodec codec;
  for (const uint64_t seed : {1u, 2u, 3u, 4u}) {
    SimCounters first, second;
    const SimResult a = RunSimulation(DrawOptions(seed), &codec, &first);
    const SimResult b = RunSimulation(DrawOptions(seed), &codec, &second);
    EXPECT_EQ(a.fingerprint, b.fingerprint) << "seed " << seed;
    EXPECT_EQ(first.Describe(), second.Describe());
  }
}

SimOptions WithoutFaults(uint64_t seed) {
  SimOptions options = DrawOptions(seed);
  options.enabled.fill(false);
  options.rule_used = RuleUsed::kOfFlags;
  options.run.workers_min = options.workers_first;
  options.run.deadline.enabled = true;
  return options;
}

TEST(RunSimulationTest, WithoutFaultsEveryBallotIsCounted) {
  StructCodec codec;
  SimCounters counters;
  const SimResult result = RunSimulation(WithoutFaults(5), &codec, &counters);
  ASSERT_FALSE(result.failure.has_value()) << *result.failure;
  EXPECT_EQ(counters.abstentions, 0u);
  EXPECT_EQ(counters.partial_commits, 0u);
  EXPECT_EQ(counters.attempts_reopened, 0u);
  EXPECT_EQ(counters.mismatches, 0u);
  EXPECT_EQ(counters.ended_by_server, 0u);
  EXPECT_EQ(counters.digest_mismatches, 0u);
}

// Goal: a run that is stopped and taken up again, again and again, commits what one that never
// stopped does: equal data, equal votes, equal stepsizes.
// Method: workers vote without delay faults, so that every round has all ballots.
void ExpectRestartsChangeNothing(SimOptions options) {
  StructCodec codec;
  SimCounters counters;
  options.run.deadline.enabled = false;
  options.run.share_hold_rounds = 1000;
  // Behind a restart, as after a loss of all, nobody is cold.
  options.run.warm_in_rounds = 0;
  // ALIAS lacks a worker's inner product with the verdict before the one that it fetched.
  options.run.rule.rule = "fixed";
  const SimResult once = RunSimulation(options, &codec, &counters);
  ASSERT_FALSE(once.failure.has_value()) << *once.failure;
  EXPECT_EQ(counters.epochs, 1u);
  options.enabled[static_cast<size_t>(Fault::kRestart)] = true;
  options.fault_interval_s = 0.05;  // between two draws, of which one in some thirty strikes
  options.resume_s = 5;             // everybody is back by then
  SimCounters restarted;
  const SimResult often = RunSimulation(options, &codec, &restarted);
  ASSERT_FALSE(often.failure.has_value()) << *often.failure;
  EXPECT_GT(restarted.epochs, 3u);
  EXPECT_EQ(once.rounds, often.rounds);
  EXPECT_EQ(once.digest, often.digest);
}

TEST(RunSimulationTest, ARestartFromItsBytesChangesNothingThatIsCommitted) {
  ExpectRestartsChangeNothing(WithoutFaults(11));
}

TEST(RunSimulationTest, ARestartChangesNoAverageNorTheStateOfDenseTensors) {
  using Kind = DenseOptimizer::Kind;
  for (uint64_t seed = 0;; ++seed) {
    ASSERT_LT(seed, kSeedsForEveryFault) << "none draws an average and dense tensors";
    SimOptions options = WithoutFaults(seed);
    if (options.run.model.sizes.aggregate != Aggregate::kAverage ||
        !run::AnyDense(options.run.model.tensor_rules) || options.run.local_steps.on())
      continue;
    for (const DenseOptimizer& optimizer :
         {DenseOptimizer{.kind = Kind::kSgd, .momentum = 0.5f}, DenseOptimizer{},
          DenseOptimizer{.kind = Kind::kNadamW},
          DenseOptimizer{.kind = Kind::kScheduleFree, .last_step = options.run.main_rounds_max},
          DenseOptimizer{.kind = Kind::kAliasAdam}}) {
      SCOPED_TRACE(DenseOptimizerName(optimizer.kind));
      options.run.model.sizes.dense.optimizer = optimizer;
      ExpectRestartsChangeNothing(options);
    }
    return;
  }
}

TEST(RunSimulationTest, ARaceOfStepsizesGoesOnThroughJoinsAndKills) {
  // Goal: trials neither wait for nor die with one worker. Method: workers crash, hang, break off and join
  // late every second or so, from the first round to the end of the race and beyond.
  StructCodec codec;
  SimCounters counters;
  for (uint64_t seed = 100; seed < 112; ++seed) {
    SimOptions options = WithoutFaults(seed);
    options.rule_used = seed % 2 == 0 ? RuleUsed::kRace : RuleUsed::kRaceLite;
    options.run.rule.lever_start = 1e-4;
    options.run.workers_min = 1;
    options.run.quorum = 1;
    for (const Fault fault : {Fault::kCrash, Fault::kHang, Fault::kDisconnect, Fault::kLateJoin,
                              Fault::kRestart, Fault::kLyingScalars, Fault::kNoScalars}) {
      options.enabled[static_cast<size_t>(fault)] = true;
    }
    options.fault_interval_s = 0.3;
    const SimResult result = RunSimulation(options, &codec, &counters);
    ASSERT_FALSE(result.failure.has_value()) << "seed " << seed << ": " << *result.failure;
  }
  EXPECT_EQ(counters.races, 12u);
  EXPECT_GT(counters.struck[static_cast<size_t>(Fault::kCrash)], 6u);
  EXPECT_GT(counters.epochs, 20u);
}

TEST(RunSimulationTest, TwoOfFourThatLieAlikeDoNotStopTheRun) {
  // They are not most of those who were asked, however late the honest answers come.
  StructCodec codec;
  SimCounters counters;
  SimOptions options = WithoutFaults(21);
  options.workers_first = options.run.workers_min = options.workers = 4;
  options.run.model.sizes.workers_max = 4;
  options.digest_liars = 2;
  const SimResult result = RunSimulation(options, &codec, &counters);
  ASSERT_FALSE(result.failure.has_value()) << *result.failure;
  EXPECT_GT(counters.digest_mismatches, 0u);
}

TEST(RunSimulationTest, ThreeOfFourThatLieAlikeStopIt) {
  StructCodec codec;
  SimCounters counters;
  SimOptions options = WithoutFaults(21);
  options.workers_first = options.run.workers_min = options.workers = 4;
  options.run.model.sizes.workers_max = 4;
  options.digest_liars = 3;
  const SimResult result = RunSimulation(options, &codec, &counters);
  ASSERT_TRUE(result.failure.has_value());
  EXPECT_THAT(*result.failure, testing::HasSubstr("DATA_LOSS: most workers agree"));
}

TEST(RunSimulationTest, ARunWhoseEveryLossIsNotFiniteEndsAsDiverged) {
  StructCodec codec;
  SimCounters counters;
  SimOptions options = WithoutFaults(3);
  options.nonfinite_from = Round(7);
  const SimResult result = RunSimulation(options, &codec, &counters);
  ASSERT_FALSE(result.failure.has_value()) << *result.failure;
  EXPECT_EQ(counters.diverged, 1u);
  EXPECT_EQ(counters.rounds_without_step, options.run.nonfinite_rounds);
  EXPECT_EQ(result.rounds, 7u + options.run.nonfinite_rounds);
}

}  // namespace
}  // namespace signvote::sim

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    char* end = nullptr;
    if (arg.starts_with("--seeds=")) {
      signvote::sim::seeds = std::strtoull(arg.c_str() + 8, &end, 10);
    } else if (arg.starts_with("--first=")) {
      signvote::sim::first_seed = std::strtoull(arg.c_str() + 8, &end, 10);
    } else if (arg.starts_with("--seed=")) {
      signvote::sim::only_seed = std::strtoull(arg.c_str() + 7, &end, 10);
    }
    if (end == nullptr || *end != '\0') {
      std::fprintf(stderr, "unknown argument '%s'; use --seeds=N, --first=S or --seed=S\n",
                   argv[i]);
      return 2;
    }
  }
  // What a run logs is for one who looks at one seed.
  signvote::InitLogging({.level = signvote::sim::only_seed.has_value()
                                      ? signvote::LogLevel::kInfo
                                      : signvote::LogLevel::kError});
  return RUN_ALL_TESTS();
}
