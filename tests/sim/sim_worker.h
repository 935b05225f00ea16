#pragma once
// One simulated worker: joins, catches up, votes chunk by chunk, applies on commit, reconnects.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/sim/world.h"
#include "worker/direction/direction.h"

namespace signvote::sim {

class SimWorker {
 public:
  SimWorker(World* world, uint32_t id);

  // ---- the process ----
  void Start();
  void Crash(double seconds_down);            // loses everything; starts again after that time
  void LoseStream(double seconds_to_notice);  // the worker notices and reconnects
  void Hang(double seconds);
  void Wake() { hung_until_ = Time{}; }
  bool up() const { return up_; }
  bool exited() const { return exited_; }
  std::optional<size_t> stream() const { return stream_; }

  // ---- what the injector asks for ----
  void SlowDown(uint32_t rounds) { slow_rounds_ = rounds; }
  void AbstainNext() { abstain_next_ = true; }
  void BadScalarsNext() { bad_scalars_next_ = true; }
  bool Damage();
  void BeWell();
  bool damaged() const { return damaged_; }
  bool abstains(Round round) const {
    return ballot_.has_value() && ballot_->round == round && ballot_->abstains;
  }
  // Whether this worker may abstain in the round without leaving it without any ballot.
  std::function<bool(uint32_t, Round)> may_abstain;

  void OnMessage(size_t stream, const ToWorker& message);

  bool has_replica() const { return has_replica_; }
  Round round() const { return round_; }
  uint64_t ReplicaDigestNow() const;

 private:
  struct Ballot {
    Round round;
    Share share;
    ModelBits bits{};
    WorkerScalars scalars;
    bool abstains = false;
    uint32_t chunks_sent_before = 0;  // it abstains after these
  };
  struct PendingCommit {
    CommitRecord record;
    std::optional<ModelBits> bits;
  };
  struct PartialVerdict {
    uint32_t have = 0;  // bit k: chunk k
    ModelBits bits{};
  };

  void On(const State& m);
  void On(const Open& m);
  void On(const VerdictChunk& m);
  void On(const Commit& m);
  void On(const CommitBits& m);
  void On(const DrainNow& m);
  void On(const Finish& m);
  void On(const Bye& m);

  void Connect();
  void Forget();  // what a new process does not have
  void Advance();
  void Apply(const CommitRecord& record, const ModelBits& bits);
  void StartVote();
  Ballot MakeBallot(const Open& open);
  void SendChunk(const Open& open, uint32_t k, double interval);
  void Leave();
  void Exit();
  // Runs `what` after that time, unless the process or its stream has changed; later if it hangs.
  void Later(double seconds, std::function<void()> what);

  World* const world_;
  const uint32_t id_;
  bool up_ = false;
  bool exited_ = false;
  bool draining_ = false;
  uint64_t generation_ = 0;  // grows when whatever was scheduled is void
  std::optional<size_t> stream_;
  Time hung_until_;

  bool has_replica_ = false;
  bool damaged_ = false;
  std::vector<float> x_;
  std::vector<float> x_prev_;  // empty: unknown
  std::optional<ModelBits> prev_verdict_;
  Round round_;  // the next commit to apply
  std::unique_ptr<Direction> direction_;

  bool following_ = false;  // on this stream
  std::map<Round, PendingCommit> commits_;
  std::map<std::pair<Round, Attempt>, PartialVerdict> verdicts_;
  std::optional<Round> fetched_;
  std::optional<Open> open_;
  std::optional<Open> unanswered_;  // what was open when the last stream broke
  std::optional<std::pair<Round, Attempt>> voted_;
  std::optional<Ballot> ballot_;
  std::optional<Round> finish_;
  uint32_t slow_rounds_ = 0;
  bool abstain_next_ = false;
  bool bad_scalars_next_ = false;
};

}  // namespace signvote::sim
