#include "worker/session/session.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/status.h"
#include "worker/session/link.h"
#include "worker/session/messages.h"
#include "worker/session/replica.h"
#include "worker/session/replica_moves.h"
#include "worker/session/state_mover.h"
#include "worker/session/worker_identity.h"

namespace signvote {
namespace {

constexpr Duration kLeaveTimeout = std::chrono::seconds(3);
// How long a worker that was asked to leave waits for the round that it has voted in.
constexpr Duration kDrainTimeout = std::chrono::seconds(10);
constexpr Duration kDrainTimeoutWithoutServer = std::chrono::seconds(2);

// The caller's side of a session: it owns the replica and decides when it moves. The link's thread
// owns the connection; the two meet in the link's queue of events.
class SessionImpl final : public Session {
 public:
  SessionImpl(const SessionOptions& options, Clock* clock, WorkerIdentity identity, uint64_t seed)
      : options_(options),
        clock_(clock),
        name_(std::move(identity.name)),
        token_(std::move(identity.token)),
        process_(getpid()),
        log_(options.log ? options.log : SessionLog(Log)),
        moves_([this](VerdictStore::Slot* slot) { link_->ReleaseSlot(slot); }),
        link_(std::make_unique<Link>(options_, clock, &log_, std::move(identity.credentials),
                                     seed)) {}
  ~SessionImpl() override {
    // A child of the process that made it: the connection is the parent's, and so is the thread.
    if (getpid() != process_) (void)link_.release();
  }

  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const ModelDescription& model) override;
  absl::Status Attach(ReplicaMemory* replica) override;
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override;
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) override;
  absl::Status SendScalars(const BallotScalars& scalars) override;
  absl::Status Abstain(AbstainReason reason) override;
  absl::StatusOr<CommitOutcome> WaitCommit() override;
  absl::Status Leave(const std::string& reason) override;
  void RequestDrain(const std::string& reason) override { link_->RequestDrain(reason); }
  std::optional<Round> replica_round() const override {
    return ReplicaReady() && !differs_ ? std::optional(replica_->round()) : std::nullopt;
  }
  std::string run_state() const override {
    return replica_round() == stands_.round ? stands_.run_state : "";
  }
  bool finished() const override { return finished_; }
  bool drained() const override { return drained_; }
  SessionStats Stats() const override { return link_->Stats(); }

 private:
  absl::Status Usable() const;
  absl::Status TakeReplica(ReplicaMemory* replica);
  absl::Status HandleNext(Time deadline, const std::string& what);
  absl::Status HandleArrived();
  absl::Status Handle(LinkEvent event);
  // Takes up the state transfers that are wanted.
  absl::Status Settle();
  // Events that came during a transfer. ABORTED: another one is wanted.
  absl::Status TakeArrived();
  absl::Status Apply(const CommitEvent& commit);
  absl::Status ApplyCommit(CommitEvent commit);
  void LetGo(const CommitEvent& commit);
  absl::Status FinishRun();
  void LeaveNow(const std::string& reason);
  absl::Status LeaveBeforeJoining();
  bool ReplicaReady() const { return replica_ != nullptr && replica_->level(); }

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const std::string name_;
  const std::string token_;
  const pid_t process_;
  const SessionLog log_;

  std::optional<RunInfo> run_;  // set by Join; constant then
  bool started_ = false;        // Join was called
  // Set by Attach.
  ReplicaMemory* memory_ = nullptr;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<StateMover> mover_;

  ReplicaMoves moves_;
  std::optional<RoundTicket> ticket_;
  std::optional<OpenEvent> pending_open_;
  std::optional<StateEvent> pending_state_;
  struct {
    std::optional<Round> round;  // behind the last commit; nullopt: none was applied
    std::string run_state;
  } stands_;
  bool differs_ = false;       // the server said so of the replica, and no state has come since
  bool transferring_ = false;  // StateMover::Move() has begun a transfer
  std::optional<Round> finish_rounds_;
  std::optional<std::string> drain_reason_;

  // Written by the caller's thread, read by any; order nothing else.
  std::atomic<bool> finished_{false};
  std::atomic<bool> drained_{false};

  std::unique_ptr<Link> link_;  // last: its thread ends before anything else goes
};

absl::Status SessionImpl::Usable() const {
  if (replica_ == nullptr)
    return absl::FailedPreconditionError("no replica is attached; call Join and Attach first");
  return link_->events().status();
}

// ---- joining ------------------------------------------------------------------------------------

