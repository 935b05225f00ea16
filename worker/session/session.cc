#include "worker/session/session.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "worker/session/link.h"
#include "worker/session/replica.h"
#include "worker/session/state_transfer.h"

namespace signvote {
namespace {

constexpr uint64_t kTokenBytesMax = 4096;
constexpr int kTransfersInARowMax = 5;
constexpr Duration kLeaveTimeout = std::chrono::seconds(3);
constexpr Duration kDrainTimeout = std::chrono::seconds(10);

v1::Abstain::Reason ToProto(AbstainReason reason) {
  switch (reason) {
    case AbstainReason::kNonFiniteLoss:
      return v1::Abstain::REASON_NONFINITE_LOSS;
    case AbstainReason::kNonFiniteGradient:
      return v1::Abstain::REASON_NONFINITE_GRADIENT;
    case AbstainReason::kOther:
      return v1::Abstain::REASON_OTHER;
  }
  return v1::Abstain::REASON_OTHER;
}

// The caller's side of a session: it owns the replica and what may move it. The link's thread owns
// the connection; the two meet in the link's queue of events.
class SessionImpl final : public Session {
 public:
  SessionImpl(const SessionOptions& options, Clock* clock, std::string name, std::string token,
              std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t jitter_seed)
      : options_(options),
        clock_(clock),
        name_(std::move(name)),
        link_(options, clock, name_, std::move(token), std::move(credentials), jitter_seed) {}

  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const Layout& layout, ReplicaMemory* replica) override;
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override;
  absl::Status SendChunk(ChunkIndex k, const uint8_t* ballot) override {
    if (replica_ == nullptr) return absl::FailedPreconditionError("the session has not joined");
    return link_.SendChunk(k, ballot);
  }
  absl::Status SendScalars(const BallotScalars& scalars) override;
  absl::Status Abstain(AbstainReason reason) override { return link_.SendAbstain(ToProto(reason)); }
  absl::StatusOr<CommitOutcome> WaitCommit() override;
  absl::Status Leave(const std::string& reason) override;
  void RequestDrain(const std::string& reason) override { link_.Push(DrainEvent{reason}); }
  std::optional<Round> replica_round() const override {
    return ReplicaReady() ? std::optional(replica_->round()) : std::nullopt;
  }
  bool finished() const override { return finished_; }
  bool drained() const override { return drained_; }
  SessionStats Stats() const override { return link_.Stats(); }

 private:
  absl::Status Usable() const;
  absl::Status HandleNext(Time deadline, const std::string& what);
  absl::Status HandleArrived();
  absl::Status Handle(LinkEvent event);
  absl::Status ApplyCommit(const CommitEvent& commit);
  absl::Status TransferState(const StateEvent& state);
  absl::Status FinishRun();
  void LeaveNow(const std::string& reason);
  bool ReplicaReady() const { return replica_ != nullptr && replica_->level(); }
  absl::StatusOr<v1::WorkerMessage> DigestMessage() const;
  CommitOutcome TakeOutcome();

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const std::string name_;

  // Set by Join.
  Layout layout_;
  ReplicaMemory* memory_ = nullptr;
  std::unique_ptr<Replica> replica_;

  bool untouched_ = true;  // the memory still holds this worker's own initial parameters
  std::optional<RoundTicket> ticket_;
  std::optional<OpenEvent> pending_open_;
  std::optional<Round> finish_rounds_;
  std::optional<std::string> drain_reason_;
  int transfers_failed_in_a_row_ = 0;
  // Since the last outcome.
  uint64_t applied_ = 0;
  bool transferred_ = false;
  std::optional<CommitEvent> last_commit_;
  VerdictStore::Slot* outcome_slot_ = nullptr;  // behind the last outcome's verdict

  std::atomic<bool> finished_{
      false};  // written by the caller's thread, read by any; orders nothing else
  std::atomic<bool> drained_{false};

  Link link_;  // last: its thread ends before anything else goes
};

absl::Status SessionImpl::Usable() const {
  if (replica_ == nullptr) return absl::FailedPreconditionError("the session has not joined");
  return link_.status();
}

absl::StatusOr<RunInfo> SessionImpl::Join(const Layout& layout, ReplicaMemory* replica) {
  if (replica_ != nullptr) return absl::FailedPreconditionError("the session has joined already");
  if (replica->coordinates() != layout.coordinates() || replica->coordinates() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the replica has ", replica->coordinates(),
                                                   " coordinates, its layout ",
                                                   layout.coordinates()));
  }
  layout_ = layout;
  memory_ = replica;
  replica_ = std::make_unique<Replica>(&layout_, replica);
  link_.Start(&layout_);
  const Time deadline = clock_->Now() + options_.wait_timeout;
  while (!ReplicaReady() && !finish_rounds_) {
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, "the server to let this worker in"));
    if (drain_reason_) {
      LeaveNow(*drain_reason_);
      return absl::CancelledError(
          absl::StrCat("asked to leave before it had joined: ", *drain_reason_));
    }
  }
  // How the replica came here is no gap: the caller had no previous one.
  applied_ = 0;
  transferred_ = false;
  return link_.run();
}

