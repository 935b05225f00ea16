#include <string>
#include <utility>

#include "common/status.h"
#include "common/text.h"
#include "proto/wire/run_end.h"
#include "proto/wire/wire.h"

namespace signvote::wire {

static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) ==
              grpc::StatusCode::UNAUTHENTICATED);

namespace {

// gRPC sends the message as metadata, of which a peer takes 8 KiB by default, and a byte of it as
// up to three.
constexpr size_t kMessageBytesMax = 2000;

std::string Details(ExitCode end) { return std::to_string(static_cast<int>(end)); }

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string details;
  for (const ExitCode end : kRunEnds) {
    if (ExitCodeFor(status) == end) details = Details(end);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      ForPeople(ToStd(status.message()), kMessageBytesMax), details);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status ours(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  for (const ExitCode end : kRunEnds) {
    if (status.error_details() == Details(end)) return WithExitCode(std::move(ours), end);
  }
  return ours;
}

}  // namespace signvote::wire
