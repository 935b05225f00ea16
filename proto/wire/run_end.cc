#include "proto/wire/run_end.h"

#include <string>
#include <utility>

#include "common/exit_codes.h"

namespace signvote::wire {
namespace {

std::string TextOf(ExitCode code) { return std::to_string(static_cast<int>(code)); }

}  // namespace

void SendExitCode(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (const ExitCode code = ExitCodeFor(status); IsRunEnd(code))
    context->AddTrailingMetadata(kExitCodeKey, TextOf(code));
}

absl::Status WithReceivedExitCode(absl::Status status, const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto sent = trailers.find(kExitCodeKey);
  if (sent == trailers.end()) return status;
  for (const ExitCode code : kRunEnds) {
    if (sent->second == grpc::string_ref(TextOf(code)))
      return WithExitCode(std::move(status), code);
  }
  return status;
}

}  // namespace signvote::wire
