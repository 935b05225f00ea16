#include "worker/session/session.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/host_port.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "worker/session/catch_up.h"
#include "worker/session/link.h"
#include "worker/session/messages.h"
#include "worker/session/replica.h"
#include "worker/session/state_transfer.h"

namespace signvote {
namespace {

constexpr uint64_t kTokenBytesMax = 4096;
// State transfers that came to nothing, one after the other, after which it is said that they do.
constexpr int kTransfersInVainMax = 5;
constexpr Duration kTransferBackoffLongest = std::chrono::seconds(30);
constexpr Duration kLeaveTimeout = std::chrono::seconds(3);
// How long a worker that was asked to leave waits for the round that it has voted in.
constexpr Duration kDrainTimeout = std::chrono::seconds(10);
constexpr Duration kDrainTimeoutWithoutServer = std::chrono::seconds(2);

// The caller's side of a session: it owns the replica and what may move it. The link's thread owns
// the connection; the two meet in the link's queue of events.
class SessionImpl final : public Session {
 public:
  SessionImpl(const SessionOptions& options, Clock* clock, std::string name, std::string token,
              std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t jitter_seed)
      : options_(WithHook(options, &interrupted_)),
        clock_(clock),
        name_(std::move(name)),
        token_(std::move(token)),
        jitter_seed_(jitter_seed),
        process_(getpid()),
        log_(options.log ? options.log : SessionLog(Log)),
        link_(std::make_unique<Link>(options_, clock, &log_, std::move(credentials))) {}
  ~SessionImpl() override {
    // A child of the process that made it: the connection is the parent's, and so is the thread.
    if (getpid() != process_) (void)link_.release();
  }

  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const ModelDescription& model) override;
  absl::Status Attach(ReplicaMemory* replica) override;
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override;
  absl::Status SendChunk(ChunkIndex k, const uint8_t* ballot) override;
  absl::Status SendScalars(const BallotScalars& scalars) override;
  absl::Status Abstain(AbstainReason reason) override;
  absl::StatusOr<CommitOutcome> WaitCommit() override;
  absl::Status Leave(const std::string& reason) override;
  void RequestDrain(const std::string& reason) override { link_->RequestDrain(reason); }
  std::optional<Round> replica_round() const override {
    return ReplicaReady() ? std::optional(replica_->round()) : std::nullopt;
  }
  bool finished() const override { return finished_; }
  bool drained() const override { return drained_; }
  SessionStats Stats() const override { return link_->Stats(); }

 private:
  // What a transfer that was completed took, until a round that this worker may vote in shows that
  // it was not in vain.
  struct CompletedTransfer {
    double seconds = 0;
    uint64_t rounds = 0;  // committed meanwhile, as its parts tell
  };

  static SessionOptions WithHook(SessionOptions options, std::atomic<bool>* interrupted);
  absl::Status Usable() const;
  absl::Status HandleNext(Time deadline, const std::string& what);
  absl::Status HandleArrived();
  absl::Status Handle(LinkEvent event);
  // Takes up the state transfers that are wanted.
  absl::Status Settle();
  absl::Status Apply(const CommitEvent& commit);
  absl::Status ApplyCommit(CommitEvent commit);
  absl::Status TransferState(const StateEvent& state);
  absl::Status BeforeAnotherTransfer(const StateEvent& state);
  absl::Status Upload(const Link::Transfer& transfer, const StateEvent& state,
                      wire::SocketBytes* moved);
  absl::Status Fetch(const Link::Transfer& transfer, const StateEvent& state,
                     wire::SocketBytes* moved);
  absl::Status AddPart(const FetchedPart& part, CatchUp* catch_up);
  // Events that came during the transfer. ABORTED: another one is wanted.
  absl::Status TakeArrived();
  absl::Status FinishRun();
  void LeaveNow(const std::string& reason);
  absl::Status LeaveBeforeJoining();
  bool ReplicaReady() const { return replica_ != nullptr && replica_->level(); }
  CommitOutcome TakeOutcome();
  void ForgetMoves();

