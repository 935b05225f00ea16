#include "server/rpc/state_transfer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/mutex.h"
#include "common/status.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "server/replica/master_replica.h"
#include "server/rpc/identity.h"
#include "server/rpc/session.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {
namespace {

static_assert(MasterReplica::kPieceCoordinates <= wire::kStateChunkCoordinates);

// A transfer's time is looked at this often.
constexpr Duration kLookEvery = std::chrono::milliseconds(500);
// The run hears of a fetch's progress once in this many pieces.
constexpr uint64_t kTellPieces = 16;

// Of the rate that a fetch must have, while so many calls are open.
double FullRateShare(const TransferLimits& limits, size_t calls) {
  return std::min(1.0, static_cast<double>(limits.full_rate_calls) /
                           static_cast<double>(std::max<size_t>(1, calls)));
}

// "parameter 3 of tensor 'w'", for a coordinate of the model.
std::string NameCoordinate(const Layout& layout, uint64_t coordinate) {
  for (const TensorSpec& tensor : layout.tensors()) {
    if (coordinate - tensor.first < tensor.count) {
      return absl::StrCat("parameter ", coordinate - tensor.first, " of tensor '", tensor.name,
                          "'");
    }
  }
  return absl::StrCat("coordinate ", coordinate);
}

// Bytes that a call on a connection of its own moved, from the kernel; made once the run has let the
// call begin, because finding a socket is a look at all of the process's.
class ConnectionMeter {
 public:
  explicit ConnectionMeter(wire::SocketByteCounter counter) : counter_(std::move(counter)) {
    begin_ = counter_.Read().value_or(wire::SocketBytes{});
    last_ = begin_;
  }
  // `messages`: what moved at least. The kernel counts as sent what was acknowledged: when a call
  // ends its last messages are still on their way, or the worker has closed the connection.
  run::PeerBytes Finish(const run::PeerBytes& messages) {
    last_ = counter_.Read().value_or(last_);
    return {.received = std::max(last_.received - begin_.received, messages.received),
            .sent = std::max(last_.sent - begin_.sent, messages.sent)};
  }

 private:
  wire::SocketByteCounter counter_;
  wire::SocketBytes begin_, last_;
};

}  // namespace

// What both transfers have in common: the ticket, the run's answer, time, and the end.
//
//   kUnclaimed ──ticket──▶ kAsked ──Start()──▶ kMoving ──▶ kEnding ──not busy──▶ kFinished
//        └────────────────────┴──────────────────────────────▲
//
// Busy is whoever starts an operation outside of gRPC's callbacks, or writes: the call is finished
// behind that, because gRPC frees it once it is finished and nothing is going on.
//
// Threads: gRPC's callbacks, the run's thread (Start, End), the watch; mu_ orders them.
class Transfer : public run::StateCall, public std::enable_shared_from_this<Transfer> {
 public:
  Transfer(Transfers* transfers, grpc::CallbackServerContext* context, run::CallKind kind)
      : transfers_(transfers),
        kind_(kind),
        address_(IdentityOf(*context).address),
        context_(context) {}

  // ---- the run ----
  void Start(std::shared_ptr<MasterReplica> replica) override {
    {
      MutexLock lock(&mu_);
      if (state_ != State::kAsked) return;
      state_ = State::kMoving;
      busy_ = true;
      replica_ = std::move(replica);
    }
    // What follows looks at all sockets and copies parameters: not on the run's thread.
    transfers_->background()->Run([self = shared_from_this()] {
      self->FindConnection();
      self->Move();
    });
  }
  void End(absl::Status status) override {
    Todo todo;
    {
      MutexLock lock(&mu_);
      EndLocked(std::move(status), &todo);
    }
    Do(todo);
  }

  // By which Transfers tells calls apart, in the order in which they began. Set in its Open().
  uint64_t number() const { return number_; }
  void set_number(uint64_t number) { number_ = number; }
  // Another call needs the place of one without a ticket; one that has shown it meanwhile stays.
  void MakeRoom(absl::Status status) {
    Todo todo;
    {
      MutexLock lock(&mu_);
      if (state_ != State::kUnclaimed) return;
      EndLocked(std::move(status), &todo);
    }
    Do(todo);
  }

