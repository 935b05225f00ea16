#include "worker/session/link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "worker/session/messages.h"

namespace signvote {
namespace {

static_assert(kSessionProtocol == wire::kProtocolVersion);

// Rounds whose verdicts may wait for the caller, who may be computing while others go on (an
// observer). Each costs d/8 bytes, and only when it is needed; beyond that the link stops reading
// and the server's limits apply.
constexpr size_t kVerdictSlotsMax = 16;
constexpr size_t kEventsMax = 4096;
// How often an `interrupted` hook is asked.
constexpr Duration kInterruptedEvery = std::chrono::milliseconds(100);

}  // namespace

Link::Link(const SessionOptions& options, Clock* clock, const SessionLog* log,
           std::shared_ptr<grpc::ChannelCredentials> credentials)
    : options_(options),
      clock_(clock),
      log_(log),
      connection_(options.server, std::move(credentials), options.message_bytes_max,
                  options.connect_timeout, clock),
      ballot_(clock) {}

void Link::Start(FollowerOptions who, uint64_t jitter_seed) {
  {
    MutexLock lock(&mu_);
    follower_.emplace(std::move(who));
  }
  started_ = clock_->Now();
  thread_ = std::thread([this, jitter_seed] { Main(jitter_seed); });
}

void Link::Stop() {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stop_ = true;
    stream = stream_;
  }
  connection_.Stop();
  if (stream != nullptr) stream->Cancel(absl::CancelledError("the session was closed"));
  if (thread_.joinable()) thread_.join();
}

// ---- what callers ask ---------------------------------------------------------------------------

template <typename Predicate>
absl::Status Link::Await(Time deadline, const Predicate& predicate) {
  for (;;) {
    Time until = deadline;
    if (options_.interrupted) until = std::min(until, clock_->Now() + kInterruptedEvery);
    {
      MutexLock lock(&mu_);
      if (changed_.WaitUntil(&mu_, clock_, until, predicate)) return absl::OkStatus();
    }
    if (options_.interrupted && options_.interrupted()) return absl::CancelledError("interrupted");
    if (clock_->Now() >= deadline) return absl::DeadlineExceededError("waited too long");
  }
}

absl::StatusOr<LinkEvent> Link::Next(Time deadline, const std::string& what) {
  const Time start = clock_->Now();
  const absl::Status waited = Await(deadline, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !events_.empty() || !fatal_.ok() || ended_;
  });
  if (absl::IsCancelled(waited)) return waited;
  MutexLock lock(&mu_);
  if (!events_.empty()) {
    LinkEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  SIGNVOTE_RETURN_IF_ERROR(fatal_);
  if (ended_) return absl::OutOfRangeError("the session has ended");
  return WithExitCode(
      absl::DeadlineExceededError(absl::StrCat(
          "waited ", ToSeconds(deadline - start), " s for ", what,
          stream_ == nullptr ? absl::StrCat("; there is no connection to ", options_.server) : "",
          notice_.empty() ? "" : absl::StrCat("; the server says: ", notice_))),
      ExitCode::kWaitTimeout);
}

std::optional<LinkEvent> Link::TryNext() {
  MutexLock lock(&mu_);
  if (events_.empty()) return std::nullopt;
  std::optional<LinkEvent> event = std::move(events_.front());
  events_.pop_front();
  return event;
}

bool Link::PushLocked(LinkEvent event) {
  if (events_.size() >= kEventsMax) return false;
  events_.push_back(std::move(event));
  changed_.NotifyAll();
  return true;
}

absl::Status Link::Push(LinkEvent event) {
  MutexLock lock(&mu_);
  if (PushLocked(std::move(event))) return absl::OkStatus();
  return absl::ResourceExhaustedError("the server sends more than this worker handles");
}

void Link::RequestDrain(std::string reason) {
  std::shared_ptr<TransferStop> transfer;
  {
    MutexLock lock(&mu_);
    // One is enough, and it must never be the one that finds no room.
    if (!drain_requested_) events_.push_back(DrainEvent{std::move(reason)});
    drain_requested_ = true;
    transfer = transfer_;
  }
  changed_.NotifyAll();
  if (transfer != nullptr) transfer->Stop();
}

bool Link::drain_requested() const {
  MutexLock lock(&mu_);
  return drain_requested_;
}

void Link::ReleaseSlot(VerdictStore::Slot* slot) {
  if (slot == nullptr) return;
  verdicts_->Release(slot);
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stream = stream_;
  }
  if (stream != nullptr) stream->Resume();
}

absl::Status Link::status() const {
  MutexLock lock(&mu_);
  return fatal_;
}

bool Link::connected() const {
  MutexLock lock(&mu_);
  return follower_ && follower_->welcomed();
}

