#include "server/rpc/session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/status.h"
#include "common/text.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {
namespace {

// A message this small is held back for the one that is queued behind it: both leave in one
// segment.
constexpr size_t kSmallMessageBytes = 4096;
// Beyond a whole ballot's chunks: scalars, abstention, digest, pong, leave, and the same again for
// another attempt.
constexpr uint32_t kPendingSlack = 64;

// A Join holds a layout and a config.json; every other message but a ballot is small.
constexpr uint64_t kPlainMessageBytesMax = uint64_t{8} << 20;
// What a worker says for people is kept and shown for as long as it is known.
constexpr size_t kVersionBytesMax = 64;
constexpr size_t kAddressBytesMax = 255;
constexpr size_t kReasonBytesMax = 200;

absl::Status Malformed(const std::string& what) { return absl::InvalidArgumentError(what); }

AbstainReason ToReason(v1::Abstain::Reason reason) {
  switch (reason) {
    case v1::Abstain::REASON_NONFINITE_LOSS:
      return AbstainReason::kNonFiniteLoss;
    case v1::Abstain::REASON_NONFINITE_GRADIENT:
      return AbstainReason::kNonFiniteGradient;
    default:
      return AbstainReason::kOther;
  }
}

}  // namespace

std::shared_ptr<ServerSession> ServerSession::Start(grpc::CallbackServerContext* context,
                                                    Inbox* inbox, Options options) {
  std::shared_ptr<ServerSession> session(new ServerSession(context, inbox, std::move(options)));
  {
    MutexLock lock(&session->mu_);
    session->self_ = session;
  }
  (void)inbox->Push(
      {session, OpenedIn{}});  // false: the server stops; the call is cancelled with it
  session->StartRead(&session->incoming_);
  return session;
}

ServerSession::ServerSession(grpc::CallbackServerContext* context, Inbox* inbox, Options options)
    : inbox_(inbox),
      options_(std::move(options)),
      peer_(wire::PeerOf(*context)),
      context_(context),
      pending_max_(options_.pending_max) {}

void ServerSession::Admit(std::shared_ptr<BallotSlots> slots) {
  MutexLock lock(&mu_);
  pending_max_ = 4 * slots->plan().chunks() + kPendingSlack;
  slots_ = std::move(slots);
}

void ServerSession::Send(const grpc::ByteBuffer& message) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ != State::kOpen) return;
    const size_t bytes = message.Length();
    if (queued_bytes_ + bytes > options_.queue_bytes_max && !queue_.empty()) {
      CloseLocked(
          absl::ResourceExhaustedError(absl::StrCat(
              "the worker reads too slowly: ", queued_bytes_, " bytes wait for it, the limit is ",
              options_.queue_bytes_max, " (--session-buffer-bytes); join again to catch up")),
          &todo);
    } else {
      queue_.push_back(message);
      queued_bytes_ += bytes;
      AdvanceLocked(&todo);
    }
  }
  Do(todo);
}

size_t ServerSession::queued_bytes() const {
  MutexLock lock(&mu_);
  return queued_bytes_;
}

void ServerSession::NotifyWhenBelow(size_t bytes) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    notify_below_ = bytes;
    notify_room_ = queued_bytes_ > bytes;
    todo.room = !notify_room_;
  }
  Do(todo);
}

void ServerSession::Close(absl::Status status) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    if (state_ != State::kOpen) return;
    CloseLocked(std::move(status), &todo);
  }
  Do(todo);
}

bool ServerSession::closing() const {
  MutexLock lock(&mu_);
  return state_ != State::kOpen;
}

void ServerSession::Cancel() {
  // The lock keeps the context alive: OnDone() takes it before gRPC frees the context. TryCancel
  // only posts work to gRPC's queues, so no callback runs inside it.
  MutexLock lock(&mu_);
  if (context_ != nullptr) context_->TryCancel();
}

void ServerSession::Processed() {
  MutexLock lock(&mu_);
  SIGNVOTE_CHECK(pending_ > 0);
  --pending_;
}

bool ServerSession::BeginTransfer() {
  MutexLock lock(&mu_);
  return !std::exchange(transferring_, true);
}

void ServerSession::EndTransfer() {
  MutexLock lock(&mu_);
  transferring_ = false;
}

void ServerSession::OnReadDone(bool ok) {
  Todo todo;
  if (!ok) {
    {
      MutexLock lock(&mu_);
      // After Leave the engine's thread ends the stream with OK; a broken connection also calls
      // OnCancel().
      if (state_ == State::kOpen && !left_) {
        CloseLocked(absl::CancelledError("the worker closed its side of the stream"), &todo);
      }
    }
    return Do(todo);
  }
  absl::Status status = Handle(incoming_);
  incoming_.Clear();
  {
    MutexLock lock(&mu_);
    // A session that is closing reads no further: what comes now would not be answered.
    if (status.ok() && state_ != State::kOpen) return;
    if (!status.ok()) {
      if (state_ != State::kOpen) return;
      CloseLocked(std::move(status), &todo);
    }
  }
  if (todo.gone) return Do(todo);
  StartRead(&incoming_);
}

