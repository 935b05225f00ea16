#include "server/rpc/state_transfer.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {
namespace {

static_assert(MasterReplica::kPieceCoordinates <= wire::kStateChunkCoordinates);

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

absl::Status NoSession() {
  return absl::FailedPreconditionError("no live session has this ticket; join first, or again");
}

// Bytes that a call moved. A connection that the session itself uses is watched by the session's
// counter; then the messages' own bytes tell how much of it was the transfer's.
class TransferMeter {
 public:
  explicit TransferMeter(const grpc::ServerContextBase& context)
      : peer_(wire::PeerOf(context).address), counter_(peer_, 0) {
    begin_ = counter_.Read().value_or(wire::SocketBytes{});
    last_ = begin_;
  }
  void AddUp(uint64_t bytes) { messages_.up += bytes; }
  void AddDown(uint64_t bytes) { messages_.down += bytes; }
  TransferBytes Finish(const ServerSession& session) {
    if (session.peer().address == peer_) {
      messages_.on_session_connection = true;
      return messages_;
    }
    last_ = counter_.Read().value_or(last_);
    // The kernel counts as sent what was acknowledged. When a call ends its last messages are still
    // on their way, or the worker has closed the connection: the messages are what moved at least.
    return {.up = std::max(last_.received - begin_.received, messages_.up),
            .down = std::max(last_.sent - begin_.sent, messages_.down)};
  }

 private:
  const std::string peer_;
  wire::SocketByteCounter counter_;
  wire::SocketBytes begin_, last_;
  TransferBytes messages_;
};

class FetchReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchReactor(StateHub* hub, const grpc::CallbackServerContext& context,
               const grpc::ByteBuffer& request, TransferDone done)
      : meter_(context), done_(std::move(done)) {
    if (const absl::Status status = Open(hub, request); !status.ok()) {
      End(status);
    } else {
      WriteNext();
    }
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the connection broke"));
    WriteNext();
  }
  void OnCancel() override {}  // the write in progress fails and ends the call
  void OnDone() override {
    if (transferring_) done_(session_, meter_.Finish(*session_));
    delete this;
  }

 private:
  absl::Status Open(StateHub* hub, const grpc::ByteBuffer& request) {
    v1::FetchStateRequest parsed;
    SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(request, &parsed));
    session_ = hub->tickets()->Find(parsed.ticket());
    if (session_ == nullptr) return NoSession();
    replica_ = hub->published();
    if (replica_ == nullptr) {
      return absl::FailedPreconditionError(
          "the initial parameters are not there yet; wait for Welcome");
    }
    if (!session_->BeginTransfer()) {
      return absl::FailedPreconditionError("this session is transferring its state already");
    }
    transferring_ = true;
    return absl::OkStatus();
  }

  // The worker may fetch again as soon as it hears of the end: before OnDone().
  void End(const absl::Status& status) {
    if (transferring_) session_->EndTransfer();
    Finish(wire::ToGrpc(status));
  }

  void WriteNext() {
    if (piece_ == replica_->pieces()) return End(absl::OkStatus());
    if (session_->closing()) return End(absl::AbortedError("the session of this ticket has ended"));
    const uint64_t first = replica_->First(piece_);
    const uint64_t count = replica_->Count(piece_);
    // Not pooled: a transfer is rare, and gRPC holds at most two of these.
    const auto values = std::make_shared<std::vector<float>>(count);
    const Round round = replica_->CopyPiece(piece_, values->data());
    const std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(values->data()),
                                           count * sizeof(float));
    message_ = wire::EncodeState(wire::BulkKind::kStateChunk,
                                 {.round = round,
                                  .first = first,
                                  .count = count,
                                  .checksum = Xxh3(payload.data(), payload.size())},
                                 payload, values);
    ++piece_;
    meter_.AddDown(message_.Length());
    StartWrite(&message_);
  }

  TransferMeter meter_;
  const TransferDone done_;
  std::shared_ptr<ServerSession> session_;
  std::shared_ptr<const MasterReplica> replica_;
  bool transferring_ = false;
  uint64_t piece_ = 0;
  grpc::ByteBuffer message_;
};

