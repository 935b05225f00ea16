// Goal: what passes between Run and Follower as structs is what would pass as bytes.
// Method: one seed in fifty of the simulation once more, with every message written and read by the
// product's encoders; the run must be the same, event by event.
#include <gtest/gtest.h>

#include "common/log.h"
#include "tests/sim/simulation.h"
#include "tests/sim/wire_codec.h"

namespace signvote::sim {
namespace {

constexpr uint64_t kSeeds = 3000, kStep = 50;

TEST(RunSimulationWireTest, OneSeedInFiftyIsTheSameRunInBytes) {
  StructCodec structs;
  WireCodec bytes;
  for (uint64_t seed = 0; seed < kSeeds; seed += kStep) {
    SimCounters counters, again;
    const SimOptions options = DrawOptions(seed);
    const SimResult as_structs = RunSimulation(options, &structs, &counters);
    const SimResult as_bytes = RunSimulation(options, &bytes, &again);
    ASSERT_EQ(as_bytes.failure.value_or(""), "") << "seed " << seed;
    ASSERT_EQ(as_bytes.fingerprint, as_structs.fingerprint) << "seed " << seed;
  }
  EXPECT_GT(bytes.passed(), kSeeds);
}

}  // namespace
}  // namespace signvote::sim

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  signvote::InitLogging({.level = signvote::LogLevel::kError});
  return RUN_ALL_TESTS();
}
