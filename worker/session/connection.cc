#include "worker/session/connection.h"

#include <utility>

#include "common/status.h"

namespace signvote {

Connection::Connection(std::string server, std::shared_ptr<grpc::ChannelCredentials> credentials,
                       uint64_t message_bytes_max, Duration connect_timeout, Clock* clock)
    : server_(std::move(server)),
      credentials_(std::move(credentials)),
      message_bytes_max_(message_bytes_max),
      connect_timeout_(connect_timeout),
      clock_(clock) {}

std::shared_ptr<grpc::Channel> Connection::Dial() const {
  return DialServer(server_, credentials_, message_bytes_max_, connect_timeout_);
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
