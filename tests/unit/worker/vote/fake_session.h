#pragma once
// A session without a server, for whoever drives a Voter: what it is told is kept, what it answers
// is set by the test.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "worker/session/session.h"

namespace signvote {

class FakeSession : public Session {
 public:
  const std::string& name() const override { return name_; }
  absl::StatusOr<RunInfo> Join(const ModelDescription&) override { return RunInfo(); }
  absl::Status Attach(ReplicaMemory*) override { return absl::OkStatus(); }
  absl::StatusOr<std::optional<RoundTicket>> NextRound() override {
    return std::optional<RoundTicket>();
  }
  absl::Status SendChunk(ChunkIndex k, std::shared_ptr<const uint8_t> ballot) override {
    events.push_back("chunk " + std::to_string(k.value()));
    const PayloadPlan of = payload.chunks() == 0 ? PayloadPlan(plan) : payload;
    ballots.resize(of.TotalBytes());
    std::copy_n(ballot.get(), of.Bytes(k, 1),
                ballots.begin() + static_cast<ptrdiff_t>(of.Offset(k)));
    if (keep_sent) unsent.push_back(std::move(ballot));
    return send_status;
  }
  absl::Status SendScalars(const BallotScalars& sent) override {
    events.push_back("scalars");
    scalars = sent;
    return scalars_status;
  }
  absl::Status Abstain(AbstainReason reason) override {
    events.push_back("abstain: " + std::string(Words(reason)));
    return absl::OkStatus();
  }
  // The answer that was set, once what the test does in place of the session is done.
  absl::StatusOr<CommitOutcome> WaitCommit() override {
    events.push_back("wait");
    if (on_wait) on_wait();
    return outcome;
  }
  absl::Status Leave(const std::string&) override { return absl::OkStatus(); }
  void RequestDrain(const std::string&) override {}
  std::optional<Round> replica_round() const override { return Round(0); }
  std::string run_state() const override { return ""; }
  bool finished() const override { return false; }
  bool drained() const override { return false; }
  SessionStats Stats() const override { return {}; }

  ChunkPlan plan;
  PayloadPlan payload;     // of ballots; default: signs
  bool keep_sent = false;  // as a network that has not sent them yet
  std::vector<std::shared_ptr<const uint8_t>> unsent;
  absl::Status send_status, scalars_status;
  absl::StatusOr<CommitOutcome> outcome = CommitOutcome();
  std::function<void()> on_wait;
  std::vector<std::string> events;
  std::vector<uint8_t> ballots;  // the chunks that were sent, in their places
  BallotScalars scalars;

 private:
  const std::string name_ = "w0";
};

}  // namespace signvote
