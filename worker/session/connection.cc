#include "worker/session/connection.h"

#include <utility>

#include "common/status.h"
#include "proto/wire/socket_bytes.h"

namespace signvote {

Connection::Connection(std::string server, std::shared_ptr<grpc::ChannelCredentials> credentials,
                       Duration connect_timeout, Clock* clock, uint64_t mark_seed)
    : server_(std::move(server)),
      credentials_(std::move(credentials)),
      connect_timeout_(connect_timeout),
      clock_(clock),
      next_mark_(static_cast<uint32_t>(mark_seed % wire::SocketByteCounter::kMarks)) {}

Dialled Connection::Dial() {
  using wire::SocketByteCounter;
  uint32_t mark = SocketByteCounter::kMarkFirst;
  {
    MutexLock lock(&mu_);
    mark += std::exchange(next_mark_, (next_mark_ + 1) % SocketByteCounter::kMarks);
  }
  return DialServer(server_, credentials_, connect_timeout_, mark);
}

absl::Status Connection::Run(ConnectionUser* user, RetryPolicy* policy) {
  for (;;) {
    auto stream = std::make_shared<Stream>(Dial(), clock_);
    const std::optional<grpc::ByteBuffer> first = user->OnDialed(stream);
    if (!first) return absl::OkStatus();
    absl::Status status = stream->Run(
        *first, connect_timeout_,
        [&](const grpc::ByteBuffer& message) { return user->OnMessage(stream.get(), message); });
    stream.reset();
    const std::optional<ConnectionEnd> end = user->OnEnded(std::move(status));
    if (!end) return absl::OkStatus();
    SIGNVOTE_RETURN_IF_ERROR(policy->Ended(*end, clock_->Now()));
    if (end->welcomed) user->OnReconnect(end->status);
    const Time wake = clock_->Now() + policy->NextWait();
    MutexLock lock(&mu_);
    const auto stop = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_; };
    if (stopped_.WaitUntil(&mu_, clock_, wake, stop)) return absl::OkStatus();
  }
}

void Connection::Stop() {
  {
    MutexLock lock(&mu_);
    stop_ = true;
  }
  stopped_.NotifyAll();
}

}  // namespace signvote