absl::StatusOr<RunInfo> SessionImpl::Join(const ModelDescription& model) {
  if (run_) return absl::FailedPreconditionError("the session has joined already");
  if (!started_) {
    started_ = true;
    link_->Start({.name = name_,
                  .token = token_,
                  .metrics_address = options_.metrics_address,
                  .run_id = options_.run_id,
                  .model = model,
                  .wants_run_state = options_.wants_run_state});
  }
  const Time deadline = clock_->Now() + options_.wait_timeout;
  while (!run_) {
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, "the server to let this worker in"));
    if (drain_reason_) return LeaveBeforeJoining();
  }
  return *run_;
}

absl::Status SessionImpl::LeaveBeforeJoining() {
  LeaveNow(*drain_reason_);
  return absl::CancelledError(
      absl::StrCat("asked to leave before it had joined: ", *drain_reason_));
}

absl::Status SessionImpl::Attach(ReplicaMemory* replica) {
  if (!run_) return absl::FailedPreconditionError("the session has not joined");
  if (replica == nullptr) return absl::InvalidArgumentError("no replica was given");
  if (replica_ != nullptr && replica != memory_)
    return absl::FailedPreconditionError("another replica is attached already");
  if (replica_ == nullptr) SIGNVOTE_RETURN_IF_ERROR(TakeReplica(replica));
  const Time deadline = clock_->Now() + options_.wait_timeout;
  SIGNVOTE_RETURN_IF_ERROR(Settle());
  while (!ReplicaReady() && !finish_rounds_) {
    if (drain_reason_) return LeaveBeforeJoining();
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, "the replica to be the run's"));
  }
  moves_.Transferred();  // how the replica came here is no gap: the caller had none before
  return absl::OkStatus();
}

absl::Status SessionImpl::TakeReplica(ReplicaMemory* replica) {
  if (replica->coordinates() != run_->layout.coordinates()) {
    return absl::InvalidArgumentError(absl::StrCat("the replica has ", replica->coordinates(),
                                                   " coordinates, the run's layout ",
                                                   run_->layout.coordinates()));
  }
  // Who has made room for it already has it once.
  if (run_->needs_x0 && !replica->keeps_x0()) {
    const absl::Status kept = replica->KeepX0();
    if (absl::IsUnimplemented(kept)) return absl::InvalidArgumentError(std::string(kept.message()));
    SIGNVOTE_RETURN_IF_ERROR(kept);
  }
  memory_ = replica;
  replica_ = std::make_unique<Replica>(
      &run_->layout, replica, run_->needs_x0 ? Replica::X0::kNeeded : Replica::X0::kUnused);
  mover_ = std::make_unique<StateMover>(
      link_.get(), clock_, &log_,
      StateMover::Options{.server = options_.server,
                          .first_pause = options_.transfer_backoff,
                          .verdict_bytes = run_->commit_plan.TotalBytes()},
      replica_.get(), memory_,
      StateMover::Session{.begins =
                              [this] {
                                transferring_ = true;
                                if (const auto round = replica_round();
                                    round.has_value() && options_.before_transfer)
                                  options_.before_transfer(*round);
                                moves_.Transferred();
                              },
                          .take_arrived = [this] { return TakeArrived(); },
                          .apply =
                              [this](const CommitEvent& commit) {
                                SIGNVOTE_RETURN_IF_ERROR(Apply(commit));
                                if (commit.kind == CommitKind::kRewind) moves_.Rewound();
                                return absl::OkStatus();
                              },
                          .let_go = [this](const CommitEvent& commit) { LetGo(commit); }});
  return absl::OkStatus();
}

// ---- events -------------------------------------------------------------------------------------

absl::Status SessionImpl::HandleNext(Time deadline, const std::string& what) {
  SIGNVOTE_ASSIGN_OR_RETURN(LinkEvent event, link_->events().Next(deadline, what));
  SIGNVOTE_RETURN_IF_ERROR(Handle(std::move(event)));
  return Settle();
}

