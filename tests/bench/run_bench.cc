// What a run's thread spends on a round: thread CPU time of all inputs of one round, as sessions and
// tally threads make them: every ballot in 48 chunks with its scalars, every tally, with verdicts and
// commits said to peers that keep nothing. No network; the vote itself is somebody else's thread.
//
// Beside it, in turn, an engine alone that takes the same events (engine_bench's way): what the run adds
// to them is books, fan-out and the search for streams, at 1,000 workers at most twice as much again.

#include <array>
#include <cstdint>
#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "server/replica/applier.h"
#include "server/round/engine.h"
#include "server/run/run.h"
#include "server/stepsize/alias.h"
#include "tests/bench/bench.h"

namespace signvote::run {
namespace {

constexpr uint32_t kChunks = 48;
constexpr uint64_t kCoordinates = uint64_t{kChunks} * 512 * 170;  // 4.2 M
constexpr std::array<uint32_t, 3> kWorkers = {4, 63, 1000};
// Events per second of the run, of those of the engine alone: at 1,000 workers an event costs at most
// three times as much.
constexpr double kRateMin = 1.0 / 3;
// Of one sample, so that rounds of few workers are not lost in the clock's grain.
constexpr uint64_t kEventsPerSample = 50'000;

double ThreadCpuSeconds() {
  timespec t{};
  SIGNVOTE_CHECK(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Takes everything at once; remembers what it must answer to.
class BenchPeer final : public Peer {
 public:
  explicit BenchPeer(PeerId id) : id_(id), identity_{.address = "ipv4:10.0.0.1:1"} {}
  PeerId id() const override { return id_; }
  const PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return identity_.address; }
  void Send(const v1::ServerMessage& message) override {
    if (message.has_welcome()) state = message.welcome().state();
    if (message.has_round_open()) {
      round = Round(message.round_open().round());
      attempt = Attempt(message.round_open().attempt());
      wanted = static_cast<size_t>(message.round_open().wanted_size());
    }
  }
  void SendVerdict(const VerdictHeader&, std::span<const uint8_t>,
                   std::shared_ptr<const void>) override {}
  void Admit(std::shared_ptr<BallotSlots> admitted) override { slots = std::move(admitted); }
  size_t queued_bytes() const override { return 0; }
  void NotifyWhenBelow(size_t) override {}
  void Close(absl::Status status) override { SIGNVOTE_CHECK(status.ok()); }
  void Cancel() override {}
  PeerBytes bytes() const override { return {}; }

  v1::Welcome::State state = v1::Welcome::STATE_UNSPECIFIED;
  Round round;
  Attempt attempt;
  size_t wanted = 0;
  std::shared_ptr<BallotSlots> slots;

 private:
  const PeerId id_;
  const PeerIdentity identity_;
};

class BenchCall final : public StateCall {
 public:
  void Start(std::shared_ptr<MasterReplica>) override {}
  void End(absl::Status) override {}
};

// Counts nothing: a verdict of zeros.
class NoTally final : public TallySink {
 public:
  void Submit(TallyJob job) override {
    done.push_back(
        {.round = job.round,
         .attempt = job.attempt,
         .chunk = job.chunk,
         .counted = static_cast<uint32_t>(job.places.size()),
         .checksum = 1,
         .payload = std::shared_ptr<const uint8_t>(
             job.share->verdict(), job.share->verdict().get() + job.plan.ByteOffset(job.chunk))});
  }
  void DropWaiting() override { done.clear(); }
  std::deque<ChunkTallied> done;
};

// An engine with the same workers, told the same; one thread drives it.
class EngineBench {
 public:
  explicit EngineBench(uint32_t workers) : workers_(workers) {
    auto made = round::Engine::Create({.coordinates = kCoordinates,
                                       .chunks = kChunks,
                                       .workers_min = workers,
                                       .workers_max = 1024},
                                      MakeAliasRule({}), round::EngineState{}, now_);
    SIGNVOTE_CHECK(made.ok());
    engine_ = *std::move(made);
    for (uint32_t w = 0; w < workers; ++w) {
      Take(engine_->Step(now_,
                         round::WorkerReady{WorkerId(w), Incarnation(1), absl::StrCat("w", w)}));
    }
  }

  // Seconds per round.
  double Sample(uint64_t rounds) {
    double seconds = 0;
    for (uint64_t r = 0; r < rounds; ++r) seconds += OneRound();
    return seconds / static_cast<double>(rounds);
  }

 private:
  double OneRound() {
    const Round round = open_.round;
    std::vector<round::EngineEvent> events;
    events.reserve(size_t{workers_} * (kChunks + 1));
    for (uint32_t k = 0; k < kChunks; ++k) {
      for (uint32_t w = 0; w < workers_; ++w) {
        events.push_back(
            round::BallotChunkIn{WorkerId(w), Incarnation(1), round, open_.attempt, ChunkIndex(k)});
      }
    }
    double loss = 2;
    for (uint32_t w = 0; w < workers_; ++w) {
      WorkerScalars scalars{.loss = loss += 1, .g_l1 = 3, .g_l2_squared = 1, .samples = 8};
      scalars.wanted.assign(open_.wanted.size(), 1e-3);
      events.push_back(
          round::ScalarsIn{WorkerId(w), Incarnation(1), round, open_.attempt, std::move(scalars)});
    }
    now_ = now_ + Duration(std::chrono::milliseconds(200));
    double seconds = 0;
    while (!events.empty()) {
      std::vector<round::Actions> answers;
      answers.reserve(events.size());
      const double before = ThreadCpuSeconds();
      for (const round::EngineEvent& event : events) {
        round::Actions actions = engine_->Step(now_, event);
        if (!actions.empty()) answers.push_back(std::move(actions));
      }
      seconds += ThreadCpuSeconds() - before;
      events.clear();
      for (const round::Actions& actions : answers) {
        for (round::EngineEvent& event : Take(actions)) events.push_back(std::move(event));
      }
    }
    SIGNVOTE_CHECK(open_.round == round.next());
    return seconds;
  }

  // What the run answers to the actions.
  std::vector<round::EngineEvent> Take(const round::Actions& actions) {
    std::vector<round::EngineEvent> events;
    for (const round::Action& action : actions) {
      if (const auto* open = std::get_if<round::OpenRound>(&action)) {
        open_ = *open;
      } else if (const auto* close = std::get_if<round::CloseChunk>(&action)) {
        events.push_back(round::ChunkTallied{close->round, close->attempt, close->chunk,
                                             static_cast<uint32_t>(close->voters.size()), 1});
      } else if (const auto* commit = std::get_if<round::CommitRound>(&action)) {
        events.push_back(round::CommitDurable{commit->round});
      }
    }
    return events;
  }

  const uint32_t workers_;
  Time now_;
  std::unique_ptr<round::Engine> engine_;
  round::OpenRound open_;
};

// A run with its workers; one thread drives it.
class Bench final : private RunHost {
 public:
  explicit Bench(uint32_t workers) : workers_(workers) {
    RunOptions options{.main_rounds_max = uint64_t{1} << 40, .workers_min = workers};
    options.digest_every = 0;
    options.model.sizes = {.chunk_coordinates = kCoordinates / kChunks, .workers_max = 1024};
    auto run = Run::Create(
        std::move(options),
        {.clock = &clock_, .host = this, .tally = &tally_, .memory = [] { return std::nullopt; }},
        {.run_id = RunId::FromRandom(1, 2)}, clock_.Now());
    SIGNVOTE_CHECK(run.ok());
    run_ = *std::move(run);
    v1::Join join;
    join.set_protocol_min(2);
    join.set_protocol_max(2);
    v1::TensorShape& tensor = *join.add_tensors();
    tensor.set_name("w");
    tensor.add_shape(kCoordinates);
    for (uint32_t w = 0; w < workers; ++w) {
      const PeerId id(w + 1);
      peers_.push_back(std::make_shared<BenchPeer>(id));
      Give(id, StreamOpened{peers_.back()});
      join.set_name(absl::StrCat("w", w));
      Give(id, JoinIn{std::make_shared<v1::Join>(join)});
      if (peers_.back()->state == v1::Welcome::STATE_UPLOAD) {
        const auto call = std::make_shared<BenchCall>();
        Give(id, CallAsked{CallKind::kUpload, call});
        Give(id, CallProgress{call, kCoordinates * sizeof(float), 0});
        Give(id, CallEnded{call});
      }
      Give(id, ReadyIn{Round(0)});
    }
  }

  uint64_t events_per_round() const { return uint64_t{workers_} * (kChunks + 1) + kChunks + 1; }

  uint64_t rounds_per_sample() const { return 1 + kEventsPerSample / events_per_round(); }

  // Seconds per round.
  double Sample() {
    const uint64_t rounds = rounds_per_sample();
    double seconds = 0;
    for (uint64_t r = 0; r < rounds; ++r) seconds += OneRound();
    return seconds / static_cast<double>(rounds);
  }

 private:
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override {
    applier_ = std::make_unique<Applier>(replica.get(), &clock_, backlog_max);
    return applier_.get();
  }
  void DropX0From(Round round) override { applier_->DropX0From(round); }
  template <typename What>
  void Give(PeerId peer, What what) {
    run_->Handle(clock_.Now(), StreamInput{.peer = peer, .what = std::move(what)});
  }
  double Timed(std::vector<Input> inputs) {
    const double before = ThreadCpuSeconds();
    for (Input& input : inputs) run_->Handle(clock_.Now(), std::move(input));
    return ThreadCpuSeconds() - before;
  }

  double OneRound() {
    const Round round = run_->committed();
    clock_.Advance(std::chrono::milliseconds(200));
    // As they come over as many streams: chunk by chunk, worker by worker.
    std::vector<Input> inputs;
    inputs.reserve(size_t{workers_} * (kChunks + 1));
    for (uint32_t k = 0; k < kChunks; ++k) {
      for (const auto& peer : peers_) {
        std::span<uint8_t> place;  // untouched: nobody counts it
        SIGNVOTE_CHECK(peer->slots->Begin(peer->round, peer->attempt, ChunkIndex(k), &place) ==
                       BallotSlots::Place::kWrite);
        SIGNVOTE_CHECK(peer->slots->End(peer->round, peer->attempt, ChunkIndex(k), true));
        inputs.emplace_back(StreamInput{
            .peer = peer->id(), .what = BallotIn{peer->round, peer->attempt, ChunkIndex(k)}});
      }
    }
    double loss = 2;
    for (const auto& peer : peers_) {
      ScalarsIn in{.round = peer->round, .attempt = peer->attempt};
      in.scalars = {.loss = loss += 1, .g_l1 = 3, .g_l2_squared = 1, .samples = 8};
      in.scalars.wanted.assign(peer->wanted, 1e-3);
      inputs.emplace_back(StreamInput{.peer = peer->id(), .what = std::move(in)});
    }
    double seconds = Timed(std::move(inputs));
    while (!tally_.done.empty()) {
      std::vector<Input> tallied;
      for (ChunkTallied& t : std::exchange(tally_.done, {})) tallied.push_back(std::move(t));
      seconds += Timed(std::move(tallied));
    }
    while (std::optional<Applied> applied = applier_->ApplyNext()) {
      run_->Handle(clock_.Now(), *std::move(applied));
    }
    SIGNVOTE_CHECK(run_->committed() == round.next());
    return seconds;
  }

  const uint32_t workers_;
  FakeClock clock_;
  NoTally tally_;
  std::unique_ptr<Applier> applier_;
  std::unique_ptr<Run> run_;
  std::vector<std::shared_ptr<BenchPeer>> peers_;
};

int Main(const bench::Options& options) {
  InitLogging({.level = LogLevel::kWarning});
  bench::Report report(options);
  for (const uint32_t workers : kWorkers) {
    Bench bench(workers);
    EngineBench engine(workers);
    const auto events = static_cast<double>(bench.events_per_round());
    bench.Sample();  // touches memory
    engine.Sample(bench.rounds_per_sample());
    std::vector<double> ours, alone, micros, nanos;
    for (int r = 0; r < options.repetitions; ++r) {
      // Every other repetition the other way round, so that none always follows the same neighbour.
      if (r % 2 == 1) ours.push_back(bench.Sample());
      alone.push_back(engine.Sample(bench.rounds_per_sample()));
      if (r % 2 == 0) ours.push_back(bench.Sample());
      micros.push_back(ours.back() * 1e6);
      nanos.push_back(ours.back() * 1e9 / events);
    }
    report.Add(absl::StrCat("run_n", workers, "_round"), "us", micros);
    report.Add(absl::StrCat("run_n", workers, "_event"), "ns", nanos);
    report.AddRatio(absl::StrCat("run_n", workers, "_against_engine"), "M/s",
                    bench::Rates(events * 1e3, alone), bench::Rates(events * 1e3, ours),
                    workers == kWorkers.back() ? kRateMin : 0);
  }
  return report.Finish();
}

}  // namespace
}  // namespace signvote::run

int main(int argc, char** argv) {
  return signvote::run::Main(signvote::bench::ParseOptions(
      argc, argv, "What a run's thread spends on a round, by number of workers."));
}