class UploadReactor final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  UploadReactor(StateHub* hub, const grpc::CallbackServerContext& context,
                grpc::ByteBuffer* response,
                std::function<void(std::shared_ptr<ServerSession>)> uploaded, TransferDone done)
      : hub_(hub),
        response_(response),
        meter_(context),
        uploaded_(std::move(uploaded)),
        done_(std::move(done)) {
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      return End(absl::InvalidArgumentError(session_ == nullptr
                                                ? "the upload ended before its ticket"
                                                : "the upload ended before the last coordinate"));
    }
    bool complete = false;
    meter_.AddUp(incoming_.Length());
    const absl::Status status = Handle(&complete);
    incoming_.Clear();
    if (!status.ok()) return End(status);
    if (!complete) return StartRead(&incoming_);
    uploaded_(session_);
    v1::UploadStateReply reply;
    reply.set_coordinates(coordinates_);
    *response_ = wire::EncodeMessage(reply);
    End(absl::OkStatus());
  }
  void OnCancel() override {}  // the read in progress fails and ends the call
  void OnDone() override {
    if (session_ != nullptr) done_(session_, meter_.Finish(*session_));
    delete this;
  }

 private:
  // As FetchReactor's.
  void End(const absl::Status& status) {
    if (session_ != nullptr) session_->EndTransfer();
    Finish(wire::ToGrpc(status));
  }

  absl::Status Handle(bool* complete) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                              wire::DecodeState(wire::BulkKind::kUploadChunk, incoming_));
    if (session_ == nullptr) {
      if (view.has_value())
        return absl::InvalidArgumentError("the first message of an upload must be the ticket");
      v1::UploadStateRequest parsed;
      SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(incoming_, &parsed));
      std::shared_ptr<ServerSession> session = hub_->tickets()->Find(parsed.ticket());
      if (session == nullptr) return NoSession();
      SIGNVOTE_RETURN_IF_ERROR(hub_->CheckLease(session.get()));
      if (!session->BeginTransfer()) {
        return absl::FailedPreconditionError("this session is transferring its state already");
      }
      session_ = std::move(session);
      return absl::OkStatus();
    }
    if (!view.has_value())
      return absl::InvalidArgumentError("an upload has one ticket, then chunks");
    SIGNVOTE_RETURN_IF_ERROR(hub_->Write(session_.get(), *view, incoming_, complete));
    coordinates_ += view->header.count;
    return absl::OkStatus();
  }

  StateHub* const hub_;
  grpc::ByteBuffer* const response_;
  TransferMeter meter_;
  const std::function<void(std::shared_ptr<ServerSession>)> uploaded_;
  const TransferDone done_;
  std::shared_ptr<ServerSession> session_;
  grpc::ByteBuffer incoming_;
  uint64_t coordinates_ = 0;
};

}  // namespace

void StateHub::Grant(std::shared_ptr<ServerSession> session,
                     std::shared_ptr<MasterReplica> replica) {
  MutexLock lock(&mu_);
  holder_ = std::move(session);
  target_ = std::move(replica);
  received_ = 0;
  last_progress_ = clock_->Now();
}

void StateHub::Revoke() {
  MutexLock lock(&mu_);
  holder_.reset();
  target_.reset();
}

Time StateHub::last_progress() const {
  MutexLock lock(&mu_);
  return last_progress_;
}

absl::Status StateHub::CheckLease(const ServerSession* session) const {
  MutexLock lock(&mu_);
  if (holder_.get() == session) return absl::OkStatus();
  return absl::FailedPreconditionError("this worker does not hold the upload lease");
}

absl::Status StateHub::Write(const ServerSession* session, const wire::StateView& view,
                             const grpc::ByteBuffer& message, bool* complete) {
  MutexLock lock(&mu_);
  if (holder_.get() != session || target_ == nullptr) {
    return absl::FailedPreconditionError("this worker no longer holds the upload lease");
  }
  const wire::StateHeader& header = view.header;
  const uint64_t left = target_->coordinates() - received_;
  if (header.round != Round(0))
    return absl::InvalidArgumentError("initial parameters stand at round 0");
  if (header.first != received_ || header.count == 0 || header.count > left ||
      header.count > wire::kStateChunkCoordinates) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chunk of ", header.count, " coordinates from ", header.first, " on; expected 1 to ",
        wire::kStateChunkCoordinates, " from ", received_, " on, ", left, " are left"));
  }
  if (view.payload_bytes != header.count * sizeof(float)) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk of ", header.count, " coordinates has ", view.payload_bytes,
                     " bytes of payload, it must have ", header.count * sizeof(float)));
  }
  float* out = target_->x().data() + received_;
  SIGNVOTE_RETURN_IF_ERROR(
      wire::CopyPayloadChecked(message, view.payload_offset, header.checksum,
                               {reinterpret_cast<uint8_t*>(out), view.payload_bytes}));
  for (uint64_t i = 0; i < header.count; ++i) {
    if (!std::isfinite(out[i])) {
      return absl::InvalidArgumentError(absl::StrCat(
          NameCoordinate(target_->layout(), received_ + i), " of the initial model is not finite"));
    }
  }
  received_ += header.count;
  last_progress_ = clock_->Now();
  if (received_ == target_->coordinates()) {
    *complete = true;
    holder_.reset();
    target_.reset();
  }
  return absl::OkStatus();
}

void StateHub::Publish(std::shared_ptr<const MasterReplica> replica) {
  MutexLock lock(&mu_);
  published_ = std::move(replica);
}

std::shared_ptr<const MasterReplica> StateHub::published() const {
  MutexLock lock(&mu_);
  return published_;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetch(StateHub* hub,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       TransferDone done) {
  return new FetchReactor(hub, *context, *request, std::move(done));
}

grpc::ServerReadReactor<grpc::ByteBuffer>* StartUpload(
    StateHub* hub, grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
    std::function<void(std::shared_ptr<ServerSession>)> uploaded, TransferDone done) {
  return new UploadReactor(hub, *context, response, std::move(uploaded), std::move(done));
}

}  // namespace signvote::rpc
