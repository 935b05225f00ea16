#include "worker/session/link.h"

#include <utility>
#include <variant>
#include <vector>

#include "common/exit_codes.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "proto/wire/wire.h"
#include "worker/session/messages.h"

namespace signvote {

static_assert(kSessionProtocol == wire::kProtocolVersion);

Link::Link(const SessionOptions& options, Clock* clock, const SessionLog* log,
           std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t seed)
    : options_(options),
      clock_(clock),
      log_(log),
      seed_(seed),
      connection_(options.server, std::move(credentials), options.connect_timeout, clock, seed),
      events_(options.server, Waits(clock, options.interrupted)),
      gate_(Waits(clock, options.interrupted)),
      conversation_(&events_),
      ballot_(clock),
      receiver_(clock, &conversation_, &counters_, log) {}

void Link::Start(const FollowerOptions& who) {
  conversation_.Introduce(who);
  started_ = clock_->Now();
  thread_ = std::thread([this, name = who.name] { Main(name); });
}

void Link::Stop() {
  connection_.Stop();
  conversation_.Close();
  if (thread_.joinable()) thread_.join();
}

// ---- what callers ask ---------------------------------------------------------------------------

SessionStats Link::Stats() { return counters_.Read(meter_.Read(), conversation_.vote_open()); }

void Link::RequestDrain(std::string reason) {
  events_.RequestDrain(std::move(reason));
  gate_.Drain();
}

void Link::ReleaseSlot(VerdictStore::Slot* slot) {
  receiver_.Release(slot);
  if (const auto stream = conversation_.stream()) stream->Resume();
}

bool Link::PartFrom(const std::optional<v1::WorkerMessage>& last, Conversation::Goodbye goodbye,
                    Duration timeout) {
  connection_.Stop();
  conversation_.SayGoodbye(last, goodbye);
  return events_.AwaitEnd(clock_->Now() + timeout, goodbye == Conversation::Goodbye::kAwaitServer
                                                       ? EventQueue::Or::kDrain
                                                       : EventQueue::Or::kNothing);
}

absl::Status Link::PauseBeforeTransfer(uint64_t connection, Duration pause) {
  return gate_.Pause(connection, pause);
}

std::shared_ptr<TransferStop> Link::BeginTransfer(uint64_t connection) {
  return gate_.Begin(connection);
}

absl::Status Link::Fetch(const StateEvent& state, TransferStop* stop, bool x0,
                         ReplicaMemory* memory,
                         const std::function<absl::Status(const FetchedPart&)>& on_part,
                         wire::SocketBytes* moved) {
  const absl::Status status = FetchState(connection_.Dial(),
                                         {.ticket = state.ticket,
                                          .progress_timeout = options_.connect_timeout,
                                          .x0 = x0,
                                          .stop = stop,
                                          .interrupted = options_.interrupted},
                                         memory, on_part, moved);
  meter_.AddTransfer(*moved);
  return status;
}

absl::Status Link::Upload(const StateEvent& state, TransferStop* stop, ReplicaMemory* memory,
                          wire::SocketBytes* moved) {
  const absl::Status status = UploadState(connection_.Dial(),
                                          {.ticket = state.ticket,
                                           .progress_timeout = options_.connect_timeout,
                                           .x0 = false,
                                           .stop = stop,
                                           .interrupted = options_.interrupted},
                                          memory, moved);
  meter_.AddTransfer(*moved);
  return status;
}

void Link::TransferSucceeded(uint64_t connection, Round stands_at) {
  counters_.StateTransferred();
  conversation_.SayReplicaStandsAt(connection, stands_at);
}

void Link::TransferFailed(uint64_t connection, absl::Status why) {
  conversation_.Abandon(connection, std::move(why));
}

// ---- the thread ---------------------------------------------------------------------------------

void Link::Main(const std::string& worker) {
  RetryPolicy retry({options_.connect_timeout, options_.server_timeout}, worker,
                    {options_.server, options_.insecure, options_.tls_ca, options_.tls_certificate},
                    seed_, started_);
  retry_ = &retry;
  const absl::Status status = connection_.Run(this, &retry);
  const bool finished = conversation_.finish_seen();
  events_.End(finished && !IsRunEnd(ExitCodeFor(status)) ? absl::OkStatus() : status);
  if (finished && absl::IsUnavailable(status)) {
    (*log_)(LogLevel::kWarning, "the finished run's server did not come back",
            {{"server", options_.server}});
  }
}

std::optional<grpc::ByteBuffer> Link::OnDialed(const std::shared_ptr<Stream>& stream) {
  receive_error_ = absl::OkStatus();
  const std::optional<Conversation::Opening> opening = conversation_.Begins(stream);
  if (!opening) return std::nullopt;
  events_.SetConnected(true);
  gate_.ConnectionBegins(opening->connection);
  return wire::EncodeMessage(opening->join);
}

std::optional<ConnectionEnd> Link::OnEnded(absl::Status status) {
  meter_.End();
  ballot_.VoteEnds();
  receiver_.Drop();
  events_.SetConnected(false);
  std::optional<ConnectionEnd> end = conversation_.Ends(std::move(status), !receive_error_.ok());
  gate_.ConnectionEnds();
  return end;
}

void Link::OnReconnect(const absl::Status& why) {
  (*log_)(LogLevel::kWarning, "lost the server, reconnecting",
          {{"server", options_.server},
           {"reason", why.ok() ? "the server closed the session" : Describe(why)}});
  counters_.Reconnects();
}

Stream::Taken Link::OnMessage(Stream* stream, const grpc::ByteBuffer& message) {
  meter_.OnMessage(stream->context().peer(), stream->mark());
  const absl::StatusOr<Stream::Taken> taken = Receive(stream, message);
  if (taken.ok()) return *taken;
  receive_error_ = taken.status();
  stream->Cancel(receive_error_);
  return Stream::Taken::kYes;
}

absl::StatusOr<Stream::Taken> Link::Receive(Stream* stream, const grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> verdict,
                            wire::DecodeVote(wire::BulkKind::kVerdictChunk, buffer));
  if (verdict) {
    SIGNVOTE_ASSIGN_OR_RETURN(const VerdictAssembler::Added added,
                              receiver_.OnChunk(*verdict, buffer));
    // The caller computes, or fetches, and all slots wait for it: the stream is read on when it has
    // applied what is there. The server's feed waits meanwhile; a transfer has a call of its own.
    return added == VerdictAssembler::Added::kNoRoom ? Stream::Taken::kLater : Stream::Taken::kYes;
  }
  v1::ServerMessage message;
  SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(buffer, &message));
  if (message.has_welcome() && !options_.insecure &&
      !wire::PeerOf(stream->context()).HasRole(wire::Role::kServer)) {
    return absl::PermissionDeniedError(
        "its certificate lacks the server's role (URI signvote:role:server), so it may be another "
        "worker");
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::vector<FollowerAction> actions,
                            conversation_.Hear(message, clock_->Now()));
  for (FollowerAction& action : actions)
    SIGNVOTE_RETURN_IF_ERROR(Do(stream, std::move(action), message));
  return Stream::Taken::kYes;
}

