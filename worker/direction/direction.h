#pragma once
// What a worker signs: a direction by name, its coefficients and its state over the whole model.

#include <cstdint>
#include <span>
#include <vector>

#include "common/direction_config.h"
#include "common/layout.h"
#include "worker/codec/pack.h"

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

// Direction state of one worker and the packing of its ballots chunk by chunk.
// Ownership: owns the state; the layout must outlive it.
// Threads:   PackChunk of different chunks may run at the same time; nothing else may overlap.
class Direction {
 public:
  Direction(const Layout* layout, ChunkPlan plan, DirectionConfig config);

  struct ChunkInput {
    const float* g = nullptr;  // [d] flat gradient of the whole model
    const float* h = nullptr;  // [d] probe gradient, or null
    // packed verdict of the previous round for the whole model, or null
    const uint8_t* prev_verdict = nullptr;
    uint64_t seed = 0;
    Round round{};
    Share share{};
  };
  // Packs chunk k into ballot[0, plan.Bytes(k)); padding bits are zero.
  ChunkScalars PackChunk(ChunkIndex k, const ChunkInput& input, uint8_t* ballot);

  // Zero state, as after a rewind.
  void Reset();
  std::span<float> state() { return m_; }  // [d], empty for signSGD

 private:
  const Layout* layout_;
  ChunkPlan plan_;
  DirectionConfig config_;
  DirectionCoefficients coefficients_;
  std::vector<float> m_;
};

}  // namespace signvote