  // The watch; so many calls with a ticket are open now.
  void Look(Time now, size_t claimed) {
    const TransferLimits& limits = transfers_->limits();
    absl::Status status;
    {
      MutexLock lock(&mu_);
      if (context_ == nullptr) return;
      if (state_ == State::kUnclaimed && now - opened_ > limits.claim_timeout) {
        status = absl::DeadlineExceededError(
            absl::StrCat("no ticket came within ", ToSeconds(limits.claim_timeout), " s"));
      } else if (state_ == State::kMoving && now - progressed_ > limits.progress_timeout) {
        status = absl::DeadlineExceededError(absl::StrCat(
            "the state transfer has not moved for ", ToSeconds(limits.progress_timeout), " s"));
      } else if (state_ == State::kMoving && rate_.has_value() &&
                 rate_->Missed(messages_.sent, FullRateShare(limits, claimed), now)) {
        status = absl::DeadlineExceededError(absl::StrCat(
            "the state is fetched at less than ", limits.fetch_rate.bytes_per_second_min,
            " bytes a second; come over a faster network"));
      } else if (state_ == State::kEnding && now - ended_ > limits.end_timeout) {
        context_->TryCancel();  // its reader reads nothing: the write will never end by itself
      }
    }
    if (!status.ok()) End(std::move(status));
  }

 protected:
  enum class State { kUnclaimed, kAsked, kMoving, kEnding, kFinished };
  struct Todo {
    bool claimed = false;  // it no longer counts as unclaimed
    bool told = false;     // the run knows it
    bool finish = false;
    absl::Status status;
  };

  // The call began. `self` lives until Gone().
  void Open(std::shared_ptr<Transfer> self) {
    {
      MutexLock lock(&mu_);
      self_ = self;
      opened_ = progressed_ = Clock::System()->Now();
    }
    transfers_->Open(self);
  }

  // The call shows its ticket and asks the run.
  absl::Status Claim(const std::string& ticket) {
    std::shared_ptr<ServerSession> session = transfers_->table()->Find(ticket);
    if (session == nullptr || session->closing()) {
      return absl::FailedPreconditionError("no live session has this ticket; join first, or again");
    }
    {
      MutexLock lock(&mu_);
      if (state_ != State::kUnclaimed) return absl::OkStatus();  // it has ended meanwhile
      state_ = State::kAsked;
      session_ = std::move(session);
      progressed_ = Clock::System()->Now();
    }
    transfers_->Claimed(*this);
    if (!Tell(run::CallAsked{.kind = kind_, .call = shared_from_this()})) {
      return absl::UnavailableError("the server stops");
    }
    return absl::OkStatus();
  }

  // A message of the call moved. False: it is over, nothing more shall move.
  bool Moved(uint64_t received, uint64_t sent) {
    MutexLock lock(&mu_);
    progressed_ = Clock::System()->Now();
    messages_.received += received;
    messages_.sent += sent;
    if (session_ != nullptr && meter_ == nullptr) session_->AddTransferred(received, sent);
    return state_ != State::kEnding && state_ != State::kFinished;
  }
  template <typename What>
  bool Tell(What what) {
    return transfers_->run()->Post(
        run::StreamInput{.peer = session_->id(), .what = std::move(what)});
  }

  void EndLocked(absl::Status status, Todo* todo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (state_ == State::kEnding || state_ == State::kFinished) return;
    todo->claimed = state_ == State::kUnclaimed;
    todo->told = state_ != State::kUnclaimed;
    state_ = State::kEnding;
    end_status_ = std::move(status);
    ended_ = Clock::System()->Now();
    FinishLocked(todo);
  }
  void FinishLocked(Todo* todo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (state_ != State::kEnding || busy_) return;
    state_ = State::kFinished;
    todo->finish = true;
    todo->status = end_status_;
  }
  void Do(const Todo& todo) {
    // The call below may be the last one before Gone() on another thread.
    const std::shared_ptr<Transfer> alive = shared_from_this();
    if (todo.claimed) transfers_->Claimed(*this);
    // Said before the worker can hear of the end, behind which it may ask anew at once.
    if (todo.told) (void)Tell(run::CallEnded{.call = alive});  // false: nobody counts any more
    if (todo.finish) FinishCall(wire::ToGrpc(todo.status));
  }
  bool moving() const {
    MutexLock lock(&mu_);
    return state_ == State::kMoving;
  }
  // Busy no more.
  void Rest() {
    Todo todo;
    {
      MutexLock lock(&mu_);
      busy_ = false;
      FinishLocked(&todo);
    }
    Do(todo);
  }
  // gRPC has let go of the call.
  void Gone() {
    std::shared_ptr<Transfer> self;
    run::PeerBytes moved;
    {
      MutexLock lock(&mu_);
      context_ = nullptr;
      moved = meter_ == nullptr ? messages_ : meter_->Finish(messages_);
      meter_.reset();
      replica_.reset();
      self = std::move(self_);
    }
    if (session_ != nullptr) {
      (void)Tell(run::CallMoved{.up = moved.received, .down = moved.sent});  // false: likewise
    }
  }

