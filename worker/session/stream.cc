#include "worker/session/stream.h"
#include "common/message_size.h"

#include <algorithm>
#include <utility>

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include "absl/strings/str_cat.h"
#include "proto/wire/run_end.h"
#include "proto/wire/wire.h"

namespace signvote {
namespace {

enum Tag : intptr_t { kStarted = 1, kRead, kWritten, kHalfClosed, kResumed, kFinished };
void* ToTag(Tag tag) { return reinterpret_cast<void*>(tag); }

}  // namespace

Dialled DialServer(const std::string& server,
                   const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                   Duration connect_timeout, uint32_t mark) {
  grpc::ChannelArguments args;
  // A connection of its own: streams of one connection share its flow control, and its bytes could
  // not be told apart.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  static_assert(kMessageBytesMost <= INT32_MAX);
  args.SetMaxReceiveMessageSize(static_cast<int>(kMessageBytesMost));
  args.SetMaxSendMessageSize(-1);
  // gRPC's own retries keep copies of what was sent; the session resends what matters by itself.
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // The longest that one connection attempt may take.
  const auto attempt = std::min<Duration>(connect_timeout, std::chrono::seconds(10));
  args.SetInt(
      GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
      static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(attempt).count()));
  // A machine that lost power sends nothing; without these pings the connection would look alive
  // for hours.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(mark));  // ten seconds and a mark
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return {grpc::CreateCustomChannel(server, credentials, args), mark};
}

gpr_timespec GrpcDeadline(Duration d) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(d.count(), GPR_TIMESPAN));
}

Stream::Stream(Dialled dialled, Clock* clock)
    : dialled_(std::move(dialled)), clock_(clock), stub_(dialled_.channel) {}

absl::Status Stream::Run(const grpc::ByteBuffer& first, Duration first_timeout,
                         const std::function<Taken(const grpc::ByteBuffer&)>& on_message) {
  deadline_ = clock_->Now() + first_timeout;
  call_ = stub_.PrepareCall(&context_, "/signvote.v1.Training/Session", &cq_);
  {
    MutexLock lock(&mu_);
    ++operations_;
    queue_.push_front({first, MessageKind::kControl});
  }
  call_->StartCall(ToTag(kStarted));

  bool finished = false;
  for (;;) {
    {
      MutexLock lock(&mu_);
      if (finished && operations_ == 0) break;
    }
    void* tag = nullptr;
    bool ok = false;
    const gpr_timespec until =
        deadline_ ? GrpcDeadline(*deadline_ - clock_->Now()) : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (cq_.AsyncNext(&tag, &ok, until) == grpc::CompletionQueue::TIMEOUT) {
      deadline_.reset();
      Cancel(absl::UnavailableError("no answer"));
      continue;
    }
    switch (static_cast<Tag>(reinterpret_cast<intptr_t>(tag))) {
      case kStarted: {
        bool open = false;
        {
          MutexLock lock(&mu_);
          --operations_;
          open = ok && !ended_;
          if (open) {
            started_ = true;
            ++operations_;
          }
        }
        if (open) {
          call_->Read(&message_, ToTag(kRead));
          Pump();
        } else {
          StartFinish();
        }
        break;
      }
      case kRead: {
        {
          MutexLock lock(&mu_);
          --operations_;
        }
        if (ok) {
          HandOver(message_, on_message);
        } else {
          StartFinish();
        }
        break;
      }
      case kResumed: {
        {
          MutexLock lock(&mu_);
          --operations_;
        }
        HandOver(message_, on_message);
        break;
      }
      case kWritten: {
        {
          MutexLock lock(&mu_);
          --operations_;
          write_in_flight_ = false;
          if (in_flight_kind_ == MessageKind::kBallot &&
              std::none_of(queue_.begin(), queue_.end(), [](const OutgoingMessage& m) {
                return m.kind == MessageKind::kBallot;
              })) {
            ballots_written_ = clock_->Now();
          }
          // A failed write means a broken stream; the read that is under way fails too and ends it.
          if (!ok) queue_.clear();
        }
        Pump();
        break;
      }
      case kHalfClosed: {
        MutexLock lock(&mu_);
        --operations_;
        break;
      }
      case kFinished: {
        MutexLock lock(&mu_);
        --operations_;
        finished = true;
        break;
      }
    }
  }
  cq_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (cq_.Next(&tag, &ok)) {
  }
  MutexLock lock(&mu_);
  if (!cancelled_because_.ok()) return cancelled_because_;
  return wire::WithReceivedExitCode(wire::FromGrpc(final_status_), context_);
}

