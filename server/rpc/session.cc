#include "server/rpc/session.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/dense_value.h"
#include "common/status.h"
#include "proto/wire/run_end.h"
#include "proto/wire/security.h"
#include "server/rpc/identity.h"
#include "server/run/from_worker.h"
#include "server/tally/dense_tally.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {
namespace {

// A message this small is held back for the one that is queued behind it: both leave in one
// segment.
constexpr size_t kSmallMessageBytes = 4096;
// Beyond a whole ballot's chunks: scalars, abstention, digest, pong, leave, and the same again for
// another attempt.
constexpr uint32_t kWaitingSlack = 64;
// A Join holds a layout and a config.json; every other message but a ballot is small.
constexpr uint64_t kPlainMessageBytesMax = uint64_t{8} << 20;

absl::Status Malformed(const std::string& what) { return absl::InvalidArgumentError(what); }

// What a chunk of a ballot must be, beside of the right length and checksum.
absl::Status CheckBallotChunk(PayloadKind kind, const uint8_t* payload, uint64_t coordinates) {
  if (kind == PayloadKind::kSigns) {
    if (PaddingIsZero(payload, coordinates)) return absl::OkStatus();
    return absl::InvalidArgumentError("bits after the last coordinate are not zero");
  }
  if (AreDenseValues(kind, payload, coordinates)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a value that is not finite, or beyond ",
                                                 kDenseValueMax,
                                                 ", is no gradient's; a worker abstains then"));
}

}  // namespace

struct ServerSession::Counter {
  wire::SocketByteCounter socket;
  bool found = false;
  run::PeerBytes last;
};

std::shared_ptr<ServerSession> ServerSession::Start(grpc::CallbackServerContext* context,
                                                    run::RunThread* run, StreamTable* table,
                                                    std::string ticket) {
  std::shared_ptr<ServerSession> session(new ServerSession(context, run, table, std::move(ticket)));
  {
    MutexLock lock(&session->mu_);
    session->self_ = session;
  }
  table->Add(session->ticket_, session);
  session->Tell(run::StreamOpened{session});
  session->StartRead(&session->incoming_);
  return session;
}

ServerSession::ServerSession(grpc::CallbackServerContext* context, run::RunThread* run,
                             StreamTable* table, std::string ticket)
    : run_(run),
      table_(table),
      id_(table->NextId()),
      ticket_(std::move(ticket)),
      identity_(IdentityOf(*context)),
      waiting_(std::make_shared<std::atomic<uint32_t>>(0)),
      context_(context) {}

// ---- the run's side -----------------------------------------------------------------------------

void ServerSession::Send(const v1::ServerMessage& message) { Queue(wire::EncodeMessage(message)); }

void ServerSession::SendVerdict(const run::VerdictHeader& header, std::span<const uint8_t> payload,
                                std::shared_ptr<const void> owner) {
  Queue(wire::EncodeVote(wire::BulkKind::kVerdictChunk,
                         {.run_id = run_->run_id(),
                          .epoch = run_->epoch(),
                          .round = header.round,
                          .attempt = header.attempt,
                          .chunk = header.chunk,
                          .checksum = header.checksum},
                         payload, std::move(owner)));
}

void ServerSession::Queue(const grpc::ByteBuffer& message) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ != State::kOpen) return;
    PushLocked(message);
    AdvanceLocked(&todo);
  }
  Do(todo);
}

void ServerSession::Admit(std::shared_ptr<BallotSlots> slots) {
  MutexLock lock(&mu_);
  slots_ = std::move(slots);
}

size_t ServerSession::queued_bytes() const {
  MutexLock lock(&mu_);
  return queued_bytes_;
}

void ServerSession::NotifyWhenBelow(size_t bytes) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ != State::kOpen) return;
    if (queued_bytes_ > bytes) {
      notify_below_ = bytes;
    } else {
      notify_below_.reset();
      todo.room = true;
    }
  }
  Do(todo);
}

void ServerSession::Close(absl::Status status) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ != State::kOpen) return;
    // Of a server that stops too: who lacked the last commit could not go on exactly when it is back.
    const auto queued =
        status.ok() || absl::IsCancelled(status) ? Queued::kSentFirst : Queued::kDropped;
    CloseLocked(std::move(status), queued, &todo);
  }
  Do(todo);
}

void ServerSession::Cancel() {
  // The lock keeps the context alive: OnDone() takes it before gRPC frees the context. TryCancel
  // only posts work to gRPC's queues, so no callback runs inside it.
  MutexLock lock(&mu_);
  if (context_ != nullptr) context_->TryCancel();
}

