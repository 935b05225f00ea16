#include "worker/session/session.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <thread>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/backoff.h"
#include "worker/session/dial_error.h"
#include "worker/session/replica.h"
#include "worker/session/state_transfer.h"
#include "worker/session/stream.h"
#include "worker/session/verdict_store.h"

namespace signvote {
namespace {

// Rounds whose verdicts may wait for the caller, who may be computing while others go on (an observer). Each costs d/8
// bytes, and only when it is needed; beyond that the session stops reading and the server's limits apply.
constexpr size_t kVerdictSlotsMax = 16;
// Verdicts of a round and its successor may be under way at the same time.
constexpr size_t kRoundsAssembledMax = 2;
constexpr size_t kEventsMax = 4096;
constexpr uint64_t kTokenBytesMax = 4096;
// Everything of a chunk's message but its payload.
constexpr uint64_t kChunkHeaderBytesMax = 256;
constexpr int kTransfersInARowMax = 5;
constexpr Duration kLeaveTimeout = std::chrono::seconds(3);
constexpr Duration kDrainTimeout = std::chrono::seconds(10);
// How long a finished run's server is looked for, when the connection broke before its goodbye.
constexpr Duration kFinishedServerTimeout = std::chrono::seconds(30);

// ---- what the link tells the caller -----------------------------------------------------------------------------

struct CommitEvent {
  Round round;
  float stepsize = 0;
  double loss = 0;
  uint32_t voters = 0;
  bool digest_due = false;
  VerdictStore::Slot* slot = nullptr;
  RoundTimes times;
};
struct OpenEvent {
  RoundTicket ticket;
  Time at;
};
// The server wants the state fetched or uploaded, over this session.
struct StateEvent {
  enum class Kind { kFetch, kUpload } kind = Kind::kFetch;
  uint64_t connection = 0;
  std::string ticket;
};
struct FinishEvent {
  Round rounds;
};
struct DrainEvent {
  std::string reason;
};
using Event = std::variant<CommitEvent, OpenEvent, StateEvent, FinishEvent, DrainEvent>;

absl::StatusOr<DirectionConfig> DirectionFrom(const v1::Direction& direction) {
  DirectionConfig config;
  config.beta = direction.beta();
  config.beta2 = direction.beta2();
  switch (direction.kind()) {
    case v1::Direction::KIND_SIGNSGD: config.kind = DirectionKind::kSignSgd; return config;
    case v1::Direction::KIND_SIGNUM: config.kind = DirectionKind::kSignum; return config;
    case v1::Direction::KIND_NESTEROV_SIGNUM: config.kind = DirectionKind::kNesterovSignum; return config;
    case v1::Direction::KIND_LION: config.kind = DirectionKind::kLion; return config;
    default: break;
  }
  return absl::FailedPreconditionError(absl::StrCat("the server asks for direction ",
                                                    static_cast<int>(direction.kind()),
                                                    ", which this version does not know; upgrade the worker"));
}

void FillLayout(const Layout& layout, v1::Layout* out) {
  for (const TensorSpec& tensor : layout.tensors()) {
    v1::Tensor* const to = out->add_tensors();
    to->set_name(tensor.name);
    for (const uint64_t dimension : tensor.shape) to->add_shape(dimension);
    to->set_step_scale(tensor.step_scale);
    to->set_weight_decay(tensor.weight_decay);
  }
  out->set_digest(layout.digest());
}

v1::Abstain::Reason ToProto(AbstainReason reason) {
  switch (reason) {
    case AbstainReason::kNonFiniteLoss: return v1::Abstain::REASON_NONFINITE_LOSS;
    case AbstainReason::kNonFiniteGradient: return v1::Abstain::REASON_NONFINITE_GRADIENT;
    case AbstainReason::kOther: return v1::Abstain::REASON_OTHER;
  }
  return v1::Abstain::REASON_OTHER;
}

uint64_t Microseconds(Duration d) {
  return static_cast<uint64_t>(std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::microseconds>(d).count()));
}

// Statuses with which a server refuses this worker; a retry would only be refused again.
bool IsRefusal(absl::StatusCode code, bool welcomed) {
  switch (code) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kNotFound:
      return true;
    case absl::StatusCode::kResourceExhausted:
      return !welcomed;  // later it only says that this worker read too slowly
    default:
      return false;
  }
}

// ---- the session ------------------------------------------------------------------------------------------------
//
// Two threads: the caller's, which owns the replica, and the link's, which owns the connection: it dials, joins,
// receives, checks and hands over whole commits, and resends the ballot. They meet in the event queue.
class SessionImpl final : public Session {
 public:
  SessionImpl(SessionOptions options, Clock* clock, std::string name, std::string token,
              std::optional<wire::TlsMaterial> tls, uint64_t jitter_seed)
      : options_(std::move(options)),
        clock_(clock),
        name_(std::move(name)),
        token_(std::move(token)),
        credentials_(tls ? wire::MtlsChannelCredentials(*tls) : grpc::InsecureChannelCredentials()),
        backoff_(jitter_seed) {}

  ~SessionImpl() override { StopLink(); }

  absl::StatusOr<RunInfo> Join(const Layout& layout, std::span<float> x) override;
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override;
  absl::Status SendChunk(ChunkIndex k, const uint8_t* ballot) override;
  absl::Status SendScalars(const BallotScalars& scalars) override;
  absl::Status Abstain(AbstainReason reason) override;
  absl::StatusOr<CommitOutcome> WaitCommit() override;
  absl::Status Leave(const std::string& reason) override;
  void RequestDrain(const std::string& reason) override;
  bool finished() const override { return finished_; }
  bool drained() const override { return drained_; }
  SessionStats Stats() const override;

 private:
  // The ballot of the ticket's round, kept until its commit so that it can be sent again.
  struct Ballot {
    bool active = false;
    Round round;
    Time opened;
    Time first_chunk, last_chunk;
    std::vector<const uint8_t*> chunks;  // null: not handed over yet
    std::vector<uint64_t> checksums;
    uint32_t chunks_handed = 0;
    std::optional<v1::Scalars> scalars;
    std::optional<v1::Abstain> abstain;
    // Shared with every message that refers to the caller's bytes; the only holder left means gRPC reads no more.
    std::shared_ptr<int> lease;
  };
  struct OpenRound {
    Round round;
    Attempt attempt;
  };
  struct Outgoing {
    grpc::ByteBuffer message;
    Stream::Kind kind;
  };

