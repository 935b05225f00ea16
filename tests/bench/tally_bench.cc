// The tally against the read bandwidth of one core: n ballots of 16M coordinates in memory, one
// verdict out. Ballots come from a network, so they are read from memory: limit and tally walk
// through sets of ballots that together are far larger than any cache, each through another set
// than the other. The _cached figures take one set again and again.
//
// Then what surrounds the count, on 134M coordinates cut as the server cuts them: statistics_nN is
// the time of a whole model's sample beside the time of its tally, sink_nN_tT the time from the
// first chunk's submission to the last one's result with T tally threads beside that of the
// caller's thread. Ballots are read from memory here too.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/mutex.h"
#include "common/rng.h"
#include "server/tally/tally.h"
#include "server/vote/tally_sink.h"
#include "server/vote/vote_statistics.h"
#include "tests/bench/bench.h"
#include "tests/bench/stream.h"

namespace signvote {
namespace {

constexpr size_t kMemoryBytes = size_t{512} << 20;  // 16 times this kind of machine's largest cache
constexpr size_t kQuickMemoryBytes = size_t{32} << 20;

// Ballots of a large model, as an attempt's tallies share them.
class Votes {
 public:
  Votes(const bench::Options& options, size_t n)
      : plan_(Cut(options)), stride_(StaggeredStride(plan_.TotalBytes())), memory_(stride_ * n) {
    Rng rng(2, 0);
    for (size_t i = 0; i + 8 <= memory_.bytes(); i += 8) StoreWord(memory_.data() + i, rng.Next());
    std::vector<std::shared_ptr<const uint8_t>> ballots;
    for (size_t j = 0; j < n; ++j) {
      places_.push_back(static_cast<uint32_t>(j));
      ballots.emplace_back(std::shared_ptr<void>(), memory_.data() + j * stride_);
    }
    std::shared_ptr<uint8_t> verdict(new uint8_t[plan_.TotalBytes()](),
                                     std::default_delete<uint8_t[]>());
    share_ = std::make_shared<TallyShare>(std::move(ballots), std::move(verdict));
  }

  const ChunkPlan& plan() const { return plan_; }
  // Submits every chunk of round `round`.
  void SubmitAll(TallySink* sink, uint64_t round) const {
    for (uint32_t k = 0; k < plan_.chunks(); ++k) {
      sink->Submit({.round = Round(round),
                    .chunk = ChunkIndex(k),
                    .share = share_,
                    .places = places_,
                    .plan = plan_,
                    .ballot_offset = plan_.ByteOffset(ChunkIndex(k)),
                    .payload_offset = plan_.ByteOffset(ChunkIndex(k)),
                    .seed = 1});
    }
  }
  // The sample of a round, or its tally, on this thread.
  void Look(uint64_t round) const {
    VoteStatistics statistics;
    statistics.ballots.resize(places_.size());
    ForEachChunk(round, [&](const TallyInput& input, ChunkIndex k, uint8_t* verdict) {
      AddStatistics(input, places_, verdict, SampleOf(plan_, Round(round), k), &statistics);
    });
  }
  void Count(uint64_t round) const {
    ForEachChunk(round, [](const TallyInput& input, ChunkIndex, uint8_t* verdict) {
      Tally(input, verdict);
    });
  }

 private:
  static ChunkPlan Cut(const bench::Options& options) {
    const uint64_t d = options.quick ? 1'340'000 : 134'000'000;
    return {d, ChunkPlan::DefaultChunkCoordinates(d)};
  }
  template <typename F>
  void ForEachChunk(uint64_t round, F f) const {
    for (uint32_t i = 0; i < plan_.chunks(); ++i) {
      const ChunkIndex k(i);
      std::vector<const uint8_t*> ballots;
      for (const uint32_t place : places_)
        ballots.push_back(share_->ballot(place).get() + plan_.ByteOffset(k));
      f({.ballots = ballots,
         .coordinates = plan_.Count(k),
         .first_coordinate = plan_.First(k),
         .seed = 1,
         .round = Round(round)},
        k, share_->verdict().get() + plan_.ByteOffset(k));
    }
  }

  const ChunkPlan plan_;
  const size_t stride_;
  bench::Buffer memory_;
  std::vector<uint32_t> places_;
  std::shared_ptr<TallyShare> share_;
};

// How many results have come.
class Arrivals {
 public:
  void Add() {
    MutexLock lock(&mu_);
    ++count_;
    came_.NotifyAll();
  }
  void WaitFor(uint64_t count) {
    MutexLock lock(&mu_);
    while (count_ < count) (void)came_.WaitFor(&mu_, std::chrono::seconds(1));
  }

 private:
  Mutex mu_;
  CondVar came_;
  uint64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

std::vector<double> Milliseconds(std::vector<double> seconds) {
  for (double& s : seconds) s *= 1e3;
  return seconds;
}

void SinkFigures(const bench::Options& options, bench::Report* report) {
  for (const size_t n : {size_t{4}, size_t{32}}) {
    const Votes votes(options, n);
    const std::string suffix = "_n" + std::to_string(n);
    uint64_t round = 0;
    auto seconds =
        bench::RunPaired(options, {[&] { votes.Count(round); }, [&] { votes.Look(round++); }});
    report->Add("tally" + suffix + "_134M", "ms", Milliseconds(seconds[0]));
    report->Add("statistics" + suffix + "_134M", "ms", Milliseconds(seconds[1]));
    std::vector<double> shares;
    for (size_t r = 0; r < seconds[0].size(); ++r) shares.push_back(seconds[1][r] / seconds[0][r]);
    report->Add("statistics" + suffix + "_share", "", shares);

    InlineTallySink here(Clock::System(), [](const ChunkTallied&) {});
    for (const size_t threads : {size_t{1}, size_t{2}, size_t{3}, size_t{4}}) {
      Arrivals arrivals;
      TallyThreads sink(threads, Clock::System(), [&](const ChunkTallied&) { arrivals.Add(); });
      uint64_t expected = 0;
      seconds = bench::RunPaired(options, {[&] { votes.SubmitAll(&here, round); },
                                           [&] {
                                             expected += votes.plan().chunks();
                                             votes.SubmitAll(&sink, round++);
                                             arrivals.WaitFor(expected);
                                           }});
      sink.Stop();
      if (threads == 1) report->Add("sink" + suffix + "_caller", "ms", Milliseconds(seconds[0]));
      report->Add("sink" + suffix + "_t" + std::to_string(threads), "ms", Milliseconds(seconds[1]));
    }
  }
}

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
    // The planes that an average goes down with, in place of a verdict.
    bench::Buffer planes(CountPlanes(static_cast<uint32_t>(n)) * bytes);
    const auto counted = bench::RunPaired(
        options, {[&] { read_set(reads++); },
                  [&] {
                    const std::vector<const uint8_t*> ballots = set(tallies++);
                    TallyCounts({.ballots = ballots, .coordinates = coordinates}, planes.data());
                  }});
    report.AddRatio("counts_n" + std::to_string(n), "GB/s", bench::Rates(input_bytes, counted[0]),
                    bench::Rates(input_bytes, counted[1]), 0);
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
  SinkFigures(options, &report);
  // A result that somebody looks at keeps the reads from being optimised away.
  if (sink == 42) std::fprintf(stderr, "%llu\n", static_cast<unsigned long long>(sink));
  return report.Finish();
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