absl::Status SessionImpl::HandleNext(Time deadline, const std::string& what) {
  SIGNVOTE_ASSIGN_OR_RETURN(LinkEvent event, link_.Next(deadline, what));
  return Handle(std::move(event));
}

absl::Status SessionImpl::HandleArrived() {
  while (std::optional<LinkEvent> event = link_.TryNext())
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
  return absl::OkStatus();
}

absl::Status SessionImpl::Handle(LinkEvent event) {
  if (auto* state = std::get_if<StateEvent>(&event)) return TransferState(*state);
  if (auto* commit = std::get_if<CommitEvent>(&event)) return ApplyCommit(*commit);
  if (auto* open = std::get_if<OpenEvent>(&event)) pending_open_ = *open;
  if (auto* finish = std::get_if<FinishEvent>(&event)) finish_rounds_ = finish->rounds;
  if (auto* drain = std::get_if<DrainEvent>(&event)) drain_reason_ = std::move(drain->reason);
  return absl::OkStatus();
}

absl::Status SessionImpl::ApplyCommit(const CommitEvent& commit) {
  if (options_.before_apply) options_.before_apply();
  const Time start = clock_->Now();
  const absl::Status applied =
      replica_->Apply(commit.round, commit.stepsize, commit.slot->bits.data());
  if (!applied.ok()) {
    link_.ReleaseSlot(commit.slot);
    // From before a state transfer that failed: void by now.
    return absl::IsFailedPrecondition(applied) ? absl::OkStatus() : applied;
  }
  link_.CountApplied(clock_->Now() - start);
  untouched_ = false;
  ++applied_;
  if (last_commit_) link_.ReleaseSlot(last_commit_->slot);
  last_commit_ = commit;
  if (commit.digest_due && replica_->level() && replica_->round() == commit.round.next()) {
    SIGNVOTE_ASSIGN_OR_RETURN(v1::WorkerMessage message, DigestMessage());
    link_.Send(std::move(message));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::WorkerMessage> SessionImpl::DigestMessage() const {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(replica_->round().value());
  message.mutable_replica_digest()->set_digest(digest);
  return message;
}

absl::Status SessionImpl::TransferState(const StateEvent& state) {
  const std::shared_ptr<grpc::Channel> channel = link_.DialForTransfer(state.connection);
  if (channel == nullptr)
    return absl::OkStatus();  // that connection is over; the next one asks again
  transferred_ = true;
  wire::SocketBytes moved;
  absl::Status status;
  if (state.kind == StateEvent::Kind::kUpload) {
    if (!untouched_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "server ", options_.server,
          " asks this worker for initial parameters, but training has begun here already"));
    }
    status = UploadState(channel, state.ticket, options_.connect_timeout, memory_, &moved);
    if (status.ok()) replica_->SetWhole(Round(0));
  } else {
    untouched_ = false;
    replica_->Clear();
    status = FetchState(
        channel, state.ticket, options_.connect_timeout, memory_,
        [&](Round round, uint64_t first, uint64_t count) {
          return replica_->AddPart(round, first, count);
        },
        &moved);
    if (!status.ok()) replica_->Clear();
  }
  link_.CountTransfer(moved, status.ok());
  if (status.ok()) {
    transfers_failed_in_a_row_ = 0;
    link_.ReplicaStandsAt(state.connection, replica_->round());
    return absl::OkStatus();
  }
  LogWarning("state transfer failed", {{"server", options_.server}, {"reason", Describe(status)}});
  if (++transfers_failed_in_a_row_ >= kTransfersInARowMax) {
    return WithContext(status, absl::StrCat("state transfer with ", options_.server, " failed ",
                                            kTransfersInARowMax, " times in a row"));
  }
  link_.AbandonConnection(
      state.connection,
      absl::AbortedError(absl::StrCat("state transfer failed: ", std::string(status.message()))));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RoundTicket>> SessionImpl::NextRound() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  const Time deadline = clock_->Now() + options_.wait_timeout;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (finished_ || drained_) return std::optional<RoundTicket>();
    if (finish_rounds_ &&
        (!replica_->complete() || (ReplicaReady() && replica_->round() >= *finish_rounds_))) {
      // After a broken connection the next one says it again; a server that stays away has ended
      // (CANCELLED).
      if (!link_.finish_current()) {
        const absl::Status status = HandleNext(deadline, "the finished run's server");
        if (status.code() != absl::StatusCode::kCancelled) {
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
    if (absl::IsCancelled(status) && finish_rounds_) {
      return absl::UnavailableError(
          absl::StrCat("server ", options_.server,
                       " has ended the run and is gone; this worker's replica stands at round ",
                       replica_->round().value(), " of ", finish_rounds_->value()));
    }
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  link_.CloseBallot();
  ticket_ = pending_open_->ticket;
  link_.OpenBallot(ticket_->round, pending_open_->at);
  return ticket_;
}

absl::Status SessionImpl::SendScalars(const BallotScalars& scalars) {
  v1::Scalars out;
  out.set_loss(scalars.loss);
  out.set_g_l1(scalars.g_l1);
  out.set_g_l2_squared(scalars.g_l2_squared);
  if (scalars.probe_l1) out.set_probe_l1(*scalars.probe_l1);
  if (scalars.prev_inner) out.set_prev_inner(*scalars.prev_inner);
  out.set_nonfinite_coordinates(scalars.nonfinite_coordinates);
  out.set_samples(scalars.samples);
  return link_.SendScalars(std::move(out));
}

absl::StatusOr<CommitOutcome> SessionImpl::WaitCommit() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  if (outcome_slot_ != nullptr) link_.ReleaseSlot(std::exchange(outcome_slot_, nullptr));
  Time deadline = clock_->Now() + options_.wait_timeout;
  bool draining = false;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (finish_rounds_ || (ReplicaReady() && replica_->round() > ticket_->round)) break;
    if (drain_reason_ && !draining) {
      draining = true;
      deadline = std::min(deadline, clock_->Now() + kDrainTimeout);
    }
    const absl::Status status =
        HandleNext(deadline, absl::StrCat("round ", ticket_->round.value(), " to be committed"));
    if (draining && status.code() == absl::StatusCode::kDeadlineExceeded) {
      LeaveNow(*drain_reason_);
      break;
    }
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  return TakeOutcome();
}

CommitOutcome SessionImpl::TakeOutcome() {
  const RoundTimes times = link_.CloseBallot();
  CommitOutcome outcome;
  outcome.commits = std::exchange(applied_, 0);
  const bool transferred = std::exchange(transferred_, false);
  outcome.next_round = ReplicaReady() ? replica_->round() : ticket_->round;
  outcome.contiguous =
      outcome.commits == 1 && !transferred && last_commit_->round == ticket_->round;
  outcome.finished = finish_rounds_.has_value();
  if (!last_commit_) return outcome;
  outcome.stepsize = last_commit_->stepsize;
  outcome.loss = last_commit_->loss;
  outcome.voters = last_commit_->voters;
  outcome.times = last_commit_->times;
  if (last_commit_->round == ticket_->round) {
    outcome.times.opened = times.opened;
    outcome.times.first_chunk = times.first_chunk;
    outcome.times.ballot_written = times.ballot_written;
  }
  outcome_slot_ = last_commit_->slot;
  outcome.verdict = outcome_slot_->bits.data();
  last_commit_.reset();
  return outcome;
}

absl::Status SessionImpl::FinishRun() {
  std::optional<v1::WorkerMessage> digest;
  if (ReplicaReady()) {
    SIGNVOTE_ASSIGN_OR_RETURN(digest, DigestMessage());
  }
  if (!link_.SayGoodbye(digest, Link::Goodbye::kAwaitServer, options_.finish_timeout)) {
    LogWarning("the server did not close the finished run's session",
               {{"server", options_.server}});
  }
  finished_ = true;
  return absl::OkStatus();
}

void SessionImpl::LeaveNow(const std::string& reason) {
  v1::WorkerMessage message;
  message.mutable_leave()->set_reason(reason);
  link_.SayGoodbye(message, Link::Goodbye::kHalfClose, kLeaveTimeout);
  drained_ = true;
}

absl::Status SessionImpl::Leave(const std::string& reason) {
  if (replica_ == nullptr) return absl::OkStatus();
  link_.CloseBallot();
  if (!finished_ && !drained_ && link_.status().ok()) LeaveNow(reason);
  link_.Stop();
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
