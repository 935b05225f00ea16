#pragma once
// What a worker signs: a direction by name, its coefficients and its state over the whole model.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/direction_config.h"
#include "common/layout.h"
#include "worker/codec/pack.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote {

DirectionCoefficients CoefficientsOf(const DirectionConfig& config);
// `steps`: ballots whose gradients entered the state, this one included; Adam's corrections are
// those of it, computed in double and rounded once.
Formation FormationOf(const DirectionConfig& config, uint64_t steps);
// The kernel's place of a plane that is kept per coordinate by a packer.
StateSlot SlotOf(const StatePlane& plane);
// Whether a gradient's length changes what is signed: a clip of it does then.
bool LengthMatters(const DirectionConfig& config);

// What one chunk of a ballot contributes to the round's scalars; sums over its segments in order of
// coordinate. prev_inner is already weighted by each tensor's step_scale.
struct ChunkScalars {
  double g_l1 = 0;
  double g_l2_squared = 0;
  double probe_l1 = 0;
  double prev_inner = 0;
  uint64_t nonfinite = 0;

  // The next segment of the chunk, in order of coordinate.
  void AddSegment(const PackScalars& segment, const TensorSpec& tensor);
  // The next chunk, likewise.
  void AddChunk(const ChunkScalars& chunk);
};

// Direction state of one worker and the packing of its ballots chunk by chunk. The state is planes
// (common/direction_config.h, PlanesOf, those of the packer) and goes in and out as bytes, so that
// whoever keeps checkpoints need not know what a direction is.
// Ownership: owns the state; the layout must outlive it.
// Threads:   PackChunk of different chunks may run at the same time where there is neither a plane of
//            steps nor an envelope per tensor; nothing else may overlap.
class Direction {
 public:
  // REQUIRES: CheckPlan() (checks.h) is OK.
  Direction(const Layout* layout, ChunkPlan plan, DirectionConfig config);

  struct ChunkInput {
    // Gradient by tensor of the layout. A null entry: the tensor has no gradient; it casts coins.
    ConstTensorPointers g;
    // What is signed, by tensor, none null. Empty: computed from g and the state.
    ConstTensorPointers u;
    // Probe gradient by tensor; a null entry is zero. Empty: no probe.
    ConstTensorPointers h;
    // packed verdict of the previous round for the whole model, or null
    const uint8_t* prev_verdict = nullptr;
    uint64_t seed = 0;
    Round round{};
    Share share{};
    float clip = 1.0f;  // what the gradient counts times in the direction; in no sum
  };
  // A ballot begins. Directions that count their steps take the first chunk of each ballot for one
  // more, and an envelope per tensor is measured anew, when the first chunk that touches the tensor
  // is packed: its gradient (or u) must be final on the whole tensor then (NeedsWholeTensors). All
  // others need not be told.
  void Begin();
  // Packs chunk k into ballot[0, plan.Bytes(k)); padding bits are zero. REQUIRES: CheckChunkInput().
  ChunkScalars PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot);

  // One local step of the whole model (worker/codec/pack.h, Step) by η·step_scale of each tensor,
  // rounded once. A tensor without gradient moves neither y nor its state.
  struct StepInput {
    ConstTensorPointers g;  // by tensor; a null entry: no gradient
    TensorPointers y;       // likewise, none null: the parameters at which g was computed
    float eta = 0;
    float clip = 1.0f;  // as ChunkInput::clip
  };
  // REQUIRES: CheckStep().
  void Step(const StepInput& input);

  // The sums of g alone, and of the previous verdict where it is given, over the whole model in the
  // order of the chunks' sums. REQUIRES: CheckGradient().
  ChunkScalars Sums(ConstTensorPointers g, const uint8_t* prev_verdict) const;

  // Zero state, as after a rewind.
  void Reset();
  // The state, in the order in which it is saved.
  std::span<const StatePlane> planes() const { return planes_; }
  // Elements [first, first + bytes.size() / element_bytes) of a plane, as they lie in memory
  // (little-endian), out and in. INVALID_ARGUMENT, and nothing is written: CheckStateRange().
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) const;
  absl::Status RestoreState(size_t plane, uint64_t first, std::span<const std::byte> bytes);

 private:
  // max |u| over tensor k as it is signed in this ballot.
  float EnvelopeOf(size_t tensor, const PackContext& context, const ChunkInput& input);
  // The part of a segment that its place in the model decides.
  PackSegment SegmentAt(const TensorRange& range, const ChunkInput& input);
  void* StateAt(size_t plane, uint64_t first);

  const Layout* layout_;
  ChunkPlan plan_;
  DirectionConfig config_;
  DirectionCoefficients coefficients_;
  std::vector<StatePlane> planes_;
  std::vector<std::vector<std::byte>> state_;    // by plane
  uint64_t steps_ = 0;                           // the plane of steps
  bool begun_ = true;                            // no chunk of this ballot was packed yet
  std::vector<std::optional<float>> envelopes_;  // by tensor, of this ballot; empty: not measured
};

}  // namespace signvote