  // ---- the caller's side
  absl::Status Usable() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the next event and handles it. DEADLINE_EXCEEDED names `what` and the server's last notice.
  absl::Status HandleNext(Time deadline, Duration waited_at_most, const std::string& what) ABSL_LOCKS_EXCLUDED(mu_);
  // Handles what has arrived, without waiting.
  absl::Status HandleArrived() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Handle(Event event);
  absl::Status ApplyCommit(const CommitEvent& commit);
  absl::Status TransferState(const StateEvent& state);
  absl::Status FinishRun();
  void LeaveNow(const std::string& reason);
  void WithdrawBallot() ABSL_LOCKS_EXCLUDED(mu_);
  void SendDigest();
  bool ReplicaReady() const { return replica_ != nullptr && replica_->level(); }
  void SendToServer(const v1::WorkerMessage& message) ABSL_LOCKS_EXCLUDED(mu_);

  // ---- the link's side
  void LinkMain();
  v1::WorkerMessage JoinMessage() ABSL_LOCKS_EXCLUDED(mu_);
  void OnMessage(grpc::ByteBuffer& buffer);
  absl::Status Receive(grpc::ByteBuffer& buffer);
  absl::Status OnWelcome(const v1::Welcome& welcome);
  absl::Status OnVerdictChunk(const wire::VoteView& view, const grpc::ByteBuffer& buffer);
  absl::Status OnCommit(const v1::Commit& commit);
  absl::Status OnRoundOpen(const v1::RoundOpen& open);
  absl::Status OnMismatch(Round round, const std::string& why);
  // The slot in which the round's verdict is put together; nullptr when the session stops.
  VerdictStore::Slot* SlotFor(Round round);
  void DropAssembled();
  bool Push(Event event) ABSL_LOCKS_EXCLUDED(mu_);
  // What the connection still is to be told of the ballot under the open attempt.
  std::vector<Outgoing> BallotMessagesLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  wire::VoteHeader HeaderLocked(ChunkIndex k) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Outgoing ScalarsMessageLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Outgoing AbstainMessageLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AttemptOpenLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stream_ != nullptr && open_.has_value() && ballot_.active && open_->round == ballot_.round;
  }
  void ReadCounterLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(stats_mu_);
  void CloseCounter() ABSL_LOCKS_EXCLUDED(stats_mu_);
  void StopLink();

  // Constant after construction.
  const SessionOptions options_;
  Clock* const clock_;
  const std::string name_;
  const std::string token_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;

  // Set by Join before the link starts, or by the link before the first event; constant then.
  Layout layout_;
  RunInfo run_;
  std::unique_ptr<VerdictStore> verdicts_;

  // Of the caller's thread.
  Time join_started_;
  std::span<float> x_;
  std::unique_ptr<Replica> replica_;
  bool untouched_ = true;                    // x still holds this worker's own initial parameters
  std::optional<RoundTicket> ticket_;
  std::optional<OpenEvent> pending_open_;
  std::optional<Round> finish_rounds_;
  std::optional<std::string> drain_reason_;
  uint64_t applied_ = 0;                     // since the last outcome
  bool transferred_ = false;                 // likewise
  std::optional<CommitEvent> last_commit_;   // likewise; its slot is held
  VerdictStore::Slot* outcome_slot_ = nullptr;
  int transfers_failed_in_a_row_ = 0;
  absl::Status transfer_error_;

  // Of the link's thread.
  Backoff backoff_;
  std::vector<VerdictStore::Slot*> assembled_;
  bool welcomed_ = false;                    // on this connection
  bool ever_welcomed_ = false;
  std::string transfer_ticket_;              // of this connection's welcome
  absl::Status receive_error_;               // why this side ended the connection; OK: it did not
  std::optional<Time> lost_since_;
  int mismatches_in_a_row_ = 0;

  mutable Mutex mu_;
  CondVar changed_;                          // an event, a freed slot, or the session's end
  std::thread link_;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mu_);
  uint64_t connection_ ABSL_GUARDED_BY(mu_) = 0;      // number of the connection
  Epoch epoch_ ABSL_GUARDED_BY(mu_);
  std::optional<Round> received_ ABSL_GUARDED_BY(mu_);  // next commit expected; nullopt: no replica to follow with
  Epoch last_commit_epoch_ ABSL_GUARDED_BY(mu_);
  std::optional<OpenRound> open_ ABSL_GUARDED_BY(mu_);  // as this connection was told
  Ballot ballot_ ABSL_GUARDED_BY(mu_);
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  absl::Status fatal_ ABSL_GUARDED_BY(mu_);
  std::string notice_ ABSL_GUARDED_BY(mu_);
  bool closing_ ABSL_GUARDED_BY(mu_) = false;   // said goodbye: an ended stream is the end
  bool finish_seen_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;    // the link has ended
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool run_known_ ABSL_GUARDED_BY(mu_) = false;

  std::atomic<bool> finished_{false};  // written by the caller's thread, read by any; orders nothing else
  std::atomic<bool> drained_{false};

  mutable Mutex stats_mu_;
  mutable SessionStats stats_ ABSL_GUARDED_BY(stats_mu_);
  mutable std::optional<wire::SocketByteCounter> counter_ ABSL_GUARDED_BY(stats_mu_);
  mutable wire::SocketBytes counted_ ABSL_GUARDED_BY(stats_mu_);  // last reading of counter_
  bool joined_rounds_ ABSL_GUARDED_BY(stats_mu_) = false;         // this connection's bytes are the rounds' from now on
};

// ---- the caller's side ------------------------------------------------------------------------------------------

absl::Status SessionImpl::Usable() const {
  if (replica_ == nullptr) return absl::FailedPreconditionError("the session has not joined");
  MutexLock lock(&mu_);
  return fatal_;
}

absl::StatusOr<RunInfo> SessionImpl::Join(const Layout& layout, std::span<float> x) {
  if (replica_ != nullptr) return absl::FailedPreconditionError("the session has joined already");
  if (x.size() != layout.coordinates() || x.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the replica has ", x.size(), " coordinates, its layout ", layout.coordinates()));
  }
  layout_ = layout;
  replica_ = std::make_unique<Replica>(&layout_, x);
  x_ = x;
  join_started_ = clock_->Now();
  link_ = std::thread([this] { LinkMain(); });
  const Time deadline = clock_->Now() + options_.wait_timeout;
  while (!ReplicaReady() && !finish_rounds_) {
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, options_.wait_timeout, "the server to let this worker in"));
    if (drain_reason_) {
      LeaveNow(*drain_reason_);
      return absl::CancelledError(absl::StrCat("asked to leave before it had joined: ", *drain_reason_));
    }
  }
  return run_;
}