run::PeerBytes ServerSession::bytes() const {
  if (counter_ == nullptr) {
    counter_ =
        std::make_unique<Counter>(Counter{.socket = wire::SocketByteCounter(identity_.address, 0)});
    counter_->found = counter_->socket.Read().has_value();
  }
  MutexLock lock(&mu_);
  run::PeerBytes now = moved_.messages;
  if (counter_->found) {
    const std::optional<wire::SocketBytes> read = counter_->socket.Read();
    if (!read.has_value()) return counter_->last;  // the connection is gone
    now = {.received = read->received - std::min(read->received, moved_.transferred.received),
           .sent = read->sent - std::min(read->sent, moved_.transferred.sent)};
  }
  // What is on its way is not acknowledged yet: figures never fall.
  counter_->last = {.received = std::max(counter_->last.received, now.received),
                    .sent = std::max(counter_->last.sent, now.sent)};
  return counter_->last;
}

bool ServerSession::closing() const {
  MutexLock lock(&mu_);
  return state_ != State::kOpen;
}

void ServerSession::AddTransferred(uint64_t received, uint64_t sent) {
  MutexLock lock(&mu_);
  moved_.transferred.received += received;
  moved_.transferred.sent += sent;
}

// ---- gRPC's side --------------------------------------------------------------------------------

void ServerSession::OnReadDone(bool ok) {
  Todo todo;
  if (!ok) {
    {
      MutexLock lock(&mu_);
      // After Leave the run ends the stream with OK; a broken connection also calls OnCancel().
      if (state_ == State::kOpen && !left_) {
        CloseLocked(absl::CancelledError("the worker closed its side of the stream"),
                    Queued::kDropped, &todo);
      }
    }
    return Do(todo);
  }
  const uint64_t bytes = incoming_.Length();
  absl::Status status = Handle(incoming_);
  incoming_.Clear();
  {
    MutexLock lock(&mu_);
    moved_.messages.received += bytes;
    // A session that is closing reads no further: what comes now would not be answered.
    if (state_ != State::kOpen) return;
    if (!status.ok()) CloseLocked(std::move(status), Queued::kDropped, &todo);
  }
  if (todo.gone) return Do(todo);
  StartRead(&incoming_);
}

void ServerSession::OnWriteDone(bool ok) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    writing_ = false;
    const size_t bytes = queue_.front().Length();
    EraseLocked(queue_.begin());
    if (ok) {
      moved_.messages.sent += bytes;
    } else {
      while (!queue_.empty()) EraseLocked(queue_.begin());
      if (state_ == State::kOpen)
        CloseLocked(absl::CancelledError("the connection broke"), Queued::kDropped, &todo);
    }
    if (notify_below_.has_value() && queued_bytes_ <= *notify_below_) {
      notify_below_.reset();
      todo.room = true;
    }
    AdvanceLocked(&todo);
  }
  Do(todo);
}

void ServerSession::OnCancel() {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ == State::kOpen)
      CloseLocked(absl::CancelledError("the connection broke"), Queued::kDropped, &todo);
  }
  Do(todo);
}

void ServerSession::OnDone() {
  table_->Remove(ticket_);
  std::shared_ptr<ServerSession> self;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_CHECK(state_ == State::kFinished);
    state_ = State::kDone;
    context_ = nullptr;
    slots_.reset();
    self = std::move(self_);
  }
  Tell(run::StreamDone{});
}

absl::Status ServerSession::Handle(const grpc::ByteBuffer& message) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> view,
                            wire::DecodeVote(wire::BulkKind::kBallotChunk, message));
  if (view.has_value()) {
    if (!joined_) return Malformed("the first message of a session must be Join");
    return HandleBallot(*view, message);
  }
  if (message.Length() > kPlainMessageBytesMax) {
    return Malformed(absl::StrCat("a message of ", message.Length(),
                                  " bytes that is no ballot; at most ", kPlainMessageBytesMax,
                                  " bytes are taken"));
  }
  v1::WorkerMessage parsed;
  SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(message, &parsed));
  SIGNVOTE_ASSIGN_OR_RETURN(run::StreamWhat what, run::InputFrom(std::move(parsed), joined_));
  joined_ = true;
  if (std::holds_alternative<run::LeaveIn>(what)) left_ = true;
  return Post(std::move(what));
}

