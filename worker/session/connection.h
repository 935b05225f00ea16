#pragma once
// The dial loop of a session: one stream after the other, with the waits that the retry policy says
// between them, until nothing follows.
//
// Threads: Run() blocks the one thread it is called on, and calls its user there. Stop(): any thread.
// Failure: Run() returns the status with which the policy gave up; OK when the user said that nothing
//          follows, or after Stop().

#include <memory>
#include <optional>
#include <string>

#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/session/retry_policy.h"
#include "worker/session/session.h"
#include "worker/session/stream.h"

namespace signvote {

// Whose streams they are.
class ConnectionUser {
 public:
  virtual ~ConnectionUser() = default;
  // A new stream, not open yet. Its first message; nullopt: no stream is wanted any more.
  virtual std::optional<grpc::ByteBuffer> OnDialed(const std::shared_ptr<Stream>& stream) = 0;
  virtual Stream::Taken OnMessage(Stream* stream, const grpc::ByteBuffer& message) = 0;
  // It has ended like this. nullopt: nothing follows.
  virtual std::optional<ConnectionEnd> OnEnded(absl::Status status) = 0;
  // Another one is dialled after `why`, though the server had let this one in.
  virtual void OnReconnect(const absl::Status& why) = 0;
};

class Connection {
 public:
  Connection(std::string server, std::shared_ptr<grpc::ChannelCredentials> credentials,
             Duration connect_timeout, Clock* clock, uint64_t mark_seed);

  // Once.
  absl::Status Run(ConnectionUser* user, RetryPolicy* policy) ABSL_LOCKS_EXCLUDED(mu_);
  // No further stream is dialled. The one that runs is left alone.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);
  // A channel to the same server, with a TCP connection of its own and a mark that none of the last
  // 999 had.
  Dialled Dial() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Constant after construction.
  const std::string server_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  const Duration connect_timeout_;
  Clock* const clock_;

  Mutex mu_;
  CondVar stopped_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t next_mark_ ABSL_GUARDED_BY(mu_);  // less than SocketByteCounter::kMarks
};

}  // namespace signvote