  // Constant after construction.
  std::atomic<bool> interrupted_{false};  // by the hook, since the last look
  const SessionOptions options_;
  Clock* const clock_;
  const std::string name_;
  const std::string token_;
  const uint64_t jitter_seed_;
  const pid_t process_;
  const SessionLog log_;

  std::optional<RunInfo> run_;  // set by Join; constant then
  bool started_ = false;        // Join was called
  ReplicaMemory* memory_ = nullptr;
  std::unique_ptr<Replica> replica_;  // set by Attach

  bool untouched_ = true;  // the memory still holds this worker's own initial parameters
  std::optional<RoundTicket> ticket_;
  std::optional<OpenEvent> pending_open_;
  std::optional<StateEvent> pending_state_;
  std::optional<Round> finish_rounds_;
  std::optional<std::string> drain_reason_;
  int transfers_in_vain_ = 0;  // since a round last opened
  std::optional<CompletedTransfer> last_transfer_;
  CatchUp* catching_up_ = nullptr;  // while a state is fetched
  // Since the last outcome or ticket.
  uint64_t applied_ = 0;
  bool transferred_ = true;  // the first ticket has no replica before it
  bool rewound_ = false;
  std::optional<CommitEvent> last_commit_;
  Duration last_apply_{};
  VerdictStore::Slot* outcome_slot_ = nullptr;  // behind the last outcome's verdict

  // Written by the caller's thread, read by any; order nothing else.
  std::atomic<bool> finished_{false};
  std::atomic<bool> drained_{false};

  std::unique_ptr<Link> link_;  // last: its thread ends before anything else goes
};

SessionOptions SessionImpl::WithHook(SessionOptions options, std::atomic<bool>* interrupted) {
  if (options.interrupted) {
    options.interrupted = [hook = std::move(options.interrupted), interrupted] {
      if (!hook()) return false;
      *interrupted = true;
      return true;
    };
  }
  return options;
}

absl::Status SessionImpl::Usable() const {
  if (replica_ == nullptr)
    return absl::FailedPreconditionError("no replica is attached; call Join and Attach first");
  return link_->status();
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
                  .message_bytes_max = options_.message_bytes_max,
                  .model = model},
                 jitter_seed_);
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
  if (replica_ == nullptr) {
    if (replica->coordinates() != run_->layout.coordinates()) {
      return absl::InvalidArgumentError(absl::StrCat("the replica has ", replica->coordinates(),
                                                     " coordinates, the run's layout ",
                                                     run_->layout.coordinates()));
    }
    if (run_->needs_x0) {
      const absl::Status kept = replica->KeepX0();
      if (absl::IsUnimplemented(kept))
        return absl::InvalidArgumentError(std::string(kept.message()));
      SIGNVOTE_RETURN_IF_ERROR(kept);
    }
    memory_ = replica;
    replica_ = std::make_unique<Replica>(
        &run_->layout, replica, run_->needs_x0 ? Replica::X0::kNeeded : Replica::X0::kUnused);
  }
  const Time deadline = clock_->Now() + options_.wait_timeout;
  SIGNVOTE_RETURN_IF_ERROR(Settle());
  while (!ReplicaReady() && !finish_rounds_) {
    if (drain_reason_) return LeaveBeforeJoining();
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, "the replica to be the run's"));
  }
  // How the replica came here is no gap: the caller had no previous one.
  ForgetMoves();
  transferred_ = true;
  return absl::OkStatus();
}

// ---- events -------------------------------------------------------------------------------------

absl::Status SessionImpl::HandleNext(Time deadline, const std::string& what) {
  SIGNVOTE_ASSIGN_OR_RETURN(LinkEvent event, link_->Next(deadline, what));
  SIGNVOTE_RETURN_IF_ERROR(Handle(std::move(event)));
  return Settle();
}

