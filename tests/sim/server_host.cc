#include "tests/sim/server_host.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/apply.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "server/run/from_worker.h"
#include "server/stepsize/lever.h"
#include "server/stepsize/sos.h"
#include "tests/sim/turns_rule.h"

namespace signvote::sim {
namespace {

constexpr uint32_t kTicksInVainMax = 100;
constexpr Duration kStopSlack = std::chrono::seconds(5);  // beyond what the open round is given
constexpr size_t kHeaderBytes = 64;                       // of a message beside its payload, about

absl::Status Malformed(const std::string& what) { return absl::InvalidArgumentError(what); }

}  // namespace

// A stream as the run sees it, over a connection of the network; what the product's sessions do with
// bytes.
class SimPeer final : public run::Peer {
 public:
  using Admitted = std::function<void(const std::shared_ptr<BallotSlots>& slots)>;

  SimPeer(World* world, ConnectionId connection, Admitted admitted)
      : world_(world),
        connection_(connection),
        host_(world->network.host_of(connection)),
        admitted_(std::move(admitted)) {
    identity_.host = absl::StrCat("host", host_);
    identity_.address = absl::StrCat(identity_.host, ":", connection);
    ticket_ = absl::StrCat("ticket ", connection);
    ticket_.resize(16, ' ');
  }

  run::PeerId id() const override { return run::PeerId(connection_); }
  const run::PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }

  void Send(const v1::ServerMessage& message) override {
    if (closed_) return;
    if (message.has_welcome()) {
      run_id_ = *RunId::FromBytes(message.welcome().run_id());
      epoch_ = Epoch(message.welcome().epoch());
    }
    if (message.has_round_open()) {
      world_->checker.OnRoundOpen(connection_, name_, message.round_open(), world_->timeline.Now());
    }
    if (message.has_commit()) world_->checker.OnCommitSent(message.commit());
    const size_t bytes = message.ByteSizeLong();
    sent_ += bytes;
    world_->network.SendDown(connection_, std::make_shared<const v1::ServerMessage>(message),
                             bytes);
  }
  void SendVerdict(const run::VerdictHeader& header, std::span<const uint8_t> payload,
                   std::shared_ptr<const void> owner) override {
    if (closed_) return;
    sent_ += kHeaderBytes + payload.size();
    world_->network.SendDown(connection_,
                             VoteFrame{.run_id = run_id_,
                                       .epoch = epoch_,
                                       .round = header.round,
                                       .attempt = header.attempt,
                                       .chunk = header.chunk,
                                       .checksum = header.checksum,
                                       .payload = payload,
                                       .owner = std::move(owner)},
                             kHeaderBytes + payload.size());
  }
  void Admit(std::shared_ptr<BallotSlots> slots) override {
    slots_ = std::move(slots);
    admitted_(slots_);
  }
  size_t queued_bytes() const override { return world_->network.queued_bytes(connection_); }
  void NotifyWhenBelow(size_t bytes) override {
    if (!closed_) world_->network.NotifyWhenBelow(connection_, bytes);
  }
  void Close(absl::Status status) override {
    if (std::exchange(closed_, true)) return;
    world_->Trace(name_, absl::StrCat("closed by the server: ", Describe(status)));
    if (!status.ok()) ++world_->counters->ended_by_server;
    world_->checker.OnStreamEnd(connection_);
    world_->network.CloseByServer(connection_, std::move(status));
  }
  void Cancel() override { world_->network.Cancel(connection_); }
  run::PeerBytes bytes() const override { return {.received = received_, .sent = sent_}; }

  void NoteReceived(size_t bytes) { received_ += bytes; }
  void Gone() { closed_ = true; }
  const std::string& name() const { return name_; }