void Stream::HandOver(const grpc::ByteBuffer& message,
                      const std::function<Taken(const grpc::ByteBuffer&)>& on_message) {
  for (;;) {
    {
      MutexLock lock(&mu_);
      resumed_ = false;
    }
    if (on_message(message) == Taken::kYes) break;
    MutexLock lock(&mu_);
    if (ended_ || !cancelled_because_.ok()) break;
    if (resumed_) continue;
    held_ = true;
    return;
  }
  message_.Clear();
  ReadNext();
}

void Stream::ReadNext() {
  bool again = false;
  {
    MutexLock lock(&mu_);
    again = !ended_;
    if (again) ++operations_;
  }
  if (again) call_->Read(&message_, ToTag(kRead));
}

void Stream::Resume() {
  MutexLock lock(&mu_);
  resumed_ = true;
  if (!held_) return;
  held_ = false;
  ++operations_;
  resume_.Set(&cq_, gpr_now(GPR_CLOCK_MONOTONIC), ToTag(kResumed));
}

void Stream::SetTimeout(std::optional<Duration> timeout) {
  deadline_.reset();
  if (timeout) deadline_ = clock_->Now() + *timeout;
}

void Stream::Write(OutgoingMessage message) {
  {
    MutexLock lock(&mu_);
    if (ended_ || half_close_wanted_) return;
    if (message.kind == MessageKind::kBallot) ballots_written_ = {};
    queue_.push_back(std::move(message));
  }
  Pump();
}

void Stream::Pump() {
  OutgoingMessage item;
  bool half_close = false;
  {
    MutexLock lock(&mu_);
    if (!started_ || ended_ || write_in_flight_) return;
    if (!queue_.empty()) {
      item = std::move(queue_.front());
      queue_.pop_front();
      in_flight_kind_ = item.kind;
    } else if (half_close_wanted_) {
      half_close = true;
    } else {
      return;
    }
    write_in_flight_ = true;  // stays so after a half-close: nothing may follow it
    ++operations_;
  }
  // Outside the lock: gRPC may write to the socket within the call. operations_ keeps call_ alive
  // meanwhile.
  if (half_close) {
    call_->WritesDone(ToTag(kHalfClosed));
  } else {
    call_->Write(item.message, ToTag(kWritten));
  }
}

std::deque<OutgoingMessage> Stream::TakeBallotsLocked() {
  std::deque<OutgoingMessage> taken;
  const auto keep = std::stable_partition(
      queue_.begin(), queue_.end(),
      [](const OutgoingMessage& message) { return message.kind != MessageKind::kBallot; });
  std::move(keep, queue_.end(), std::back_inserter(taken));
  queue_.erase(keep, queue_.end());
  return taken;
}

void Stream::WithdrawBallots() {
  // Destroyed outside the lock: releasing the bytes' owner runs foreign code.
  std::deque<OutgoingMessage> withdrawn;
  MutexLock lock(&mu_);
  withdrawn = TakeBallotsLocked();
}

void Stream::ReplaceBallots(std::vector<OutgoingMessage> messages) {
  std::deque<OutgoingMessage> withdrawn;  // as above
  MutexLock lock(&mu_);
  if (ended_ || half_close_wanted_) return;
  withdrawn = TakeBallotsLocked();
  if (!messages.empty()) ballots_written_ = {};
  for (OutgoingMessage& message : messages) queue_.push_back(std::move(message));
}

Time Stream::ballots_written() const {
  MutexLock lock(&mu_);
  return ballots_written_;
}

void Stream::HalfClose() {
  {
    MutexLock lock(&mu_);
    half_close_wanted_ = true;
  }
  Pump();
}

void Stream::StartFinish() {
  {
    MutexLock lock(&mu_);
    if (ended_) return;
    ended_ = true;
    queue_.clear();
    ++operations_;
  }
  call_->Finish(&final_status_, ToTag(kFinished));
}

void Stream::Cancel(absl::Status why) {
  {
    MutexLock lock(&mu_);
    if (!ended_ && cancelled_because_.ok()) cancelled_because_ = std::move(why);
  }
  context_.TryCancel();
  Resume();  // a message that waits must not keep the call's end from being read
}

}  // namespace signvote