bool Link::finish_current() const {
  MutexLock lock(&mu_);
  return follower_->finish_current();
}

std::shared_ptr<Stream> Link::StreamOf(uint64_t connection) const {
  MutexLock lock(&mu_);
  return connection_number_ == connection ? stream_ : nullptr;
}

std::optional<Link::Transfer> Link::BeginTransfer(uint64_t connection) {
  Transfer transfer{.channel = nullptr, .stop = std::make_shared<TransferStop>()};
  {
    MutexLock lock(&mu_);
    if (connection_number_ != connection || stream_ == nullptr || drain_requested_)
      return std::nullopt;
    transfer_ = transfer.stop;
  }
  transfer.channel = connection_.Dial();
  return transfer;
}

absl::Status Link::PauseBeforeTransfer(uint64_t connection, Duration pause) {
  const absl::Status waited =
      Await(clock_->Now() + pause, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return connection_number_ != connection || stream_ == nullptr || drain_requested_;
      });
  return absl::IsCancelled(waited) ? waited : absl::OkStatus();
}

void Link::ReplicaStandsAt(uint64_t connection, Round round) {
  std::shared_ptr<Stream> stream;
  v1::WorkerMessage ready;
  {
    MutexLock lock(&mu_);
    // The next connection asks again.
    if (connection_number_ != connection || stream_ == nullptr) return;
    stream = stream_;
    // Commits that came since the caller looked are at hand.
    Round next = round;
    for (const LinkEvent& event : events_) {
      if (const auto* commit = std::get_if<CommitEvent>(&event); commit && commit->round == next)
        ++next;
    }
    ready = follower_->FollowFrom(round, next);
  }
  stream->Write({wire::EncodeMessage(ready)});
}

void Link::AbandonConnection(uint64_t connection, absl::Status why) {
  if (const std::shared_ptr<Stream> stream = StreamOf(connection)) stream->Cancel(std::move(why));
}

void Link::CountTransfer(const wire::SocketBytes& moved, bool succeeded) {
  meter_.AddTransfer(moved);
  MutexLock lock(&stats_mu_);
  if (succeeded) ++stats_.state_transfers;
}

absl::Status Link::SendScalars(v1::Scalars scalars) {
  {
    MutexLock lock(&stats_mu_);
    scalars.set_apply_us(static_cast<uint64_t>(stats_.last_apply_seconds * 1e6));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const bool whole, ballot_.SendScalars(std::move(scalars)));
  MutexLock lock(&stats_mu_);
  if (whole) ++stats_.rounds_voted;
  return absl::OkStatus();
}

void Link::SendDigest(Round round, uint64_t digest) {
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(round.value());
  message.mutable_replica_digest()->set_digest(digest);
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stream = stream_;
    if (stream != nullptr) follower_->SaidDigest(round);
  }
  if (stream != nullptr) stream->Write({wire::EncodeMessage(message)});
}

bool Link::SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye,
                      Duration timeout) {
  std::shared_ptr<Stream> stream;
  bool welcomed = false;
  {
    MutexLock lock(&mu_);
    follower_->SayGoodbye();
    stream = stream_;
    welcomed = follower_->welcomed();
  }
  connection_.Stop();
  if (stream != nullptr && !welcomed) {
    // Nobody is there to part from.
    stream->Cancel(absl::CancelledError("this worker leaves"));
  } else if (stream != nullptr) {
    if (last) stream->Write({wire::EncodeMessage(*last)});
    if (goodbye == Goodbye::kHalfClose) stream->HalfClose();
  }
  const Time deadline = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  changed_.WaitUntil(&mu_, clock_, deadline, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return ended_ || (goodbye == Goodbye::kAwaitServer && drain_requested_);
  });
  return ended_;
}

SessionStats Link::Stats() {
  bool open = false;
  {
    MutexLock lock(&mu_);
    open = follower_ && follower_->open();
  }
  const WireTotals bytes = meter_.Read();
  MutexLock lock(&stats_mu_);
  SessionStats stats = stats_;
  stats.connected = open;
  stats.wire_sent_bytes = bytes.rounds.sent;
  stats.wire_received_bytes = bytes.rounds.received;
  stats.setup_sent_bytes = bytes.setup.sent;
  stats.setup_received_bytes = bytes.setup.received;
  return stats;
}

void Link::CountApplied(Duration took) {
  MutexLock lock(&stats_mu_);
  stats_.last_apply_seconds = ToSeconds(took);
  ++stats_.rounds_applied;
}

// ---- the thread ---------------------------------------------------------------------------------