  // The input that a message is; the status that ends the session otherwise.
  absl::StatusOr<run::StreamWhat> Read(const v1::WorkerMessage& message) {
    SIGNVOTE_ASSIGN_OR_RETURN(run::StreamWhat what, run::InputFrom(message, joined_));
    joined_ = true;
    if (message.has_join()) {
      name_ = message.join().name();
      if (message.join().has_held_out_hash()) world_->checker.OnAble(connection_);
    } else if (const auto* abstain = std::get_if<run::AbstainIn>(&what)) {
      world_->checker.OnAbstain(connection_, abstain->round, abstain->attempt,
                                abstain->reason == AbstainReason::kNonFiniteLoss);
    }
    return what;
  }

  absl::StatusOr<run::StreamWhat> Read(const VoteFrame& vote) {
    if (!joined_ || slots_ == nullptr) return Malformed("a ballot before the welcome");
    if (vote.run_id != run_id_ || vote.epoch != epoch_) {
      return Malformed("a ballot of another run or epoch");
    }
    const ChunkPlan& plan = slots_->plan();
    if (vote.chunk.value() >= plan.chunks()) return Malformed("a chunk that does not exist");
    const PayloadKind kind = slots_->payload().kind(vote.chunk);
    if (vote.payload.size() != slots_->payload().Bytes(vote.chunk, 1))
      return Malformed("a chunk's length");
    std::span<uint8_t> place;
    switch (slots_->Begin(vote.round, vote.attempt, vote.chunk, &place)) {
      case BallotSlots::Place::kNotOpen:
        return Malformed("a ballot of a round that was never opened");
      case BallotSlots::Place::kNotNeeded:
        break;
      case BallotSlots::Place::kWrite: {
        std::copy(vote.payload.begin(), vote.payload.end(), place.begin());
        const bool whole = kind == PayloadKind::kSigns
                               ? PaddingIsZero(place.data(), plan.Count(vote.chunk))
                               : AreDenseValues(kind, place.data(), plan.Count(vote.chunk));
        const bool good = Xxh3(place.data(), place.size()) == vote.checksum && whole;
        if (slots_->End(vote.round, vote.attempt, vote.chunk, good)) {
          world_->checker.OnChunk(connection_, vote.round, vote.attempt, vote.chunk, vote.checksum);
        }
        if (!good) return absl::DataLossError("the checksum of a chunk differs");
        break;
      }
    }
    return run::BallotIn{vote.round, vote.attempt, vote.chunk};
  }

 private:
  // Constant after construction.
  World* const world_;
  const ConnectionId connection_;
  const size_t host_;
  const Admitted admitted_;
  run::PeerIdentity identity_;
  std::string ticket_;

  std::string name_ = "?";
  RunId run_id_;
  Epoch epoch_;
  std::shared_ptr<BallotSlots> slots_;
  bool joined_ = false, closed_ = false;
  uint64_t received_ = 0, sent_ = 0;
};

ServerHost::ServerHost(World* world)
    : world_(world),
      journal_(world->options.journal.mode.has_value() ? std::make_unique<SimJournal>(world)
                                                       : nullptr) {}

ServerHost::~ServerHost() = default;

namespace {

// Null: the one that the flags name.
std::unique_ptr<StepsizeRule> RuleOf(const SimOptions& o) {
  switch (o.rule_used) {
    case RuleUsed::kOfFlags:
      return nullptr;
    case RuleUsed::kTurns:
      return std::make_unique<TurnsRule>(o.seed);
    case RuleUsed::kSos:
      return MakeSosRule(
          {.start = o.run.rule.lever_start, .main_rounds = o.run.main_rounds_max, .trial_min = 4});
    case RuleUsed::kRace:
    case RuleUsed::kRaceLite:
      break;
  }
  return MakeLeverRule(
      {.form = o.rule_used == RuleUsed::kRace ? LeverForm::kFull : LeverForm::kLite,
       .start = o.run.rule.lever_start,
       .momentum = true,
       .main_rounds = o.run.main_rounds_max,
       .local = o.run.local_steps,
       .short_trial_min = 3,
       .long_trial_min = 4});
}

}  // namespace