absl::Status ServerSession::HandleBallot(const wire::VoteView& view,
                                         const grpc::ByteBuffer& message) {
  std::shared_ptr<BallotSlots> slots;
  {
    MutexLock lock(&mu_);
    slots = slots_;
  }
  const wire::VoteHeader& header = view.header;
  const auto where = [&] {
    return absl::StrCat("chunk ", header.chunk.value(), " of the ballot of round ",
                        header.round.value(), ", attempt ", header.attempt.value());
  };
  if (slots == nullptr)
    return Malformed(absl::StrCat(where(), " came before this session was welcomed"));
  if (header.run_id != run_->run_id()) {
    return Malformed(absl::StrCat(where(), " is of run ", header.run_id.ToText(), ", this is run ",
                                  run_->run_id().ToText()));
  }
  if (header.epoch != run_->epoch()) {
    return Malformed(absl::StrCat(where(), " is of epoch ", header.epoch.value(),
                                  ", this is epoch ", run_->epoch().value()));
  }
  const ChunkPlan& plan = slots->plan();
  if (header.chunk.value() >= plan.chunks()) {
    return Malformed(
        absl::StrCat(where(), " does not exist: there are ", plan.chunks(), " chunks"));
  }
  const size_t bytes = slots->payload().Bytes(header.chunk, 1);
  if (view.payload_bytes != bytes) {
    return Malformed(
        absl::StrCat(where(), " has ", view.payload_bytes, " bytes, it must have ", bytes));
  }
  std::span<uint8_t> place;
  switch (slots->Begin(header.round, header.attempt, header.chunk, &place)) {
    case BallotSlots::Place::kNotOpen:
      return Malformed(absl::StrCat(where(), " was sent before that round was opened"));
    case BallotSlots::Place::kNotNeeded:
      break;
    case BallotSlots::Place::kWrite: {
      absl::Status status =
          wire::CopyPayloadChecked(message, view.payload_offset, header.checksum, place);
      if (status.ok()) {
        status = CheckBallotChunk(slots->payload().kind(header.chunk), place.data(),
                                  plan.Count(header.chunk));
      }
      // False: closed meanwhile. The engine hears of it all the same and counts it as late.
      (void)slots->End(header.round, header.attempt, header.chunk, status.ok());
      if (!status.ok()) return WithContext(status, where());
      break;
    }
  }
  return Post(run::BallotIn{header.round, header.attempt, header.chunk});
}

// For what the worker sends, of which only so much may wait.
template <typename What>
absl::Status ServerSession::Post(What what) {
  uint32_t waiting_max = kWaitingMax;
  {
    MutexLock lock(&mu_);
    if (slots_ != nullptr) waiting_max = 4 * slots_->plan().chunks() + kWaitingSlack;
  }
  // One reader at a time adds: the bound cannot be passed between the look and the step.
  if (waiting_->load(std::memory_order_relaxed) >= waiting_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the worker sends faster than the server can follow: ", waiting_max,
                     " messages are waiting"));
  }
  waiting_->fetch_add(1, std::memory_order_relaxed);
  if (!run_->Post(run::StreamInput{
          .peer = id_, .what = std::move(what), .receipt = run::Receipt(waiting_)})) {
    return absl::CancelledError("the server stops");
  }
  return absl::OkStatus();
}

// For what happens to the stream: few of each.
template <typename What>
void ServerSession::Tell(What what) {
  // False: the server stops; the call is cancelled with it.
  (void)run_->Post(run::StreamInput{.peer = id_, .what = std::move(what)});
}

void ServerSession::CloseLocked(absl::Status status, Queued queued, Todo* todo) {
  SIGNVOTE_CHECK(state_ == State::kOpen);
  state_ = State::kClosing;
  if (queued == Queued::kDropped) {
    while (queue_.size() > (writing_ ? 1u : 0u)) EraseLocked(std::prev(queue_.end()));
  }
  close_status_ = std::move(status);
  if (!std::exchange(gone_told_, true)) {
    todo->gone = true;
    todo->gone_reason = Describe(close_status_);
    todo->gone_by_us = !close_status_.ok() && !absl::IsCancelled(close_status_);
  }
  AdvanceLocked(todo);
}

void ServerSession::AdvanceLocked(Todo* todo) {
  if (writing_ || state_ == State::kFinished || state_ == State::kDone) return;
  if (!queue_.empty()) {
    writing_ = true;
    todo->write = &queue_.front();
    if (queue_.size() > 1 && queue_.front().Length() < kSmallMessageBytes)
      todo->write_options.set_buffer_hint();
    return;
  }
  if (state_ == State::kClosing) {
    state_ = State::kFinished;
    todo->finish = true;
    todo->finish_status = wire::ToGrpc(close_status_);
    wire::SendExitCode(close_status_, context_);
  }
}

void ServerSession::PushLocked(const grpc::ByteBuffer& message) {
  const size_t bytes = message.Length();
  queue_.push_back(message);
  queued_bytes_ += bytes;
  run_->outbound()->Add(bytes);
}

void ServerSession::EraseLocked(std::deque<grpc::ByteBuffer>::iterator message) {
  const size_t bytes = message->Length();
  queue_.erase(message);
  queued_bytes_ -= bytes;
  run_->outbound()->Remove(bytes);
}

void ServerSession::Do(const Todo& todo) {
  // The call below may be the last one before OnDone() on another thread.
  const std::shared_ptr<ServerSession> alive = shared_from_this();
  if (todo.room) Tell(run::RoomIn{});
  if (todo.gone) {
    table_->Remove(ticket_);
    Tell(run::GoneIn{todo.gone_reason, todo.gone_by_us});
  }
  if (todo.write != nullptr) StartWrite(todo.write, todo.write_options);
  if (todo.finish) Finish(todo.finish_status);
}

}  // namespace signvote::rpc