absl::Status SessionImpl::HandleNext(Time deadline, Duration waited_at_most, const std::string& what) {
  std::optional<Event> event;
  {
    MutexLock lock(&mu_);
    while (events_.empty()) {
      if (!fatal_.ok()) return fatal_;
      if (closed_) return absl::CancelledError("the session has ended");
      const Duration left = deadline - clock_->Now();
      if (left <= Duration::zero()) {
        return WithExitCode(
            absl::DeadlineExceededError(absl::StrCat(
                "waited ", ToSeconds(waited_at_most), " s for ", what,
                stream_ == nullptr ? absl::StrCat("; there is no connection to ", options_.server) : "",
                notice_.empty() ? "" : absl::StrCat("; the server says: ", notice_))),
            ExitCode::kWaitTimeout);
      }
      changed_.WaitFor(&mu_, std::min<Duration>(left, std::chrono::seconds(1)));
    }
    event = std::move(events_.front());
    events_.pop_front();
  }
  return Handle(*std::move(event));
}

absl::Status SessionImpl::HandleArrived() {
  for (;;) {
    std::optional<Event> event;
    {
      MutexLock lock(&mu_);
      if (events_.empty()) return absl::OkStatus();
      event = std::move(events_.front());
      events_.pop_front();
    }
    SIGNVOTE_RETURN_IF_ERROR(Handle(*std::move(event)));
  }
}

absl::Status SessionImpl::Handle(Event event) {
  if (auto* commit = std::get_if<CommitEvent>(&event)) return ApplyCommit(*commit);
  if (auto* state = std::get_if<StateEvent>(&event)) return TransferState(*state);
  if (auto* open = std::get_if<OpenEvent>(&event)) pending_open_ = std::move(*open);
  if (auto* finish = std::get_if<FinishEvent>(&event)) finish_rounds_ = finish->rounds;
  if (auto* drain = std::get_if<DrainEvent>(&event)) drain_reason_ = std::move(drain->reason);
  return absl::OkStatus();
}

absl::Status SessionImpl::ApplyCommit(const CommitEvent& commit) {
  const Time start = clock_->Now();
  const absl::Status applied = replica_->Apply(commit.round, commit.stepsize, commit.slot->bits.data());
  // A commit from before a state transfer, which is void by now.
  if (!applied.ok()) {
    verdicts_->Release(commit.slot);
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  untouched_ = false;
  ++applied_;
  if (last_commit_) verdicts_->Release(last_commit_->slot);
  last_commit_ = commit;
  changed_.NotifyAll();
  {
    MutexLock lock(&stats_mu_);
    stats_.last_apply_seconds = ToSeconds(clock_->Now() - start);
    ++stats_.rounds_applied;
  }
  if (commit.digest_due && replica_->level() && replica_->round() == commit.round.next()) SendDigest();
  return absl::OkStatus();
}

void SessionImpl::SendDigest() {
  v1::WorkerMessage message;
  message.mutable_replica_digest()->set_round(replica_->round().value());
  message.mutable_replica_digest()->set_digest(replica_->Digest());
  SendToServer(message);
}

void SessionImpl::SendToServer(const v1::WorkerMessage& message) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stream = stream_;
  }
  if (stream != nullptr) stream->Write(wire::EncodeMessage(message), Stream::Kind::kControl);
}

absl::Status SessionImpl::TransferState(const StateEvent& state) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    if (connection_ != state.connection || stream_ == nullptr) return absl::OkStatus();  // a later one will ask again
    stream = stream_;
  }
  transferred_ = true;
  const std::shared_ptr<grpc::Channel> channel =
      DialServer(options_.server, credentials_, options_.message_bytes_max, options_.connect_timeout);
  wire::SocketBytes moved;
  absl::Status status;
  if (state.kind == StateEvent::Kind::kUpload) {
    if (!untouched_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "server ", options_.server, " asks this worker for initial parameters, but training has begun here already"));
    }
    status = UploadState(channel, state.ticket, options_.connect_timeout, x_, &moved);
    if (status.ok()) replica_->SetWhole(Round(0));
  } else {
    untouched_ = false;
    replica_->Clear();
    status = FetchState(
        channel, state.ticket, options_.connect_timeout, x_,
        [&](Round round, uint64_t first, uint64_t count) { return replica_->AddPart(round, first, count); }, &moved);
    if (!status.ok()) replica_->Clear();
  }
  {
    MutexLock lock(&stats_mu_);
    stats_.setup_sent_bytes += moved.sent;
    stats_.setup_received_bytes += moved.received;
    if (status.ok()) ++stats_.state_transfers;
  }
  if (!status.ok()) {
    LogWarning("state transfer failed", {{"server", options_.server}, {"reason", Describe(status)}});
    if (++transfers_failed_in_a_row_ >= kTransfersInARowMax) {
      return WithContext(status, absl::StrCat("state transfer with ", options_.server, " failed ",
                                              kTransfersInARowMax, " times in a row"));
    }
    // A new session, and with it a new ticket and a fresh start of the transfer.
    stream->Cancel(absl::AbortedError(absl::StrCat("state transfer failed: ", std::string(status.message()))));
    return absl::OkStatus();
  }
  transfers_failed_in_a_row_ = 0;
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_round(replica_->round().value());
  {
    MutexLock lock(&mu_);
    // What was received before is void: the replica stands at what was fetched.
    if (connection_ == state.connection) received_ = replica_->round();
  }
  stream->Write(wire::EncodeMessage(ready), Stream::Kind::kControl);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RoundTicket>> SessionImpl::NextRound() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  const Time deadline = clock_->Now() + options_.wait_timeout;
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (finished_ || drained_) return std::optional<RoundTicket>();
    if (finish_rounds_ && (!replica_->complete() || (ReplicaReady() && replica_->round() >= *finish_rounds_))) {
      SIGNVOTE_RETURN_IF_ERROR(FinishRun());
      if (finished_) return std::optional<RoundTicket>();
      continue;
    }
    if (drain_reason_) {
      LeaveNow(*drain_reason_);
      return std::optional<RoundTicket>();
    }
    if (pending_open_ && ReplicaReady() && pending_open_->ticket.round == replica_->round() &&
        (!ticket_ || ticket_->round != pending_open_->ticket.round)) {
      break;
    }
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, options_.wait_timeout, "a round to open"));
  }
  WithdrawBallot();
  ticket_ = pending_open_->ticket;
  const uint32_t chunks = run_.plan.chunks();
  MutexLock lock(&mu_);
  ballot_ = Ballot{};
  ballot_.active = true;
  ballot_.round = ticket_->round;
  ballot_.opened = pending_open_->at;
  ballot_.chunks.assign(chunks, nullptr);
  ballot_.checksums.assign(chunks, 0);
  ballot_.lease = std::make_shared<int>(0);
  return ticket_;
}