void ServerHost::Start() {
  run::RunState state;
  state.run_id = RunId::FromRandom(world_->options.seed, 1);
  if (journal_ != nullptr) {
    absl::StatusOr<run::RunState> opened = OpenJournal();
    if (!opened.ok())
      return world_->checker.Fail("no journal can be made: " + Describe(opened.status()));
    state = *std::move(opened);
  }
  Make(std::move(state));
}

absl::StatusOr<run::RunState> ServerHost::OpenJournal() {
  run::RunState state;
  state.run_id = RunId::FromRandom(world_->options.seed, 1);
  return journal_->Open(std::move(state),
                        {.released =
                             [this](Round round) {
                               world_->checker.OnReleased(round);
                               Give(run::DurableIn{round});
                             },
                         .failed =
                             [this](const absl::Status& status) {
                               world_->Trace("server", "its journal fails: " + Describe(status));
                               Give(run::JournalFailed{status});
                             },
                         .killed =
                             [this] {
                               world_->timeline.After(0.0, [this, life = life_] {
                                 if (life != life_) return;
                                 AccountFor();
                                 Killed(killed_seconds_);
                               });
                             }});
}

void ServerHost::Make(run::RunState state) {
  const SimOptions& o = world_->options;
  const Round round = state.engine.round;
  ++world_->counters->epochs;
  run::RunParts parts;
  parts.clock = &world_->timeline;
  parts.host = this;
  parts.tally = this;
  parts.durability = o.durability ? this : nullptr;
  parts.rng = Rng(o.seed, /*stream=*/3 + life_);
  parts.memory = [] { return std::optional<MemoryLimit>(); };  // as much as it likes
  parts.rule = RuleOf(o);
  appended_ = round;
  if (world_->checker.begun() && journal_ == nullptr) world_->checker.OnEpoch(round);
  absl::StatusOr<std::unique_ptr<run::Run>> made =
      run::Run::Create(o.run, std::move(parts), std::move(state), Now());
  if (!made.ok()) {
    end_ = made.status();
    return world_->checker.Fail("no run can be made: " + Describe(made.status()));
  }
  run_ = *std::move(made);
  world_->network.Serve(this);
  Settle();
}

// ---- inputs

void ServerHost::Give(run::Input input) {
  world_->checker.OnInput();
  run_->Handle(Now(), std::move(input));
  Settle();
}

void ServerHost::GiveStream(ConnectionId id, decltype(run::StreamInput::what) what) {
  Give(run::StreamInput{run::PeerId(id), std::move(what)});
}

void ServerHost::Settle() {
  if (run_ == nullptr) return;
  if (run_->ended() && !end_.has_value() && !restart_.has_value()) {
    AccountFor();
    end_ = run_->end_status();
    // What the process does when its run is over.
    run_->CloseStreams(Now());
    world_->Trace("server", "the run ended: " + Describe(*end_));
  }
  if (restart_.has_value()) {
    // Never inside a call that still uses the run.
    world_->timeline.After(0.0, [this, life = life_] {
      if (life == life_) TryRestart();
    });
  }
  if (journal_ != nullptr) journal_->Look();
  if (const std::optional<Time> next = run_->NextTick()) ArmTick(std::max(*next, Now()));
}

void ServerHost::ArmTick(Time at) {
  if (tick_at_.has_value() && *tick_at_ <= at) return;
  tick_at_ = at;
  world_->timeline.At(at, [this, at, life = life_] {
    if (life != life_ || run_ == nullptr || tick_at_ != at) return;
    tick_at_.reset();
    const std::optional<Time> due = run_->NextTick();
    if (due.has_value() && *due > Now()) return ArmTick(*due);
    if (!due.has_value()) return;
    ticks_in_vain_ = last_tick_ == Now() ? ticks_in_vain_ + 1 : 0;
    last_tick_ = Now();
    if (ticks_in_vain_ > kTicksInVainMax) {
      return world_->checker.Fail("the run asks for ticks that change nothing");
    }
    Give(run::TickIn{});
  });
}