void Link::Main(uint64_t jitter_seed) {
  std::string name;
  {
    MutexLock lock(&mu_);
    name = follower_->name();
  }
  RetryPolicy retry({options_.connect_timeout, options_.server_timeout}, std::move(name),
                    {options_.server, options_.insecure, options_.tls_ca, options_.tls_certificate},
                    jitter_seed, started_);
  retry_ = &retry;
  const absl::Status status = connection_.Run(this, &retry);
  bool finished = false;
  {
    MutexLock lock(&mu_);
    finished = follower_->finish_seen();
    if (!finished) fatal_ = status;
    ended_ = true;
  }
  changed_.NotifyAll();
  if (finished && absl::IsUnavailable(status)) {
    (*log_)(LogLevel::kWarning, "the finished run's server did not come back",
            {{"server", options_.server}});
  }
}

std::optional<grpc::ByteBuffer> Link::OnDialed(const std::shared_ptr<Stream>& stream) {
  receive_error_ = absl::OkStatus();
  MutexLock lock(&mu_);
  if (stop_ || follower_->goodbye()) return std::nullopt;
  stream_ = stream;
  ++connection_number_;
  return wire::EncodeMessage(follower_->Connected());
}

std::optional<ConnectionEnd> Link::OnEnded(absl::Status status) {
  meter_.End();
  ballot_.VoteEnds();
  if (assembler_ != nullptr) assembler_->Drop();
  std::shared_ptr<TransferStop> transfer;
  std::shared_ptr<Stream> stream;  // destroyed outside the lock
  std::optional<ConnectionEnd> end;
  {
    MutexLock lock(&mu_);
    stream = std::move(stream_);
    stream_.reset();
    transfer = transfer_;
    // With every worker's last digest the server closes in good order, perhaps before the caller
    // asks for the next round: nothing is left to say, and nobody to say it to.
    const bool parted = status.ok() && follower_->parted();
    if (!stop_ && !follower_->goodbye() && !parted) {
      end = ConnectionEnd{.status = std::move(status),
                          .by_us = !receive_error_.ok(),
                          .welcomed = follower_->welcomed(),
                          .ever_welcomed = follower_->ever_welcomed(),
                          .finish_seen = follower_->finish_seen()};
    }
    follower_->Disconnected();
  }
  changed_.NotifyAll();
  if (transfer != nullptr) transfer->Stop();
  return end;
}

void Link::OnReconnect(const absl::Status& why) {
  (*log_)(LogLevel::kWarning, "lost the server, reconnecting",
          {{"server", options_.server},
           {"reason", why.ok() ? "the server closed the session" : Describe(why)}});
  MutexLock lock(&stats_mu_);
  ++stats_.reconnects;
}

Stream::Taken Link::OnMessage(Stream* stream, const grpc::ByteBuffer& message) {
  meter_.OnMessage(stream->context().peer());
  const absl::StatusOr<Stream::Taken> taken = Receive(stream, message);
  if (taken.ok()) return *taken;
  receive_error_ = taken.status();
  stream->Cancel(receive_error_);
  return Stream::Taken::kYes;
}

absl::StatusOr<Stream::Taken> Link::Receive(Stream* stream, const grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> verdict,
                            wire::DecodeVote(wire::BulkKind::kVerdictChunk, buffer));
  if (verdict) return OnVerdictChunk(*verdict, buffer);
  v1::ServerMessage message;
  SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(buffer, &message));
  if (message.has_welcome() && !options_.insecure &&
      !wire::PeerOf(stream->context()).HasRole(wire::Role::kServer)) {
    return absl::PermissionDeniedError(
        "its certificate lacks the server's role (URI signvote:role:server), so it may be another "
        "worker");
  }
  std::vector<FollowerAction> actions;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_ASSIGN_OR_RETURN(actions, follower_->Handle(message, clock_->Now()));
  }
  for (FollowerAction& action : actions)
    SIGNVOTE_RETURN_IF_ERROR(Do(stream, std::move(action), message));
  return Stream::Taken::kYes;
}

absl::StatusOr<Stream::Taken> Link::OnVerdictChunk(const wire::VoteView& view,
                                                   const grpc::ByteBuffer& buffer) {
  const wire::VoteHeader& header = view.header;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_ASSIGN_OR_RETURN(const bool wanted, follower_->Wants(header.run_id, header.round));
    if (!wanted) return Stream::Taken::kYes;
  }
  const absl::StatusOr<VerdictAssembler::Added> added = assembler_->Add(
      {.epoch = header.epoch,
       .round = header.round,
       .attempt = header.attempt,
       .chunk = header.chunk,
       .checksum = header.checksum},
      view.payload_bytes,
      [&](std::span<uint8_t> out) {
        return wire::CopyPayloadChecked(buffer, view.payload_offset, header.checksum, out);
      },
      clock_->Now());
  if (absl::IsDataLoss(added.status())) {
    SIGNVOTE_RETURN_IF_ERROR(OnMismatch(
        header.round, absl::StrCat("chunk ", header.chunk.value(), " fails its checksum")));
    return Stream::Taken::kYes;
  }
  SIGNVOTE_RETURN_IF_ERROR(added.status());
  // The caller computes, or fetches, and all slots wait for it: the stream is read on when it has
  // applied what is there. The server's feed waits meanwhile; a transfer has a call of its own.
  return *added == VerdictAssembler::Added::kNoRoom ? Stream::Taken::kLater : Stream::Taken::kYes;
}