absl::Status SessionImpl::SendChunk(ChunkIndex k, const uint8_t* ballot) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (k.value() >= run_.plan.chunks()) {
    return absl::InvalidArgumentError(absl::StrCat("chunk ", k.value(), " of ", run_.plan.chunks()));
  }
  const size_t bytes = run_.plan.Bytes(k);
  const uint64_t checksum = Xxh3(ballot, bytes);
  std::shared_ptr<Stream> stream;
  wire::VoteHeader header;
  std::shared_ptr<const void> lease;
  {
    MutexLock lock(&mu_);
    if (!ballot_.active) return absl::FailedPreconditionError("no round is open");
    if (ballot_.chunks[k.value()] != nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("chunk ", k.value(), " was handed over already"));
    }
    const Time now = clock_->Now();
    if (ballot_.chunks_handed++ == 0) ballot_.first_chunk = now;
    ballot_.last_chunk = std::max(ballot_.last_chunk, now);
    ballot_.chunks[k.value()] = ballot;
    ballot_.checksums[k.value()] = checksum;
    if (AttemptOpenLocked()) {
      stream = stream_;
      header = HeaderLocked(k);
      lease = ballot_.lease;
    }
  }
  // Without a connection, or before it opened the round, the chunk waits for the round's next opening.
  if (stream != nullptr) {
    stream->Write(wire::EncodeVote(wire::BulkKind::kBallotChunk, header, {ballot, bytes}, std::move(lease)),
                  Stream::Kind::kBallot);
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::SendScalars(const BallotScalars& scalars) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  v1::Scalars out;
  out.set_loss(scalars.loss);
  out.set_g_l1(scalars.g_l1);
  out.set_g_l2_squared(scalars.g_l2_squared);
  if (scalars.probe_l1) out.set_probe_l1(*scalars.probe_l1);
  if (scalars.prev_inner) out.set_prev_inner(*scalars.prev_inner);
  out.set_nonfinite_coordinates(scalars.nonfinite_coordinates);
  out.set_samples(scalars.samples);
  {
    MutexLock lock(&stats_mu_);
    out.set_apply_us(Microseconds(FromSeconds(stats_.last_apply_seconds)));
  }
  std::shared_ptr<Stream> stream;
  Outgoing outgoing;
  bool whole = false;
  {
    MutexLock lock(&mu_);
    if (!ballot_.active) return absl::FailedPreconditionError("no round is open");
    out.set_round(ballot_.round.value());
    const Time last = ballot_.chunks_handed > 0 ? ballot_.last_chunk : clock_->Now();
    out.set_compute_us(Microseconds(last - ballot_.opened));
    whole = ballot_.chunks_handed == ballot_.chunks.size() && !ballot_.scalars;
    ballot_.scalars = std::move(out);
    if (AttemptOpenLocked()) {
      stream = stream_;
      outgoing = ScalarsMessageLocked();
    }
  }
  if (stream != nullptr) stream->Write(std::move(outgoing.message), outgoing.kind);
  if (whole) {
    MutexLock lock(&stats_mu_);
    ++stats_.rounds_voted;
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::Abstain(AbstainReason reason) {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  std::shared_ptr<Stream> stream;
  Outgoing outgoing;
  {
    MutexLock lock(&mu_);
    if (!ballot_.active) return absl::FailedPreconditionError("no round is open");
    ballot_.abstain.emplace();
    ballot_.abstain->set_round(ballot_.round.value());
    ballot_.abstain->set_reason(ToProto(reason));
    if (AttemptOpenLocked()) {
      stream = stream_;
      outgoing = AbstainMessageLocked();
    }
  }
  if (stream != nullptr) {
    // Chunks not yet sent are withdrawn; those sent stand.
    stream->WithdrawBallots();
    stream->Write(std::move(outgoing.message), outgoing.kind);
  }
  return absl::OkStatus();
}

absl::StatusOr<CommitOutcome> SessionImpl::WaitCommit() {
  SIGNVOTE_RETURN_IF_ERROR(Usable());
  if (!ticket_) return absl::FailedPreconditionError("no round is open");
  if (outcome_slot_ != nullptr) {
    verdicts_->Release(std::exchange(outcome_slot_, nullptr));
    changed_.NotifyAll();
  }
  const Time start = clock_->Now();
  Time deadline = start + options_.wait_timeout;
  bool draining = false;
  auto past = [&] { return ReplicaReady() && replica_->round() > ticket_->round; };
  for (;;) {
    SIGNVOTE_RETURN_IF_ERROR(HandleArrived());
    if (past() || finish_rounds_) break;
    if (drain_reason_ && !draining) {
      draining = true;
      deadline = std::min(deadline, clock_->Now() + kDrainTimeout);
    }
    const absl::Status status = HandleNext(deadline, options_.wait_timeout,
                                           absl::StrCat("round ", ticket_->round.value(), " to be committed"));
    if (draining && status.code() == absl::StatusCode::kDeadlineExceeded) {
      LeaveNow(*drain_reason_);
      break;
    }
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  // The rest of a finished run's commits.
  while (finish_rounds_ && !(ReplicaReady() && replica_->round() >= *finish_rounds_)) {
    SIGNVOTE_RETURN_IF_ERROR(HandleNext(deadline, options_.wait_timeout, "the last commits"));
  }
  Time written;
  RoundTimes times;
  {
    MutexLock lock(&mu_);
    times.opened = ballot_.opened;
    times.first_chunk = ballot_.first_chunk;
    if (stream_ != nullptr) written = stream_->ballots_written();
  }
  WithdrawBallot();
  CommitOutcome outcome;
  outcome.commits = std::exchange(applied_, 0);
  const bool transferred = std::exchange(transferred_, false);
  outcome.next_round = ReplicaReady() ? replica_->round() : ticket_->round;
  outcome.contiguous = outcome.commits == 1 && !transferred && last_commit_->round == ticket_->round;
  outcome.finished = finish_rounds_.has_value();
  if (last_commit_) {
    outcome.stepsize = last_commit_->stepsize;
    outcome.loss = last_commit_->loss;
    outcome.voters = last_commit_->voters;
    outcome.times = last_commit_->times;
    if (last_commit_->round == ticket_->round) {
      outcome.times.opened = times.opened;
      outcome.times.first_chunk = times.first_chunk;
      outcome.times.ballot_written = written;
    }
    outcome_slot_ = last_commit_->slot;
    outcome.verdict = outcome_slot_->bits.data();
    last_commit_.reset();
  }
  return outcome;
}

// The caller may change or free the ballot's bytes from here on: what waits is withdrawn, and what gRPC still reads is
// waited for. That is nothing after an ordinary round; a late ballot on a choked connection costs the connection.
void SessionImpl::WithdrawBallot() {
  std::shared_ptr<Stream> stream;
  std::shared_ptr<int> lease;
  {
    MutexLock lock(&mu_);
    ballot_.active = false;
    lease = std::move(ballot_.lease);
    stream = stream_;
  }
  if (lease == nullptr) return;
  if (stream != nullptr) stream->WithdrawBallots();
  Time give_up = clock_->Now() + std::chrono::seconds(1);
  for (bool cancelled = false; lease.use_count() > 1;) {
    if (clock_->Now() >= give_up) {
      if (cancelled) return;
      cancelled = true;
      give_up = clock_->Now() + std::chrono::seconds(5);
      if (stream != nullptr) stream->Cancel(absl::AbortedError("a late ballot did not get through"));
    }
    clock_->SleepFor(std::chrono::microseconds(200));
  }
}

absl::Status SessionImpl::FinishRun() {
  {
    MutexLock lock(&mu_);
    if (stream_ == nullptr && !closed_) {
      // The connection broke after the goodbye; the link brings another one, or gives up soon.
      changed_.WaitFor(&mu_, std::chrono::milliseconds(100));
      return fatal_;
    }
    closing_ = true;
  }
  if (ReplicaReady()) SendDigest();
  const Time deadline = clock_->Now() + options_.finish_timeout;
  bool closed = false;
  {
    MutexLock lock(&mu_);
    while (!closed_ && clock_->Now() < deadline) changed_.WaitFor(&mu_, std::chrono::milliseconds(100));
    closed = closed_;
  }
  if (!closed) LogWarning("the server did not close the finished run's session", {{"server", options_.server}});
  finished_ = true;
  return absl::OkStatus();
}

void SessionImpl::LeaveNow(const std::string& reason) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    closing_ = true;
    stream = stream_;
  }
  if (stream != nullptr) {
    v1::WorkerMessage message;
    message.mutable_leave()->set_reason(reason);
    stream->Write(wire::EncodeMessage(message), Stream::Kind::kControl);
    stream->HalfClose();
    const Time deadline = clock_->Now() + kLeaveTimeout;
    MutexLock lock(&mu_);
    while (!closed_ && clock_->Now() < deadline) changed_.WaitFor(&mu_, std::chrono::milliseconds(50));
  }
  drained_ = true;
}

absl::Status SessionImpl::Leave(const std::string& reason) {
  if (replica_ == nullptr) return absl::OkStatus();
  WithdrawBallot();
  if (!finished_ && !drained_) LeaveNow(reason);
  StopLink();
  return absl::OkStatus();
}

void SessionImpl::RequestDrain(const std::string& reason) { Push(DrainEvent{reason}); }

void SessionImpl::StopLink() {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stop_ = true;
    stream = stream_;
  }
  changed_.NotifyAll();
  if (stream != nullptr) stream->Cancel(absl::CancelledError("the session was closed"));
  if (link_.joinable()) link_.join();
}