absl::Status SessionImpl::HandleArrived() {
  SIGNVOTE_RETURN_IF_ERROR(Settle());
  while (std::optional<LinkEvent> event = link_->TryNext()) {
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
    SIGNVOTE_RETURN_IF_ERROR(Settle());
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::Handle(LinkEvent event) {
  if (auto* commit = std::get_if<CommitEvent>(&event)) {
    if (catching_up_ == nullptr) return ApplyCommit(std::move(*commit));
    catching_up_->Add(std::move(*commit));
  } else if (auto* open = std::get_if<OpenEvent>(&event)) {
    pending_open_ = std::move(*open);
    transfers_in_vain_ = 0;
    last_transfer_.reset();
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
    SIGNVOTE_RETURN_IF_ERROR(TransferState(state));
  }
  return absl::OkStatus();
}

// ---- commits ------------------------------------------------------------------------------------

absl::Status SessionImpl::Apply(const CommitEvent& commit) {
  if (options_.before_apply) options_.before_apply();
  const Time start = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(replica_->Apply(commit));
  last_apply_ = clock_->Now() - start;
  link_->CountApplied(last_apply_);
  untouched_ = false;
  rewound_ = rewound_ || commit.kind == CommitKind::kRewind;
  return absl::OkStatus();
}

absl::Status SessionImpl::ApplyCommit(CommitEvent commit) {
  const absl::Status applied =
      replica_ == nullptr ? absl::FailedPreconditionError("no replica") : Apply(commit);
  if (!applied.ok()) {
    link_->ReleaseSlot(commit.slot);
    // From before a state transfer that failed: void by now.
    return absl::IsFailedPrecondition(applied) ? absl::OkStatus() : applied;
  }
  ++applied_;
  commit.times.apply = last_apply_;
  if (last_commit_) link_->ReleaseSlot(last_commit_->slot);
  last_commit_ = std::move(commit);
  if (last_commit_->digest_due && replica_->level() &&
      replica_->round() == last_commit_->round.next()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
    link_->SendDigest(replica_->round(), digest);
  }
  return absl::OkStatus();
}

void SessionImpl::ForgetMoves() {
  applied_ = 0;
  transferred_ = false;
  rewound_ = false;
  if (last_commit_) link_->ReleaseSlot(last_commit_->slot);
  last_commit_.reset();
}

// ---- state transfer -----------------------------------------------------------------------------

// Again, though no round has opened since the last one: says what happened and what would help, and
// gives the server time.
absl::Status SessionImpl::BeforeAnotherTransfer(const StateEvent& state) {
  if (transfers_in_vain_ == 0) return absl::OkStatus();
  if (last_transfer_) {
    const uint64_t bytes = (last_transfer_->rounds + 1) * run_->plan.TotalBytes();
    log_(LogLevel::kWarning,
         "the state that was fetched fell behind the commits that the server keeps; it is fetched "
         "again. A server with a larger --catch-up-bytes, or a faster network, would help",
         {{"took_seconds", last_transfer_->seconds},
          {"rounds_meanwhile", last_transfer_->rounds},
          {"catch_up_bytes_at_least", bytes},
          {"in_vain", static_cast<int64_t>(transfers_in_vain_)}});
    if (transfers_in_vain_ >= kTransfersInVainMax) {
      return absl::UnavailableError(absl::StrCat(
          "the state of the run was fetched ", transfers_in_vain_,
          " times in a row and fell behind each time (", last_transfer_->seconds, " s for ",
          last_transfer_->rounds, " rounds); start the server with --catch-up-bytes of at least ",
          bytes, ", or come over a faster network"));
    }
  }
  const Duration pause =
      std::min<Duration>(kTransferBackoffLongest,
                         options_.transfer_backoff * (int64_t{1} << (transfers_in_vain_ - 1)));
  return link_->PauseBeforeTransfer(state.connection, pause);
}

absl::Status SessionImpl::TransferState(const StateEvent& state) {
  if (state.kind == TransferAction::Kind::kUpload && !untouched_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "server ", options_.server,
        " asks this worker for initial parameters, but training has begun here already"));
  }
  interrupted_ = false;
  absl::Status status = BeforeAnotherTransfer(state);
  if (absl::IsCancelled(status)) {
    pending_state_ = state;  // taken up by the next call
    return status;
  }
  SIGNVOTE_RETURN_IF_ERROR(status);
  const std::optional<Link::Transfer> transfer = link_->BeginTransfer(state.connection);
  // That connection is over, and the next one asks again; or this worker leaves.
  if (!transfer) return absl::OkStatus();
  ForgetMoves();
  transferred_ = true;
  wire::SocketBytes moved;
  status = state.kind == TransferAction::Kind::kUpload ? Upload(*transfer, state, &moved)
                                                       : Fetch(*transfer, state, &moved);
  link_->CountTransfer(moved, status.ok());
  // In vain until a round opens.
  ++transfers_in_vain_;
  if (status.ok()) {
    link_->ReplicaStandsAt(state.connection, replica_->round());
    return absl::OkStatus();
  }
  replica_->Clear();
  last_transfer_.reset();
  const absl::Status why =
      absl::AbortedError(absl::StrCat("state transfer failed: ", std::string(status.message())));
  if (link_->drain_requested()) return absl::OkStatus();
  link_->AbandonConnection(state.connection, why);
  if (interrupted_) {
    --transfers_in_vain_;
    return absl::CancelledError("interrupted during a state transfer");
  }
  log_(LogLevel::kWarning, "state transfer failed",
       {{"server", options_.server}, {"reason", Describe(status)}});
  if (transfers_in_vain_ >= kTransfersInVainMax) {
    return WithContext(status, absl::StrCat("state transfer with ", options_.server, " failed ",
                                            transfers_in_vain_, " times in a row"));
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::Upload(const Link::Transfer& transfer, const StateEvent& state,
                                 wire::SocketBytes* moved) {
  SIGNVOTE_RETURN_IF_ERROR(UploadState(transfer.channel,
                                       {.ticket = state.ticket,
                                        .progress_timeout = options_.connect_timeout,
                                        .x0 = false,
                                        .stop = transfer.stop.get(),
                                        .interrupted = options_.interrupted},
                                       memory_, moved));
  return replica_->BeginHere();
}

absl::Status SessionImpl::Fetch(const Link::Transfer& transfer, const StateEvent& state,
                                wire::SocketBytes* moved) {
  untouched_ = false;
  replica_->Clear();
  const Time start = clock_->Now();
  std::optional<Round> first, last;  // of the replica's parts
  CatchUp catch_up([this](const CommitEvent& commit) { return Apply(commit); },
                   [this](const CommitEvent& commit) { link_->ReleaseSlot(commit.slot); });
  catching_up_ = &catch_up;
  absl::Status status = FetchState(
      transfer.channel,
      {.ticket = state.ticket,
       .progress_timeout = options_.connect_timeout,
       .x0 = run_->needs_x0,
       .stop = transfer.stop.get(),
       .interrupted = options_.interrupted},
      memory_,
      [&](const FetchedPart& part) {
        if (!part.x0) {
          if (!first) first = part.round;
          last = part.round;
        }
        return AddPart(part, &catch_up);
      },
      moved);
  if (status.ok()) status = TakeArrived();
  if (status.ok()) status = catch_up.FollowAll();
  catching_up_ = nullptr;
  SIGNVOTE_RETURN_IF_ERROR(status);
  last_transfer_ = {.seconds = ToSeconds(clock_->Now() - start),
                    .rounds = last->value() - std::min(first->value(), last->value())};
  log_(LogLevel::kInfo, "fetched the state of the run",
       {{"seconds", last_transfer_->seconds},
        {"bytes", moved->received},
        {"rounds_meanwhile", last_transfer_->rounds},
        {"round", replica_->round().value()}});
  return absl::OkStatus();
}

absl::Status SessionImpl::TakeArrived() {
  while (std::optional<LinkEvent> event = link_->TryNext())
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
  if (pending_state_) return absl::AbortedError("the server asks for another state transfer");
  return absl::OkStatus();
}

absl::Status SessionImpl::AddPart(const FetchedPart& part, CatchUp* catch_up) {
  SIGNVOTE_RETURN_IF_ERROR(TakeArrived());
  if (part.x0) return replica_->AddX0Part(part.first, part.count);
  SIGNVOTE_RETURN_IF_ERROR(catch_up->FollowTo(part.round));
  return replica_->AddPart(part.round, part.first, part.count);
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
      if (!link_->finish_current() && !drain_reason_) {
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
  ticket_->replica_moved = applied_ > 0 || transferred_;
  ticket_->rewound = rewound_;
  ForgetMoves();
  link_->ballot().Open(ticket_->round, pending_open_->at, run_->plan);
  return ticket_;
}

absl::Status SessionImpl::SendChunk(ChunkIndex k, const uint8_t* ballot) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  return link_->ballot().SendChunk(k, ballot);
}

absl::Status SessionImpl::SendScalars(const BallotScalars& scalars) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  SIGNVOTE_ASSIGN_OR_RETURN(v1::Scalars out,
                            ScalarsFrom(scalars, *ticket_, run_->layout.tensors().size()));
  return link_->SendScalars(std::move(out));
}

absl::Status SessionImpl::Abstain(AbstainReason reason) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  return link_->ballot().SendAbstain(ToProto(reason));
}

