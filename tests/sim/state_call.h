#pragma once
// The calls that move a worker's state, as the server serves them: fetches and uploads in many
// messages, over a connection of their own.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "server/run/peer.h"
#include "tests/sim/world.h"

namespace signvote::sim {

// The worker's end of a call.
class CallEnd {
 public:
  virtual ~CallEnd() = default;
  virtual void OnState(uint64_t call, const StateFrame& frame) = 0;
  // The last call about it. OK: everything was moved.
  virtual void OnCallEnded(uint64_t call, const absl::Status& status) = 0;
};

// Ownership: keeps itself alive through the events that it waits for.
class SimCall final : public run::StateCall, public std::enable_shared_from_this<SimCall> {
 public:
  struct Plan {
    uint64_t number = 0;
    run::CallKind kind = run::CallKind::kFetch;
    size_t host = 0;
    double seconds_per_part = 0.002;
    std::shared_ptr<const std::vector<float>> values;  // of an upload
  };
  // What the server's driver wants to know; none is called from inside Start() or End().
  struct Hooks {
    std::function<void(uint64_t bytes)> progress;
    std::function<void(uint64_t up, uint64_t down)> ended;
  };

  SimCall(World* world, Plan plan, Hooks hooks, CallEnd* end);

  void Start(std::shared_ptr<MasterReplica> replica) override;
  void End(absl::Status status) override;

  // The worker has gone; the server notices.
  void Abandon();
  // The process that served it is gone.
  void Cut();
  bool over() const { return over_; }
  bool goes_on() const { return replica_ != nullptr && !over_; }  // it was started

 private:
  void Next();
  void FetchPart();
  void UploadPart();
  void Finish(absl::Status status);

  // Constant after construction.
  World* const world_;
  const Plan plan_;
  Hooks hooks_;
  CallEnd* end_;  // null: the worker has gone

  std::shared_ptr<MasterReplica> replica_;
  std::vector<float> piece_;
  uint32_t plane_ = 0;
  bool x0_follows_ = false;  // was kept when the first part was sent
  uint64_t first_ = 0;       // next coordinate of the plane
  std::optional<Round> lowest_, highest_;
  uint64_t moved_ = 0;
  bool over_ = false;
};

}  // namespace signvote::sim