  // The call's own connection, if it is not the session's. Before anything moves.
  void FindConnection() {
    auto meter = session_->identity().address == address_
                     ? nullptr
                     : std::make_unique<ConnectionMeter>(transfers_->find_socket()(address_));
    MutexLock lock(&mu_);
    meter_ = std::move(meter);
    if (kind_ == run::CallKind::kFetch) {
      rate_.emplace(transfers_->limits().fetch_rate, Clock::System()->Now());
    }
  }
  // Begins to move parameters, on the background thread, and busy.
  virtual void Move() = 0;
  virtual void FinishCall(const grpc::Status& status) = 0;

  // Constant after construction.
  Transfers* const transfers_;
  const run::CallKind kind_;
  const std::string address_;

  uint64_t number_ = 0;  // set once, before anybody else knows the call

  // Set once: with kAsked, and with kMoving until Gone(). Whoever gets there reads them.
  std::shared_ptr<ServerSession> session_;
  std::shared_ptr<MasterReplica> replica_;

 private:
  mutable Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kUnclaimed;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mu_);  // until Gone()
  std::shared_ptr<Transfer> self_ ABSL_GUARDED_BY(mu_);        // likewise
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ConnectionMeter> meter_ ABSL_GUARDED_BY(mu_);  // null: the session's connection
  run::PeerBytes messages_ ABSL_GUARDED_BY(mu_);
  std::optional<run::MinimalRate> rate_ ABSL_GUARDED_BY(mu_);  // of a fetch that moves
  Time opened_ ABSL_GUARDED_BY(mu_), progressed_ ABSL_GUARDED_BY(mu_), ended_ ABSL_GUARDED_BY(mu_);
};

namespace {

class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public Transfer {
 public:
  FetchCall(Transfers* transfers, grpc::CallbackServerContext* context)
      : Transfer(transfers, context, run::CallKind::kFetch) {}

  void Begin(std::shared_ptr<FetchCall> self, const grpc::ByteBuffer& request) {
    Open(std::move(self));
    if (absl::Status status = Ask(request); !status.ok()) End(std::move(status));
  }

  void OnWriteDone(bool ok) override {
    if (!ok) End(absl::CancelledError("the connection broke"));
    Move();
  }
  void OnCancel() override { End(absl::CancelledError("the connection broke")); }
  void OnDone() override { Gone(); }

 private:
  absl::Status Ask(const grpc::ByteBuffer& request) {
    if (request.Length() > transfers_->limits().first_message_bytes_max) {
      return absl::InvalidArgumentError("the request is larger than any ticket");
    }
    v1::FetchStateRequest parsed;
    SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(request, &parsed));
    return Claim(parsed.ticket());
  }
  // Stays busy from one write to the next.
  void Move() override {
    if (!WriteNext()) Rest();
  }
  void FinishCall(const grpc::Status& status) override { Finish(status); }

