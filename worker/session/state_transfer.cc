#include "worker/session/state_transfer.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/status.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/stream.h"
#include "worker/session/waits.h"

namespace signvote {
namespace {

static_assert(std::endian::native == std::endian::little, "fp32 values travel little-endian");

// A raw streaming call whose every step is waited for, within a limit.
class RawCall {
 public:
  RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
          const TransferOptions& options)
      : stub_(channel), options_(options), call_(stub_.PrepareCall(&context_, method, &cq_)) {}
  ~RawCall() {
    if (begun_) options_.stop->End();
    context_.TryCancel();
    cq_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (cq_.Next(&tag, &ok)) {
    }
  }
  RawCall(const RawCall&) = delete;
  RawCall& operator=(const RawCall&) = delete;

  // Once, first; without it the others must not be called, but for Finish().
  bool Start() {
    begun_ = options_.stop->Begin(&context_);
    if (!begun_) return false;
    call_->StartCall(nullptr);
    started_ = true;
    return Wait();
  }
  bool Write(const grpc::ByteBuffer& message) {
    call_->Write(message, nullptr);
    return Wait();
  }
  bool WritesDone() {
    call_->WritesDone(nullptr);
    return Wait();
  }
  bool Read(grpc::ByteBuffer* message) {
    call_->Read(message, nullptr);
    return Wait();
  }
  absl::Status Finish() {
    grpc::Status status;
    if (started_) {
      call_->Finish(&status, nullptr);
      Wait();
    }
    if (interrupted_ || !begun_ || options_.stop->stopped())
      return absl::CancelledError("the state transfer was broken off");
    if (timed_out_) {
      return absl::DeadlineExceededError(absl::StrCat("state transfer made no progress for ",
                                                      ToSeconds(options_.progress_timeout), " s"));
    }
    return wire::FromGrpc(status);
  }
  // REQUIRES: a message was read or written.
  std::string peer() const { return context_.peer(); }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    // gRPC's own clock: its queue knows no other.
    const gpr_timespec until = GrpcDeadline(options_.progress_timeout);
    for (;;) {
      gpr_timespec next = until;
      if (options_.interrupted) next = gpr_time_min(next, GrpcDeadline(Waits::kInterruptedEvery));
      if (cq_.AsyncNext(&tag, &ok, next) != grpc::CompletionQueue::TIMEOUT) break;
      if (options_.interrupted && options_.interrupted()) {
        interrupted_ = true;
        options_.stop->Interrupted();
      } else if (gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), until) >= 0) {
        timed_out_ = true;
      } else {
        continue;
      }
      context_.TryCancel();
      cq_.Next(&tag, &ok);  // comes at once, because the call is cancelled
      break;
    }
    return ok && !timed_out_ && !interrupted_;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue cq_;
  grpc::GenericStub stub_;
  const TransferOptions& options_;
  bool begun_ = false;
  bool started_ = false;
  bool timed_out_ = false;
  bool interrupted_ = false;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace

void TransferStop::Stop() {
  MutexLock lock(&mu_);
  stopped_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

bool TransferStop::stopped() const {
  MutexLock lock(&mu_);
  return stopped_;
}

bool TransferStop::interrupted() const {
  MutexLock lock(&mu_);
  return interrupted_;
}

void TransferStop::Interrupted() {
  MutexLock lock(&mu_);
  interrupted_ = true;
}

bool TransferStop::Begin(grpc::ClientContext* context) {
  MutexLock lock(&mu_);
  if (stopped_) return false;
  context_ = context;
  return true;
}

void TransferStop::End() {
  MutexLock lock(&mu_);
  context_ = nullptr;
}

absl::Status FetchState(const Dialled& dialled, const TransferOptions& options,
                        ReplicaMemory* replica,
                        const std::function<absl::Status(const FetchedPart&)>& on_part,
                        wire::SocketBytes* moved) {
  *moved = {};
  RawCall call(dialled.channel, "/signvote.v1.Training/FetchState", options);
  v1::FetchStateRequest request;
  request.set_ticket(options.ticket);
  if (!call.Start() || !call.Write(wire::EncodeMessage(request)) || !call.WritesDone()) {
    const absl::Status status = call.Finish();
    return status.ok() ? absl::UnavailableError("state transfer ended before it began") : status;
  }
  std::optional<wire::SocketByteCounter> counter;
  const uint64_t d = replica->coordinates();
  const uint64_t due = options.x0 ? 2 * d : d;  // coordinates of all planes
  uint64_t received = 0;
  std::vector<float> part;
  grpc::ByteBuffer message;
  while (call.Read(&message)) {
    if (!counter) counter.emplace(call.peer(), 0, dialled.mark);
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                              wire::DecodeState(wire::BulkKind::kStateChunk, message));
    if (!view) return absl::InvalidArgumentError("state transfer: not a chunk of state");
    const wire::StateHeader& header = view->header;
    const bool x0 = received >= d;
    const uint64_t first = x0 ? received - d : received;
    const uint64_t left = received < due ? d - first : 0;
    if (header.plane != (x0 ? wire::kPlaneX0 : wire::kPlaneReplica) || header.first != first ||
        header.count == 0 || header.count > left ||
        view->payload_bytes != header.count * sizeof(float)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "state transfer: ", view->payload_bytes, " bytes for ", header.count,
          " coordinates from ", header.first, " of plane ", header.plane, " where ", left, " from ",
          first, " of plane ", x0 ? wire::kPlaneX0 : wire::kPlaneReplica, " were due"));
    }
    part.resize(header.count);
    SIGNVOTE_RETURN_IF_ERROR(wire::CopyPayloadChecked(
        message, view->payload_offset, header.checksum,
        {reinterpret_cast<uint8_t*>(part.data()), header.count * sizeof(float)}));
    SIGNVOTE_RETURN_IF_ERROR(
        on_part({.x0 = x0, .round = header.round, .first = first, .count = header.count}));
    SIGNVOTE_RETURN_IF_ERROR(x0 ? replica->WriteX0(first, part) : replica->Write(first, part));
    CrashPoint("state.piece-taken");
    received += header.count;
    if (const auto bytes = counter->Read()) *moved = *bytes;
  }
  SIGNVOTE_RETURN_IF_ERROR(call.Finish());
  const bool without_x0 = options.x0 && received == d;
  if (received != due && !without_x0) {
    return absl::InvalidArgumentError(
        absl::StrCat("state transfer ended after ", received, " of ", due, " coordinates"));
  }
  return absl::OkStatus();
}

absl::Status UploadState(const Dialled& dialled, const TransferOptions& options,
                         ReplicaMemory* replica, wire::SocketBytes* moved) {
  *moved = {};
  const uint64_t d = replica->coordinates();
  RawCall call(dialled.channel, "/signvote.v1.Training/UploadState", options);
  v1::UploadStateRequest first;
  first.set_ticket(options.ticket);
  bool open = call.Start() && call.Write(wire::EncodeMessage(first));
  std::optional<wire::SocketByteCounter> counter;
  if (open) counter.emplace(call.peer(), 0, dialled.mark);
  for (uint64_t at = 0; open && at < d; at += wire::kStateChunkCoordinates) {
    const uint64_t count = std::min<uint64_t>(wire::kStateChunkCoordinates, d - at);
    // Owned by the message: gRPC may read it after the call has ended.
    const auto part = std::make_shared<std::vector<float>>(count);
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(at, *part));
    const std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(part->data()),
                                           count * sizeof(float));
    const wire::StateHeader header{.round = Round(0),
                                   .first = at,
                                   .count = count,
                                   .checksum = Xxh3(payload.data(), payload.size())};
    open = call.Write(wire::EncodeState(wire::BulkKind::kUploadChunk, header, payload, part));
    if (const auto bytes = counter->Read()) *moved = *bytes;
  }
  grpc::ByteBuffer reply;
  const bool replied = open && call.WritesDone() && call.Read(&reply);
  if (counter) {
    if (const auto bytes = counter->Read()) *moved = *bytes;
  }
  SIGNVOTE_RETURN_IF_ERROR(call.Finish());
  v1::UploadStateReply parsed;
  if (!replied || !wire::ParseMessage(reply, &parsed).ok() || parsed.coordinates() != d) {
    return absl::InvalidArgumentError(
        absl::StrCat("the server did not confirm the upload of ", d, " coordinates"));
  }
  return absl::OkStatus();
}

}  // namespace signvote