SessionStats SessionImpl::Stats() const {
  bool connected = false;
  {
    MutexLock lock(&mu_);
    connected = open_.has_value();
  }
  MutexLock lock(&stats_mu_);
  ReadCounterLocked();
  SessionStats stats = stats_;
  stats.connected = connected;
  return stats;
}

// ---- the link's side --------------------------------------------------------------------------------------------

void SessionImpl::LinkMain() {
  lost_since_ = clock_->Now();
  int hang_ups = 0;
  for (;;) {
    auto stream = std::make_shared<Stream>(
        DialServer(options_.server, credentials_, options_.message_bytes_max, options_.connect_timeout), clock_);
    {
      MutexLock lock(&mu_);
      if (stop_) break;
      stream_ = stream;
      ++connection_;
      open_.reset();
    }
    welcomed_ = false;
    receive_error_ = absl::OkStatus();
    absl::Status status = stream->Run(wire::EncodeMessage(JoinMessage()), options_.connect_timeout,
                                      [this](grpc::ByteBuffer& buffer) { OnMessage(buffer); });
    CloseCounter();
    DropAssembled();
    bool end = false;
    bool finish_seen = false;
    {
      MutexLock lock(&mu_);
      stream_.reset();
      open_.reset();
      end = stop_ || closing_;
      finish_seen = finish_seen_;
    }
    stream.reset();
    changed_.NotifyAll();
    if (end) break;

    if (welcomed_) lost_since_ = clock_->Now();
    const Duration lost_for = clock_->Now() - *lost_since_;
    if (status.ok()) status = absl::UnavailableError("the server closed the session");
    hang_ups = HungUpBeforeUsable(status) ? hang_ups + 1 : 0;
    absl::Status fatal;
    if (IsRefusal(status.code(), welcomed_)) {
      fatal = WithExitCode(
          WithContext(status, receive_error_.ok()
                                  ? absl::StrCat("server ", options_.server, " refused worker ", name_)
                                  : absl::StrCat("worker ", name_, " cannot work with server ", options_.server)),
          ExitCode::kRefused);
    } else if (!ever_welcomed_) {
      // A server that was there before is looked for however it fails: it may be on its way back.
      fatal = ExplainDialFailure(status, {options_.server, options_.insecure, options_.tls_ca,
                                          options_.tls_certificate}, hang_ups);
    }
    const Duration patience = finish_seen      ? kFinishedServerTimeout
                              : ever_welcomed_ ? options_.server_timeout
                                               : options_.connect_timeout;
    if (fatal.ok() && lost_for >= patience) {
      if (finish_seen) {
        LogWarning("the finished run's server did not come back", {{"server", options_.server}});
        break;
      }
      fatal = absl::UnavailableError(absl::StrCat(
          ever_welcomed_ ? "lost server " : "could not reach server ", options_.server,
          ever_welcomed_ ? "; it did not come back within " : " within ", ToSeconds(patience), " s (last error: ",
          Describe(status), ")"));
    }
    if (!fatal.ok()) {
      MutexLock lock(&mu_);
      fatal_ = fatal;
      break;
    }
    if (welcomed_) {
      LogWarning("lost the server, reconnecting", {{"server", options_.server}, {"reason", Describe(status)}});
      MutexLock lock(&stats_mu_);
      ++stats_.reconnects;
    }
    const Time wake = clock_->Now() + backoff_.Next();
    MutexLock lock(&mu_);
    while (!stop_ && !closing_ && clock_->Now() < wake) changed_.WaitFor(&mu_, wake - clock_->Now());
    if (stop_ || closing_) break;
  }
  {
    MutexLock lock(&mu_);
    closed_ = true;
  }
  changed_.NotifyAll();
}