void ServerHost::OnOpened(ConnectionId id) {
  auto peer = std::make_shared<SimPeer>(
      world_, id, [this, id](const std::shared_ptr<BallotSlots>& slots) { slots_[id] = slots; });
  tickets_[peer->ticket()] = id;
  peers_[id] = peer;
  GiveStream(id, run::StreamOpened{std::move(peer)});
}

void ServerHost::OnUp(ConnectionId id, UpFrame frame) {
  SimPeer& peer = *peers_.at(id);
  absl::StatusOr<run::StreamWhat> input = absl::InternalError("");
  if (const auto* vote = std::get_if<VoteFrame>(&frame)) {
    peer.NoteReceived(kHeaderBytes + vote->payload.size());
    input = peer.Read(*vote);
  } else {
    const auto& message = *std::get<std::shared_ptr<const v1::WorkerMessage>>(frame);
    peer.NoteReceived(message.ByteSizeLong());
    if (message.has_leave()) world_->checker.OnStreamEnd(id);
    input = peer.Read(message);
  }
  if (!input.ok()) {
    ++world_->counters->ended_by_server;
    world_->Trace(peer.name(), "its stream ends: " + Describe(input.status()));
    return world_->network.CloseByServer(id, input.status());
  }
  GiveStream(id, *std::move(input));
}

void ServerHost::OnRoom(ConnectionId id) { GiveStream(id, run::RoomIn{}); }

void ServerHost::OnGone(ConnectionId id, const std::string& why, bool by_server) {
  world_->checker.OnStreamEnd(id);
  peers_.at(id)->Gone();
  GiveStream(id, run::GoneIn{.reason = why, .ended_by_us = by_server});
}

void ServerHost::OnDone(ConnectionId id) {
  tickets_.erase(peers_.at(id)->ticket());
  peers_.erase(id);
  GiveStream(id, run::StreamDone{});
  for (const auto& [number, call] : calls_) {
    world_->checker.Require(call.first != id || !call.second->goes_on(),
                            "a state transfer goes on though its session is done");
  }
}

// ---- calls of workers

uint64_t ServerHost::Call(run::CallKind kind, const std::string& ticket, size_t host,
                          double seconds_per_part, std::shared_ptr<const std::vector<float>> values,
                          CallEnd* end) {
  if (run_ == nullptr) return 0;
  const uint64_t number = ++last_call_;
  const auto owner = tickets_.find(ticket);
  const ConnectionId id = owner == tickets_.end() ? 0 : owner->second;
  const float max_abs = values == nullptr ? 0 : MaxAbs(*values);
  auto call = std::make_shared<SimCall>(
      world_,
      SimCall::Plan{.number = number,
                    .kind = kind,
                    .host = host,
                    .seconds_per_part = seconds_per_part,
                    .values = std::move(values)},
      SimCall::Hooks{.progress =
                         [this, number, id, max_abs](uint64_t bytes) {
                           const std::shared_ptr<SimCall> self = calls_.at(number).second;
                           GiveStream(id, run::CallProgress{self, bytes, max_abs});
                         },
                     .ended =
                         [this, number, id](uint64_t up, uint64_t down) {
                           const std::shared_ptr<SimCall> self = calls_.at(number).second;
                           calls_.erase(number);
                           GiveStream(id, run::CallEnded{self});
                           GiveStream(id, run::CallMoved{up, down});
                         }},
      end);
  calls_[number] = {id, call};
  if (owner == tickets_.end()) {
    call->End(absl::FailedPreconditionError("no live session has this ticket"));
    return number;
  }
  // The request travels.
  world_->timeline.At(world_->network.Arrival(host), [this, life = life_, kind, id, call] {
    if (life != life_ || run_ == nullptr || call->over()) return;
    if (!peers_.contains(id)) return call->End(absl::AbortedError("the session has ended"));
    GiveStream(id, run::CallAsked{kind, call});
  });
  return number;
}