  // False: nothing more is written. Only one write at a time: nobody else is here meanwhile.
  bool WriteNext() {
    if (!moving()) return false;
    if (piece_ == 0 && plane_ == Plane::kX) x0_follows_ = replica_->has_x0();
    if (piece_ == replica_->pieces()) {
      piece_ = 0;
      if (plane_ == Plane::kX0 || !x0_follows_) {
        End(absl::OkStatus());
        return false;
      }
      // Where the run lets go of it now, the copy fails: parts that were sent stand at rounds that may
      // still want x0, and the worker fetches all again.
      plane_ = Plane::kX0;
    }
    const uint64_t first = replica_->First(piece_);
    const uint64_t count = replica_->Count(piece_);
    // Not pooled: a transfer is rare, and gRPC holds at most two of these.
    const auto values = std::make_shared<std::vector<float>>(count);
    const absl::StatusOr<Round> round = replica_->CopyPiece(plane_, piece_, values->data());
    if (!round.ok()) {
      End(round.status());
      return false;
    }
    const std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(values->data()),
                                           count * sizeof(float));
    message_ = wire::EncodeState(wire::BulkKind::kStateChunk,
                                 {.round = plane_ == Plane::kX ? *round : Round(0),
                                  .first = first,
                                  .count = count,
                                  .checksum = Xxh3(payload.data(), payload.size()),
                                  .plane = static_cast<uint32_t>(plane_)},
                                 payload, values);
    ++piece_;
    sent_bytes_ += payload.size();
    if (piece_ % kTellPieces == 0) {
      // False: the server stops, and ends this call.
      (void)Tell(run::CallProgress{.call = shared_from_this(), .bytes = sent_bytes_});
    }
    if (!Moved(0, message_.Length())) return false;
    StartWrite(&message_);
    return true;
  }

  // Of whoever writes.
  Plane plane_ = Plane::kX;
  bool x0_follows_ = false;  // was kept when the first piece was sent
  uint64_t piece_ = 0, sent_bytes_ = 0;
  grpc::ByteBuffer message_;
};

class UploadCall final : public grpc::ServerReadReactor<grpc::ByteBuffer>, public Transfer {
 public:
  UploadCall(Transfers* transfers, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : Transfer(transfers, context, run::CallKind::kUpload), response_(response) {}

  void Begin(std::shared_ptr<UploadCall> self) {
    Open(std::move(self));
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      return End(absl::InvalidArgumentError(claimed_ ? "the upload ended before the last coordinate"
                                                     : "the upload ended before its ticket"));
    }
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    const bool goes_on = Moved(message.Length(), 0);
    if (!std::exchange(claimed_, true)) {
      // The run says when chunks are wanted; the next read may begin before this call returns.
      if (absl::Status status = Ask(message); !status.ok()) End(std::move(status));
      return;
    }
    if (absl::Status status = Write(message); !status.ok()) return End(std::move(status));
    if (!goes_on) return;
    if (received_ < replica_->coordinates()) return StartRead(&incoming_);
    v1::UploadStateReply reply;
    reply.set_coordinates(received_);
    *response_ = wire::EncodeMessage(reply);
    End(absl::OkStatus());
  }
  void OnCancel() override { End(absl::CancelledError("the connection broke")); }
  void OnDone() override { Gone(); }

 private:
  absl::Status Ask(const grpc::ByteBuffer& message) {
    if (message.Length() > transfers_->limits().first_message_bytes_max) {
      return absl::InvalidArgumentError("the first message of an upload must be the ticket");
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                              wire::DecodeState(wire::BulkKind::kUploadChunk, message));
    if (view.has_value()) {
      return absl::InvalidArgumentError("the first message of an upload must be the ticket");
    }
    v1::UploadStateRequest parsed;
    SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(message, &parsed));
    return Claim(parsed.ticket());
  }
  void Move() override {
    if (moving()) StartRead(&incoming_);
    Rest();
  }
  void FinishCall(const grpc::Status& status) override { Finish(status); }

  // The next chunk into its place.
  absl::Status Write(const grpc::ByteBuffer& message) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                              wire::DecodeState(wire::BulkKind::kUploadChunk, message));
    if (!view.has_value())
      return absl::InvalidArgumentError("an upload has one ticket, then chunks");
    const wire::StateHeader& header = view->header;
    const uint64_t left = replica_->coordinates() - received_;
    if (header.round != Round(0) || header.plane != wire::kPlaneReplica) {
      return absl::InvalidArgumentError(
          "initial parameters stand at round 0, and are of plane 0 alone");
    }
    if (header.first != received_ || header.count == 0 || header.count > left ||
        header.count > wire::kStateChunkCoordinates) {
      return absl::InvalidArgumentError(absl::StrCat(
          "chunk of ", header.count, " coordinates from ", header.first, " on; expected 1 to ",
          wire::kStateChunkCoordinates, " from ", received_, " on, ", left, " are left"));
    }
    if (view->payload_bytes != header.count * sizeof(float)) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk of ", header.count, " coordinates has ", view->payload_bytes,
                       " bytes of payload, it must have ", header.count * sizeof(float)));
    }
    float* out = replica_->x().data() + received_;
    SIGNVOTE_RETURN_IF_ERROR(
        wire::CopyPayloadChecked(message, view->payload_offset, header.checksum,
                                 {reinterpret_cast<uint8_t*>(out), view->payload_bytes}));
    for (uint64_t i = 0; i < header.count; ++i) {
      if (!std::isfinite(out[i])) {
        return absl::InvalidArgumentError(
            absl::StrCat(NameCoordinate(replica_->layout(), received_ + i),
                         " of the initial model is not finite"));
      }
      max_abs_ = std::max(max_abs_, std::fabs(out[i]));
    }
    received_ += header.count;
    if (!Tell(run::CallProgress{
            .call = shared_from_this(), .bytes = received_ * sizeof(float), .max_abs = max_abs_})) {
      return absl::UnavailableError("the server stops");
    }
    return absl::OkStatus();
  }

  grpc::ByteBuffer* const response_;

  // Of whoever reads.
  grpc::ByteBuffer incoming_;
  bool claimed_ = false;
  uint64_t received_ = 0;  // coordinates
  float max_abs_ = 0;      // of those
};

}  // namespace