v1::WorkerMessage SessionImpl::JoinMessage() {
  v1::WorkerMessage message;
  v1::Join* const join = message.mutable_join();
  join->set_protocol_min(wire::kProtocolVersion);
  join->set_protocol_max(wire::kProtocolVersion);
  join->set_software_version(SoftwareVersion());
  join->set_name(name_);
  join->set_token(token_);
  FillLayout(layout_, join->mutable_layout());
  join->set_model_config_json(options_.model_config_json);
  join->set_metrics_address(options_.metrics_address);
  MutexLock lock(&mu_);
  if (run_known_) {
    join->set_run_id(std::string(run_.run_id.bytes()));
  } else if (options_.run_id) {
    join->set_run_id(std::string(options_.run_id->bytes()));
  }
  if (received_) {
    join->set_round(received_->value());
    join->set_epoch(last_commit_epoch_.value());
  }
  return message;
}

void SessionImpl::OnMessage(grpc::ByteBuffer& buffer) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stream = stream_;
  }
  {
    MutexLock lock(&stats_mu_);
    if (!counter_) {
      counter_.emplace(stream->context().peer(), 0);
      counted_ = {};
      joined_rounds_ = false;
    }
  }
  receive_error_ = Receive(buffer);
  buffer.Clear();
  if (!receive_error_.ok()) stream->Cancel(receive_error_);
}

absl::Status SessionImpl::Receive(grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> verdict,
                            wire::DecodeVote(wire::BulkKind::kVerdictChunk, buffer));
  if (verdict) return OnVerdictChunk(*verdict, buffer);
  v1::ServerMessage message;
  SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(buffer, &message));
  if (!welcomed_ && message.message_case() != v1::ServerMessage::kWelcome &&
      message.message_case() != v1::ServerMessage::kNotice && message.message_case() != v1::ServerMessage::kPing) {
    return absl::InvalidArgumentError("the server spoke before its welcome");
  }
  switch (message.message_case()) {
    case v1::ServerMessage::kCommit: return OnCommit(message.commit());
    case v1::ServerMessage::kRoundOpen: return OnRoundOpen(message.round_open());
    case v1::ServerMessage::kWelcome: return OnWelcome(message.welcome());
    case v1::ServerMessage::kPing: {
      v1::WorkerMessage pong;
      pong.mutable_pong()->set_nonce(message.ping().nonce());
      SendToServer(pong);
      return absl::OkStatus();
    }
    case v1::ServerMessage::kResync: {
      LogWarning("the server asks for a resync", {{"round", message.resync().round()},
                                                  {"reason", message.resync().reason()}});
      StateEvent state;
      {
        MutexLock lock(&mu_);
        received_.reset();
        open_.reset();
        state.connection = connection_;
      }
      state.ticket = transfer_ticket_;
      Push(std::move(state));
      return absl::OkStatus();
    }
    case v1::ServerMessage::kDrain:
      Push(DrainEvent{message.drain().reason()});
      return absl::OkStatus();
    case v1::ServerMessage::kFinish: {
      {
        MutexLock lock(&mu_);
        finish_seen_ = true;
      }
      Push(FinishEvent{Round(message.finish().rounds())});
      return absl::OkStatus();
    }
    case v1::ServerMessage::kNotice: {
      LogInfo("the server says", {{"text", message.notice().text()}});
      std::shared_ptr<Stream> stream;
      {
        MutexLock lock(&mu_);
        notice_ = message.notice().text();
        stream = stream_;
      }
      if (!welcomed_) stream->SetTimeout(options_.wait_timeout);
      return absl::OkStatus();
    }
    default:
      return absl::OkStatus();  // a later version's message, which says nothing that this one needs
  }
}

absl::Status SessionImpl::OnWelcome(const v1::Welcome& welcome) {
  if (welcome.protocol() != wire::kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the server speaks protocol ", welcome.protocol(),
                                                      ", this worker ", wire::kProtocolVersion));
  }
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stream = stream_;
  }
  if (!options_.insecure && !wire::PeerOf(stream->context()).HasRole(wire::Role::kServer)) {
    return absl::PermissionDeniedError(
        "its certificate lacks the server's role (URI signvote:role:server), so it may be another worker");
  }
  RunInfo run;
  SIGNVOTE_ASSIGN_OR_RETURN(run.run_id, RunId::FromBytes(welcome.run_id()));
  run.seed = welcome.seed();
  run.rounds_max = welcome.rounds_max();
  run.digest_every = welcome.digest_every();
  const uint64_t chunk = welcome.chunk_coordinates();
  if (chunk == 0 || chunk % kChunkCoordinatesMultiple != 0 ||
      layout_.coordinates() / chunk >= std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("the server's chunks have ", chunk, " coordinates, which is no "
                                                   "multiple of ", kChunkCoordinatesMultiple));
  }
  run.plan = ChunkPlan(layout_.coordinates(), chunk);
  const uint64_t message_bytes = run.plan.Bytes(ChunkIndex(0)) + kChunkHeaderBytesMax;
  if (message_bytes > welcome.message_bytes_max() || message_bytes > options_.message_bytes_max) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunks of ", message_bytes, " bytes exceed the largest message allowed (server ",
                     welcome.message_bytes_max(), ", worker ", options_.message_bytes_max, ")"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(run.direction, DirectionFrom(welcome.direction()));

  bool has_replica = false;
  {
    MutexLock lock(&mu_);
    if (!run_known_) {
      run_ = run;
      verdicts_ = std::make_unique<VerdictStore>(run_.plan, kVerdictSlotsMax);
      run_known_ = true;
    } else if (run.run_id != run_.run_id || run.seed != run_.seed || chunk != run_.plan.chunk_coordinates()) {
      return absl::FailedPreconditionError("the server came back as another run, or with other chunks or seed");
    }
    epoch_ = Epoch(welcome.epoch());
    has_replica = received_.has_value();
  }
  {
    MutexLock lock(&stats_mu_);
    stats_.incarnation = welcome.incarnation();
  }
  welcomed_ = true;
  ever_welcomed_ = true;
  stream->SetTimeout(std::nullopt);
  transfer_ticket_ = welcome.ticket();
  StateEvent state;
  state.ticket = transfer_ticket_;
  switch (welcome.state()) {
    case v1::Welcome::STATE_KEEP: {
      if (!has_replica) return absl::InvalidArgumentError("the server wants a replica kept that this worker has not");
      v1::WorkerMessage ready;
      {
        MutexLock lock(&mu_);
        ready.mutable_ready()->set_round(received_->value());
      }
      stream->Write(wire::EncodeMessage(ready), Stream::Kind::kControl);
      return absl::OkStatus();
    }
    case v1::Welcome::STATE_FETCH: state.kind = StateEvent::Kind::kFetch; break;
    case v1::Welcome::STATE_UPLOAD: state.kind = StateEvent::Kind::kUpload; break;
    default: return absl::InvalidArgumentError("the server's welcome does not say what becomes of the replica");
  }
  {
    MutexLock lock(&mu_);
    received_.reset();
    state.connection = connection_;
  }
  Push(std::move(state));
  return absl::OkStatus();
}

