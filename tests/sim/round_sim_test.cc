// Goal: the round engine keeps its promises whatever workers and network do.
// Method: thousands of seeded runs of the real engine, rules, tally, packing and apply with
// simulated workers; each seed draws its own faults. Safety is checked at every step, liveness
// after healing (simulation.h, checker.h).
//
//   --seeds=N   how many seeds, from 0 on (default 1000)
//   --seed=S    only this one, with the engine's notices on stdout
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "tests/sim/simulation.h"

namespace signvote::sim {
namespace {

uint64_t seeds = 1000;
std::optional<uint64_t> only_seed;

TEST(RoundSimulationTest, EverySeedStaysSafeAndFinishes) {
  const Model model;
  SimCounters counters;
  const uint64_t first = only_seed.value_or(0);
  const uint64_t last = only_seed.has_value() ? first + 1 : seeds;
  for (uint64_t seed = first; seed < last; ++seed) {
    SimOptions options = DrawOptions(seed);
    options.trace = only_seed.has_value();
    const SimResult result = RunSimulation(options, model, &counters);
    ASSERT_FALSE(result.failure.has_value())
        << *result.failure << "\n  again with --seed=" << seed << "\n  " << options.Describe();
    ASSERT_GE(result.rounds, kRoundsMin);
  }
  std::printf("%s\n", counters.Describe().c_str());
  if (counters.runs < 100) return;  // too few to meet every fault
  for (size_t i = 0; i < kFaultCount; ++i) {
    EXPECT_GT(counters.struck[i], 0u)
        << "the injector never struck: " << FaultName(static_cast<Fault>(i));
  }
  EXPECT_GT(counters.attempts_reopened, 0u);
  EXPECT_GT(counters.abstentions, 0u);
  EXPECT_GT(counters.late_chunks, 0u);
  EXPECT_GT(counters.duplicate_chunks, 0u);
  EXPECT_GT(counters.stale_messages, 0u);
  EXPECT_GT(counters.observers, 0u);
  EXPECT_GT(counters.members_again, 0u);
  EXPECT_GT(counters.resyncs, 0u);
  EXPECT_GT(counters.scalars_refused, 0u);
  EXPECT_GT(counters.snapshots, counters.runs);
  EXPECT_GT(counters.catch_ups, 0u);
  EXPECT_GT(counters.fetches, 0u);
  EXPECT_GT(counters.partial_commits, 0u);
}

TEST(RoundSimulationTest, TheSameSeedGivesTheSameRun) {
  const Model model;
  for (const uint64_t seed : {1u, 2u, 3u}) {
    SimCounters first, second;
    const SimResult a = RunSimulation(DrawOptions(seed), model, &first);
    const SimResult b = RunSimulation(DrawOptions(seed), model, &second);
    EXPECT_EQ(a.fingerprint, b.fingerprint);
    EXPECT_EQ(first.Describe(), second.Describe());
  }
}

TEST(RoundSimulationTest, WithoutFaultsEveryBallotIsCounted) {
  const Model model;
  SimCounters counters;
  SimOptions options = DrawOptions(5);
  options.enabled.fill(false);
  options.engine.workers_min = kWorkersFirst;
  options.engine.deadline.enabled = true;
  const SimResult result = RunSimulation(options, model, &counters);
  EXPECT_FALSE(result.failure.has_value()) << *result.failure;
  EXPECT_EQ(counters.abstentions, 0u);
  EXPECT_EQ(counters.partial_commits, 0u);
  EXPECT_EQ(counters.attempts_reopened, 0u);
  EXPECT_EQ(counters.fetches, 0u);
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
    } else if (arg.starts_with("--seed=")) {
      signvote::sim::only_seed = std::strtoull(arg.c_str() + 7, &end, 10);
    }
    if (end == nullptr || *end != '\0') {
      std::fprintf(stderr, "unknown argument '%s'; use --seeds=N or --seed=S\n", argv[i]);
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
