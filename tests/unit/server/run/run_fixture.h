#pragma once
// A run under a clock that the test moves, with peers that record what they are told: no thread, no
// socket, no file.

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/layout.h"
#include "common/rng.h"
#include "common/status.h"
#include "server/replica/applier.h"
#include "server/run/run.h"
#include "server/stepsize/fixed.h"
#include "server/vote/tally_sink.h"

namespace signvote::run {

inline constexpr uint64_t kCoordinates = 300'001;  // two pieces, chunks of which the last is odd
inline constexpr uint64_t kChunk = 512 * 200;

inline std::vector<uint8_t> RandomBits(uint64_t d, uint64_t seed) {
  std::vector<uint8_t> bits(BytesForBits(d));
  Rng rng(seed, 0);
  for (uint64_t i = 0; i < d; ++i) SetBit(bits.data(), i, rng.Next() & 1);
  return bits;
}

// What a stream was told.
class FakePeer final : public Peer {
 public:
  FakePeer(PeerId id, PeerIdentity identity)
      : id_(id), identity_(std::move(identity)), ticket_("ticket-" + std::to_string(id.value())) {}

  PeerId id() const override { return id_; }
  const PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }
  void Send(const v1::ServerMessage& message) override {
    if (closed.has_value()) return;
    messages.push_back(message);
    queued += message.ByteSizeLong();
  }
  void SendVerdict(const VerdictHeader& header, std::span<const uint8_t> payload,
                   std::shared_ptr<const void>) override {
    if (closed.has_value()) return;
    v1::ServerMessage message;
    v1::VerdictChunk& out = *message.mutable_verdict_chunk();
    out.set_round(header.round.value());
    out.set_attempt(header.attempt.value());
    out.set_chunk(header.chunk.value());
    out.set_checksum(header.checksum);
    out.set_payload(payload.data(), payload.size());
    messages.push_back(std::move(message));
    queued += payload.size();
  }
  void Admit(std::shared_ptr<BallotSlots> admitted) override { slots = std::move(admitted); }
  size_t queued_bytes() const override { return queued; }
  void NotifyWhenBelow(size_t bytes) override { notify_below = bytes; }
  void Close(absl::Status status) override {
    if (!closed.has_value()) closed = std::move(status);
  }
  void Cancel() override { cancelled = true; }
  PeerBytes bytes() const override { return moved; }

  std::deque<v1::ServerMessage> messages;  // not read yet
  size_t queued = 0;                       // bytes of what the network has not taken
  bool network_takes = true;               // at once; else `queued` grows
  std::optional<size_t> notify_below;
  std::shared_ptr<BallotSlots> slots;
  std::optional<absl::Status> closed;
  bool gone_told = false;
  bool cancelled = false;
  PeerBytes moved;

 private:
  const PeerId id_;
  const PeerIdentity identity_;
  const std::string ticket_;
};

class FakeCall final : public StateCall {
 public:
  void Start(std::shared_ptr<MasterReplica> given) override { replica = std::move(given); }
  void End(absl::Status status) override {
    if (!ended.has_value()) ended = std::move(status);
  }
  std::shared_ptr<MasterReplica> replica;  // null: not started
  std::optional<absl::Status> ended;
};

class RunTest;

// A worker that does what the protocol wants of it, when the test says so.
class TestWorker {
 public:
  TestWorker(RunTest* test, std::shared_ptr<FakePeer> its_peer, Layout layout)
      : peer(std::move(its_peer)),
        x(layout.coordinates(), 0.0f),
        test_(test),
        layout_(std::move(layout)) {}