void ServerHost::Abandon(uint64_t call) {
  const auto it = calls_.find(call);
  if (it != calls_.end()) it->second.second->Abandon();
}

// ---- the operator

absl::Status ServerHost::Drain(const std::string& worker) {
  const absl::Status status = run_->Drain(Now(), worker);
  Settle();
  return status;
}

absl::Status ServerHost::Evict(const std::string& worker) {
  const absl::Status status = run_->Evict(Now(), worker);
  if (status.ok()) world_->checker.OnEvict(worker);
  Settle();
  return status;
}

bool ServerHost::AskForRestart(Restart how, double seconds) {
  if (restart_.has_value() || run_ == nullptr || end_.has_value() || !world_->checker.begun()) {
    return false;
  }
  if (journal_ != nullptr && !journal_->stands()) return false;
  restart_ = Wanted{how, seconds};
  if (how == Restart::kAfterStop) {
    world_->checker.OnStop(Now() + world_->options.run.stop_wait);
    run_->RequestStop(Now());
    world_->timeline.After(world_->options.run.stop_wait + kStopSlack, [this, life = life_] {
      world_->checker.Require(life != life_ || run_->ended(), "a stopped run does not end");
    });
  } else {
    (void)run_->Pause(Now());  // never fails
  }
  Settle();
  return true;
}

void ServerHost::TryRestart() {
  if (!restart_.has_value() || run_ == nullptr) return;
  if (run_->ended() && !run_->end_status().ok()) {
    restart_.reset();
    return Settle();  // it ended for another reason
  }
  if (restart_->how == Restart::kAfterStop && !run_->ended()) return;
  const absl::StatusOr<run::RunState> state = run_->State();
  if (!state.ok()) return;  // not now
  if (state->engine.course.run_done) {
    restart_.reset();  // nothing is left to go on with
    return Settle();
  }
  const Wanted wanted = *std::exchange(restart_, std::nullopt);
  AccountFor();
  world_->Trace("server", absl::StrCat("stops at round ", state->engine.round.value()));
  if (journal_ != nullptr) {
    journal_->Finish();
    return Killed(wanted.seconds);
  }
  const run::StateParts parts = run::EncodeState(*state);
  auto bytes = std::make_shared<std::vector<std::byte>>();
  for (const std::span<const std::byte> part : parts.parts) {
    bytes->insert(bytes->end(), part.begin(), part.end());
  }
  Drop();
  world_->timeline.After(wanted.seconds, [this, bytes] {
    absl::StatusOr<run::RunState> read = run::DecodeState(*bytes);
    if (!read.ok()) {
      return world_->checker.Fail("the state cannot be read: " + Describe(read.status()));
    }
    read->epoch = read->epoch.next();
    Make(*std::move(read));
    world_->timeline.After(world_->options.resume_s, [this, life = life_] {
      if (life == life_ && run_ != nullptr) Resume();
    });
  });
}

void ServerHost::Drop() {
  ++life_;
  world_->network.StopServing();
  for (auto& [number, call] : calls_) call.second->Cut();
  calls_.clear();
  run_.reset();
  applier_.reset();
  replica_.reset();
  peers_.clear();
  tickets_.clear();
  slots_.clear();
  jobs_.clear();
  applier_looks_ = durable_looks_ = false;
  tick_at_.reset();
}

// ---- a server with a journal that ends without a word

bool ServerHost::Kill(SimDisk::Restart how, bool in_write, double seconds) {
  if (journal_ == nullptr || run_ == nullptr || end_.has_value() || restart_.has_value() ||
      breaks_ || journal_->disk().killed() || !journal_->stands())
    return false;
  if (in_write) {
    killed_seconds_ = seconds;
    journal_->DieInWrite(world_->timeline.Below(8192), how);
    return true;
  }
  AccountFor();
  Killed(seconds, how);
  return true;
}

