#include <string>

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

}  // namespace signvote::wire