  v1::Join MakeJoin(const std::string& name) const;
  void Join(const std::string& name) { Join(MakeJoin(name)); }
  void Join(const v1::Join& join);
  void Ready(Round at);
  // Everything that is there: pongs are given, welcome, verdicts and RoundOpen remembered, commits
  // applied, digests given when due.
  void ReadAll() {
    while (!peer->messages.empty()) Read(1);
  }
  // The next `count` messages.
  void Read(size_t count);
  // As the welcome says: uploads x, fetches, keeps; then Ready.
  void BringState();
  void Fetch();  // the whole state, at once
  std::shared_ptr<FakeCall> AskFetch();
  void CopyPiece(uint64_t piece);  // of the call's replica
  void EndFetch();
  void Upload();
  // From now on commits may rescale about x0, or rewind to it.
  void KeepX0(std::vector<float> values) { x0_ = std::move(values); }
  void Vote(const std::vector<uint8_t>& bits, double loss = 1);
  void SendChunk(uint32_t k, const std::vector<uint8_t>& bits);
  void SendScalars(double loss, std::vector<double> wanted = {});
  std::vector<float> lengths;  // that its scalars say, per tensor
  uint32_t steps = 0;          // minibatches that they say; 0: nothing
  void Abstain(AbstainReason reason);
  void Leave(const std::string& reason);
  void Break();  // the connection
  uint64_t Digest() const { return ReplicaDigest(x.data(), 0, x.size()); }
  bool closed() const { return peer->closed.has_value(); }
  absl::StatusCode code() const {
    return peer->closed.has_value() ? peer->closed->code() : absl::StatusCode::kUnknown;
  }
  std::string words() const {
    return peer->closed.has_value() ? std::string(ToStd(peer->closed->message())) : "";
  }
  // Lowest and highest round at which a piece stands.
  Round lowest() const;

  std::shared_ptr<FakePeer> peer;
  std::vector<float> x;
  std::vector<Round> pieces;  // where each piece stands; empty: no state
  std::shared_ptr<FakeCall> call;
  std::optional<v1::Welcome> welcome;
  std::optional<v1::RoundOpen> open;
  std::map<uint32_t, std::string> verdict;  // chunks since the last commit
  std::vector<v1::Commit> commits;
  std::vector<v1::Notice> notices;
  std::optional<v1::Resync> resync;
  bool drain = false, finish = false;
  std::optional<Evaluation::Measured> measured;  // goes with the next scalars
  int pings = 0;
  bool answers_pings = true, gives_digests = true;

 private:
  void Apply(const v1::Commit& commit);
  void ApplyChunks(const v1::Commit& commit, uint64_t first, uint64_t count);
  v1::PayloadKind KindOf(ChunkIndex k) const;
  Layout RunLayout() const;

  RunTest* const test_;
  const Layout layout_;
  std::vector<float> x0_;
};

// Events in words, as the history has them: "joined a".
std::vector<std::string> EventWords(run::Run& run, Time now);

class RunTest : public ::testing::Test, protected RunHost {
 public:
  // Without deadlines a ballot is in time however long the test takes.
  static RunOptions Options() {
    RunOptions options;
    options.main_rounds_max = 1000;
    options.deadline.enabled = false;
    options.rule.rule = "fixed";
    options.rule.stepsize = 0.01;
    options.model.sizes.chunk_coordinates = kChunk;
    return options;
  }
  static Layout TestLayout(uint64_t d = kCoordinates) {
    return *Layout::Make({{.name = "w", .shape = {d - 1}}, {.name = "b", .shape = {1}}});
  }

  RunParts Parts(std::unique_ptr<StepsizeRule> rule) {
    return {.clock = &clock_,
            .host = this,
            .tally = &tally_,
            .durability = durability_,
            .rng = Rng(7, 7),
            .tokens = tokens_,
            .memory = [] { return std::nullopt; },
            .init = std::move(init_),
            .rule = std::move(rule)};
  }
  void StartRun(RunOptions options = Options(), std::unique_ptr<StepsizeRule> rule = nullptr,
                RunState state = {}) {
    NewTest();
    if (state.run_id.empty()) state.run_id = RunId::FromRandom(1, 2);
    auto run = run::Run::Create(std::move(options), Parts(std::move(rule)), std::move(state),
                                clock_.Now());
    ASSERT_TRUE(run.ok()) << Describe(run.status());
    run_ = std::move(*run);
  }
  void TearDown() override { run_.reset(); }
  // Forgets everybody, for a test that starts several runs.
  void NewTest() {
    run_.reset();
    workers_.clear();
    peers_.clear();
    tallied_.clear();
    stuck_.clear();
    to_load_.reset();
    applier_.reset();
    replica_.reset();
  }