void ServerSession::OnWriteDone(bool ok) {
  Todo todo;
  {
    MutexLock lock(&mu_);
    writing_ = false;
    queued_bytes_ -= queue_.front().Length();
    queue_.pop_front();
    if (!ok) {
      queue_.clear();
      queued_bytes_ = 0;
      if (state_ == State::kOpen) CloseLocked(absl::CancelledError("the connection broke"), &todo);
    }
    if (notify_room_ && queued_bytes_ <= notify_below_) {
      notify_room_ = false;
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
    if (state_ == State::kOpen) CloseLocked(absl::CancelledError("the connection broke"), &todo);
  }
  Do(todo);
}

void ServerSession::OnDone() {
  std::shared_ptr<ServerSession> self;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_CHECK(state_ == State::kFinished);
    state_ = State::kDone;
    context_ = nullptr;
    slots_.reset();
    self = std::move(self_);
  }
  (void)inbox_->Push({self, DoneIn{}});  // false once nobody keeps books any more
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
  if (parsed.has_join() == joined_) {
    return Malformed(joined_ ? "a second Join on one session"
                             : "the first message of a session must be Join");
  }
  switch (parsed.message_case()) {
    case v1::WorkerMessage::kJoin: {
      joined_ = true;
      auto join = std::make_shared<v1::Join>(std::move(*parsed.mutable_join()));
      join->set_software_version(ForPeople(join->software_version(), kVersionBytesMax));
      join->set_metrics_address(ForPeople(join->metrics_address(), kAddressBytesMax));
      return Post(JoinIn{std::move(join)});
    }
    case v1::WorkerMessage::kScalars: {
      const v1::Scalars& in = parsed.scalars();
      ScalarsMessageIn out{.round = Round(in.round()), .attempt = Attempt(in.attempt())};
      out.scalars.loss = in.loss();
      out.scalars.g_l1 = in.g_l1();
      out.scalars.g_l2_squared = in.g_l2_squared();
      if (in.has_probe_l1()) out.scalars.probe_l1 = in.probe_l1();
      if (in.has_prev_inner()) out.scalars.prev_inner = in.prev_inner();
      out.scalars.nonfinite_coordinates = in.nonfinite_coordinates();
      out.scalars.samples = in.samples();
      out.compute_us = in.compute_us();
      out.apply_us = in.apply_us();
      return Post(std::move(out));
    }
    case v1::WorkerMessage::kAbstain:
      return Post(AbstainMessageIn{Round(parsed.abstain().round()),
                                   Attempt(parsed.abstain().attempt()),
                                   ToReason(parsed.abstain().reason())});
    case v1::WorkerMessage::kReplicaDigest:
      return Post(DigestMessageIn{Round(parsed.replica_digest().round()),
                                  parsed.replica_digest().digest()});
    case v1::WorkerMessage::kPong:
      return Post(PongIn{parsed.pong().nonce()});
    case v1::WorkerMessage::kReady:
      return Post(ReadyIn{Round(parsed.ready().round())});
    case v1::WorkerMessage::kLeave:
      left_ = true;
      return Post(LeaveIn{ForPeople(parsed.leave().reason(), kReasonBytesMax)});
    case v1::WorkerMessage::kBallotChunk:  // DecodeVote() has taken every well-formed one
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
  return Malformed("a message of no known kind");
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
  if (header.run_id != options_.run_id) {
    return Malformed(absl::StrCat(where(), " is of run ", header.run_id.ToText(), ", this is run ",
                                  options_.run_id.ToText()));
  }
  if (header.epoch != options_.epoch) {
    return Malformed(absl::StrCat(where(), " is of epoch ", header.epoch.value(),
                                  ", this is epoch ", options_.epoch.value()));
  }
  const ChunkPlan& plan = slots->plan();
  if (header.chunk.value() >= plan.chunks()) {
    return Malformed(
        absl::StrCat(where(), " does not exist: there are ", plan.chunks(), " chunks"));
  }
  if (view.payload_bytes != plan.Bytes(header.chunk)) {
    return Malformed(absl::StrCat(where(), " has ", view.payload_bytes, " bytes, it must have ",
                                  plan.Bytes(header.chunk)));
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
      if (status.ok() && !PaddingIsZero(place.data(), plan.Count(header.chunk))) {
        status = absl::InvalidArgumentError("bits after the last coordinate are not zero");
      }
      // False: closed meanwhile. The engine hears of it all the same and counts it as late.
      (void)slots->End(header.round, header.attempt, header.chunk, status.ok());
      if (!status.ok()) return WithContext(status, where());
      break;
    }
  }
  return Post(BallotIn{header.round, header.attempt, header.chunk});
}

template <typename What>
absl::Status ServerSession::Post(What what) {
  {
    MutexLock lock(&mu_);
    if (pending_ >= pending_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the worker sends faster than the server can follow: ", pending_,
                       " messages are waiting"));
    }
    ++pending_;
  }
  if (!inbox_->Push({shared_from_this(), std::move(what)}))
    return absl::CancelledError("the server stops");
  return absl::OkStatus();
}

void ServerSession::CloseLocked(absl::Status status, Todo* todo) {
  SIGNVOTE_CHECK(state_ == State::kOpen);
  state_ = State::kClosing;
  if (!status.ok()) {
    while (queue_.size() > (writing_ ? 1u : 0u)) {
      queued_bytes_ -= queue_.back().Length();
      queue_.pop_back();
    }
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
  }
}

void ServerSession::Do(const Todo& todo) {
  // The call below may be the last one before OnDone() on another thread.
  const std::shared_ptr<ServerSession> alive = shared_from_this();
  if (todo.room) (void)inbox_->Push({alive, RoomIn{}});  // false: the server stops
  if (todo.gone)
    (void)inbox_->Push({alive, GoneIn{todo.gone_reason, todo.gone_by_us}});  // likewise
  if (todo.write != nullptr) StartWrite(todo.write, todo.write_options);
  if (todo.finish) Finish(todo.finish_status);
}

}  // namespace signvote::rpc