absl::Status SessionImpl::HandleArrived() {
  SIGNVOTE_RETURN_IF_ERROR(Settle());
  while (std::optional<LinkEvent> event = link_->events().TryNext()) {
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
    SIGNVOTE_RETURN_IF_ERROR(Settle());
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::Handle(LinkEvent event) {
  if (auto* commit = std::get_if<CommitEvent>(&event)) {
    if (mover_ == nullptr || !mover_->fetching()) return ApplyCommit(std::move(*commit));
    mover_->AddCommit(std::move(*commit));
  } else if (auto* open = std::get_if<OpenEvent>(&event)) {
    pending_open_ = std::move(*open);
    if (mover_ != nullptr) mover_->RoundOpened();
  } else if (auto* state = std::get_if<StateEvent>(&event)) {
    pending_state_ = std::move(*state);
  } else if (auto* finish = std::get_if<FinishEvent>(&event)) {
    finish_rounds_ = finish->rounds;
  } else if (auto* drain = std::get_if<DrainEvent>(&event)) {
    drain_reason_ = std::move(drain->reason);
  } else if (auto* joined = std::get_if<JoinedEvent>(&event)) {
    run_ = std::move(joined->run);
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::Settle() {
  while (pending_state_ && replica_ != nullptr && !drain_reason_) {
    const StateEvent state = *std::exchange(pending_state_, std::nullopt);
    differs_ = differs_ || state.differs;
    transferring_ = false;
    SIGNVOTE_ASSIGN_OR_RETURN(const StateMover::Moved moved, mover_->Move(state));
    // Not of a connection that was over before the state came.
    if (transferring_ && ReplicaReady()) differs_ = false;
    if (moved == StateMover::Moved::kDone) continue;
    pending_state_ = state;  // taken up by the next call
    return absl::CancelledError("interrupted before a state transfer");
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::TakeArrived() {
  while (std::optional<LinkEvent> event = link_->events().TryNext())
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
  if (pending_state_) return absl::AbortedError("the server asks for another state transfer");
  return absl::OkStatus();
}

// ---- commits ------------------------------------------------------------------------------------

absl::Status SessionImpl::Apply(const CommitEvent& commit) {
  if (options_.before_apply) options_.before_apply();
  const Time start = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(replica_->Apply(commit));
  stands_ = {.round = commit.round.next(), .run_state = commit.run_state};
  link_->counters().CommitApplied(clock_->Now() - start);
  mover_->Touched();
  return absl::OkStatus();
}

absl::Status SessionImpl::ApplyCommit(CommitEvent commit) {
  const absl::Status applied =
      replica_ == nullptr ? absl::FailedPreconditionError("no replica") : Apply(commit);
  if (!applied.ok()) {
    LetGo(commit);
    // From before a state transfer that failed: void by now.
    return absl::IsFailedPrecondition(applied) ? absl::OkStatus() : applied;
  }
  const bool digest_due =
      commit.digest_due && replica_->level() && replica_->round() == commit.round.next();
  moves_.Applied(std::move(commit), link_->counters().last_apply());
  if (digest_due) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
    link_->conversation().SayDigest(replica_->round(), digest);
  }
  return absl::OkStatus();
}

void SessionImpl::LetGo(const CommitEvent& commit) {
  if (commit.slot != nullptr) link_->ReleaseSlot(commit.slot);
}

// ---- rounds -------------------------------------------------------------------------------------

absl::StatusOr<std::optional<RoundTicket>> SessionImpl::NextRound() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  const Time deadline = clock_->Now() + options_.wait_timeout;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (finished_ || drained_) return std::optional<RoundTicket>();
    if (finish_rounds_ &&
        (!replica_->complete() || (ReplicaReady() && replica_->round() >= *finish_rounds_))) {
      // After a broken connection the next one says it again; a server that stays away has ended.
      if (!link_->conversation().finish_current() && !drain_reason_) {
        const absl::Status status = HandleNext(deadline, "the finished run's server");
        if (!absl::IsOutOfRange(status)) {
          SIGNVOTE_RETURN_IF_ERROR(status);
          continue;
        }
      }
      SIGNVOTE_RETURN_IF_ERROR(FinishRun());
      return std::optional<RoundTicket>();
    }
    if (drain_reason_) {
      LeaveNow(*drain_reason_);
      return std::optional<RoundTicket>();
    }
    if (pending_open_ && ReplicaReady() && pending_open_->ticket.round == replica_->round() &&
        (!ticket_ || ticket_->round != pending_open_->ticket.round)) {
      break;
    }
    const absl::Status status = HandleNext(deadline, "a round to open");
    if (absl::IsOutOfRange(status) && finish_rounds_) {
      return absl::UnavailableError(
          absl::StrCat("server ", options_.server,
                       " has ended the run and is gone; this worker's replica stands at round ",
                       replica_->round().value(), " of ", finish_rounds_->value()));
    }
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  (void)link_->ballot().Close();  // of a round that went on without this worker
  ticket_ = pending_open_->ticket;
  if (ticket_->x0_over) replica_->LetGoOfX0();
  moves_.Tell(&*ticket_);
  link_->ballot().Open(ticket_->round, pending_open_->at, run_->ballot_plan);
  return ticket_;
}

absl::Status SessionImpl::SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  return link_->ballot().SendChunk(k, std::move(ballot));
}

absl::Status SessionImpl::SendScalars(const BallotScalars& scalars) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  SIGNVOTE_ASSIGN_OR_RETURN(v1::Scalars out,
                            ScalarsFrom(scalars, *ticket_, run_->layout.tensors().size()));
  out.set_apply_us(static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(link_->counters().last_apply())
          .count()));
  SIGNVOTE_ASSIGN_OR_RETURN(const bool whole, link_->ballot().SendScalars(std::move(out)));
  if (whole) link_->counters().BallotSent();
  return absl::OkStatus();
}

absl::Status SessionImpl::Abstain(AbstainReason reason) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  return link_->ballot().SendAbstain(ToProto(reason));
}