absl::Status Link::OnMismatch(Round round, const std::string& why) {
  absl::Status status;
  {
    MutexLock lock(&mu_);
    status = follower_->Mismatched(round, why);
  }
  if (status.ok()) return status;
  (*log_)(LogLevel::kWarning, "verdict does not match its commit",
          {{"round", round.value()}, {"reason", why}});
  MutexLock lock(&stats_mu_);
  ++stats_.verdict_mismatches;
  return status;
}

absl::Status Link::TakeCommit(const v1::Commit& commit) {
  absl::StatusOr<CommitEvent> event = assembler_->Take(commit, clock_->Now());
  if (!event.ok()) return OnMismatch(Round(commit.round()), std::string(event.status().message()));
  VerdictStore::Slot* const slot = event->slot;
  const Epoch epoch = event->epoch;
  bool pushed = false;
  {
    MutexLock lock(&mu_);
    pushed = PushLocked(*std::move(event));
    if (pushed) follower_->Took(Round(commit.round()), epoch);
  }
  if (!pushed) {
    if (slot != nullptr) verdicts_->Release(slot);
    return absl::ResourceExhaustedError("the server sends more than this worker handles");
  }
  retry_->Progress();
  if (meter_.rounds_begun()) {
    MutexLock lock(&stats_mu_);
    ++stats_.rounds_received;
  }
  return absl::OkStatus();
}

absl::Status Link::Do(Stream* stream, FollowerAction action, const v1::ServerMessage& message) {
  if (auto* say = std::get_if<SayAction>(&action)) {
    stream->Write({wire::EncodeMessage(say->message)});
    return absl::OkStatus();
  }
  if (std::holds_alternative<CommitDueAction>(action)) return TakeCommit(message.commit());
  if (auto* opened = std::get_if<OpenedAction>(&action)) {
    if (meter_.BeginRounds()) {
      MutexLock lock(&stats_mu_);
      if (stats_.join_seconds == 0) stats_.join_seconds = ToSeconds(clock_->Now() - started_);
    }
    std::shared_ptr<Stream> current;
    {
      MutexLock lock(&mu_);
      notice_.clear();
      current = stream_;
    }
    ballot_.VoteOpens(std::move(current), opened->ticket.round, opened->vote);
    retry_->Progress();
    return Push(OpenEvent{std::move(opened->ticket), clock_->Now()});
  }
  if (auto* joined = std::get_if<JoinedAction>(&action)) {
    stream->SetTimeout(std::nullopt);
    RunInfo run;
    uint64_t incarnation = 0;
    {
      MutexLock lock(&mu_);
      run = follower_->run();
      incarnation = follower_->incarnation();
    }
    {
      MutexLock lock(&stats_mu_);
      stats_.incarnation = incarnation;
    }
    if (!joined->first) return absl::OkStatus();
    verdicts_ = std::make_unique<VerdictStore>(run.plan, kVerdictSlotsMax, options_.bits_memory);
    assembler_ = std::make_unique<VerdictAssembler>(verdicts_.get());
    return Push(JoinedEvent{std::move(run)});
  }
  if (auto* transfer = std::get_if<TransferAction>(&action)) {
    if (message.has_resync()) {
      (*log_)(LogLevel::kWarning, "the server asks for a resync",
              {{"round", message.resync().round()}, {"reason", message.resync().reason()}});
    }
    assembler_->Drop();
    StateEvent state{.kind = transfer->kind, .ticket = std::move(transfer->ticket)};
    {
      MutexLock lock(&mu_);
      state.connection = connection_number_;
    }
    return Push(std::move(state));
  }
  if (std::holds_alternative<ClosedAction>(action)) {
    ballot_.VoteEnds();
  } else if (auto* finish = std::get_if<FinishAction>(&action)) {
    return Push(FinishEvent{finish->rounds});
  } else if (auto* drain = std::get_if<DrainAction>(&action)) {
    RequestDrain(std::move(drain->reason));
  } else if (auto* notice = std::get_if<NoticeAction>(&action)) {
    (*log_)(LogLevel::kInfo, "the server says", {{"text", notice->text}});
    MutexLock lock(&mu_);
    notice_ = std::move(notice->text);
    if (!follower_->welcomed()) stream->SetTimeout(options_.wait_timeout);
  }
  return absl::OkStatus();
}

}  // namespace signvote
