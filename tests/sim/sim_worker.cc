#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "worker/codec/tensor_pointers.h"
#include "worker/session/messages.h"

namespace signvote::sim {
namespace {

constexpr size_t kSlotsMax = 256;
constexpr double kPartSeconds = 0.002;
// Restarts by a person, or by whatever looks after the process.
constexpr double kRestartMin = 2, kRestartMax = 15;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

SimWorker::SimWorker(World* world, ServerHost* server, size_t host)
    : world_(world), server_(server), host_(host), name_(WorkerName(host)) {
  world_->network.Attach(host, this);
}

SimWorker::~SimWorker() = default;

std::optional<Round> SimWorker::round() const {
  if (replica_ == nullptr || !replica_->level()) return std::nullopt;
  return replica_->round();
}

// ---- the process

void SimWorker::Start() {
  if (up_ || out_ || finished_) return;
  Forget();
  up_ = true;
  FollowerOptions options{.name = name_};
  options.model = {
      .tensors = world_->model.tensors(), .can_probe = true, .held_out_hash = Windows()};
  follower_ = std::make_unique<Follower>(std::move(options));
  retry_.emplace(RetryLimits{.connect_timeout = std::chrono::minutes(10),
                             .server_timeout = std::chrono::minutes(60)},
                 name_, DialContext{}, Mix(world_->options.seed, host_, life_), Now());
  Dial();
}

void SimWorker::Forget() {
  ++life_;
  draining_ = false;
  if (connection_.has_value()) world_->network.CloseByHost(*std::exchange(connection_, {}));
  if (call_ != 0) server_->Abandon(std::exchange(call_, 0));
  catch_up_.reset();
  ballot_.reset();
  opened_.reset();
  prev_verdict_.reset();
  finish_rounds_.reset();
  assembler_.reset();
  replica_.reset();
  store_.reset();
  memory_.reset();
  steps_.reset();
  packer_.reset();
  retry_.reset();
  follower_.reset();
  measurement_.reset();
  x_ = world_->model.Start();
  ForgetPrevious();
  damaged_ = false;
}

void SimWorker::Crash(double seconds_down) {
  world_->Trace(name_, "crashes");
  Forget();
  up_ = false;
  hung_until_ = Time{};
  world_->timeline.After(seconds_down, [this, life = life_] {
    if (life == life_) Start();
  });
}

void SimWorker::Exit(bool again) {
  Forget();
  up_ = false;
  if (!again) return;
  world_->timeline.After(world_->timeline.Uniform(kRestartMin, kRestartMax), [this, life = life_] {
    if (life == life_) Start();
  });
}

void SimWorker::Hang(double seconds) {
  world_->Trace(name_, "hangs");
  hung_until_ = Until(seconds);
  world_->network.Hang(host_, hung_until_);
}

void SimWorker::Later(double seconds, std::function<void()> what) {
  const Time at = std::max(Now() + FromSeconds(seconds), hung_until_);
  world_->timeline.At(at, [this, life = life_, what = std::move(what)] {
    if (life != life_) return;
    if (hung_until_ > Now()) return Later(0, what);
    what();
  });
}

void SimWorker::BeWell() {
  hung_until_ = Time{};
  slow_until_ = late_chunk_until_ = no_scalars_until_ = lying_scalars_until_ = Time{};
  second_ballot_until_ = slow_transfer_until_ = orphans_until_ = Time{};
  abstain_next_.reset();
  lying_digest_next_ = false;
}

// ---- the connection

void SimWorker::Dial() {
  connection_ = world_->network.Dial(host_);
  join_ = std::make_shared<const v1::WorkerMessage>(follower_->Connected());
  world_->network.SendUp(*connection_, join_);
}

void SimWorker::Say(v1::WorkerMessage message) {
  if (!connection_.has_value()) return;
  world_->network.SendUp(*connection_,
                         std::make_shared<const v1::WorkerMessage>(std::move(message)));
}

void SimWorker::OnDown(ConnectionId id, DownFrame frame) {
  if (connection_ != id) return;
  const absl::Status status = Read(frame);
  if (status.ok()) return;
  // The server is honest: what cannot be worked with is a fault of one of the two.
  if (!absl::IsAborted(status) && !absl::IsDataLoss(status)) {
    world_->checker.Fail(absl::StrCat(name_, " cannot follow: ", Describe(status)));
  }
  Drop(status);
}

void SimWorker::Drop(const absl::Status& why) {
  world_->Trace(name_, absl::StrCat("drops its connection: ", Describe(why)));
  if (absl::IsAborted(why)) ++world_->counters->mismatches;
  if (connection_.has_value()) world_->network.CloseByHost(*connection_);
  AfterConnection(why, /*by_us=*/true);
}

void SimWorker::OnClosed(ConnectionId id, const absl::Status& status) {
  if (connection_ != id) return;
  world_->Trace(name_, absl::StrCat("its connection ends: ", Describe(status)));
  AfterConnection(status, /*by_us=*/false);
}

void SimWorker::AfterConnection(const absl::Status& status, bool by_us) {
  connection_.reset();
  const bool parted = follower_->parted();
  const ConnectionEnd end{.status = status,
                          .by_us = by_us,
                          .welcomed = follower_->welcomed(),
                          .ever_welcomed = follower_->ever_welcomed(),
                          .finish_seen = follower_->finish_seen()};
  follower_->Disconnected();
  if (assembler_ != nullptr) assembler_->Drop();
  opened_.reset();
  if (call_ != 0) {
    // A transfer of a connection that is over is worth nothing.
    if (Is(orphans_until_)) {
      world_->Count(Fault::kOrphanCall);
    } else {
      server_->Abandon(call_);
    }
    call_ = 0;
    catch_up_.reset();
    if (replica_ != nullptr && call_kind_ == TransferAction::Kind::kFetch) replica_->Clear();
  }
  if (follower_->goodbye()) return Exit(/*again=*/true);  // drained
  if (parted && status.ok()) {
    finished_ = true;
    world_->Trace(name_, "has finished");
    return;
  }
  if (const absl::Status over = retry_->Ended(end, Now()); !over.ok()) {
    world_->Trace(name_, "gives up: " + Describe(over));
    if (absl::IsPermissionDenied(status)) out_ = true;
    return Exit(/*again=*/!out_);
  }
  Later(ToSeconds(retry_->NextWait()), [this] { Dial(); });
}

// ---- what the server says

absl::Status SimWorker::Read(const DownFrame& frame) {
  if (const auto* vote = std::get_if<VoteFrame>(&frame)) {
    SIGNVOTE_ASSIGN_OR_RETURN(const bool wanted, follower_->Wants(vote->run_id, vote->round));
    if (!wanted) return absl::OkStatus();
    // With more slots than rounds can be under way there is always room.
    return assembler_
        ->Add({.epoch = vote->epoch,
               .round = vote->round,
               .attempt = vote->attempt,
               .chunk = vote->chunk,
               .checksum = vote->checksum},
              vote->payload, Now())
        .status();
  }
  const v1::ServerMessage& message = *std::get<std::shared_ptr<const v1::ServerMessage>>(frame);
  SIGNVOTE_ASSIGN_OR_RETURN(std::vector<FollowerAction> actions, follower_->Handle(message, Now()));
  for (FollowerAction& action : actions) {
    SIGNVOTE_RETURN_IF_ERROR(Do(std::move(action), message));
    if (!connection_.has_value()) return absl::OkStatus();
  }
  Advance();
  return absl::OkStatus();
}

absl::Status SimWorker::Do(FollowerAction action, const v1::ServerMessage& message) {
  if (auto* say = std::get_if<SayAction>(&action)) {
    Say(std::move(say->message));
  } else if (std::holds_alternative<JoinedAction>(action)) {
    retry_->Progress();
    Joined();
  } else if (auto* transfer = std::get_if<TransferAction>(&action)) {
    Transfer(*transfer);
  } else if (std::holds_alternative<CommitDueAction>(action)) {
    return CommitDue(message.commit());
  } else if (auto* opened = std::get_if<OpenedAction>(&action)) {
    opened_ = std::move(*opened);
    world_->Trace(name_, absl::StrCat("is told of round ", opened_->ticket.round.value(),
                                      ", attempt ", opened_->vote.attempt.value()));
    if (ballot_.has_value() && ballot_->ticket.round == opened_->ticket.round) HandAll();
  } else if (std::holds_alternative<ClosedAction>(action)) {
    opened_.reset();
  } else if (auto* finish = std::get_if<FinishAction>(&action)) {
    finish_rounds_ = finish->rounds;
  } else if (const auto* rejoin = std::get_if<RejoinAction>(&action)) {
    return rejoin->why;
  } else if (std::holds_alternative<DrainAction>(action)) {
    draining_ = true;
  }
  return absl::OkStatus();
}

void SimWorker::Joined() {
  if (replica_ != nullptr) return;
  const RunInfo& run = follower_->run();
  memory_ = std::make_unique<HostReplicaMemory>(std::span<float>(x_));
  if (run.needs_x0) SIGNVOTE_CHECK(memory_->KeepX0().ok());
  replica_ = std::make_unique<Replica>(&run.layout, memory_.get(),
                                       run.needs_x0 ? Replica::X0::kNeeded : Replica::X0::kUnused);
  store_ =
      std::make_unique<VerdictStore>(run.commit_plan, kSlotsMax, std::pmr::new_delete_resource());
  assembler_ = std::make_unique<VerdictAssembler>(store_.get());
  packer_ = device_.MakePacker(&run.layout, run.plan, run.direction).value();
  if (run.local_steps_max == 1) return;
  steps_ = std::make_unique<LocalStepSource>(PointersInto(run.layout, x_.data()));
  SIGNVOTE_CHECK(steps_->Bind(run, memory_.get(), packer_.get()).ok());
}

absl::Status SimWorker::CommitDue(const v1::Commit& commit) {
  absl::StatusOr<CommitEvent> event = assembler_->Take(commit, Now());
  if (!event.ok()) {
    return follower_->Mismatched(Round(commit.round()), std::string(event.status().message()));
  }
  follower_->Took(event->round, event->epoch);
  if (catch_up_ != nullptr) {
    catch_up_->Add(*std::move(event));
    return absl::OkStatus();
  }
  const absl::Status applied = replica_->Apply(*event);
  // From before a state transfer that failed: void by now.
  if (applied.ok()) Applied(*event);
  if (event->slot != nullptr) store_->Release(event->slot);
  return absl::IsFailedPrecondition(applied) ? absl::OkStatus() : applied;
}

void SimWorker::Applied(const CommitEvent& commit) {
  const bool contiguous = ballot_.has_value() && ballot_->ticket.round == commit.round;
  if (commit.kind == CommitKind::kRewind) SIGNVOTE_CHECK(packer_->Reset().ok());
  if (steps_ != nullptr) {
    if (contiguous && commit.kind == CommitKind::kNone && ballot_->abstains) {
      lost_of_ = commit.round.next();
      lost_ = *ballot_->abstains;
    }
    const bool goes_on = contiguous && commit.kind == CommitKind::kNone && !ballot_->abstains;
    SIGNVOTE_CHECK(goes_on ? steps_->Settle(BallotFate::kNotApplied).ok() : steps_->Reset().ok());
  }
  if (!contiguous || commit.kind != CommitKind::kStep) ForgetPrevious();
  prev_verdict_.reset();
  if (contiguous && commit.slot != nullptr && commit.slot->plan->OnlySigns()) {
    prev_verdict_ =
        std::make_shared<std::vector<uint8_t>>(commit.slot->bits.begin(), commit.slot->bits.end());
  }
  if (!replica_->level()) return;
  if (!damaged_) {
    world_->checker.OnReplica(name_, replica_->round(), *replica_->Digest());
  }
  if (commit.digest_due && replica_->round() == commit.round.next()) SayDigest(commit.run_done);
}

void SimWorker::SayDigest(bool last) {
  uint64_t digest = *replica_->Digest();
  if (host_ < world_->options.digest_liars && !last) digest = ~digest;
  if (!last && std::exchange(lying_digest_next_, false)) {
    world_->Count(Fault::kLyingDigest);
    // Liars that agree, and are most of those asked, are another matter: the server then has to stop.
    digest ^= host_ + 1;
  }
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(replica_->round().value());
  message.mutable_replica_digest()->set_digest(digest);
  follower_->SaidDigest(replica_->round());
  Say(std::move(message));
}

// ---- state transfers

void SimWorker::Transfer(const TransferAction& action) {
  if (call_ != 0) server_->Abandon(call_);  // the server asks for another one
  catch_up_.reset();
  call_kind_ = action.kind;
  const bool fetch = action.kind == TransferAction::Kind::kFetch;
  double seconds = kPartSeconds;
  std::shared_ptr<const std::vector<float>> values;
  if (fetch) {
    replica_->Clear();
    SIGNVOTE_CHECK(replica_->ExpectX0().ok());
    ballot_.reset();
    ForgetPrevious();
    prev_verdict_.reset();
    damaged_ = false;
    catch_up_ = std::make_unique<CatchUp>(
        [this](const CommitEvent& commit) {
          if (commit.kind == CommitKind::kRewind) SIGNVOTE_CHECK(packer_->Reset().ok());
          return replica_->Apply(commit);
        },
        [this](const CommitEvent& commit) {
          if (commit.slot != nullptr) store_->Release(commit.slot);
        });
  } else {
    values = std::make_shared<const std::vector<float>>(x_);
  }
  if (Is(slow_transfer_until_)) {
    world_->Count(Fault::kSlowTransfer);
    seconds = fetch ? world_->timeline.Uniform(0.5, 3) : world_->timeline.Uniform(0.5, 15);
  }
  call_ = server_->Call(fetch ? run::CallKind::kFetch : run::CallKind::kUpload, action.ticket,
                        host_, seconds, std::move(values), this);
  if (call_ == 0) Drop(absl::AbortedError("state transfer failed: nobody serves"));
}

void SimWorker::OnState(uint64_t call, const StateFrame& frame) {
  if (call != call_) return;
  SIGNVOTE_CHECK(Xxh3(frame.values->data(), frame.values->size() * sizeof(float)) ==
                 frame.checksum);
  absl::Status status;
  if (frame.plane == 1) {
    status = memory_->WriteX0(frame.first, *frame.values);
    if (status.ok()) status = replica_->AddX0Part(frame.first, frame.values->size());
  } else {
    // The part lies where none is yet, so what is there may follow before or after it is written.
    status = memory_->Write(frame.first, *frame.values);
    if (status.ok()) status = catch_up_->FollowTo(frame.round);
    if (status.ok()) status = replica_->AddPart(frame.round, frame.first, frame.values->size());
  }
  if (!status.ok()) world_->checker.Fail(absl::StrCat(name_, " cannot fetch: ", Describe(status)));
}

void SimWorker::OnCallEnded(uint64_t call, const absl::Status& status) {
  if (call != call_) return;
  call_ = 0;
  if (!status.ok()) {
    world_->Trace(name_, "its transfer fails: " + Describe(status));
    if (call_kind_ == TransferAction::Kind::kUpload) ++world_->counters->uploads_failed;
    catch_up_.reset();
    if (call_kind_ == TransferAction::Kind::kFetch) replica_->Clear();
    return Drop(absl::AbortedError("state transfer failed"));
  }
  if (call_kind_ == TransferAction::Kind::kUpload) {
    SIGNVOTE_CHECK(replica_->BeginHere().ok());
  } else {
    if (replica_->received_x0() == 0) replica_->LetGoOfX0();
    const absl::Status followed = catch_up_->FollowAll();
    catch_up_.reset();
    if (!followed.ok()) return world_->checker.Fail(name_ + " cannot follow what it fetched");
  }
  world_->Trace(name_, absl::StrCat("holds round ", replica_->round().value(),
                                    replica_->level() ? "" : " and later ones"));
  Say(follower_->FollowFrom(replica_->round(), replica_->round()));
  if (replica_->level()) {
    world_->checker.OnReplica(name_, replica_->round(), *replica_->Digest());
  }
  Advance();
}

// ---- what is to be done next

void SimWorker::Advance() {
  if (!connection_.has_value() || replica_ == nullptr || call_ != 0) return;
  if (finish_rounds_.has_value()) {
    const bool done = replica_->level() && replica_->round() >= *finish_rounds_;
    if (done && follower_->finish_current() && !follower_->parted()) SayDigest(/*last=*/true);
    if (done || !replica_->complete()) return;
  }
  if (ballot_.has_value() && replica_->level() && ballot_->ticket.round < replica_->round()) {
    // A commit has overtaken this ballot: half of the workers drop the rest, the others are late.
    if (host_ % 2 == 0 || !opened_.has_value() || opened_->ticket.round > ballot_->ticket.round) {
      ballot_.reset();
    }
  }
  if (draining_ && !ballot_.has_value()) {
    v1::WorkerMessage leave;
    leave.mutable_leave()->set_reason("drained");
    follower_->SayGoodbye();
    return Say(std::move(leave));
  }
  if (opened_.has_value() && replica_->level() && opened_->ticket.round == replica_->round() &&
      (!ballot_.has_value() || ballot_->ticket.round != opened_->ticket.round)) {
    StartVote(opened_->ticket);
  }
}

// ---- ballots

std::optional<uint64_t> SimWorker::Windows() const {
  const SimOptions& o = world_->options;
  if (host_ >= o.able) return std::nullopt;
  return o.other_windows ? 100 + host_ % 2 : 100;
}

void SimWorker::BeginEvaluation(const RoundTicket& ticket) {
  // What a replica that has changed by itself says would be of no round.
  if (damaged_) return;
  const uint64_t every = follower_->run().evaluate_every;
  const uint64_t windows = *Windows();
  measurement_ = {.report = {.loss = Model::HeldOutLoss(*replica_->Digest(), windows),
                             .error = 0.01,
                             .round = ticket.round,
                             .windows = windows},
                  .ballots_left = every - every / 4};
}

void SimWorker::HandChunk(uint64_t number, uint32_t k, double interval) {
  if (!ballot_.has_value() || ballot_->number != number) return;
  Ballot& ballot = *ballot_;
  if (ballot.abstains.has_value() && k == ballot.abstains_at) {
    ballot.abstained = true;
    if (const auto vote = follower_->VoteOf(ballot.ticket.round)) SendAbstain(*vote);
    return Advance();
  }
  const auto chunks = static_cast<uint32_t>(ballot.chunks.size());
  if (k == chunks || ballot.ticket.silent()) return HandScalars(number);
  const auto hand = [this, number, k] {
    if (!ballot_.has_value() || ballot_->number != number) return;
    ballot_->chunks[k] = true;
    if (const auto vote = follower_->VoteOf(ballot_->ticket.round)) SendChunk(k, *vote);
  };
  if (k == number % chunks && Is(late_chunk_until_)) {
    world_->Count(Fault::kLateChunk);
    Later(world_->timeline.Uniform(8, 20), hand);
  } else {
    hand();
  }
  Later(k + 1 == chunks ? 0.001 : interval,
        [this, number, k, interval] { HandChunk(number, k + 1, interval); });
}

void SimWorker::HandScalars(uint64_t number) {
  if (!ballot_.has_value() || ballot_->number != number) return;
  if (Is(no_scalars_until_)) {
    world_->Count(Fault::kNoScalars);
    return Later(ToSeconds(no_scalars_until_ - Now()), [this, number] { HandScalars(number); });
  }
  ballot_->scalars_handed = true;
  if (const auto vote = follower_->VoteOf(ballot_->ticket.round)) SendScalars(*vote);
  Advance();
}

void SimWorker::HandAll() {
  const std::optional<VoteId> vote = follower_->VoteOf(ballot_->ticket.round);
  if (!vote.has_value()) return;
  for (uint32_t k = 0; k < ballot_->chunks.size(); ++k) {
    if (ballot_->chunks[k]) SendChunk(k, *vote);
  }
  if (ballot_->abstained) SendAbstain(*vote);
  if (ballot_->scalars_handed) SendScalars(*vote);
}

void SimWorker::SendChunk(uint32_t k, const VoteId& vote) {
  if (!connection_.has_value()) return;
  const PayloadPlan& plan = follower_->run().ballot_plan;
  const ChunkIndex chunk(k);
  const auto begin = ballot_->bits.begin() + static_cast<ptrdiff_t>(plan.Offset(chunk));
  auto bits = std::make_shared<std::vector<uint8_t>>(
      begin, begin + static_cast<ptrdiff_t>(plan.Bytes(chunk, 1)));
  VoteFrame frame{.run_id = vote.run_id,
                  .epoch = vote.epoch,
                  .round = ballot_->ticket.round,
                  .attempt = vote.attempt,
                  .chunk = chunk,
                  .checksum = Xxh3(bits->data(), bits->size()),
                  .payload = *bits,
                  .owner = bits};
  world_->network.SendUp(*connection_, frame);
  if (!Is(second_ballot_until_)) return;
  world_->Count(Fault::kSecondBallot);
  auto others = std::make_shared<std::vector<uint8_t>>(*bits);
  for (uint8_t& byte : *others) byte = static_cast<uint8_t>(byte ^ 0x55);
  frame.payload = *others;
  frame.owner = others;
  frame.checksum = Xxh3(others->data(), others->size());
  world_->network.SendUp(*connection_, std::move(frame));
}

void SimWorker::SendScalars(const VoteId& vote) {
  absl::StatusOr<v1::Scalars> scalars =
      ScalarsFrom(ballot_->scalars, ballot_->ticket, follower_->run().layout.tensors().size());
  SIGNVOTE_CHECK(scalars.ok());
  scalars->set_round(ballot_->ticket.round.value());
  scalars->set_attempt(vote.attempt.value());
  if (Is(lying_scalars_until_)) {
    world_->Count(Fault::kLyingScalars);
    if (scalars->displacement_mean_size() > 0)
      scalars->set_displacement_mean(0, world_->timeline.Below(2) == 0 ? -1.0f : 1e30f);
    switch (world_->timeline.Below(9)) {
      case 6:
        scalars->set_held_out_loss(kNaN);
        break;
      case 7:
        scalars->set_held_out_loss(1);
        scalars->set_held_out_hash(7);
        break;
      case 8:
        scalars->set_held_out_loss(1);
        scalars->set_held_out_round(UINT64_MAX);
        scalars->set_held_out_hash(100);
        break;
      case 0:
        scalars->set_loss(kNaN);
        break;
      case 1:
        scalars->set_g_l1(-std::numeric_limits<double>::infinity());
        break;
      case 2:
        scalars->set_g_l2_squared(1e308);
        break;
      case 3:
        for (int i = 0; i < 5; ++i) scalars->add_wanted(1e300);
        break;
      case 4:
        scalars->set_compute_us(std::numeric_limits<uint64_t>::max());
        scalars->set_apply_us(std::numeric_limits<uint64_t>::max());
        break;
      default:
        scalars->set_samples(std::numeric_limits<uint64_t>::max());
        scalars->set_nonfinite_coordinates(std::numeric_limits<uint64_t>::max());
        break;
    }
  }
  v1::WorkerMessage message;
  *message.mutable_scalars() = *std::move(scalars);
  Say(std::move(message));
}

void SimWorker::SendAbstain(const VoteId& vote) {
  v1::WorkerMessage message;
  message.mutable_abstain()->set_round(ballot_->ticket.round.value());
  message.mutable_abstain()->set_attempt(vote.attempt.value());
  message.mutable_abstain()->set_reason(ToProto(*ballot_->abstains));
  Say(std::move(message));
}

// ---- what is not allowed

bool SimWorker::BreakProtocol() {
  if (!connection_.has_value() || !welcomed() || follower_->goodbye()) return false;
  const RunInfo& run = follower_->run();
  auto bits = std::make_shared<std::vector<uint8_t>>(run.plan.Bytes(ChunkIndex(0)), 0);
  VoteFrame frame{.run_id = run.run_id,
                  .round = world_->checker.published(),
                  .checksum = Xxh3(bits->data(), bits->size()),
                  .payload = *bits,
                  .owner = bits};
  v1::WorkerMessage message;
  switch (world_->timeline.Below(6)) {
    case 0:
      frame.chunk = ChunkIndex(run.plan.chunks());
      break;
    case 1:
      frame.round = Round(frame.round.value() + 7);
      break;
    case 2:
      frame.run_id = RunId();
      break;
    case 3:
      ++bits->front();  // not what the checksum says
      break;
    case 4:
      world_->network.SendUp(*connection_, join_);  // a second Join
      return true;
    default:
      message.mutable_pong()->set_nonce(world_->timeline.Below(UINT64_MAX));
      Say(message);
      message.mutable_scalars()->set_round(UINT64_MAX);
      Say(message);
      message.mutable_replica_digest()->set_round(UINT64_MAX);
      Say(std::move(message));
      return true;
  }
  world_->network.SendUp(*connection_, std::move(frame));
  return true;
}

bool SimWorker::SayReadyAgain() {
  if (!connection_.has_value() || !welcomed() || follower_->goodbye()) return false;
  v1::WorkerMessage message;
  const uint64_t round = world_->checker.published().value();
  message.mutable_ready()->set_round(world_->timeline.OneIn(2) ? round + 3 : 0);
  Say(std::move(message));
  return true;
}

bool SimWorker::FetchAgain() {
  if (!connection_.has_value() || !welcomed() || call_ != 0) return false;
  // With the ticket of its own session, and with none.
  const std::string ticket =
      world_->timeline.OneIn(2) ? absl::StrCat("ticket ", *connection_) : "none";
  std::string padded = ticket;
  padded.resize(16, ' ');
  return server_->Call(run::CallKind::kFetch, padded, host_, kPartSeconds, nullptr, this) != 0;
}

bool SimWorker::Damage() {
  if (replica_ == nullptr || !replica_->level() || call_ != 0 || damaged_) return false;
  damaged_ = true;
  x_[world_->timeline.Below(x_.size())] += 1.0f;
  return true;
}

}  // namespace signvote::sim
