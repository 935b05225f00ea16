#include "lab/local/local_session.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/apply.h"
#include "common/log.h"
#include "common/status.h"
#include "server/replica/master_replica.h"
#include "worker/session/messages.h"

namespace signvote::lab {
namespace {

// Rounds whose verdicts are under way: one, its successor, and the one behind the last outcome.
constexpr size_t kSlotsMax = 4;

// A state transfer as the run sees it: it may begin at once, and moves in one go.
class LocalCall final : public run::StateCall {
 public:
  void Start(std::shared_ptr<MasterReplica> replica) override { replica_ = std::move(replica); }
  void End(absl::Status status) override {
    if (!end_.has_value()) end_ = std::move(status);
  }
  bool answered() const { return replica_ != nullptr || end_.has_value(); }
  // OK: it may go on.
  absl::Status end() const { return end_.value_or(absl::OkStatus()); }
  MasterReplica* replica() const { return replica_.get(); }

 private:
  std::shared_ptr<MasterReplica> replica_;  // null: not begun
  std::optional<absl::Status> end_;
};

}  // namespace

// ---- the replica --------------------------------------------------------------------------------

absl::Status SharedReplica::Attach(const RunInfo& run, ReplicaMemory* memory) {
  if (memory_ != nullptr) {
    if (memory == memory_) return absl::OkStatus();
    return absl::InvalidArgumentError("sessions that share a replica must attach the same memory");
  }
  if (memory->coordinates() != run.layout.coordinates()) {
    return absl::InvalidArgumentError(absl::StrCat("the replica has ", memory->coordinates(),
                                                   " coordinates, the run's layout ",
                                                   run.layout.coordinates()));
  }
  if (run.needs_x0) {
    const absl::Status kept = memory->KeepX0();
    if (absl::IsUnimplemented(kept)) return absl::InvalidArgumentError(std::string(kept.message()));
    SIGNVOTE_RETURN_IF_ERROR(kept);
  }
  memory_ = memory;
  layout_ = run.layout;
  replica_ = std::make_unique<Replica>(&layout_, memory_,
                                       run.needs_x0 ? Replica::X0::kNeeded : Replica::X0::kUnused);
  return absl::OkStatus();
}

absl::Status SharedReplica::Fetch(const MasterReplica& master) {
  if (level()) return absl::OkStatus();
  replica_->Clear();
  if (!master.has_x0()) replica_->LetGoOfX0();
  std::vector<float> piece;
  for (const Plane plane : {Plane::kX, Plane::kX0}) {
    if (plane == Plane::kX0 && !replica_->needs_x0()) continue;
    for (uint64_t p = 0; p < master.pieces(); ++p) {
      piece.resize(master.Count(p));
      SIGNVOTE_ASSIGN_OR_RETURN(const Round round, master.CopyPiece(plane, p, piece.data()));
      const uint64_t first = master.First(p);
      if (plane == Plane::kX) {
        SIGNVOTE_RETURN_IF_ERROR(memory_->Write(first, piece));
        SIGNVOTE_RETURN_IF_ERROR(replica_->AddPart(round, first, piece.size()));
      } else {
        SIGNVOTE_RETURN_IF_ERROR(memory_->WriteX0(first, piece));
        SIGNVOTE_RETURN_IF_ERROR(replica_->AddX0Part(first, piece.size()));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<float> SharedReplica::Upload(MasterReplica* master) {
  const std::span<float> x = master->x();
  SIGNVOTE_RETURN_IF_ERROR(memory_->Read(0, x));
  SIGNVOTE_RETURN_IF_ERROR(replica_->BeginHere());
  return MaxAbs(x);
}

absl::Status SharedReplica::Apply(const CommitEvent& commit) {
  if (level() && commit.round < replica_->round()) return absl::OkStatus();
  return replica_->Apply(commit);
}

absl::StatusOr<uint64_t> SharedReplica::Digest() {
  if (!digest_.has_value() || digest_->round != replica_->round()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
    digest_ = Known{replica_->round(), digest};
  }
  return digest_->digest;
}

// ---- the stream ---------------------------------------------------------------------------------

LocalSession::LocalSession(LocalServer* server, SharedReplica* replica, std::string name)
    : server_(server),
      replica_(replica),
      name_(std::move(name)),
      moves_([this](VerdictStore::Slot* slot) { store_->Release(slot); }) {}

LocalSession::~LocalSession() {
  if (open_) server_->Close(peer_);
}

absl::Status LocalSession::Until(const std::function<bool()>& done) {
  while (!done()) {
    SIGNVOTE_RETURN_IF_ERROR(status_);
    if (!server_->Turn()) {
      return absl::InternalError(
          absl::StrCat(name_, " waits, and nothing is left that the run would do"));
    }
  }
  return status_;
}

void LocalSession::OnMessage(const v1::ServerMessage& message) {
  if (const absl::Status read = Read(message); !read.ok() && status_.ok()) status_ = read;
}

void LocalSession::OnVerdict(Epoch epoch, const run::VerdictHeader& header,
                             std::span<const uint8_t> payload) {
  const absl::StatusOr<bool> wanted = follower_->Wants(follower_->run().run_id, header.round);
  absl::Status status = wanted.status();
  if (wanted.ok() && *wanted) {
    const absl::StatusOr<VerdictAssembler::Added> added =
        assembler_->Add({.epoch = epoch,
                         .round = header.round,
                         .attempt = header.attempt,
                         .chunk = header.chunk,
                         .checksum = header.checksum},
                        payload, server_->clock()->Now());
    status = added.status();
    if (added.ok() && *added == VerdictAssembler::Added::kNoRoom) {
      status = absl::InternalError(
          absl::StrCat(name_, " has no room for round ", header.round.value(), "'s verdict"));
    }
  }
  if (!status.ok() && status_.ok()) status_ = status;
}

void LocalSession::OnClosed(const absl::Status& status) {
  open_ = false;
  follower_->Disconnected();
  if (!status.ok() && status_.ok()) status_ = status;
}

absl::Status LocalSession::Read(const v1::ServerMessage& message) {
  SIGNVOTE_ASSIGN_OR_RETURN(std::vector<FollowerAction> actions,
                            follower_->Handle(message, server_->clock()->Now()));
  for (FollowerAction& action : actions) SIGNVOTE_RETURN_IF_ERROR(Do(std::move(action), message));
  return absl::OkStatus();
}

absl::Status LocalSession::Do(FollowerAction action, const v1::ServerMessage& message) {
  if (auto* say = std::get_if<SayAction>(&action)) {
    server_->Say(peer_, std::move(say->message));
  } else if (std::holds_alternative<JoinedAction>(action)) {
    store_ = std::make_unique<VerdictStore>(follower_->run().commit_plan, kSlotsMax,
                                            std::pmr::new_delete_resource());
    assembler_ = std::make_unique<VerdictAssembler>(store_.get());
  } else if (auto* transfer = std::get_if<TransferAction>(&action)) {
    // In one process nothing but a fault of ours makes two replicas of one run.
    if (transfer->differs)
      return absl::InternalError(absl::StrCat(name_, "'s replica is not that of the run"));
    transfer_ = std::move(*transfer);
  } else if (std::holds_alternative<CommitDueAction>(action)) {
    SIGNVOTE_ASSIGN_OR_RETURN(CommitEvent commit,
                              assembler_->Take(message.commit(), server_->clock()->Now()));
    follower_->Took(commit.round, commit.epoch);
    ++stats_.rounds_received;
    arrived_.push_back(std::move(commit));
  } else if (auto* opened = std::get_if<OpenedAction>(&action)) {
    opened_ = std::move(*opened);
    if (!ticket_.has_value() || ticket_->round != opened_->ticket.round) return absl::OkStatus();
    for (uint32_t k = 0; k < ballot_.chunks.size(); ++k) HandOver(ChunkIndex(k));
    HandOver(ballot_.scalars);
    HandOver(ballot_.abstain);
  } else if (std::holds_alternative<ClosedAction>(action)) {
    opened_.reset();
  } else if (auto* finish = std::get_if<FinishAction>(&action)) {
    finish_rounds_ = finish->rounds;
  } else if (const auto* rejoin = std::get_if<RejoinAction>(&action)) {
    return rejoin->why;
  } else if (auto* drain = std::get_if<DrainAction>(&action)) {
    drain_reason_ = std::move(drain->reason);
  } else if (const auto* notice = std::get_if<NoticeAction>(&action)) {
    LogInfo(notice->text, {{"worker", name_}});
  }
  return absl::OkStatus();
}

// ---- joining ------------------------------------------------------------------------------------

absl::StatusOr<RunInfo> LocalSession::Join(const ModelDescription& model) {
  if (follower_ != nullptr) return absl::FailedPreconditionError("the session has joined already");
  follower_ = std::make_unique<Follower>(FollowerOptions{.name = name_, .model = model});
  peer_ = server_->Open(this);
  open_ = true;
  server_->Say(peer_, follower_->Connected());
  SIGNVOTE_RETURN_IF_ERROR(Until([this] { return assembler_ != nullptr; }));
  return follower_->run();
}

absl::Status LocalSession::Attach(ReplicaMemory* replica) {
  if (assembler_ == nullptr) return absl::FailedPreconditionError("the session has not joined");
  SIGNVOTE_RETURN_IF_ERROR(replica_->Attach(follower_->run(), replica));
  const auto following = [this] {
    return follower_->following() == Follower::Following::kFollowing;
  };
  while (!following() && !finish_rounds_.has_value()) {
    SIGNVOTE_RETURN_IF_ERROR(
        Until([&] { return transfer_.has_value() || following() || finish_rounds_.has_value(); }));
    if (transfer_.has_value()) {
      SIGNVOTE_RETURN_IF_ERROR(Transfer(*std::exchange(transfer_, std::nullopt)));
    }
  }
  moves_.Transferred();  // how the replica came here is no gap: the caller had none before
  attached_ = true;
  return absl::OkStatus();
}

absl::Status LocalSession::Transfer(const TransferAction& action) {
  const bool fetch = action.kind == TransferAction::Kind::kFetch;
  const auto call = std::make_shared<LocalCall>();
  server_->Tell(peer_,
                run::CallAsked{fetch ? run::CallKind::kFetch : run::CallKind::kUpload, call});
  SIGNVOTE_RETURN_IF_ERROR(Until([&] { return call->answered(); }));
  SIGNVOTE_RETURN_IF_ERROR(call->end());
  const uint64_t bytes = call->replica()->coordinates() * sizeof(float);
  if (fetch) {
    SIGNVOTE_RETURN_IF_ERROR(replica_->Fetch(*call->replica()));
    server_->Tell(peer_, run::CallProgress{call, bytes, 0});
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(const float max_abs, replica_->Upload(call->replica()));
    server_->Tell(peer_, run::CallProgress{call, bytes, max_abs});
  }
  server_->Tell(peer_, run::CallEnded{call});
  ++stats_.state_transfers;
  round_ = replica_->round();
  server_->Say(peer_, follower_->FollowFrom(round_, round_));
  return absl::OkStatus();
}

std::optional<Round> LocalSession::replica_round() const {
  return attached_ && replica_->level() ? std::optional(round_) : std::nullopt;
}

// ---- commits ------------------------------------------------------------------------------------

absl::Status LocalSession::ApplyArrived() {
  while (!arrived_.empty()) {
    CommitEvent commit = std::move(arrived_.front());
    arrived_.pop_front();
    const absl::Status applied = replica_->Apply(commit);
    if (!applied.ok()) {
      if (commit.slot != nullptr) store_->Release(commit.slot);
      return applied;
    }
    ++stats_.rounds_applied;
    round_ = commit.round.next();
    const bool digest_due = commit.digest_due;
    moves_.Applied(std::move(commit), Duration::zero());
    if (digest_due) SIGNVOTE_RETURN_IF_ERROR(SayDigest());
  }
  return absl::OkStatus();
}

absl::Status LocalSession::SayDigest() {
  if (replica_->round() != round_) {
    return absl::InternalError(absl::StrCat(name_, " stands at round ", round_.value(),
                                            ", and its replica at ", replica_->round().value()));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(replica_->round().value());
  message.mutable_replica_digest()->set_digest(digest);
  follower_->SaidDigest(replica_->round());
  server_->Say(peer_, std::move(message));
  return absl::OkStatus();
}

// ---- rounds -------------------------------------------------------------------------------------

absl::StatusOr<std::optional<RoundTicket>> LocalSession::NextRound() {
  if (!replica_round().has_value())
    return absl::FailedPreconditionError("no replica is attached; call Join and Attach first");
  const auto is_open = [this] {
    return opened_.has_value() && opened_->ticket.round == round_ &&
           (!ticket_.has_value() || ticket_->round != opened_->ticket.round);
  };
  while (true) {
    SIGNVOTE_RETURN_IF_ERROR(ApplyArrived());
    if (finished_ || drained_) return std::optional<RoundTicket>();
    if (finish_rounds_.has_value() && round_ >= *finish_rounds_) {
      if (open_ && !follower_->parted()) SIGNVOTE_RETURN_IF_ERROR(SayDigest());
      finished_ = true;
      return std::optional<RoundTicket>();
    }
    if (drain_reason_.has_value()) {
      SIGNVOTE_RETURN_IF_ERROR(Leave(*drain_reason_));
      drained_ = true;
      return std::optional<RoundTicket>();
    }
    if (is_open()) break;
    SIGNVOTE_RETURN_IF_ERROR(Until([&] {
      return is_open() || !arrived_.empty() || finish_rounds_.has_value() ||
             drain_reason_.has_value();
    }));
  }
  ticket_ = opened_->ticket;
  if (ticket_->x0_over) replica_->LetGoOfX0();
  moves_.Tell(&*ticket_);
  ballot_ = Ballot();
  ballot_.chunks.resize(follower_->run().plan.chunks());
  return ticket_;
}

absl::Status LocalSession::SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) {
  SIGNVOTE_RETURN_IF_ERROR(status_);
  if (!ticket_.has_value()) return absl::FailedPreconditionError("no round is open");
  if (k.value() >= ballot_.chunks.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk ", k.value(), " of ", ballot_.chunks.size()));
  }
  ballot_.chunks[k.value()] = std::move(ballot);
  HandOver(k);
  return absl::OkStatus();
}

absl::Status LocalSession::SendScalars(const BallotScalars& scalars) {
  SIGNVOTE_RETURN_IF_ERROR(status_);
  if (!ticket_.has_value()) return absl::FailedPreconditionError("no round is open");
  SIGNVOTE_ASSIGN_OR_RETURN(
      v1::Scalars out, ScalarsFrom(scalars, *ticket_, follower_->run().layout.tensors().size()));
  out.set_round(ticket_->round.value());
  *ballot_.scalars.emplace().mutable_scalars() = std::move(out);
  ++stats_.rounds_voted;
  HandOver(ballot_.scalars);
  return absl::OkStatus();
}

absl::Status LocalSession::Abstain(AbstainReason reason) {
  SIGNVOTE_RETURN_IF_ERROR(status_);
  if (!ticket_.has_value()) return absl::FailedPreconditionError("no round is open");
  v1::Abstain* const out = ballot_.abstain.emplace().mutable_abstain();
  out->set_round(ticket_->round.value());
  out->set_reason(ToProto(reason));
  HandOver(ballot_.abstain);
  return absl::OkStatus();
}

void LocalSession::HandOver(ChunkIndex k) {
  const std::shared_ptr<const uint8_t>& bits = ballot_.chunks[k.value()];
  const std::optional<VoteId> vote = follower_->VoteOf(ticket_->round);
  if (bits == nullptr || !vote.has_value()) return;
  server_->SayChunk(peer_, ticket_->round, vote->attempt, k,
                    {bits.get(), follower_->run().ballot_plan.Bytes(k, 1)});
}

void LocalSession::HandOver(const std::optional<v1::WorkerMessage>& message) {
  const std::optional<VoteId> vote = follower_->VoteOf(ticket_->round);
  if (!message.has_value() || !vote.has_value()) return;
  v1::WorkerMessage out = *message;
  if (out.has_scalars()) out.mutable_scalars()->set_attempt(vote->attempt.value());
  if (out.has_abstain()) out.mutable_abstain()->set_attempt(vote->attempt.value());
  server_->Say(peer_, std::move(out));
}

absl::StatusOr<CommitOutcome> LocalSession::WaitCommit() {
  if (!ticket_.has_value()) return absl::FailedPreconditionError("no round is open");
  moves_.ReleaseOutcome();
  while (true) {
    SIGNVOTE_RETURN_IF_ERROR(ApplyArrived());
    if (finish_rounds_.has_value() || round_ > ticket_->round) break;
    SIGNVOTE_RETURN_IF_ERROR(
        Until([this] { return !arrived_.empty() || finish_rounds_.has_value(); }));
  }
  return moves_.TakeOutcome(ticket_->round, round_, /*ballot=*/{}, finish_rounds_.has_value());
}

absl::Status LocalSession::Leave(const std::string& reason) {
  if (!open_) return absl::OkStatus();
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason(reason);
  follower_->SayGoodbye();
  server_->Say(peer_, std::move(leave));
  return absl::OkStatus();
}

void LocalSession::RequestDrain(const std::string& reason) {
  if (!drain_reason_.has_value()) drain_reason_ = reason;
}

}  // namespace signvote::lab
