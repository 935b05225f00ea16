#include "worker/session/follower.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "worker/session/messages.h"

namespace signvote {
namespace {

// Verdicts of a round and its successor may be under way at the same time.
constexpr uint64_t kRoundsUnderWayMax = 2;

}  // namespace

Follower::Follower(FollowerOptions options) : options_(std::move(options)) {}

v1::WorkerMessage Follower::Connected() {
  Disconnected();
  v1::WorkerMessage message;
  v1::Join* const join = message.mutable_join();
  FillJoin(options_.model, join);
  join->set_name(options_.name);
  join->set_token(options_.token);
  join->set_metrics_address(options_.metrics_address);
  join->set_wants_run_state(options_.wants_run_state);
  if (run_) {
    join->set_run_id(std::string(run_->run_id.bytes()));
  } else if (options_.run_id) {
    join->set_run_id(std::string(options_.run_id->bytes()));
  }
  if (following_ == Following::kFollowing) {
    join->set_round(next_->value());
    join->set_epoch(commit_epoch_.value());
  }
  return message;
}

void Follower::Disconnected() {
  welcomed_ = false;
  ticket_.clear();
  open_.reset();
  finish_current_ = false;
  digest_said_.reset();
  // A transfer is worth nothing without the session that its ticket is of.
  if (following_ == Following::kFetching) Forget(Following::kNothing);
}

void Follower::Forget(Following following) {
  following_ = following;
  next_.reset();
}

absl::StatusOr<std::vector<FollowerAction>> Follower::Handle(const v1::ServerMessage& message,
                                                             Time now) {
  std::vector<FollowerAction> actions;
  const v1::ServerMessage::MessageCase kind = message.message_case();
  if (!welcomed_ && kind != v1::ServerMessage::kWelcome && kind != v1::ServerMessage::kNotice &&
      kind != v1::ServerMessage::kPing && kind != v1::ServerMessage::kDrain) {
    return absl::InvalidArgumentError("the server spoke before its welcome");
  }
  switch (kind) {
    case v1::ServerMessage::kCommit:
      SIGNVOTE_RETURN_IF_ERROR(OnCommit(message.commit(), &actions));
      break;
    case v1::ServerMessage::kRoundOpen:
      SIGNVOTE_RETURN_IF_ERROR(OnRoundOpen(message.round_open(), now, &actions));
      break;
    case v1::ServerMessage::kWelcome:
      SIGNVOTE_RETURN_IF_ERROR(OnWelcome(message.welcome(), &actions));
      break;
    case v1::ServerMessage::kResync:
      Forget(Following::kFetching);
      open_.reset();
      actions.push_back(ClosedAction{});
      actions.push_back(TransferAction{TransferAction::Kind::kFetch, ticket_, /*differs=*/true});
      break;
    case v1::ServerMessage::kPing: {
      SayAction pong;
      pong.message.mutable_pong()->set_nonce(message.ping().nonce());
      actions.push_back(std::move(pong));
      break;
    }
    case v1::ServerMessage::kDrain:
      actions.push_back(DrainAction{message.drain().reason()});
      break;
    case v1::ServerMessage::kFinish:
      // It follows the last commit. Who has not got all of them would never stand where the run ended.
      finish_rounds_ = Round(message.finish().rounds());
      finish_current_ = !Behind(*finish_rounds_);
      actions.push_back(FinishAction{*finish_rounds_});
      if (!finish_current_) actions.push_back(RejoinAction{Missing("the run is finished")});
      break;
    case v1::ServerMessage::kNotice:
      actions.push_back(NoticeAction{message.notice().text()});
      break;
    case v1::ServerMessage::kVerdictChunk:
      return absl::InvalidArgumentError("malformed verdict chunk");
    default:
      break;  // a later version's message, which says nothing that this one needs
  }
  return actions;
}

absl::Status Follower::OnWelcome(const v1::Welcome& welcome, std::vector<FollowerAction>* actions) {
  if (welcomed_) return absl::InvalidArgumentError("the server welcomes twice");
  SIGNVOTE_ASSIGN_OR_RETURN(RunInfo run, RunFrom(welcome, options_.model));
  if (run_ && (run.run_id != run_->run_id || run.seed != run_->seed ||
               run.plan.chunk_coordinates() != run_->plan.chunk_coordinates() ||
               run.payloads != run_->payloads ||
               run.commit_plan.ballots_max() > run_->commit_plan.ballots_max() ||
               run.local_steps_max > run_->local_steps_max ||
               !run_->layout.FirstDifference(run.layout).empty())) {
    return absl::FailedPreconditionError(
        "the server came back as another run, or with another layout, other chunks or seed, "
        "payloads of another kind or of more ballots, or more local steps");
  }
  if (welcome.state() == v1::Welcome::STATE_KEEP && following_ != Following::kFollowing) {
    return absl::InvalidArgumentError("the server wants a replica kept that this worker has not");
  }
  JoinedAction joined{.first = !run_.has_value()};
  if (joined.first) run_ = std::move(run);
  TransferAction transfer{.kind = TransferAction::Kind::kFetch, .ticket = welcome.ticket()};
  switch (welcome.state()) {
    case v1::Welcome::STATE_KEEP: {
      SayAction ready;
      ready.message.mutable_ready()->set_round(next_->value());
      actions->push_back(joined);
      actions->push_back(std::move(ready));
      break;
    }
    case v1::Welcome::STATE_FETCH:
    case v1::Welcome::STATE_UPLOAD:
      if (welcome.state() == v1::Welcome::STATE_UPLOAD)
        transfer.kind = TransferAction::Kind::kUpload;
      Forget(Following::kFetching);
      actions->push_back(joined);
      actions->push_back(std::move(transfer));
      break;
    default:
      return absl::InvalidArgumentError(
          "the server's welcome does not say what becomes of the replica");
  }
  welcomed_ = true;
  ever_welcomed_ = true;
  ticket_ = welcome.ticket();
  epoch_ = Epoch(welcome.epoch());
  incarnation_ = welcome.incarnation();
  return absl::OkStatus();
}

absl::Status Follower::OnCommit(const v1::Commit& commit, std::vector<FollowerAction>* actions) {
  if (commit.run_id() != run_->run_id.bytes())
    return absl::InvalidArgumentError("a commit of another run");
  const Round round(commit.round());
  switch (following_) {
    case Following::kNothing:
      return absl::OkStatus();
    case Following::kFetching:
      if (next_ && round < *next_) return absl::OkStatus();
      break;
    case Following::kFollowing:
      if (round < *next_) return absl::OkStatus();
      if (round > *next_) {
        return absl::AbortedError(
            absl::StrCat("commit ", round.value(), " came where ", next_->value(), " was due"));
      }
      break;
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckCommit(commit, *run_));
  actions->push_back(CommitDueAction{});
  return absl::OkStatus();
}

absl::Status Follower::OnRoundOpen(const v1::RoundOpen& open, Time now,
                                   std::vector<FollowerAction>* actions) {
  SIGNVOTE_ASSIGN_OR_RETURN(RoundTicket ticket, TicketFrom(open, now));
  if (ticket.local_steps > run_->local_steps_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "round ", ticket.round.value(), " asks for ", ticket.local_steps,
        " local steps in a run whose welcome said ", run_->local_steps_max, " at most"));
  }
  if (ticket.start == BallotStart::kX0 && !run_->needs_x0) {
    return absl::InvalidArgumentError(
        absl::StrCat("round ", ticket.round.value(), " starts from x0 in a run without x0"));
  }
  // A round opens only for a worker to whom every commit before was sent.
  if (Behind(ticket.round)) return Missing(absl::StrCat("round ", ticket.round.value(), " opens"));
  open_ = OpenTicket{ticket.round, Attempt(open.attempt())};
  const VoteId vote{run_->run_id, epoch_, open_->attempt};
  actions->push_back(OpenedAction{std::move(ticket), vote});
  return absl::OkStatus();
}