  TestWorker& NewWorker(uint64_t d = kCoordinates, PeerIdentity identity = {}) {
    const PeerId id(++last_peer_);
    if (identity.address.empty())
      identity.address = "ipv4:10.0.0." + std::to_string(last_peer_) + ":7";
    if (identity.host.empty()) identity.host = "10.0.0." + std::to_string(last_peer_);
    auto peer = std::make_shared<FakePeer>(id, std::move(identity));
    peers_.push_back(peer);
    workers_.push_back(std::make_unique<TestWorker>(this, peer, TestLayout(d)));
    Give({.peer = id, .what = StreamOpened{peer}});
    return *workers_.back();
  }
  // Joined, with its state, ready. `windows`: hash of held-out windows that it can measure.
  TestWorker& Joined(const std::string& name, std::optional<uint64_t> windows = std::nullopt) {
    TestWorker& worker = NewWorker();
    v1::Join join = worker.MakeJoin(name);
    if (windows.has_value()) join.set_held_out_hash(*windows);
    worker.Join(join);
    worker.BringState();
    return worker;
  }

  // An input of a stream, and what follows from it.
  void Give(StreamInput input) {
    run_->Handle(clock_.Now(), std::move(input));
    Settle();
  }
  void Tick(Duration d) {
    clock_.Advance(d);
    run_->Handle(clock_.Now(), TickIn{});
    Settle();
  }
  // Lets time pass as a thread would: each tick when it is due.
  void Pass(Duration d) {
    const Time end = clock_.Now() + d;
    while (true) {
      const std::optional<Time> next = run_->NextTick();
      if (!next.has_value() || *next > end) break;
      clock_.Advance(std::max(Duration::zero(), *next - clock_.Now()));
      run_->Handle(clock_.Now(), TickIn{});
      Settle();
    }
    clock_.Advance(end - clock_.Now());
  }
  // Tallies, the applier and the network come to rest.
  void Settle() {
    bool busy = true;
    while (busy) {
      busy = false;
      while (!tallied_.empty() && tally_works_) {
        ChunkTallied next = std::move(tallied_.front());
        tallied_.pop_front();
        run_->Handle(clock_.Now(), std::move(next));
        busy = true;
      }
      if (to_load_ != nullptr && loader_works_) {
        InitLoaded loaded =
            run::LoadInitial(*std::exchange(to_load_, nullptr), *replica_, [] { return false; });
        run_->Handle(clock_.Now(), std::move(loaded));
        busy = true;
      }
      if (applier_ != nullptr && applier_works_) {
        if (std::optional<Applied> applied = applier_->ApplyNext()) {
          run_->Handle(clock_.Now(), *std::move(applied));
          busy = true;
        }
      }
      for (size_t i = 0; i < peers_.size(); ++i) {
        const std::shared_ptr<FakePeer> peer = peers_[i];
        if (peer->network_takes) peer->queued = 0;
        if (peer->notify_below.has_value() && peer->queued <= *peer->notify_below &&
            !peer->closed.has_value()) {
          peer->notify_below.reset();
          run_->Handle(clock_.Now(), StreamInput{.peer = peer->id(), .what = RoomIn{}});
          busy = true;
        }
        if (peer->closed.has_value() && !std::exchange(peer->gone_told, true)) {
          run_->Handle(clock_.Now(), StreamInput{.peer = peer->id(), .what = GoneIn{}});
          if (!peer->cancelled && stuck_.contains(peer->id())) continue;
          run_->Handle(clock_.Now(), StreamInput{.peer = peer->id(), .what = StreamDone{}});
          busy = true;
        }
      }
    }
  }
  // Every worker reads and does what follows, until nothing more happens.
  void ReadAll() {
    for (int i = 0; i < 3; ++i) {
      for (const auto& worker : workers_) worker->ReadAll();
    }
  }
  // One round of these workers, each with its bits.
  void VoteRound(const std::vector<std::pair<TestWorker*, std::vector<uint8_t>>>& votes) {
    ReadAll();
    for (const auto& [worker, bits] : votes) {
      ASSERT_TRUE(worker->open.has_value());
      worker->Vote(bits);
    }
    ReadAll();
  }
  std::vector<std::string> Events() { return EventWords(*run_, clock_.Now()); }
  Round committed() const { return run_->committed(); }

  FakeClock clock_;
  std::unique_ptr<run::Run> run_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
  std::set<PeerId> stuck_;  // streams whose end gRPC does not report
  bool tally_works_ = true, applier_works_ = true, loader_works_ = true;
  std::deque<ChunkTallied> tallied_;
  std::unique_ptr<Applier> applier_;
  std::shared_ptr<MasterReplica> replica_;
  Durability* durability_ = nullptr;
  std::optional<TokenTable> tokens_;
  std::unique_ptr<InitialParameters> init_, to_load_;