wire::SocketByteCounter FindSocket(const std::string& peer) {
  return wire::SocketByteCounter(peer, 0);
}

Transfers::Transfers(run::RunThread* run, StreamTable* table, TransferLimits limits,
                     SocketFinder find_socket)
    : run_(run),
      table_(table),
      limits_(limits),
      find_socket_(std::move(find_socket)),
      watch_([this] { Watch(); }) {}

Transfers::~Transfers() { Stop(); }

void Transfers::Open(const std::shared_ptr<Transfer>& transfer) {
  std::shared_ptr<Transfer> oldest;
  {
    MutexLock lock(&mu_);
    transfer->set_number(++opened_);
    open_.push_back(transfer);
    unclaimed_.emplace(transfer->number(), transfer);
    if (unclaimed_.size() <= limits_.unclaimed_max) return;
    oldest = unclaimed_.begin()->second.lock();
    unclaimed_.erase(unclaimed_.begin());
  }
  // Null: gRPC has let go of it.
  if (oldest == nullptr) return;
  oldest->MakeRoom(absl::UnavailableError(absl::StrCat(
      "more than ", limits_.unclaimed_max, " state transfers have shown no ticket; try again")));
}

void Transfers::Claimed(const Transfer& transfer) {
  MutexLock lock(&mu_);
  unclaimed_.erase(transfer.number());
}

size_t Transfers::open_calls() const {
  MutexLock lock(&mu_);
  return static_cast<size_t>(
      std::count_if(open_.begin(), open_.end(), [](const auto& call) { return !call.expired(); }));
}

void Transfers::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stopped_.NotifyAll();
  if (watch_.joinable()) watch_.join();
  background_.Stop();
}

void Transfers::Watch() {
  while (true) {
    std::vector<std::shared_ptr<Transfer>> calls;
    size_t claimed = 0;
    {
      MutexLock lock(&mu_);
      Clock* const clock = Clock::System();
      if (stopped_.WaitUntil(&mu_, clock, clock->Now() + kLookEvery,
                             [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_; })) {
        return;
      }
      std::erase_if(open_, [](const auto& call) { return call.expired(); });
      for (const auto& call : open_) calls.push_back(call.lock());
      // Silent ones take nothing of the link.
      claimed = open_.size() - std::min(open_.size(), unclaimed_.size());
    }
    for (const std::shared_ptr<Transfer>& call : calls) {
      if (call != nullptr) call->Look(Clock::System()->Now(), claimed);
    }
  }
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetch(Transfers* transfers,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) {
  const auto call = std::make_shared<FetchCall>(transfers, context);
  call->Begin(call, *request);
  return call.get();
}

grpc::ServerReadReactor<grpc::ByteBuffer>* StartUpload(Transfers* transfers,
                                                       grpc::CallbackServerContext* context,
                                                       grpc::ByteBuffer* response) {
  const auto call = std::make_shared<UploadCall>(transfers, context, response);
  call->Begin(call);
  return call.get();
}

}  // namespace signvote::rpc