absl::StatusOr<CommitOutcome> SessionImpl::WaitCommit() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  if (outcome_slot_ != nullptr) link_->ReleaseSlot(std::exchange(outcome_slot_, nullptr));
  const Time deadline = clock_->Now() + options_.wait_timeout;
  std::optional<Time> drain_since;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (finish_rounds_ || (ReplicaReady() && replica_->round() > ticket_->round)) break;
    Time until = deadline;
    if (drain_reason_) {
      const Time now = clock_->Now();
      if (!drain_since) drain_since = now;
      const Duration waited = now - *drain_since;
      // Without a server, or without a replica, nothing is to be waited for much longer.
      if (!ReplicaReady() || waited >= kDrainTimeout ||
          (waited >= kDrainTimeoutWithoutServer && !link_->connected())) {
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
  return TakeOutcome();
}

CommitOutcome SessionImpl::TakeOutcome() {
  const RoundTimes times = link_->ballot().Close();
  CommitOutcome outcome;
  outcome.commits = std::exchange(applied_, 0);
  const bool transferred = std::exchange(transferred_, false);
  outcome.next_round = ReplicaReady() ? replica_->round() : ticket_->round;
  outcome.contiguous =
      outcome.commits == 1 && !transferred && last_commit_->round == ticket_->round;
  outcome.finished = finish_rounds_.has_value();
  outcome.rewound = std::exchange(rewound_, false);
  if (!last_commit_) return outcome;
  const CommitEvent& commit = *last_commit_;
  outcome.kind = commit.kind;
  outcome.stepsize = commit.stepsize;
  outcome.rho = commit.rho;
  outcome.decay_step = commit.decay_step;
  outcome.loss = commit.loss;
  outcome.voters = commit.voters;
  outcome.main_round = commit.main_round;
  outcome.next_data_step = commit.next_data_step;
  outcome.run_done = commit.run_done;
  outcome.reason = commit.reason;
  outcome.times = commit.times;
  if (commit.round == ticket_->round) {
    outcome.times.opened = times.opened;
    outcome.times.first_chunk = times.first_chunk;
    outcome.times.ballot_written = times.ballot_written;
  }
  if (commit.slot != nullptr) {
    outcome_slot_ = commit.slot;
    outcome.verdict = outcome_slot_->bits.data();
  }
  last_commit_.reset();
  return outcome;
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
  if (!link_->SayGoodbye(digest, Link::Goodbye::kAwaitServer, options_.finish_timeout)) {
    log_(LogLevel::kWarning, "the server did not close the finished run's session",
         {{"server", options_.server}});
  }
  finished_ = true;
  return absl::OkStatus();
}

void SessionImpl::LeaveNow(const std::string& reason) {
  v1::WorkerMessage message;
  message.mutable_leave()->set_reason(reason);
  link_->SayGoodbye(message, Link::Goodbye::kHalfClose, kLeaveTimeout);
  drained_ = true;
}

absl::Status SessionImpl::Leave(const std::string& reason) {
  if (!started_) return absl::OkStatus();
  (void)link_->ballot().Close();
  if (!finished_ && !drained_ && link_->status().ok()) LeaveNow(reason);
  link_->Stop();
  return absl::OkStatus();
}

// Who this worker is, and how it shows that.
struct Identity {
  std::string name;
  std::string token;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
};

absl::StatusOr<std::string> ReadToken(FileSystem* fs, const std::string& path) {
  SIGNVOTE_RETURN_IF_ERROR(fs->RequirePrivate(path));
  SIGNVOTE_ASSIGN_OR_RETURN(std::string token, fs->ReadFile(path, kTokenBytesMax));
  absl::StripAsciiWhitespace(&token);
  const auto bad = [&](const char* what) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat("token file ", path, what)),
                        ExitCode::kBadInput);
  };
  if (token.empty()) return bad(" is empty");
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph))
    return bad(" holds more than one token of printable characters; give the worker's own");
  return token;
}

