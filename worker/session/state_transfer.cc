#include "worker/session/state_transfer.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/stream.h"

namespace signvote {
namespace {

static_assert(std::endian::native == std::endian::little, "fp32 values travel little-endian");

// A raw streaming call whose every step is waited for, within a limit.
class RawCall {
 public:
  RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
          Duration step_timeout)
      : stub_(channel),
        step_timeout_(step_timeout),
        call_(stub_.PrepareCall(&context_, method, &cq_)) {}
  ~RawCall() {
    context_.TryCancel();
    cq_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (cq_.Next(&tag, &ok)) {
    }
  }

  bool Start() {
    call_->StartCall(nullptr);
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
    call_->Finish(&status, nullptr);
    Wait();
    if (timed_out_) {
      return absl::DeadlineExceededError(
          absl::StrCat("state transfer made no progress for ", ToSeconds(step_timeout_), " s"));
    }
    return wire::FromGrpc(status);
  }
  // REQUIRES: a message was read or written.
  std::string peer() const { return context_.peer(); }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    if (cq_.AsyncNext(&tag, &ok, GrpcDeadline(step_timeout_)) == grpc::CompletionQueue::TIMEOUT) {
      timed_out_ = true;
      context_.TryCancel();
      cq_.Next(&tag, &ok);  // comes at once, because the call is cancelled
    }
    return ok && !timed_out_;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue cq_;
  grpc::GenericStub stub_;
  const Duration step_timeout_;
  bool timed_out_ = false;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace

absl::Status FetchState(
    const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
    Duration progress_timeout, ReplicaMemory* replica,
    const std::function<absl::Status(Round, uint64_t first, uint64_t count)>& on_part,
    wire::SocketBytes* moved) {
  *moved = {};
  RawCall call(channel, "/signvote.v1.Training/FetchState", progress_timeout);
  v1::FetchStateRequest request;
  request.set_ticket(ticket);
  if (!call.Start() || !call.Write(wire::EncodeMessage(request)) || !call.WritesDone()) {
    const absl::Status status = call.Finish();
    return status.ok() ? absl::UnavailableError("state transfer ended before it began") : status;
  }
  std::optional<wire::SocketByteCounter> counter;
  const uint64_t d = replica->coordinates();
  uint64_t received = 0;
  std::vector<float> part;
  grpc::ByteBuffer message;
  while (call.Read(&message)) {
    if (!counter) counter.emplace(call.peer(), 0);
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::StateView> view,
                              wire::DecodeState(wire::BulkKind::kStateChunk, message));
    const wire::StateHeader& header = view->header;
    if (header.first != received || header.count == 0 || header.count > d - received ||
        view->payload_bytes != header.count * sizeof(float)) {
      return absl::InvalidArgumentError(
          absl::StrCat("state transfer: ", view->payload_bytes, " bytes for ", header.count,
                       " coordinates from ", header.first, " where ", d - received, " from ",
                       received, " were due"));
    }
    part.resize(header.count);
    SIGNVOTE_RETURN_IF_ERROR(wire::CopyPayloadChecked(
        message, view->payload_offset, header.checksum,
        {reinterpret_cast<uint8_t*>(part.data()), header.count * sizeof(float)}));
    SIGNVOTE_RETURN_IF_ERROR(replica->Write(received, part));
    SIGNVOTE_RETURN_IF_ERROR(on_part(header.round, header.first, header.count));
    received += header.count;
    if (const auto bytes = counter->Read()) *moved = *bytes;
  }
  SIGNVOTE_RETURN_IF_ERROR(call.Finish());
  if (received != d) {
    return absl::InvalidArgumentError(
        absl::StrCat("state transfer ended after ", received, " of ", d, " coordinates"));
  }
  return absl::OkStatus();
}

absl::Status UploadState(const std::shared_ptr<grpc::Channel>& channel, const std::string& ticket,
                         Duration progress_timeout, ReplicaMemory* replica,
                         wire::SocketBytes* moved) {
  *moved = {};
  const uint64_t d = replica->coordinates();
  RawCall call(channel, "/signvote.v1.Training/UploadState", progress_timeout);
  v1::UploadStateRequest first;
  first.set_ticket(ticket);
  bool open = call.Start() && call.Write(wire::EncodeMessage(first));
  std::optional<wire::SocketByteCounter> counter;
  if (open) counter.emplace(call.peer(), 0);
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