absl::StatusOr<CommitOutcome> SessionImpl::WaitCommit() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  moves_.ReleaseOutcome();
  const Time deadline = clock_->Now() + options_.wait_timeout;
  std::optional<Time> drain_since;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    // Also below it: a server that lost rounds has put the replica back, and asks for them anew.
    if (finish_rounds_ || (ReplicaReady() && replica_->round() != ticket_->round)) break;
    Time until = deadline;
    if (drain_reason_) {
      const Time now = clock_->Now();
      if (!drain_since) drain_since = now;
      const Duration waited = now - *drain_since;
      // Without a server, or without a replica, nothing is to be waited for much longer.
      if (!ReplicaReady() || waited >= kDrainTimeout ||
          (waited >= kDrainTimeoutWithoutServer && !link_->conversation().welcomed())) {
        LeaveNow(*drain_reason_);
        break;
      }
      until = std::min(
          until, *drain_since + (waited < kDrainTimeoutWithoutServer ? kDrainTimeoutWithoutServer
                                                                     : kDrainTimeout));
    }
    const absl::Status status =
        HandleNext(until, absl::StrCat("round ", ticket_->round.value(), " to be committed"));
    if (drain_reason_ && absl::IsDeadlineExceeded(status) && clock_->Now() < deadline) continue;
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  return moves_.TakeOutcome(ticket_->round, ReplicaReady() ? replica_->round() : ticket_->round,
                            link_->ballot().Close(), finish_rounds_.has_value());
}

// ---- leaving ------------------------------------------------------------------------------------

absl::Status SessionImpl::FinishRun() {
  std::optional<v1::WorkerMessage> digest;
  if (ReplicaReady()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t value, replica_->Digest());
    digest.emplace();
    digest->mutable_replica_digest()->set_round(replica_->round().value());
    digest->mutable_replica_digest()->set_digest(value);
  }
  if (!link_->PartFrom(digest, Conversation::Goodbye::kAwaitServer, options_.finish_timeout)) {
    log_(LogLevel::kWarning, "the server did not close the finished run's session",
         {{"server", options_.server}});
  }
  if (absl::Status end = link_->events().status(); IsRunEnd(ExitCodeFor(end))) return end;
  finished_ = true;
  return absl::OkStatus();
}

void SessionImpl::LeaveNow(const std::string& reason) {
  v1::WorkerMessage message;
  message.mutable_leave()->set_reason(reason);
  link_->PartFrom(message, Conversation::Goodbye::kHalfClose, kLeaveTimeout);
  drained_ = true;
}

absl::Status SessionImpl::Leave(const std::string& reason) {
  if (!started_) return absl::OkStatus();
  (void)link_->ballot().Close();
  if (!finished_ && !drained_ && link_->events().status().ok()) LeaveNow(reason);
  link_->Stop();
  return absl::OkStatus();
}

}  // namespace

absl::Status Session::CheckOptions(const SessionOptions& options, Clock* clock) {
  return LoadIdentity(options, FileSystem::Posix(), clock).status();
}

absl::StatusOr<std::unique_ptr<Session>> Session::Create(const SessionOptions& options,
                                                         Clock* clock) {
  FileSystem* const fs = FileSystem::Posix();
  SIGNVOTE_ASSIGN_OR_RETURN(WorkerIdentity identity, LoadIdentity(options, fs, clock));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(uint64_t)));
  uint64_t seed = 0;
  std::memcpy(&seed, random.data(), sizeof(seed));
  return std::unique_ptr<Session>(new SessionImpl(options, clock, std::move(identity), seed));
}

}  // namespace signvote