 protected:
  void LoadInitial(std::unique_ptr<InitialParameters> init,
                   std::shared_ptr<MasterReplica> replica) override {
    to_load_ = std::move(init);
    replica_ = std::move(replica);
  }
  void DropX0From(Round round) override { applier_->DropX0From(round); }
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override {
    replica_ = replica;
    applier_ = std::make_unique<Applier>(replica.get(), &clock_, backlog_max);
    return applier_.get();
  }

 private:
  InlineTallySink tally_{&clock_, [this](ChunkTallied t) { tallied_.push_back(std::move(t)); }};
  std::vector<std::shared_ptr<FakePeer>> peers_;
  uint64_t last_peer_ = 0;
};

// ---- TestWorker ---------------------------------------------------------------------------------

inline v1::Join TestWorker::MakeJoin(const std::string& name) const {
  v1::Join join;
  join.set_protocol_min(2);
  join.set_protocol_max(2);
  join.set_software_version("test");
  join.set_name(name);
  for (const TensorSpec& t : layout_.tensors()) {
    v1::TensorShape& out = *join.add_tensors();
    out.set_name(t.name);
    for (const uint64_t dimension : t.shape) out.add_shape(dimension);
  }
  return join;
}

inline void TestWorker::Join(const v1::Join& join) {
  test_->Give({.peer = peer->id(), .what = JoinIn{std::make_shared<v1::Join>(join)}});
  ReadAll();
}

inline void TestWorker::Ready(Round at) { test_->Give({.peer = peer->id(), .what = ReadyIn{at}}); }

inline void TestWorker::Read(size_t count) {
  for (; count > 0 && !peer->messages.empty(); --count) {
    const v1::ServerMessage message = std::move(peer->messages.front());
    peer->messages.pop_front();
    if (message.has_ping()) {
      ++pings;
      if (answers_pings) {
        test_->Give({.peer = peer->id(), .what = PongIn{message.ping().nonce()}});
      }
    }
    if (message.has_welcome()) welcome = message.welcome();
    if (message.has_round_open()) open = message.round_open();
    if (message.has_notice()) notices.push_back(message.notice());
    if (message.has_resync()) resync = message.resync();
    if (message.has_drain()) drain = true;
    if (message.has_verdict_chunk()) {
      const v1::VerdictChunk& chunk = message.verdict_chunk();
      EXPECT_EQ(Xxh3(chunk.payload().data(), chunk.payload().size()), chunk.checksum());
      verdict[chunk.chunk()] = chunk.payload();
    }
    if (message.has_commit()) {
      commits.push_back(message.commit());
      open.reset();
      Apply(message.commit());
      verdict.clear();
      if (message.commit().digest_due() && gives_digests && !pieces.empty()) {
        test_->Give(
            {.peer = peer->id(), .what = DigestIn{Round(message.commit().round() + 1), Digest()}});
      }
    }
    if (message.has_finish()) {
      finish = true;
      if (gives_digests && !pieces.empty()) {
        test_->Give({.peer = peer->id(), .what = DigestIn{lowest(), Digest()}});
      }
    }
  }
}

inline void TestWorker::Apply(const v1::Commit& commit) {
  const Round round(commit.round());
  std::string bits;
  std::vector<ChunkSum> sums;
  for (int k = 0; k < commit.counted_size(); ++k) {
    const std::string& chunk = verdict[static_cast<uint32_t>(k)];
    sums.push_back({.counted = commit.counted(k), .checksum = Xxh3(chunk.data(), chunk.size())});
    bits += chunk;
  }
  if (commit.kind() == v1::Commit::KIND_STEP) {
    EXPECT_EQ(PayloadHash(sums), commit.payload_hash()) << "round " << commit.round();
  }
  for (uint64_t p = 0; p < pieces.size(); ++p) {
    if (pieces[p] != round) continue;
    const uint64_t first = p * MasterReplica::kPieceCoordinates;
    const uint64_t count = std::min(MasterReplica::kPieceCoordinates, x.size() - first);
    if (commit.kind() == v1::Commit::KIND_STEP && welcome->payloads_size() > 0) {
      ApplyChunks(commit, first, count);
    } else if (commit.kind() == v1::Commit::KIND_STEP) {
      ApplyStep(layout_, {.gamma = commit.stepsize(), .rho = commit.rho()}, first, count,
                reinterpret_cast<const uint8_t*>(bits.data()), 0,
                x0_.empty() ? nullptr : x0_.data() + first, x.data() + first);
    } else if (commit.kind() == v1::Commit::KIND_REWIND) {
      ApplyRewind(count, x0_.data() + first, x.data() + first);
    }
    pieces[p] = round.next();
  }
}