absl::Status Link::Do(Stream* stream, FollowerAction action, const v1::ServerMessage& message) {
  if (auto* say = std::get_if<SayAction>(&action)) {
    conversation_.Say(say->message);
  } else if (std::holds_alternative<CommitDueAction>(action)) {
    SIGNVOTE_RETURN_IF_ERROR(receiver_.OnCommit(message.commit()));
    retry_->Progress();
    if (meter_.rounds_begun()) counters_.CommitReceived();
  } else if (auto* opened = std::get_if<OpenedAction>(&action)) {
    return Opened(std::move(*opened));
  } else if (const auto* joined = std::get_if<JoinedAction>(&action)) {
    return Joined(stream, *joined);
  } else if (auto* transfer = std::get_if<TransferAction>(&action)) {
    if (message.has_resync()) {
      (*log_)(LogLevel::kWarning, "the server asks for a resync",
              {{"round", message.resync().round()}, {"reason", message.resync().reason()}});
    }
    receiver_.Drop();
    return events_.Push(StateEvent{.kind = transfer->kind,
                                   .connection = conversation_.connection(),
                                   .ticket = std::move(transfer->ticket),
                                   .differs = transfer->differs});
  } else if (std::holds_alternative<ClosedAction>(action)) {
    ballot_.VoteEnds();
  } else if (const auto* finish = std::get_if<FinishAction>(&action)) {
    return events_.Push(FinishEvent{finish->rounds});
  } else if (const auto* rejoin = std::get_if<RejoinAction>(&action)) {
    return rejoin->why;
  } else if (auto* drain = std::get_if<DrainAction>(&action)) {
    RequestDrain(std::move(drain->reason));
  } else if (auto* notice = std::get_if<NoticeAction>(&action)) {
    (*log_)(LogLevel::kInfo, "the server says", {{"text", notice->text}});
    events_.SetNotice(std::move(notice->text));
    if (!conversation_.welcomed()) stream->SetTimeout(options_.wait_timeout);
  }
  return absl::OkStatus();
}

absl::Status Link::Opened(OpenedAction opened) {
  const Time now = clock_->Now();
  if (meter_.BeginRounds()) counters_.RoundOpened(now - started_);
  events_.SetNotice("");
  ballot_.VoteOpens(conversation_.stream(), opened.ticket.round, opened.vote);
  retry_->Progress();
  return events_.Push(OpenEvent{std::move(opened.ticket), now});
}

absl::Status Link::Joined(Stream* stream, const JoinedAction& joined) {
  stream->SetTimeout(std::nullopt);
  counters_.Welcomed(conversation_.incarnation());
  if (!joined.first) return absl::OkStatus();
  RunInfo run = conversation_.run();
  receiver_.Begin(run.commit_plan, options_.bits_memory);
  return events_.Push(JoinedEvent{std::move(run)});
}

}  // namespace signvote
