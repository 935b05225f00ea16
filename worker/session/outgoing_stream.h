#pragma once
// What a worker sends over one connection, as those see it who have something to say: the ballot's
// sender and the conversation. Stream (stream.h) is the real one.

#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "common/clock.h"

namespace signvote {

// A ballot's message can be withdrawn while it waits for its turn; others are always sent.
enum class MessageKind { kControl, kBallot };

struct OutgoingMessage {
  grpc::ByteBuffer message;
  MessageKind kind = MessageKind::kControl;
};

// Threads: any, at any time; nothing here waits for the network.
// Failure: after the stream has ended, messages are dropped.
class OutgoingStream {
 public:
  virtual ~OutgoingStream() = default;

  // Sends after what was queued before. The bytes' owner is released when gRPC is done with them.
  virtual void Write(OutgoingMessage message) = 0;
  virtual void WithdrawBallots() = 0;
  // Queues `messages` in place of the ballot messages that wait for their turn, in one step.
  // Nothing is sent before the next Flush(), so that it may be called under a lock of the caller's
  // that decides what belongs to the ballot.
  virtual void ReplaceBallots(std::vector<OutgoingMessage> messages) = 0;
  virtual void Flush() = 0;
  // When the last ballot message was handed over to the connection; {} when one is still waiting,
  // or none was sent.
  virtual Time ballots_written() const = 0;
  // Tells the server that no message follows, after those queued.
  virtual void HalfClose() = 0;
  // Ends the stream at once with `why`, if it has not ended otherwise before.
  virtual void Cancel(absl::Status why) = 0;
  // A message that was left for later is handed over again.
  virtual void Resume() = 0;
};

}  // namespace signvote