inline v1::PayloadKind TestWorker::KindOf(ChunkIndex k) const {
  for (const v1::PayloadRange& range : welcome->payloads()) {
    if (k.value() - range.first_chunk() < range.chunks()) return range.down();
  }
  return v1::PAYLOAD_SIGNS;
}

inline void TestWorker::ApplyChunks(const v1::Commit& commit, uint64_t first, uint64_t count) {
  StepArguments step{.gamma = commit.stepsize(), .rho = commit.rho()};
  const std::vector<float> scales(commit.scales().begin(), commit.scales().end());
  step.scales = scales;
  if (commit.has_decay_step()) step.decay_step = commit.decay_step();
  const ChunkPlan plan(x.size(), welcome->chunk_coordinates());
  for (uint64_t at = first; at < first + count;) {
    const ChunkIndex k(static_cast<uint32_t>(at / plan.chunk_coordinates()));
    const uint64_t end = std::min(first + count, plan.First(k) + plan.Count(k));
    const std::string& chunk = verdict[k.value()];
    const auto* const payload = reinterpret_cast<const uint8_t*>(chunk.data());
    const uint32_t counted = commit.counted(static_cast<int>(k.value()));
    const float* const x0 = x0_.empty() ? nullptr : x0_.data() + at;
    const v1::PayloadKind kind = KindOf(k);
    if (kind == v1::PAYLOAD_SIGNS) {
      ApplyStep(RunLayout(), step, at, end - at, payload, plan.First(k), x0, x.data() + at);
    } else if (kind == v1::PAYLOAD_COUNTS) {
      ASSERT_EQ(chunk.size(), CountPlanes(counted) * plan.Bytes(k));
      ApplyCounts(RunLayout(), step, at, end - at,
                  {.planes = payload,
                   .plane_bytes = plan.Bytes(k),
                   .ballots = counted,
                   .first = plan.First(k)},
                  x0, x.data() + at);
    } else {
      const bool bf16 = kind == v1::PAYLOAD_BF16;
      ASSERT_EQ(chunk.size(), plan.Count(k) * (bf16 ? 2 : 4));
      ApplyDense(RunLayout(), step, at, end - at,
                 {.values = payload, .bf16 = bf16, .first = plan.First(k)}, x0, x.data() + at);
    }
    at = end;
  }
}

// As the welcome has it.
inline Layout TestWorker::RunLayout() const {
  std::vector<TensorSpec> tensors;
  for (const v1::Tensor& t : welcome->layout().tensors()) {
    tensors.push_back({.name = t.name(),
                       .shape = {t.shape().begin(), t.shape().end()},
                       .step_scale = t.step_scale(),
                       .weight_decay = t.weight_decay(),
                       .dense = t.dense()});
  }
  return *Layout::Make(std::move(tensors));
}

inline Round TestWorker::lowest() const {
  Round out = pieces.empty() ? Round(0) : pieces.front();
  for (const Round piece : pieces) out = std::min(out, piece);
  return out;
}

inline std::shared_ptr<FakeCall> TestWorker::AskFetch() {
  call = std::make_shared<FakeCall>();
  const uint64_t count =
      (x.size() + MasterReplica::kPieceCoordinates - 1) / MasterReplica::kPieceCoordinates;
  pieces.assign(count, Round(~uint64_t{0}));
  test_->Give({.peer = peer->id(), .what = CallAsked{CallKind::kFetch, call}});
  return call;
}

inline void TestWorker::CopyPiece(uint64_t piece) {
  const auto round =
      call->replica->CopyPiece(Plane::kX, piece, x.data() + call->replica->First(piece));
  ASSERT_TRUE(round.ok());
  pieces[piece] = *round;
}