bool ServerHost::BreakDisk(const DiskFaults& faults, double seconds, SimDisk::Restart how) {
  if (journal_ == nullptr || run_ == nullptr || end_.has_value() || restart_.has_value() ||
      breaks_ || journal_->disk().killed() || !journal_->stands())
    return false;
  breaks_ = true;
  lied_ = lied_ || faults.sync_lost > 0;
  journal_->disk().Set(faults);
  world_->timeline.After(seconds, [this, life = life_, seconds, how] {
    // Somebody has looked after the disk, and starts the server again.
    if (life != life_ || end_.has_value()) return void(breaks_ = false);
    AccountFor();
    Killed(seconds, how);
  });
  return true;
}

void ServerHost::Killed(double seconds, SimDisk::Restart how) {
  world_->Trace("server", "is killed");
  journal_->Die(how);
  restart_.reset();
  breaks_ = false;
  Drop();
  world_->timeline.After(seconds, [this] { Recover(); });
}

void ServerHost::Recover() {
  absl::StatusOr<run::RunState> state = OpenJournal();
  if (lied_ && absl::IsDataLoss(state.status())) {
    world_->Trace("server", "finds its journal damaged: " + Describe(state.status()));
    ++world_->counters->journals_cut;
    if (journal_->Cut().ok()) state = OpenJournal();
    if (!state.ok() || !state->has_parameters()) {
      ++world_->counters->journals_lost;
      journal_lost_ = true;
      end_ = absl::DataLossError("nothing is left of the journal");
      return;
    }
  }
  if (!state.ok())
    return world_->checker.Fail("the run cannot be recovered: " + Describe(state.status()));
  world_->Trace("server", absl::StrCat("recovers round ", state->engine.round.value()));
  if (world_->checker.begun()) {
    if (world_->checker.OnRecovered(*state, lied_)) ++world_->counters->commits_lost;
  }
  Make(*std::move(state));
  world_->timeline.After(world_->options.resume_s, [this, life = life_] {
    if (life == life_ && run_ != nullptr) Resume();
  });
}

void ServerHost::AccountFor() {
  SimCounters& c = *world_->counters;
  const run::StatusPage page = run_->Snapshot(Now());
  c.refused_joins += page.refusals;
  run_->Watch(Now(), 0, Duration::zero(), [&](const absl::StatusOr<run::WatchView>& view) {
    std::optional<uint64_t> windows;
    for (const run::HeldOut& held_out : view->held_out) {
      ++c.evaluations;
      c.windows_changed += windows.value_or(held_out.windows) != held_out.windows ? 1 : 0;
      windows = held_out.windows;
      world_->checker.OnHeldOut(held_out.round, held_out.loss, held_out.windows);
    }
  });
}

// ---- those who work for the run

CommitConsumer* ServerHost::StartApplier(const std::shared_ptr<MasterReplica>& replica,
                                         size_t backlog_max) {
  if (!world_->checker.begun()) world_->checker.Begin(replica->x());
  replica_ = replica;
  applier_ = std::make_unique<Applier>(replica.get(), &world_->timeline, backlog_max);
  if (journal_ != nullptr) journal_->SetApplier(applier_.get());
  return this;
}

bool ServerHost::TryPush(const std::shared_ptr<const CommitRecord>& record) {
  if (!applier_->TryPush(record)) return false;
  // The next round waits for the applier.
  if (applier_->backlog() >= world_->options.ring_rounds) ++world_->counters->backlogs_full;
  world_->checker.OnHandedOver(*record);
  LookAtApplier();
  return true;
}

