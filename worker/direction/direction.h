#pragma once
// What a worker signs: a direction by name, its coefficients and its state over the whole model.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/direction_config.h"
#include "common/layout.h"
#include "worker/codec/pack.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote {

DirectionCoefficients CoefficientsOf(const DirectionConfig& config);

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
};

// Direction state of one worker and the packing of its ballots chunk by chunk. The state is planes,
// one element per coordinate each (common/direction_config.h, PlanesOf), and goes in and out as
// bytes, so that whoever keeps checkpoints need not know what a direction is.
// Ownership: owns the state; the layout must outlive it.
// Threads:   PackChunk of different chunks may run at the same time; nothing else may overlap.
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
    float stepsize = 0.0f;  // of the last commit
  };
  // Packs chunk k into ballot[0, plan.Bytes(k)); padding bits are zero. REQUIRES: CheckChunkInput().
  ChunkScalars PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot);

  // Zero state, as after a rewind.
  void Reset();
  // The state, in the order in which it is saved.
  std::span<const StatePlane> planes() const { return PlanesOf(config_.kind); }
  // Elements [first, first + bytes.size() / element_bytes) of a plane, as they lie in memory
  // (little-endian fp32), out and in. INVALID_ARGUMENT, and nothing is written: CheckStateRange().
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) const;
  absl::Status RestoreState(size_t plane, uint64_t first, std::span<const std::byte> bytes);

 private:
  const Layout* layout_;
  ChunkPlan plan_;
  DirectionConfig config_;
  DirectionCoefficients coefficients_;
  std::vector<std::vector<float>> state_;  // by plane, [d] each
};

}  // namespace signvote
