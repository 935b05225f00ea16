#pragma once
// One Session call on one TCP connection of its own, as raw messages, driven by one thread.
//
// Threads: Run() belongs to one thread and is called once; all else may be called from any thread
// at any time.
// Failure: after the stream has ended, writes are dropped.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/session/outgoing_stream.h"

namespace signvote {

// A channel with a TCP connection of its own, and by what SocketByteCounter finds that.
struct Dialled {
  std::shared_ptr<grpc::Channel> channel;
  uint32_t mark = 0;
};

// Such a one to host:port, as raw messages of up to kMessageBytesMost want it.
// REQUIRES: `mark` is one of SocketByteCounter's, and no other connection of this caller has it.
Dialled DialServer(const std::string& server,
                   const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                   Duration connect_timeout, uint32_t mark);

// When gRPC's own waits end that shall last `d` from now on.
gpr_timespec GrpcDeadline(Duration d);

class Stream final : public OutgoingStream {
 public:
  Stream(Dialled dialled, Clock* clock);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // What becomes of a message that was handed over: it is done with, or it shall be handed over again
  // after Resume(), and nothing is read before.
  enum class Taken { kYes, kLater };
  // Opens the call, sends `first`, hands every message to `on_message` and returns how the call
  // ended. The call is cancelled with UNAVAILABLE when `first_timeout` passes without a
  // message (see SetTimeout).
  absl::Status Run(const grpc::ByteBuffer& first, Duration first_timeout,
                   const std::function<Taken(const grpc::ByteBuffer&)>& on_message);
  // From now on the call is cancelled when it lasts longer than `timeout`; nullopt: no limit.
  // Called from on_message.
  void SetTimeout(std::optional<Duration> timeout);

  // ---- OutgoingStream
  void Write(OutgoingMessage message) override ABSL_LOCKS_EXCLUDED(mu_);
  void WithdrawBallots() override ABSL_LOCKS_EXCLUDED(mu_);
  void ReplaceBallots(std::vector<OutgoingMessage> messages) override ABSL_LOCKS_EXCLUDED(mu_);
  void Flush() override ABSL_LOCKS_EXCLUDED(mu_) { Pump(); }
  Time ballots_written() const override ABSL_LOCKS_EXCLUDED(mu_);
  void HalfClose() override ABSL_LOCKS_EXCLUDED(mu_);
  // Run() returns `why`.
  void Cancel(absl::Status why) override ABSL_LOCKS_EXCLUDED(mu_);
  // Without a message that was left for later it is the next that would be.
  void Resume() override ABSL_LOCKS_EXCLUDED(mu_);

  // REQUIRES: a message has been received.
  const grpc::ClientContext& context() const { return context_; }
  uint32_t mark() const { return dialled_.mark; }

 private:
  std::deque<OutgoingMessage> TakeBallotsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts the next write, if there is one and none is in flight.
  void Pump() ABSL_LOCKS_EXCLUDED(mu_);
  void StartFinish() ABSL_LOCKS_EXCLUDED(mu_);
  // Hands the message over, as often as a Resume() came meanwhile, and reads on or waits.
  void HandOver(const grpc::ByteBuffer& message,
                const std::function<Taken(const grpc::ByteBuffer&)>& on_message)
      ABSL_LOCKS_EXCLUDED(mu_);
  void ReadNext() ABSL_LOCKS_EXCLUDED(mu_);

  const Dialled dialled_;
  Clock* const clock_;
  grpc::ClientContext context_;
  grpc::CompletionQueue cq_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;  // set before started_

  // Of the thread in Run.
  std::optional<Time> deadline_;
  grpc::Status final_status_;
  grpc::ByteBuffer message_;  // the last one read

  mutable Mutex mu_;
  bool started_ ABSL_GUARDED_BY(mu_) = false;  // the call is open: writes may start
  bool ended_ ABSL_GUARDED_BY(mu_) = false;    // no further operation may start
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;
  MessageKind in_flight_kind_ ABSL_GUARDED_BY(mu_) = MessageKind::kControl;
  bool half_close_wanted_ ABSL_GUARDED_BY(mu_) = false;
  int operations_ ABSL_GUARDED_BY(mu_) = 0;    // tags that the completion queue still owes
  bool held_ ABSL_GUARDED_BY(mu_) = false;     // message_ waits for Resume()
  bool resumed_ ABSL_GUARDED_BY(mu_) = false;  // Resume() was called since message_ was last tried
  grpc::Alarm resume_ ABSL_GUARDED_BY(mu_);    // brings Resume() to the thread in Run
  std::deque<OutgoingMessage> queue_ ABSL_GUARDED_BY(mu_);
  Time ballots_written_ ABSL_GUARDED_BY(mu_);
  absl::Status cancelled_because_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
