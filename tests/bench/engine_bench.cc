// What the round engine's decisions cost: thread CPU time of all Engine::Step calls of one round, as
// the server makes them: every ballot in 48 chunks with its scalars, every tally, CommitDurable, and
// every digest of a replica, deadlines on. No network, no vote: the engine alone.
//
// The cost of an event at 1,000 workers beside that at 4 is the figure to watch: what grows with the
// members is something that is paid per member and event.

#include <algorithm>
#include <array>
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "server/round/engine.h"
#include "server/stepsize/alias.h"
#include "tests/bench/bench.h"

namespace signvote::round {
namespace {

constexpr uint32_t kChunks = 48;
constexpr std::array<uint32_t, 5> kWorkers = {4, 16, 63, 256, 1000};
// Events per second at 1,000 workers, of those at 4: an event costs at most 1.5 times as much.
constexpr double kRateMin = 1 / 1.5;
// Of one sample, so that rounds of few workers are not lost in the clock's grain.
constexpr uint64_t kEventsPerSample = 50'000;

double ThreadCpuSeconds() {
  timespec t{};
  SIGNVOTE_CHECK(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// An engine with its workers; one thread drives it.
class Bench {
 public:
  explicit Bench(uint32_t workers) : workers_(workers) {
    auto made = Engine::Create({.coordinates = 134'000'000,
                                .chunks = kChunks,
                                .workers_min = workers,
                                .workers_max = 1024,
                                .digest_every = 1},
                               MakeAliasRule({}), EngineState{}, now_);
    SIGNVOTE_CHECK(made.ok());
    engine_ = *std::move(made);
    for (uint32_t w = 0; w < workers; ++w) {
      Take(engine_->Step(now_, WorkerReady{WorkerId(w), Incarnation(1), absl::StrCat("w", w)}));
    }
  }

  uint64_t events_per_round() const { return uint64_t{workers_} * (kChunks + 2) + kChunks + 2; }

  // Seconds per round.
  double Sample() {
    const uint64_t rounds = 1 + kEventsPerSample / events_per_round();
    double seconds = 0;
    for (uint64_t r = 0; r < rounds; ++r) seconds += OneRound();
    return seconds / static_cast<double>(rounds);
  }

 private:
  double OneRound() {
    const Round round = open_.round;
    // As they come over as many streams: chunk by chunk, worker by worker.
    std::vector<EngineEvent> events;
    events.reserve(size_t{workers_} * (kChunks + 1));
    for (uint32_t k = 0; k < kChunks; ++k) {
      for (uint32_t w = 0; w < workers_; ++w) {
        events.push_back(
            BallotChunkIn{WorkerId(w), Incarnation(1), round, open_.attempt, ChunkIndex(k)});
      }
    }
    for (uint32_t w = 0; w < workers_; ++w) {
      WorkerScalars scalars{.loss = 2.0 + w, .g_l1 = 3, .g_l2_squared = 1, .samples = 8};
      scalars.wanted.assign(open_.wanted.size(), 1e-3);
      events.push_back(
          ScalarsIn{WorkerId(w), Incarnation(1), round, open_.attempt, std::move(scalars)});
    }
    now_ = now_ + Duration(std::chrono::milliseconds(200));
    double seconds = 0;
    while (!events.empty()) {
      std::vector<Actions> answers;
      answers.reserve(events.size());
      const double before = ThreadCpuSeconds();
      for (const EngineEvent& event : events) {
        Actions actions = engine_->Step(now_, event);
        if (!actions.empty()) answers.push_back(std::move(actions));
      }
      seconds += ThreadCpuSeconds() - before;
      events.clear();
      for (const Actions& actions : answers) {
        for (EngineEvent& event : Take(actions)) events.push_back(std::move(event));
      }
    }
    SIGNVOTE_CHECK(open_.round == round.next());
    return seconds;
  }

  // What the server answers to the actions.
  std::vector<EngineEvent> Take(const Actions& actions) {
    std::vector<EngineEvent> events;
    for (const Action& action : actions) {
      if (const auto* open = std::get_if<OpenRound>(&action)) {
        open_ = *open;
      } else if (const auto* close = std::get_if<CloseChunk>(&action)) {
        events.push_back(ChunkTallied{close->round, close->attempt, close->chunk,
                                      static_cast<uint32_t>(close->voters.size()), 1});
      } else if (const auto* commit = std::get_if<CommitRound>(&action)) {
        events.push_back(CommitDurable{commit->round});
        const Round next = commit->round.next();
        events.push_back(MasterDigestIn{next, 1});
        for (uint32_t w = 0; w < workers_; ++w) {
          events.push_back(WorkerDigestIn{WorkerId(w), Incarnation(1), next, 1});
        }
      }
    }
    return events;
  }

  const uint32_t workers_;
  Time now_;
  std::unique_ptr<Engine> engine_;
  OpenRound open_;
};

int Main(const bench::Options& options) {
  std::vector<Bench> benches;
  for (const uint32_t workers : kWorkers) benches.emplace_back(workers);
  std::vector<std::vector<double>> seconds(benches.size());
  for (Bench& bench : benches) bench.Sample();  // touches memory
  for (int r = 0; r < options.repetitions; ++r) {
    for (size_t i = 0; i < benches.size(); ++i) seconds[i].push_back(benches[i].Sample());
  }
  bench::Report report(options);
  std::vector<std::vector<double>> rates;
  for (size_t i = 0; i < benches.size(); ++i) {
    const auto events = static_cast<double>(benches[i].events_per_round());
    std::vector<double> micros, nanos;
    for (const double s : seconds[i]) {
      micros.push_back(s * 1e6);
      nanos.push_back(s * 1e9 / events);
    }
    report.Add(absl::StrCat("engine_n", kWorkers[i], "_round"), "us", micros);
    report.Add(absl::StrCat("engine_n", kWorkers[i], "_event"), "ns", nanos);
    rates.push_back(bench::Rates(events * 1e3, seconds[i]));
  }
  report.AddRatio(absl::StrCat("engine_n", kWorkers.back(), "_against_n", kWorkers.front()), "M/s",
                  rates.front(), rates.back(), kRateMin);
  return report.Finish();
}

}  // namespace
}  // namespace signvote::round

int main(int argc, char** argv) {
  return signvote::round::Main(signvote::bench::ParseOptions(
      argc, argv, "What the round engine's decisions cost, by number of workers."));
}
