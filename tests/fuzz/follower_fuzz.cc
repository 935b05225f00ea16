// What a worker takes from its server: Welcome, Commit, RoundOpen and the others as bytes, parsed,
// checked (worker/session/messages.h) and followed (worker/session/follower.h). Nothing that a server
// says may do more than end the connection, and what is taken is what the headers promise.
//
// Input: messages, one after the other, each behind two bytes with its length (little-endian). What the
// follower asks for is done at once: commits are taken, states are there.

#include <cmath>
#include <optional>
#include <string>
#include <variant>

#include "common/check.h"
#include "common/message_size.h"
#include "tests/fuzz/fuzz_target.h"
#include "worker/session/follower.h"

namespace signvote {
namespace {

bool IsStepsize(float value) { return std::isfinite(value) && value >= 0; }

void CheckRun(const RunInfo& run) {
  SIGNVOTE_CHECK(run.plan.coordinates() == run.layout.coordinates());
  SIGNVOTE_CHECK(run.plan.Bytes(ChunkIndex(0)) <= kMessageBytesMost);
  uint64_t covered = 0;
  for (const PayloadKinds& range : run.payloads) {
    SIGNVOTE_CHECK(range.first.value() == covered && range.chunks > 0);
    covered += range.chunks;
  }
  SIGNVOTE_CHECK(covered == run.plan.chunks());
  const DirectionConfig& direction = run.direction;
  if (direction.kind != DirectionKind::kSignSgd) {
    SIGNVOTE_CHECK(direction.beta >= 0 && direction.beta < 1);
  }
  if (direction.kind == DirectionKind::kLion) {
    SIGNVOTE_CHECK(direction.beta2 >= 0 && direction.beta2 < 1);
  }
  if (run.clip_norm.has_value())
    SIGNVOTE_CHECK(std::isfinite(*run.clip_norm) && *run.clip_norm > 0);
}

void CheckTicket(const RoundTicket& ticket) {
  SIGNVOTE_CHECK(ticket.local_steps > 0);
  SIGNVOTE_CHECK(IsStepsize(ticket.eta_first) && IsStepsize(ticket.eta_last));
}

void CheckDue(const v1::Commit& commit, const RunInfo& run) {
  SIGNVOTE_CHECK(commit.run_id() == run.run_id.bytes());
  if (commit.kind() == v1::Commit::KIND_NONE) return;
  if (commit.kind() == v1::Commit::KIND_REWIND) {
    SIGNVOTE_CHECK(run.needs_x0);
    return;
  }
  SIGNVOTE_CHECK(commit.kind() == v1::Commit::KIND_STEP);
  SIGNVOTE_CHECK(IsStepsize(commit.stepsize()) && std::isfinite(commit.rho()));
  SIGNVOTE_CHECK(commit.rho() == 1.0f || run.needs_x0);
  SIGNVOTE_CHECK(static_cast<uint32_t>(commit.counted_size()) == run.plan.chunks());
  SIGNVOTE_CHECK(commit.scales().empty() ||
                 static_cast<size_t>(commit.scales_size()) == run.layout.tensors().size());
}

class Worker {
 public:
  Worker() : follower_({.name = "w0", .model = Model()}) { (void)follower_.Connected(); }

  void Take(const std::string& bytes) {
    v1::ServerMessage message;
    if (!message.ParseFromString(bytes)) return;
    const Time now = Time{} + std::chrono::seconds(5);
    const auto actions = follower_.Handle(message, now);
    if (!actions.ok()) {
      SIGNVOTE_CHECK(absl::IsFailedPrecondition(actions.status()) ||
                     absl::IsInvalidArgument(actions.status()) ||
                     absl::IsAborted(actions.status()));
      return Reconnect();
    }
    for (const FollowerAction& action : *actions) {
      if (!Do(action, message)) return Reconnect();
    }
    SIGNVOTE_CHECK(follower_.following() != Follower::Following::kFollowing ||
                   follower_.next().has_value());
  }

 private:
  static ModelDescription Model() {
    ModelDescription model;
    model.tensors = {{.name = "b", .shape = {50, 10}}, {.name = "a", .shape = {1000}}};
    return model;
  }
  // False: the connection ends.
  bool Do(const FollowerAction& action, const v1::ServerMessage& message) {
    if (std::holds_alternative<JoinedAction>(action)) {
      CheckRun(follower_.run());
    } else if (std::holds_alternative<TransferAction>(action)) {
      (void)follower_.FollowFrom(stands_at_, stands_at_);
    } else if (std::holds_alternative<CommitDueAction>(action)) {
      CheckDue(message.commit(), follower_.run());
      const Round round(message.commit().round());
      follower_.Took(round, Epoch(message.commit().epoch()));
      stands_at_ = round.next();
    } else if (const auto* opened = std::get_if<OpenedAction>(&action)) {
      CheckTicket(opened->ticket);
      SIGNVOTE_CHECK(follower_.VoteOf(opened->ticket.round) == opened->vote);
    }
    return !std::holds_alternative<RejoinAction>(action);
  }
  void Reconnect() {
    follower_.Disconnected();
    SIGNVOTE_CHECK(!follower_.welcomed() && !follower_.open());
    const v1::WorkerMessage join = follower_.Connected();
    SIGNVOTE_CHECK(join.has_join() && join.join().name() == "w0");
  }

  Follower follower_;
  Round stands_at_;
};

}  // namespace
}  // namespace signvote

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  signvote::Worker worker;
  while (!input.empty()) {
    const size_t low = input.Byte();
    worker.Take(input.Text(low | size_t{input.Byte()} << 8));
  }
  return 0;
}
