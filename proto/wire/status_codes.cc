#include <string>
#include <utility>

#include "common/exit_codes.h"
#include "common/status.h"
#include "common/text.h"
#include "proto/wire/wire.h"

namespace signvote::wire {

static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) ==
              grpc::StatusCode::UNAUTHENTICATED);

namespace {

// gRPC sends the message as metadata, of which a peer takes 8 KiB by default, and a byte of it as
// up to three.
constexpr size_t kMessageBytesMax = 2000;

// What a run's end tells its workers.
constexpr ExitCode kTold[] = {ExitCode::kDiverged, ExitCode::kReplicaMismatch};

std::string TextOf(ExitCode code) { return std::to_string(static_cast<int>(code)); }

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      ForPeople(ToStd(status.message()), kMessageBytesMax));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SendExitCode(const absl::Status& status, grpc::CallbackServerContext* context) {
  for (const ExitCode code : kTold) {
    if (!status.ok() && ExitCodeFor(status) == code)
      context->AddTrailingMetadata(kExitCodeKey, TextOf(code));
  }
}

absl::Status WithReceivedExitCode(absl::Status status, const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto sent = trailers.find(kExitCodeKey);
  if (sent == trailers.end()) return status;
  for (const ExitCode code : kTold) {
    if (sent->second == grpc::string_ref(TextOf(code)))
      return WithExitCode(std::move(status), code);
  }
  return status;
}

}  // namespace signvote::wire
