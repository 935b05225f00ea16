#pragma once
// Ballots of several local steps: docs/algorithms.md, "Local steps".
//
//   y = x;  of each gradient g of its minibatch at y:  y ← y − η(h)·step_scale_k·sgn0(u), u and the state m
//   as the run's direction forms them, in the packer that holds m for ordinary ballots too;
//   D = x − y is signed, with the own coin where D_i = 0, and told per tensor by its mean size.
//
// Of a dense tensor D itself is sent, and so a run of dense tensors alone may step along the update
// itself (LocalStepsByUpdate): DiLoCo, docs/algorithms/local_steps.md.
//
// Where y lives: in the replica's own memory, which is the model's parameters, so that gradients are taken
// at y; x waits aside meanwhile, 4 bytes a coordinate. EndSteps() makes them change places. So x is back
// before anybody applies, evaluates or saves it, and what lies aside then is y, until a ballot that
// continues changes them again. D is never kept: chunk by chunk it is made of the two.
//
// y is worth something only for the next round, when nothing has moved the replica in between: otherwise a
// round that asks to continue is abstained from. m is kept whatever became of a ballot, but for a rewind
// and a start from x0.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "worker/codec/tensor_pointers.h"
#include "worker/vote/ballot_source.h"

namespace signvote {

// A run's rounds of one minibatch that start from the replica are ordinary votes by its direction.
//
// Ownership: what Bind() is given must outlive it; of y the pointers are copied.
// Failure:   what replica and packer fail with is returned as it is; x is then still aside, and EndSteps()
//            may be tried.
class LocalStepSource : public BallotSource {
 public:
  // The replica's memory, by tensor of the run's layout, on the packer's device.
  explicit LocalStepSource(TensorPointers y);

  // UNIMPLEMENTED, by name and with the remedy: a direction that no local step is made of, or one that
  // steps by its update where tensors are voted on.
  absl::Status Bind(const RunInfo& run, ReplicaMemory* replica, BallotPacker* packer) override;
  uint32_t Gradients(const RoundTicket& ticket) const override { return ticket.local_steps; }
  absl::Status Begin(const RoundTicket& ticket) override;
  absl::Status MakeChunk(uint64_t, uint64_t, ConstTensorPointers) override {
    return absl::OkStatus();
  }
  bool takes_steps() const override { return takes_steps_; }
  // False: the round continues from where this worker has not been.
  bool CanVote() const override { return can_vote_; }
  absl::Status TakeGradient(uint32_t index, const WholeGradient& gradient) override;
  absl::Status EndSteps() override;
  absl::Status PackChunk(ChunkIndex k, uint8_t* ballot) override;
  absl::Status Displacement(uint64_t first, std::span<float> out) override;
  absl::Status Settle(BallotFate fate) override;
  absl::Status Missed() override;
  absl::Status Reset() override;
  bool clips() const override { return true; }
  std::span<const float> continuation() const override;
  absl::Status RestoreContinuation(Round round, std::span<const float> y) override;
  double Scalar(ScalarKind kind) const override;
  std::span<const float> displacement_mean() const override { return means_; }

 private:
  // What lies aside and what lies in the replica's memory change places; means_ ← mean |x − y|.
  absl::Status ChangePlaces();

  const std::vector<float*> y_;

  // Constant after Bind().
  RunInfo run_;
  ReplicaMemory* replica_ = nullptr;
  BallotPacker* packer_ = nullptr;

  std::vector<float> aside_;   // [d] y, but x while at_y_
  bool at_y_ = false;          // the replica's memory holds y
  std::optional<Round> y_of_;  // the round whose steps ended at what lies aside; nullopt: stale
  std::vector<float> block_;   // scratch

  // The ballot in progress.
  RoundTicket ticket_;
  bool takes_steps_ = false, can_vote_ = true, wants_sums_ = false;
  double inner_ = 0, product_ = 0;  // ScalarKind::kLocalInner and kLocalProduct so far
  std::vector<float> means_;        // by tensor, once the steps have ended
};

}  // namespace signvote