inline void TestWorker::EndFetch() {
  test_->Give({.peer = peer->id(), .what = CallEnded{call}});
  call.reset();
}

inline void TestWorker::Fetch() {
  AskFetch();
  ASSERT_NE(call->replica, nullptr) << (call->ended.has_value() ? Describe(*call->ended) : "");
  for (uint64_t p = 0; p < pieces.size(); ++p) CopyPiece(p);
  EndFetch();
}

inline void TestWorker::Upload() {
  call = std::make_shared<FakeCall>();
  test_->Give({.peer = peer->id(), .what = CallAsked{CallKind::kUpload, call}});
  ASSERT_NE(call->replica, nullptr) << (call->ended.has_value() ? Describe(*call->ended) : "");
  std::copy(x.begin(), x.end(), call->replica->x().begin());
  test_->Give(
      {.peer = peer->id(), .what = CallProgress{call, x.size() * sizeof(float), MaxAbs(x)}});
  EndFetch();
  pieces.assign(
      (x.size() + MasterReplica::kPieceCoordinates - 1) / MasterReplica::kPieceCoordinates,
      Round(0));
}

inline void TestWorker::BringState() {
  ReadAll();
  ASSERT_TRUE(welcome.has_value()) << words();
  if (welcome->state() == v1::Welcome::STATE_UPLOAD) Upload();
  if (welcome->state() == v1::Welcome::STATE_FETCH) Fetch();
  Ready(lowest());
  ReadAll();
}

inline void TestWorker::SendChunk(uint32_t k, const std::vector<uint8_t>& bits) {
  const ChunkIndex chunk(k);
  const Round round(open->round());
  const Attempt attempt(open->attempt());
  std::span<uint8_t> place;
  const PayloadPlan& plan = peer->slots->payload();
  if (peer->slots->Begin(round, attempt, chunk, &place) == BallotSlots::Place::kWrite) {
    std::copy_n(bits.begin() + static_cast<std::ptrdiff_t>(plan.Offset(chunk)), place.size(),
                place.begin());
    (void)peer->slots->End(round, attempt, chunk, true);
  }
  test_->Give({.peer = peer->id(), .what = BallotIn{round, attempt, chunk}});
}

inline void TestWorker::SendScalars(double loss, std::vector<double> wanted) {
  ScalarsIn in{.round = Round(open->round()), .attempt = Attempt(open->attempt())};
  in.scalars.loss = loss;
  in.scalars.g_l1 = 1;
  in.scalars.g_l2_squared = 1;
  in.scalars.wanted = std::move(wanted);
  in.scalars.wanted.resize(static_cast<size_t>(open->wanted_size()), 0.0);
  in.scalars.displacement_mean = lengths;
  in.scalars.local_steps = steps;
  in.times = {.compute_us = 1000, .apply_us = 10};
  in.held_out = std::exchange(measured, std::nullopt);
  test_->Give({.peer = peer->id(), .what = std::move(in)});
}

inline void TestWorker::Vote(const std::vector<uint8_t>& bits, double loss) {
  SIGNVOTE_CHECK(open.has_value());
  const uint32_t chunks = peer->slots->plan().chunks();
  const v1::RoundOpen ballot = *open;
  for (uint32_t k = 0; k < chunks; ++k) {
    SendChunk(k, bits);
    open = ballot;  // whatever was read meanwhile
  }
  SendScalars(loss);
}

inline void TestWorker::Abstain(AbstainReason reason) {
  test_->Give({.peer = peer->id(),
               .what = AbstainIn{Round(open->round()), Attempt(open->attempt()), reason}});
}

inline void TestWorker::Leave(const std::string& reason) {
  test_->Give({.peer = peer->id(), .what = LeaveIn{reason}});
}

inline void TestWorker::Break() {
  peer->closed = absl::CancelledError("the connection broke");
  test_->Settle();
}

inline std::vector<std::string> EventWords(run::Run& run, Time now) {
  std::vector<std::string> out;
  run.Watch(now, 0, Duration::zero(), [&](absl::StatusOr<WatchView> view) {
    for (const Event& event : view->events) {
      out.push_back(std::string(Words(event.kind)) +
                    (event.worker.empty() ? "" : " " + event.worker));
    }
  });
  return out;
}

}  // namespace signvote::run
