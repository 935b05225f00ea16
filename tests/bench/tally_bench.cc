// The tally against the read bandwidth of one core: n ballots of 16M coordinates in memory, one
// verdict out. The limit reads the same bytes in the same repetition, so a ballot that is still in
// cache helps both.

#include <string>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"
#include "server/tally/tally.h"
#include "tests/bench/bench.h"
#include "tests/bench/stream.h"

namespace signvote {
namespace {

int Main(int argc, char** argv) {
  const bench::Options options = bench::ParseOptions(
      argc, argv,
      "Tally of n in-memory ballots of 16M coordinates against one core's read bandwidth.");
  bench::Report report(options);
  const uint64_t coordinates = options.quick ? uint64_t{1} << 20 : uint64_t{1} << 24;
  const size_t bytes = BytesForBits(coordinates);
  bench::Buffer verdict(bytes);
  uint64_t sink = 0;
  for (const size_t n : {size_t{4}, size_t{8}, size_t{16}, size_t{32}, size_t{64}}) {
    const size_t stride = StaggeredStride(bytes);
    bench::Buffer memory(stride * n);
    Rng rng(1, n);
    for (size_t i = 0; i + 8 <= memory.bytes(); i += 8) StoreWord(memory.data() + i, rng.Next());
    std::vector<const uint8_t*> ballots;
    for (size_t j = 0; j < n; ++j) ballots.push_back(memory.data() + j * stride);
    const TallyInput input{.ballots = ballots, .coordinates = coordinates, .seed = 1};

    const auto read = [&] {
      for (const uint8_t* ballot : ballots) sink += bench::StreamRead(ballot, bytes);
    };
    const auto seconds = bench::RunPaired(options, {read, [&] { Tally(input, verdict.data()); }});
    const double input_bytes = static_cast<double>(n * bytes);
    const double gate = n == 16 && !options.quick ? 0.60 : 0;
    report.AddRatio("tally_n" + std::to_string(n), "GB/s", bench::Rates(input_bytes, seconds[0]),
                    bench::Rates(input_bytes, seconds[1]), gate);
    if (n == 16) {
      const auto others = bench::RunPaired(
          options, {[&] {
                      sink += bench::StreamRead(ballots[0], bytes);
                      sink += bench::StreamRead(ballots[1], bytes);
                    },
                    [&] { sink += CountAgreement(ballots[0], ballots[1], coordinates); }, read,
                    [&] { sink += CountTies(input); }});
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