void ServerHost::LookAtApplier() {
  if (std::exchange(applier_looks_, true)) return;
  const double seconds = applier_seconds_ * world_->timeline.Uniform(0.5, 1.5);
  world_->timeline.After(seconds, [this, life = life_] {
    if (life != life_ || run_ == nullptr) return;
    applier_looks_ = false;
    const std::optional<Applied> applied = applier_->ApplyNext();
    if (!applied.has_value()) return;
    world_->checker.OnApplied(*applied);
    if (journal_ != nullptr) journal_->OnApplied(*applied);
    if (applier_->backlog() > 0) LookAtApplier();
    Give(*applied);
  });
}

void ServerHost::Begin(const v1::JournalHead& head,
                       std::shared_ptr<const std::vector<float>> optimizer) {
  journal_->journal()->Begin(head, std::move(optimizer));
}
void ServerHost::NoteName(const v1::JournalName& name) { journal_->journal()->NoteName(name); }
void ServerHost::NotePause(bool paused) { journal_->journal()->NotePause(paused); }
void ServerHost::NoteChunk(Chunk chunk) { journal_->journal()->NoteChunk(std::move(chunk)); }
void ServerHost::NoteState(std::shared_ptr<const v1::RunState> state,
                           std::shared_ptr<const std::vector<float>> optimizer,
                           std::vector<Voters> voters) {
  journal_->journal()->NoteState(std::move(state), std::move(optimizer), std::move(voters));
}

void ServerHost::Append(std::shared_ptr<const CommitRecord> record) {
  world_->checker.OnProposed(*record);
  if (journal_ != nullptr) return journal_->journal()->Append(std::move(record));
  const double seconds = durable_seconds_ * world_->timeline.Uniform(0.5, 1.5);
  world_->timeline.After(seconds, [this, life = life_, round = record->round] {
    if (life != life_ || run_ == nullptr) return;
    world_->checker.OnReleased(round);
    Give(run::DurableIn{round});
  });
}

void ServerHost::Submit(TallyJob job) {
  // Whose ballots lie there.
  std::vector<std::pair<uint64_t, uint64_t>> ballots;
  for (const uint32_t place : job.places) {
    const std::shared_ptr<const uint8_t>& ballot = job.share->ballot(place);
    const auto owner = std::find_if(slots_.begin(), slots_.end(), [&ballot](const auto& entry) {
      return entry.second->buffer() == ballot;
    });
    const uint64_t peer = owner == slots_.end() ? 0 : owner->first;
    const bool dense = job.kind == PayloadKind::kFp32 || job.kind == PayloadKind::kBf16;
    const size_t bytes =
        PayloadBytes(dense ? job.kind : PayloadKind::kSigns, job.plan.Count(job.chunk), 1);
    ballots.emplace_back(peer, Xxh3(ballot.get() + job.ballot_offset, bytes));
  }
  world_->checker.OnTally(job.round, job.attempt, job.chunk, ballots, Now());
  const uint64_t number = ++last_job_;
  job.share->Enter();
  jobs_.emplace_back(number, std::move(job));
  const double seconds = tally_seconds_ * world_->timeline.Uniform(0, 2);
  world_->timeline.After(seconds, [this, life = life_, number] {
    if (life != life_) return;
    const auto it = std::find_if(jobs_.begin(), jobs_.end(),
                                 [number](const auto& waiting) { return waiting.first == number; });
    if (it == jobs_.end()) return;  // dropped
    const TallyJob counted = std::move(it->second);
    jobs_.erase(it);
    Count(counted);
    counted.share->Leave();
  });
}

void ServerHost::DropWaiting() {
  for (const auto& [number, job] : jobs_) job.share->Leave();
  jobs_.clear();
}

void ServerHost::Count(const TallyJob& job) {
  std::optional<ChunkTallied> tallied;
  InlineTallySink sink(&world_->timeline,
                       [&tallied](ChunkTallied done) { tallied = std::move(done); });
  sink.Submit(job);
  if (run_ != nullptr) Give(*std::move(tallied));
}

}  // namespace signvote::sim