bool Follower::Behind(Round round) const {
  return following_ == Following::kFollowing && *next_ < round;
}

absl::Status Follower::Missing(const std::string& what) const {
  return absl::AbortedError(absl::StrCat(what, ", and the commits from ", next_->value(),
                                         " on have not come; they are asked for again"));
}

absl::StatusOr<bool> Follower::Wants(const RunId& run_id, Round round) const {
  if (!welcomed_) return absl::InvalidArgumentError("the server spoke before its welcome");
  if (run_id != run_->run_id) return absl::InvalidArgumentError("a verdict of another run");
  if (following_ == Following::kNothing) return false;
  if (!next_) return true;
  // Rounds that this replica does not need, or cannot use without those before.
  return round >= *next_ && round.value() - next_->value() < kRoundsUnderWayMax;
}

void Follower::Took(Round round, Epoch epoch) {
  mismatches_in_a_row_ = 0;
  commit_epoch_ = epoch;
  next_ = round.next();
}

absl::Status Follower::Mismatched(Round round, const std::string& why) {
  if (following_ == Following::kFetching) {
    next_.reset();  // the next one that is whole begins anew
    return absl::OkStatus();
  }
  if (++mismatches_in_a_row_ > 1) Forget(Following::kNothing);
  return absl::AbortedError(
      absl::StrCat("verdict of round ", round.value(), " does not match its commit: ", why));
}

v1::WorkerMessage Follower::FollowFrom(Round round, Round next) {
  following_ = Following::kFollowing;
  next_ = next;
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_round(round.value());
  return ready;
}

void Follower::SaidDigest(Round round) { digest_said_ = round; }

std::optional<VoteId> Follower::VoteOf(Round round) const {
  if (!open_ || open_->round != round) return std::nullopt;
  return VoteId{run_->run_id, epoch_, open_->attempt};
}

bool Follower::parted() const {
  return finish_current_ && digest_said_ && *digest_said_ >= *finish_rounds_;
}

}  // namespace signvote
