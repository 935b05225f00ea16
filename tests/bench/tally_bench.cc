// The tally against the read bandwidth of one core: n ballots of 16M coordinates in memory, one
// verdict out. Ballots come from a network, so they are read from memory: limit and tally walk
// through sets of ballots that together are far larger than any cache, each through another set
// than the other. The _cached figures take one set again and again.

#include <string>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"
#include "server/tally/tally.h"
#include "tests/bench/bench.h"
#include "tests/bench/stream.h"

namespace signvote {
namespace {

constexpr size_t kMemoryBytes = size_t{512} << 20;  // 16 times this kind of machine's largest cache
constexpr size_t kQuickMemoryBytes = size_t{32} << 20;

int Main(int argc, char** argv) {
  const bench::Options options = bench::ParseOptions(
      argc, argv,
      "Tally of n in-memory ballots of 16M coordinates against one core's read bandwidth.");
  bench::Report report(options);
  const uint64_t coordinates = options.quick ? uint64_t{1} << 20 : uint64_t{1} << 24;
  const size_t bytes = BytesForBits(coordinates);
  const size_t stride = StaggeredStride(bytes);
  const size_t rows = (options.quick ? kQuickMemoryBytes : kMemoryBytes) / stride;
  bench::Buffer memory(stride * rows);
  Rng rng(1, 0);
  for (size_t i = 0; i + 8 <= memory.bytes(); i += 8) StoreWord(memory.data() + i, rng.Next());
  bench::Buffer verdict(bytes);
  uint64_t sink = 0;
  for (const size_t n : {size_t{4}, size_t{8}, size_t{16}, size_t{32}, size_t{64}}) {
    const size_t sets = rows / n;
    const auto set = [&](size_t k) {
      std::vector<const uint8_t*> ballots;
      for (size_t j = 0; j < n; ++j) ballots.push_back(memory.data() + (k % sets * n + j) * stride);
      return ballots;
    };
    const auto read_set = [&](size_t k) {
      for (const uint8_t* ballot : set(k)) sink += bench::StreamRead(ballot, bytes);
    };
    const auto tally_set = [&](size_t k) {
      const std::vector<const uint8_t*> ballots = set(k);
      Tally({.ballots = ballots, .coordinates = coordinates, .seed = 1}, verdict.data());
    };
    const double input_bytes = static_cast<double>(n * bytes);
    const std::string name = "tally_n" + std::to_string(n);
    size_t reads = 0, tallies = sets / 2;
    const auto seconds =
        bench::RunPaired(options, {[&] { read_set(reads++); }, [&] { tally_set(tallies++); }});
    report.AddRatio(name, "GB/s", bench::Rates(input_bytes, seconds[0]),
                    bench::Rates(input_bytes, seconds[1]), n == 16 && !options.quick ? 0.60 : 0);
    if (n > 16) continue;  // larger than the cache as well
    const auto cached = bench::RunPaired(options, {[&] { read_set(0); }, [&] { tally_set(0); }});
    report.AddRatio(name + "_cached", "GB/s", bench::Rates(input_bytes, cached[0]),
                    bench::Rates(input_bytes, cached[1]), 0);
    if (n == 16) {
      const std::vector<const uint8_t*> ballots = set(0);
      const TallyInput input{.ballots = ballots, .coordinates = coordinates, .seed = 1};
      const auto others = bench::RunPaired(
          options, {[&] {
                      sink += bench::StreamRead(ballots[0], bytes);
                      sink += bench::StreamRead(ballots[1], bytes);
                    },
                    [&] { sink += CountAgreement(ballots[0], ballots[1], coordinates); },
                    [&] { read_set(0); }, [&] { sink += CountTies(input); }});
      report.AddRatio("agreement", "GB/s",
                      bench::Rates(2.0 * static_cast<double>(bytes), others[0]),
                      bench::Rates(2.0 * static_cast<double>(bytes), others[1]), 0);
      report.AddRatio("ties_n16", "GB/s", bench::Rates(input_bytes, others[2]),
                      bench::Rates(input_bytes, others[3]), 0);
    }
  }
  // A result that somebody looks at keeps the reads from being optimised away.
  if (sink == 42) std::fprintf(stderr, "%llu\n", static_cast<unsigned long long>(sink));
  return report.Finish();
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