VerdictStore::Slot* SessionImpl::SlotFor(Round round) {
  for (VerdictStore::Slot* slot : assembled_) {
    if (slot->round == round) return slot;
  }
  // The caller computes and all slots wait for it: the stream is read on when it has applied what is there.
  VerdictStore::Slot* slot = nullptr;
  while ((slot = verdicts_->Acquire(round)) == nullptr) {
    MutexLock lock(&mu_);
    if (stop_) return nullptr;
    changed_.WaitFor(&mu_, std::chrono::milliseconds(20));
  }
  slot->first_chunk = clock_->Now();
  assembled_.push_back(slot);
  return slot;
}

void SessionImpl::DropAssembled() {
  for (VerdictStore::Slot* slot : assembled_) verdicts_->Release(slot);
  assembled_.clear();
}

absl::Status SessionImpl::OnVerdictChunk(const wire::VoteView& view, const grpc::ByteBuffer& buffer) {
  if (!welcomed_) return absl::InvalidArgumentError("the server spoke before its welcome");
  const wire::VoteHeader& header = view.header;
  if (header.run_id != run_.run_id) return absl::InvalidArgumentError("a verdict of another run");
  {
    MutexLock lock(&mu_);
    // Rounds that this replica does not need, or cannot use without those before.
    if (!received_ || header.round < *received_ ||
        header.round.value() - received_->value() >= kRoundsAssembledMax) {
      return absl::OkStatus();
    }
  }
  if (header.chunk.value() >= run_.plan.chunks() || view.payload_bytes != run_.plan.Bytes(header.chunk)) {
    return absl::InvalidArgumentError(absl::StrCat("verdict chunk ", header.chunk.value(), " of ",
                                                   run_.plan.chunks(), " with ", view.payload_bytes, " bytes"));
  }
  VerdictStore::Slot* const slot = SlotFor(header.round);
  if (slot == nullptr) return absl::CancelledError("the session was closed");
  VerdictStore::Slot::Origin& origin = slot->chunks[header.chunk.value()];
  origin.present = false;
  const absl::Status copied = wire::CopyPayloadChecked(
      buffer, view.payload_offset, header.checksum,
      {slot->bits.data() + run_.plan.ByteOffset(header.chunk), run_.plan.Bytes(header.chunk)});
  if (copied.code() == absl::StatusCode::kDataLoss) {
    return OnMismatch(header.round, absl::StrCat("chunk ", header.chunk.value(), " fails its checksum"));
  }
  SIGNVOTE_RETURN_IF_ERROR(copied);
  origin = {.present = true, .epoch = header.epoch, .attempt = header.attempt};
  return absl::OkStatus();
}

// The committed bits are asked for again by a new session at the same round; when that does not help, the whole state.
absl::Status SessionImpl::OnMismatch(Round round, const std::string& why) {
  LogWarning("verdict does not match its commit", {{"round", round.value()}, {"reason", why}});
  {
    MutexLock lock(&stats_mu_);
    ++stats_.verdict_mismatches;
  }
  if (++mismatches_in_a_row_ > 1) {
    MutexLock lock(&mu_);
    received_.reset();
  }
  return absl::AbortedError(absl::StrCat("verdict of round ", round.value(), " does not match its commit: ", why));
}