absl::StatusOr<Identity> LoadIdentity(const SessionOptions& options, Clock* clock) {
  SIGNVOTE_RETURN_IF_ERROR(ParseHostPort("--server", options.server, PortZero::kRefused).status());
  FileSystem* const fs = FileSystem::Posix();
  Identity identity{.name = options.name, .token = {}, .credentials = nullptr};
  if (options.insecure) {
    if (!options.tls_ca.empty() || !options.tls_certificate.empty() || !options.tls_key.empty()) {
      return absl::InvalidArgumentError(
          "TLS files were given together with --insecure; leave one of them away");
    }
    identity.credentials = grpc::InsecureChannelCredentials();
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(
        const wire::TlsMaterial tls,
        wire::LoadTls(
            fs,
            {.ca = options.tls_ca, .certificate = options.tls_certificate, .key = options.tls_key},
            clock->UnixMicros() / 1000000));
    if (identity.name.empty()) {
      if (tls.dns_names.empty()) {
        return WithExitCode(
            absl::InvalidArgumentError(absl::StrCat("certificate ", options.tls_certificate,
                                                    " names no worker (DNS subject alternative "
                                                    "name); use one that was made for a worker")),
            ExitCode::kBadInput);
      }
      identity.name = tls.dns_names[0];
    }
    identity.credentials = wire::MtlsChannelCredentials(tls);
  }
  if (identity.name.empty()) return absl::InvalidArgumentError("a worker needs a name");
  SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(identity.name));
  if (!options.token_file.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(identity.token, ReadToken(fs, options.token_file));
  }
  return identity;
}

}  // namespace

absl::Status Session::CheckOptions(const SessionOptions& options, Clock* clock) {
  return LoadIdentity(options, clock).status();
}

absl::StatusOr<std::unique_ptr<Session>> Session::Create(const SessionOptions& options,
                                                         Clock* clock) {
  SIGNVOTE_ASSIGN_OR_RETURN(Identity identity, LoadIdentity(options, clock));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random,
                            FileSystem::Posix()->RandomBytes(sizeof(uint64_t)));
  uint64_t seed = 0;
  std::memcpy(&seed, random.data(), sizeof(seed));
  return std::unique_ptr<Session>(new SessionImpl(options, clock, std::move(identity.name),
                                                  std::move(identity.token),
                                                  std::move(identity.credentials), seed));
}

}  // namespace signvote
