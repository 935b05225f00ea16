#pragma once
// The server's side of a simulated run: the real engine, the real tally and apply, and the driver's
// book-keeping.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "server/round/engine.h"
#include "tests/sim/world.h"

namespace signvote::sim {

class SimServer {
 public:
  explicit SimServer(World* world);

  void OnMessage(size_t stream, const ToServer& message);
  // The server notices that the stream is gone.
  void OnStreamLost(size_t stream);
  void Step(const round::Event& event);

  uint64_t commits() const { return commits_; }
  bool ended() const { return end_.has_value(); }
  const absl::Status& end() const { return *end_; }
  const std::optional<round::OpenRound>& open() const { return open_; }
  round::EngineView View() const { return engine_->View(world_->now()); }

 private:
  static constexpr size_t kRing = 16;  // commits kept for those who catch up
  struct Kept {
    CommitRecord record;
    ModelBits bits;
  };
  struct StoredBallot {
    ChunkBits bits;
    bool genuine;
  };

  void On(size_t stream, const Hello& m);
  void On(size_t stream, const CaughtUp& m);
  void On(size_t stream, const FetchCommit& m);
  void On(size_t stream, const FetchState& m);
  void On(size_t stream, const BallotChunk& m);
  void On(size_t stream, const Scalars& m);
  void On(size_t stream, const Abstain& m);
  void On(size_t stream, const Leaves& m);
  void On(size_t stream, const Digest& m);

  void Do(const round::OpenRound& action);
  void Do(const round::CloseChunk& action);
  void Do(const round::CommitRound& action);
  void Do(const round::ChangeRole& action);
  void Do(const round::Disconnect& action);
  void Do(const round::AskToDrain& action);
  void Do(const round::Resync& action);
  void Do(const round::FinishRun& action);
  void Do(const round::EndRun& action);
  void Do(const round::Notice& action);

  bool WithinRing(Round round) const {
    return round.value() <= commits_ && commits_ - round.value() <= ring_.size();
  }
  // What the engine was told, for the checks that need it.
  void Note(const round::Event& event);
  bool Gone(round::WorkerId worker, Incarnation incarnation) const {
    return gone_.contains({worker.value(), incarnation.value()});
  }
  State Snapshot();
  void Broadcast(const ToWorker& message);
  // The open stream of this incarnation, or nullopt.
  std::optional<size_t> StreamOf(round::WorkerId worker, Incarnation incarnation);
  void ArmTick();

  World* const world_;
  std::unique_ptr<round::Engine> engine_;
  std::vector<float> x_;
  std::shared_ptr<const std::vector<float>> snapshot_;  // of x_, made when first asked for
  uint64_t commits_ = 0;
  std::deque<Kept> ring_;
  std::map<uint32_t, uint64_t> incarnations_;
  std::map<uint32_t, size_t> sessions_;  // the newest stream of each worker
  std::optional<round::OpenRound> open_;
  std::map<std::pair<uint32_t, uint32_t>, StoredBallot>
      ballots_;                   // of the open attempt, by (chunk, worker)
  std::set<uint32_t> abstained_;  // in the open attempt
  std::set<std::pair<uint32_t, uint64_t>>
      gone_;  // (worker, incarnation): lost, leaving, replaced or evicted
  ModelBits verdict_{};
  uint64_t tallies_ = 0;
  bool finished_ = false;
  std::optional<absl::Status> end_;
  std::optional<Time> tick_at_;
};

}  // namespace signvote::sim
