// What a run's decisions cost: thread CPU time of all Run::Handle calls of one round with fake peers:
// every ballot in 48 chunks with its scalars, every tally and every Applied, deadlines on, verdicts
// and commits handed to every peer. No network, no count, no replica: what the run's thread does.
//
// engine_bench beside it is the engine alone.

#include <array>
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "server/run/run.h"
#include "tests/bench/bench.h"

namespace signvote::run {
namespace {

constexpr uint32_t kChunks = 48;
constexpr uint64_t kChunkCoordinates = 512;
constexpr std::array<uint32_t, 3> kWorkers = {4, 63, 1000};
// Of one sample, so that rounds of few workers are not lost in the clock's grain.
constexpr uint64_t kInputsPerSample = 20'000;

double ThreadCpuSeconds() {
  timespec t{};
  SIGNVOTE_CHECK(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Takes what it is told and counts it.
class FakePeer final : public Peer {
 public:
  explicit FakePeer(uint64_t id) : id_(id) {
    identity_.address = absl::StrCat("127.0.0.1:", id);
    ticket_ = absl::StrCat(id);
    ticket_.resize(16, '-');
  }
  PeerId id() const override { return PeerId(id_); }
  const PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }
  void Send(const v1::ServerMessage& message) override {
    if (message.has_round_open()) opened_ = message.round_open();
    ++sent_;
  }
  void SendVerdict(const VerdictHeader&, std::span<const uint8_t> payload,
                   std::shared_ptr<const void>) override {
    sent_ += payload.size();
  }
  void Admit(std::shared_ptr<BallotSlots> slots) override { slots_ = std::move(slots); }
  size_t queued_bytes() const override { return 0; }
  void NotifyWhenBelow(size_t) override {}
  void Close(absl::Status status) override { SIGNVOTE_CHECK(status.ok()); }
  void Cancel() override {}
  PeerBytes bytes() const override { return {.received = sent_, .sent = sent_}; }

  const v1::RoundOpen& opened() const { return opened_; }
  BallotSlots& slots() { return *slots_; }

 private:
  const uint64_t id_;
  PeerIdentity identity_;
  std::string ticket_;
  std::shared_ptr<BallotSlots> slots_;
  v1::RoundOpen opened_;
  uint64_t sent_ = 0;
};

class FakeCall final : public StateCall {
 public:
  void Start(std::shared_ptr<MasterReplica>) override {}
  void End(absl::Status) override {}
};

// A run with its peers, and those who work for it: they answer at once, behind the input at hand.
class Bench final : public RunHost, public CommitConsumer, public TallySink {
 public:
  explicit Bench(uint32_t workers) {
    RunOptions options;
    options.workers_min = workers;
    options.rule.rule = "fixed";
    options.digest_every = 0;
    options.model.sizes.chunk_coordinates = kChunkCoordinates;
    options.model.sizes.workers_max = workers;
    RunParts parts;
    parts.clock = &clock_;
    parts.host = this;
    parts.tally = this;
    parts.memory = [] { return std::optional<MemoryLimit>(); };
    RunState state;
    state.run_id = RunId::FromRandom(1, 2);
    auto made = Run::Create(std::move(options), std::move(parts), std::move(state), clock_.Now());
    SIGNVOTE_CHECK(made.ok());
    run_ = *std::move(made);
    for (uint32_t w = 0; w < workers; ++w) Join(w);
    Answer();
    SIGNVOTE_CHECK(run_->committed() == Round(0));
    for (const auto& peer : peers_) SIGNVOTE_CHECK(peer->opened().members() == workers);
  }

  uint64_t inputs_per_round() const {
    return uint64_t{peers_.size()} * (kChunks + 1) + kChunks + 1;
  }

  // Seconds per round.
  double Sample() {
    const uint64_t rounds = 1 + kInputsPerSample / inputs_per_round();
    double seconds = 0;
    for (uint64_t r = 0; r < rounds; ++r) seconds += OneRound();
    return seconds / static_cast<double>(rounds);
  }

  // ---- RunHost, CommitConsumer, TallySink
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>&, size_t) override {
    return this;
  }
  bool TryPush(const std::shared_ptr<const CommitRecord>& record) override {
    answers_.emplace_back(Applied{.next_round = record->round.next()});
    return true;
  }
  void Submit(TallyJob job) override {
    const std::shared_ptr<uint8_t>& verdict = job.share->verdict();
    answers_.emplace_back(
        ChunkTallied{.round = job.round,
                     .attempt = job.attempt,
                     .chunk = job.chunk,
                     .counted = static_cast<uint32_t>(job.places.size()),
                     .checksum = job.chunk.value(),
                     .payload = {verdict, verdict.get() + job.plan.ByteOffset(job.chunk)}});
  }
  void DropWaiting() override {}

 private:
  void Stream(uint64_t peer, decltype(StreamInput::what) what) {
    run_->Handle(clock_.Now(), StreamInput{PeerId(peer), std::move(what)});
  }

  void Join(uint32_t w) {
    const uint64_t id = w + 1;
    peers_.push_back(std::make_shared<FakePeer>(id));
    Stream(id, StreamOpened{peers_.back()});
    auto join = std::make_shared<v1::Join>();
    join->set_protocol_min(kProtocolVersion);
    join->set_protocol_max(kProtocolVersion);
    join->set_name(absl::StrCat("w", w));
    v1::TensorShape* const tensor = join->add_tensors();
    tensor->set_name("a");
    tensor->add_shape(kChunks * kChunkCoordinates);
    Stream(id, JoinIn{std::move(join)});
    const auto call = std::make_shared<FakeCall>();
    const bool first = w == 0;
    Stream(id, CallAsked{first ? CallKind::kUpload : CallKind::kFetch, call});
    if (first) Stream(id, CallProgress{call, kChunks * kChunkCoordinates * sizeof(float)});
    Stream(id, CallEnded{call});
    Stream(id, ReadyIn{Round(0)});
  }

  void Answer() {
    while (!answers_.empty()) {
      for (Input& answer : std::exchange(answers_, {})) {
        run_->Handle(clock_.Now(), std::move(answer));
      }
    }
  }

  double OneRound() {
    const Round round(peers_.front()->opened().round());
    const Attempt attempt(peers_.front()->opened().attempt());
    // What receiving threads do: the bits are there.
    for (const auto& peer : peers_) {
      for (uint32_t k = 0; k < kChunks; ++k) {
        std::span<uint8_t> place;
        SIGNVOTE_CHECK(peer->slots().Begin(round, attempt, ChunkIndex(k), &place) ==
                       BallotSlots::Place::kWrite);
        SIGNVOTE_CHECK(peer->slots().End(round, attempt, ChunkIndex(k), true));
      }
    }
    // As they come over as many streams: chunk by chunk, worker by worker.
    std::vector<StreamInput> inputs;
    inputs.reserve(peers_.size() * (kChunks + 1));
    for (uint32_t k = 0; k < kChunks; ++k) {
      for (const auto& peer : peers_) {
        inputs.push_back({peer->id(), BallotIn{round, attempt, ChunkIndex(k)}, Receipt()});
      }
    }
    for (const auto& peer : peers_) {
      WorkerScalars scalars{.loss = 2, .g_l1 = 3, .g_l2_squared = 1, .samples = 8};
      scalars.wanted.assign(static_cast<size_t>(peer->opened().wanted_size()), 1e-3);
      inputs.push_back(
          {peer->id(), ScalarsIn{round, attempt, std::move(scalars), VoterTimes{}}, Receipt()});
    }
    clock_.Advance(std::chrono::milliseconds(200));
    const double before = ThreadCpuSeconds();
    for (StreamInput& input : inputs) {
      run_->Handle(clock_.Now(), std::move(input));
      if (!answers_.empty()) Answer();
    }
    const double seconds = ThreadCpuSeconds() - before;
    SIGNVOTE_CHECK(run_->committed() == round.next());
    return seconds;
  }

  FakeClock clock_;
  std::vector<std::shared_ptr<FakePeer>> peers_;
  std::vector<Input> answers_;
  std::unique_ptr<Run> run_;
};

int Main(const bench::Options& options) {
  std::vector<std::unique_ptr<Bench>> benches;
  for (const uint32_t workers : kWorkers) benches.push_back(std::make_unique<Bench>(workers));
  std::vector<std::vector<double>> seconds(benches.size());
  for (const auto& bench : benches) bench->Sample();  // touches memory
  for (int r = 0; r < options.repetitions; ++r) {
    for (size_t i = 0; i < benches.size(); ++i) seconds[i].push_back(benches[i]->Sample());
  }
  bench::Report report(options);
  for (size_t i = 0; i < benches.size(); ++i) {
    const auto inputs = static_cast<double>(benches[i]->inputs_per_round());
    std::vector<double> micros, nanos;
    for (const double s : seconds[i]) {
      micros.push_back(s * 1e6);
      nanos.push_back(s * 1e9 / inputs);
    }
    report.Add(absl::StrCat("run_n", kWorkers[i], "_round"), "us", micros);
    report.Add(absl::StrCat("run_n", kWorkers[i], "_input"), "ns", nanos);
  }
  return report.Finish();
}

}  // namespace
}  // namespace signvote::run

int main(int argc, char** argv) {
  const signvote::bench::Options options = signvote::bench::ParseOptions(
      argc, argv, "What a run's decisions cost with fake peers, by number of workers.");
  signvote::InitLogging({.level = signvote::LogLevel::kError});
  return signvote::run::Main(options);
}
