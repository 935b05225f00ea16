#pragma once
// Where the bits of a ballot come from: the gradient, by the run's direction; the displacement of
// several local steps; an optimizer's update, converted.

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/direction_config.h"
#include "common/ids.h"
#include "common/vote_terms.h"
#include "worker/codec/replica_memory.h"
#include "worker/codec/tensor_pointers.h"
#include "worker/direction/ballot_packer.h"
#include "worker/session/types.h"

namespace signvote {

// What became of a ballot, as far as its worker can tell.
enum class BallotFate : uint8_t {
  kApplied,     // the commit was a step: the verdict may have the ballot's bits, if it was in time
  kNotApplied,  // nothing of it moved a replica: the commit was none, or the ballot had no weight
  kWithdrawn,   // the worker abstained
};

// A gradient that has come whole.
struct WholeGradient {
  ConstTensorPointers g;  // by tensor of the run's layout; null entries are tensors without one
  double l2_squared = 0;  // Σ g_i²
  float clip = 1.0f;      // what it counts times in the direction
};

// What a Voter asks while it makes a ballot. A source is given the gradient of an ordinary ballot
// chunk by chunk, as its coordinates become final; the gradients of one of local steps whole.
//
//   Begin(ticket) → { MakeChunk }…                                          an ordinary ballot
//                 → { TakeGradient }… → EndSteps → { PackChunk }…           where takes_steps()
//   every chunk once, in any order                                          → Settle
//
// Ownership: what u() and displacement_mean() return stays valid until the next Begin().
// Threads:   as Voter::GradientReady: one call at a time, MakeChunk on the thread that says a
//            gradient is final.
// Failure:   a failure ends the ballot; the worker reports it as its own.
class BallotSource {
 public:
  virtual ~BallotSource() = default;

  // What its ballots are of and go through, which outlive it; once, before all else. UNIMPLEMENTED: the
  // run asks for what this source cannot do; the message names it and a remedy.
  virtual absl::Status Bind(const RunInfo& run, ReplicaMemory* replica, BallotPacker* packer);
  // Gradients that a ballot of this round takes, ≥ 1; of local steps, at most.
  virtual uint32_t Gradients(const RoundTicket& ticket) const = 0;
  // A ballot begins. UNIMPLEMENTED: the ticket asks for what this source cannot do.
  virtual absl::Status Begin(const RoundTicket& ticket) = 0;
  // The gradient is final on coordinates [first, first + count) of the layout: what is signed there is
  // to be in u().
  virtual absl::Status MakeChunk(uint64_t first, uint64_t count, ConstTensorPointers g) = 0;

  // Whether the ballot that was begun is one of local steps.
  virtual bool takes_steps() const { return false; }
  // Gradient number `index`, from 0, taken at the parameters as they are now. It moves them.
  virtual absl::Status TakeGradient(uint32_t index, const WholeGradient& gradient);
  // No further gradient comes: the replica's memory is the replica again, bit for bit. Also of a ballot
  // that came to nothing; without local steps in progress it does nothing.
  virtual absl::Status EndSteps() { return absl::OkStatus(); }
  // Signs the displacement of chunk k into ballot[0, plan.Bytes(k)), padding bits zero.
  virtual absl::Status PackChunk(ChunkIndex k, uint8_t* ballot);
  // The displacement itself, of coordinates [first, first + out.size()).
  virtual absl::Status Displacement(uint64_t first, std::span<float> out);

  // What is signed, by tensor, none null, in memory of the device. Empty: the packer computes it
  // from the last gradient and the direction's state.
  virtual ConstTensorPointers u() const { return {}; }
  // Whether it can make the ballot that was begun. Where it cannot the worker abstains, as what it
  // would send has the weight of every other ballot.
  virtual bool CanVote() const { return true; }
  // The ballot that was begun last is over. What is carried to the next one changes here and not
  // before, so that a ballot that came to nothing leaves no trace of itself.
  virtual absl::Status Settle(BallotFate) { return absl::OkStatus(); }
  // Forgets what it carries from round to round, as a rewind asks for.
  virtual absl::Status Reset() = 0;

  // Whether MakeChunk() looks at whole tensors: it is then called once the last gradient is final on
  // every tensor that the chunk touches.
  virtual bool needs_whole_tensors() const { return false; }
  // Whether it clips: SetClip() is called before the first MakeChunk() of a ballot whose run clips,
  // and says what its gradient counts times (local steps: WholeGradient says it). One that does not,
  // and makes what is signed, is refused by such a run.
  virtual bool clips() const { return false; }
  virtual void SetClip(float) {}
  // γ of the last step that the replica has taken. Between two ballots, whenever a commit tells it.
  virtual void SetStepsize(float) {}
  // Rounds went on without this worker: what was to be made good in them is not any more, and γ may
  // be another by now.
  virtual absl::Status Missed() { return absl::OkStatus(); }

  // What it carries, for checkpoints: the planes of the run's direction that are a source's
  // (common/direction_config.h), as BallotPacker has the others. INVALID_ARGUMENT: CheckStateRange()
  // of worker/direction/checks.h. Between two ballots.
  virtual std::span<const StatePlane> planes() const { return {}; }
  virtual absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes);
  virtual absl::Status RestoreState(size_t plane, uint64_t first, std::span<const std::byte> bytes);

  // From where the next round may ask to continue (BallotStart::kContinue), by coordinate; empty: from
  // nowhere. Valid until the next Begin(). Between two ballots.
  virtual std::span<const float> continuation() const { return {}; }
  // The same in another process: as if the round before `round` had ended there. INVALID_ARGUMENT: it is
  // not of the layout's size, or this source continues nothing.
  virtual absl::Status RestoreContinuation(Round round, std::span<const float> y);

  // A wanted scalar that only the source knows; NaN: it does not. Asked once every chunk is made; of
  // local steps once they have ended.
  virtual double Scalar(ScalarKind kind) const;
  // Mean |displacement| per tensor, in order of the layout; empty where there is none.
  virtual std::span<const float> displacement_mean() const { return {}; }
};

// One gradient per ballot, signed by the run's direction. Keeps nothing: the state is the packer's.
class GradientSource : public BallotSource {
 public:
  uint32_t Gradients(const RoundTicket&) const override { return 1; }
  absl::Status Begin(const RoundTicket& ticket) override;
  absl::Status MakeChunk(uint64_t first, uint64_t count, ConstTensorPointers g) override;
  absl::Status Reset() override;
  bool clips() const override { return true; }  // nothing: the packer does
};

}  // namespace signvote
