// What a seed of the simulation costs: thread CPU time of whole runs as DrawOptions() draws them, with
// three or four workers, 4 chunks, 64 rounds and more, d = 2,048. CI plays thousands of them.

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <vector>

#include "common/check.h"
#include "common/log.h"
#include "tests/bench/bench.h"
#include "tests/sim/simulation.h"

namespace signvote::sim {
namespace {

constexpr double kMedianMillisMax = 12;
constexpr uint32_t kWorkersMax = 4;

double ThreadCpuSeconds() {
  timespec t{};
  SIGNVOTE_CHECK(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

int Main(const bench::Options& options) {
  const uint64_t seeds = options.quick ? 4 : 200;
  StructCodec codec;
  SimCounters counters;
  std::vector<double> medians, rates, limits;
  for (int r = 0; r < options.repetitions; ++r) {
    std::vector<double> millis;
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      const SimOptions drawn = DrawOptions(seed);
      if (drawn.workers > kWorkersMax) continue;
      const double before = ThreadCpuSeconds();
      const SimResult result = RunSimulation(drawn, &codec, &counters);
      millis.push_back((ThreadCpuSeconds() - before) * 1e3);
      SIGNVOTE_CHECK(!result.failure.has_value());
    }
    medians.push_back(bench::Summarise(millis).median);
    rates.push_back(1e3 / medians.back());
    limits.push_back(1e3 / kMedianMillisMax);
  }
  bench::Report report(options);
  report.Add("sim_seed", "ms", medians);
  report.AddRatio("sim_seeds", "1/s", limits, rates, 1);
  return report.Finish();
}

}  // namespace
}  // namespace signvote::sim

int main(int argc, char** argv) {
  const signvote::bench::Options options = signvote::bench::ParseOptions(
      argc, argv, "What a seed of the simulation costs.", /*repetitions=*/5);
  signvote::InitLogging({.level = signvote::LogLevel::kError});
  return signvote::sim::Main(options);
}