absl::Status SessionImpl::OnCommit(const v1::Commit& commit) {
  if (commit.run_id() != run_.run_id.bytes()) return absl::InvalidArgumentError("a commit of another run");
  const Round round(commit.round());
  {
    MutexLock lock(&mu_);
    if (!received_ || round < *received_) return absl::OkStatus();
    if (round > *received_) {
      return absl::AbortedError(absl::StrCat("commit ", round.value(), " came where ", received_->value(), " was due"));
    }
  }
  if (commit.kind() != v1::Commit::KIND_STEP || commit.rho() != 1.0f) {
    return absl::FailedPreconditionError(absl::StrCat("commit ", round.value(), " is of a kind (",
                                                      static_cast<int>(commit.kind()), ", rho ", commit.rho(),
                                                      ") that this version cannot apply; upgrade the worker"));
  }
  if (!std::isfinite(commit.stepsize()) || commit.stepsize() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("commit ", round.value(), " has stepsize ", commit.stepsize()));
  }
  VerdictStore::Slot* slot = nullptr;
  std::vector<VerdictStore::Slot*> later;
  for (VerdictStore::Slot* candidate : assembled_) {
    if (candidate->round == round) {
      slot = candidate;
    } else if (candidate->round < round) {
      verdicts_->Release(candidate);
    } else {
      later.push_back(candidate);
    }
  }
  if (slot == nullptr || !slot->Holds(Epoch(commit.epoch()), Attempt(commit.attempt()), commit.verdict_hash())) {
    if (slot != nullptr) later.push_back(slot);
    assembled_ = std::move(later);
    return OnMismatch(round, slot == nullptr ? "no verdict chunk came" : "hash, attempt or chunks differ");
  }
  assembled_ = std::move(later);
  mismatches_in_a_row_ = 0;
  backoff_.Reset();
  CommitEvent event;
  event.round = round;
  event.stepsize = commit.stepsize();
  event.loss = commit.loss();
  event.voters = commit.voters();
  event.digest_due = commit.digest_due();
  event.slot = slot;
  event.times.first_verdict = slot->first_chunk;
  event.times.committed = clock_->Now();
  {
    MutexLock lock(&mu_);
    received_ = round.next();
    last_commit_epoch_ = Epoch(commit.epoch());
  }
  if (!Push(std::move(event))) {
    verdicts_->Release(slot);
    return absl::ResourceExhaustedError("the server sends more than this worker handles");
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::OnRoundOpen(const v1::RoundOpen& open) {
  OpenEvent event;
  event.at = clock_->Now();
  event.ticket.round = Round(open.round());
  event.ticket.data_step = DataStep(open.data_step());
  event.ticket.share = Share(open.share());
  event.ticket.probe = open.probe();
  event.ticket.observer = open.role() == v1::RoundOpen::ROLE_OBSERVER;
  event.ticket.members = open.members();
  {
    MutexLock lock(&stats_mu_);
    // What came before was handshake, join and catching up.
    if (!joined_rounds_) {
      ReadCounterLocked();
      joined_rounds_ = true;
      if (stats_.join_seconds == 0) stats_.join_seconds = ToSeconds(clock_->Now() - join_started_);
    }
  }
  std::shared_ptr<Stream> stream;
  std::vector<Outgoing> messages;
  {
    MutexLock lock(&mu_);
    open_ = OpenRound{Round(open.round()), Attempt(open.attempt())};
    notice_.clear();
    stream = stream_;
    if (AttemptOpenLocked()) messages = BallotMessagesLocked();
  }
  backoff_.Reset();
  if (!Push(std::move(event))) {
    return absl::ResourceExhaustedError("the server sends more than this worker handles");
  }
  // Another attempt of a round whose ballot is under way, or a new connection: the same ballot again.
  if (!messages.empty()) stream->WithdrawBallots();
  for (Outgoing& outgoing : messages) stream->Write(std::move(outgoing.message), outgoing.kind);
  return absl::OkStatus();
}

wire::VoteHeader SessionImpl::HeaderLocked(ChunkIndex k) const {
  return {.run_id = run_.run_id,
          .epoch = epoch_,
          .round = ballot_.round,
          .attempt = open_->attempt,
          .chunk = k,
          .checksum = ballot_.checksums[k.value()]};
}

SessionImpl::Outgoing SessionImpl::ScalarsMessageLocked() const {
  v1::WorkerMessage message;
  *message.mutable_scalars() = *ballot_.scalars;
  message.mutable_scalars()->set_attempt(open_->attempt.value());
  return {wire::EncodeMessage(message), Stream::Kind::kBallot};
}

SessionImpl::Outgoing SessionImpl::AbstainMessageLocked() const {
  v1::WorkerMessage message;
  *message.mutable_abstain() = *ballot_.abstain;
  message.mutable_abstain()->set_attempt(open_->attempt.value());
  return {wire::EncodeMessage(message), Stream::Kind::kBallot};
}

std::vector<SessionImpl::Outgoing> SessionImpl::BallotMessagesLocked() {
  std::vector<Outgoing> out;
  for (uint32_t k = 0; k < ballot_.chunks.size(); ++k) {
    if (ballot_.chunks[k] == nullptr) continue;
    out.push_back({wire::EncodeVote(wire::BulkKind::kBallotChunk, HeaderLocked(ChunkIndex(k)),
                                    {ballot_.chunks[k], run_.plan.Bytes(ChunkIndex(k))}, ballot_.lease),
                   Stream::Kind::kBallot});
  }
  if (ballot_.scalars) out.push_back(ScalarsMessageLocked());
  if (ballot_.abstain) out.push_back(AbstainMessageLocked());
  return out;
}

bool SessionImpl::Push(Event event) {
  {
    MutexLock lock(&mu_);
    if (events_.size() >= kEventsMax) return false;
    events_.push_back(std::move(event));
  }
  changed_.NotifyAll();
  return true;
}

void SessionImpl::ReadCounterLocked() const {
  if (!counter_) return;
  const std::optional<wire::SocketBytes> now = counter_->Read();
  if (!now) return;
  (joined_rounds_ ? stats_.wire_sent_bytes : stats_.setup_sent_bytes) += now->sent - counted_.sent;
  (joined_rounds_ ? stats_.wire_received_bytes : stats_.setup_received_bytes) += now->received - counted_.received;
  counted_ = *now;
}

void SessionImpl::CloseCounter() {
  MutexLock lock(&stats_mu_);
  ReadCounterLocked();
  counter_.reset();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Create(const SessionOptions& options, Clock* clock) {
  if (options.server.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("server \"", options.server, "\" is not host:port"));
  }
  FileSystem* const fs = FileSystem::Posix();
  std::optional<wire::TlsMaterial> tls;
  std::string name = options.name;
  if (!options.insecure) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        tls, wire::LoadTls(fs, {.ca = options.tls_ca, .certificate = options.tls_certificate, .key = options.tls_key},
                           clock->UnixMicros() / 1000000));
    if (name.empty()) {
      if (tls->dns_names.empty()) {
        return absl::InvalidArgumentError(absl::StrCat("certificate ", options.tls_certificate,
                                                       " names no worker (DNS subject alternative name)"));
      }
      name = tls->dns_names[0];
    }
  } else if (!options.tls_ca.empty() || !options.tls_certificate.empty() || !options.tls_key.empty()) {
    return absl::InvalidArgumentError("TLS files were given together with --insecure; leave one of them away");
  }
  if (name.empty()) return absl::InvalidArgumentError("a worker needs a name");
  SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(name));
  std::string token;
  if (!options.token_file.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(fs->RequirePrivate(options.token_file));
    SIGNVOTE_ASSIGN_OR_RETURN(token, fs->ReadFile(options.token_file, kTokenBytesMax));
    absl::StripAsciiWhitespace(&token);
    if (token.empty()) return absl::InvalidArgumentError(absl::StrCat("token file ", options.token_file, " is empty"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(uint64_t)));
  uint64_t seed = 0;
  std::memcpy(&seed, random.data(), sizeof(seed));
  return std::unique_ptr<Session>(new SessionImpl(options, clock, std::move(name), std::move(token), std::move(tls),
                                                  seed));
}

}  // namespace signvote
