#include "worker/session/conversation.h"

#include <utility>

#include "common/exit_codes.h"
#include "common/status.h"
#include "proto/wire/wire.h"

namespace signvote {
namespace {

void Send(const std::shared_ptr<OutgoingStream>& stream, const v1::WorkerMessage& message) {
  if (stream != nullptr) stream->Write({wire::EncodeMessage(message), MessageKind::kControl});
}

}  // namespace

void Conversation::Introduce(FollowerOptions who) {
  MutexLock lock(&mu_);
  follower_.emplace(std::move(who));
}

std::optional<Conversation::Opening> Conversation::Begins(std::shared_ptr<OutgoingStream> stream) {
  MutexLock lock(&mu_);
  if (closed_ || follower_->goodbye()) return std::nullopt;
  stream_ = std::move(stream);
  return Opening{.connection = ++connection_, .join = follower_->Connected()};
}

std::optional<ConnectionEnd> Conversation::Ends(absl::Status status, bool by_us) {
  std::shared_ptr<OutgoingStream> stream;  // destroyed outside the lock
  MutexLock lock(&mu_);
  stream = std::move(stream_);
  stream_.reset();
  std::optional<ConnectionEnd> end;
  // With every worker's last digest the server closes in good order, perhaps before the caller asks
  // for the next round: nothing is left to say, and nobody to say it to.
  const bool parted = status.ok() && follower_->parted();
  // How the run has ended may be what the last digests have decided.
  const bool ended_badly = awaits_server_ && IsRunEnd(ExitCodeFor(status));
  if (!closed_ && !parted && (!follower_->goodbye() || ended_badly)) {
    end = ConnectionEnd{.status = std::move(status),
                        .by_us = by_us,
                        .welcomed = follower_->welcomed(),
                        .ever_welcomed = follower_->ever_welcomed(),
                        .finish_seen = follower_->finish_seen()};
  }
  follower_->Disconnected();
  return end;
}

void Conversation::Close() {
  std::shared_ptr<OutgoingStream> live;
  {
    MutexLock lock(&mu_);
    closed_ = true;
    live = stream_;
  }
  if (live != nullptr) live->Cancel(absl::CancelledError("the session was closed"));
}

absl::StatusOr<std::vector<FollowerAction>> Conversation::Hear(const v1::ServerMessage& message,
                                                               Time now) {
  MutexLock lock(&mu_);
  return follower_->Handle(message, now);
}

absl::StatusOr<bool> Conversation::Wants(const RunId& run_id, Round round) const {
  MutexLock lock(&mu_);
  return follower_->Wants(run_id, round);
}

absl::Status Conversation::Took(CommitEvent commit) {
  const Round round = commit.round;
  const Epoch epoch = commit.epoch;
  MutexLock lock(&mu_);
  SIGNVOTE_RETURN_IF_ERROR(events_->Push(std::move(commit)));
  follower_->Took(round, epoch);
  return absl::OkStatus();
}

absl::Status Conversation::Mismatched(Round round, const std::string& why) {
  MutexLock lock(&mu_);
  return follower_->Mismatched(round, why);
}

void Conversation::Say(const v1::WorkerMessage& message) { Send(stream(), message); }

void Conversation::SayDigest(Round round, uint64_t digest) {
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(round.value());
  message.mutable_replica_digest()->set_digest(digest);
  std::shared_ptr<OutgoingStream> live;
  {
    MutexLock lock(&mu_);
    live = stream_;
    if (live != nullptr) follower_->SaidDigest(round);
  }
  Send(live, message);
}

void Conversation::SayReplicaStandsAt(uint64_t connection, Round round) {
  std::shared_ptr<OutgoingStream> live;
  v1::WorkerMessage ready;
  {
    MutexLock lock(&mu_);
    if (connection_ != connection || stream_ == nullptr) return;
    live = stream_;
    // Commits that came since the caller looked are at hand.
    ready = follower_->FollowFrom(round, events_->AtHandFrom(round));
  }
  Send(live, ready);
}

void Conversation::Abandon(uint64_t connection, absl::Status why) {
  if (const auto live = StreamOf(connection)) live->Cancel(std::move(why));
}

void Conversation::SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye) {
  std::shared_ptr<OutgoingStream> live;
  bool welcomed = false;
  {
    MutexLock lock(&mu_);
    follower_->SayGoodbye();
    awaits_server_ = goodbye == Goodbye::kAwaitServer;
    live = stream_;
    welcomed = follower_->welcomed();
  }
  if (live == nullptr) return;
  // Nobody is there to part from.
  if (!welcomed) return live->Cancel(absl::CancelledError("this worker leaves"));
  if (last) Send(live, *last);
  if (goodbye == Goodbye::kHalfClose) live->HalfClose();
}

std::shared_ptr<OutgoingStream> Conversation::stream() const {
  MutexLock lock(&mu_);
  return stream_;
}

std::shared_ptr<OutgoingStream> Conversation::StreamOf(uint64_t connection) const {
  MutexLock lock(&mu_);
  return connection_ == connection ? stream_ : nullptr;
}

uint64_t Conversation::connection() const {
  MutexLock lock(&mu_);
  return connection_;
}

RunInfo Conversation::run() const {
  MutexLock lock(&mu_);
  return follower_->run();
}

uint64_t Conversation::incarnation() const {
  MutexLock lock(&mu_);
  return follower_->incarnation();
}

bool Conversation::welcomed() const {
  MutexLock lock(&mu_);
  return follower_ && follower_->welcomed();
}

bool Conversation::vote_open() const {
  MutexLock lock(&mu_);
  return follower_ && follower_->open();
}

bool Conversation::finish_seen() const {
  MutexLock lock(&mu_);
  return follower_ && follower_->finish_seen();
}

bool Conversation::finish_current() const {
  MutexLock lock(&mu_);
  return follower_ && follower_->finish_current();
}

}  // namespace signvote
