#pragma once
// The kernels of a GPU: pack and apply, equal to common/coin.h, worker/codec/pack.h and
// common/apply.h bit for bit.
//
// Each function queues one kernel on `stream` and returns the launch's error; it waits for nothing.
// All pointers but those to the arguments are device memory. Plain structs only: no torch and no
// Abseil, which nvcc never sees. The sources are compiled by nvcc for real devices and by the
// host's compiler for tests/gpu/emulator.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/codec/formation.h"
#include "worker/codec/pack_sums.h"

namespace signvote::cuda {

// What the kernels know of a tensor. A model's table has a row per tensor in order of coordinate
// and one more, whose `first` is d.
struct TensorRow {
  uint64_t first;  // first coordinate in the model
  float step_scale;
  float weight_decay;
  uint32_t sparse;  // PackSegment::sparse
  uint32_t unused;
};
static_assert(sizeof(TensorRow) == 24);

// What is packed of one tensor: pointers to its first coordinate. Null: there is none, see
// PackSegment in worker/codec/pack.h.
struct TensorInputs {
  const float* g;
  const float* u;
  const float* h;
};
static_assert(sizeof(TensorInputs) == 24);

inline constexpr uint32_t kStatePlanes = 3;  // kStateSlots of worker/codec/pack.h, in its order

// One chunk: direction, ballot and sums in one pass.
struct PackArguments {
  const TensorInputs* inputs;  // [tensor_count] of the chunk's tensors
  bool given;                  // u is, of every tensor; the state is then not touched
  bool probe;                  // a tensor without h has a probe gradient of zero
  void* state[kStatePlanes];   // [d] each: the direction's planes; null where it has none
  bool formed;                 // IsFormed() of the chunk: what is signed takes the formation
  const float* envelopes;      // [tensor_count] Envelope::kTensor; else null
  const uint32_t*
      prev_verdict;  // [⌈d/256⌉·8] packed verdict of the whole model, 16-byte aligned, or null
  uint16_t* bits;    // [⌈count/16⌉] the ballot; padding bits become zero
  PackScalars* pieces;  // [PieceSlots] the sums of each tensor in each tile: slot tile + tensor
  const TensorRow* tensors;  // row of the tensor that holds coordinate `first`
  uint32_t tensor_count;     // tensors with a coordinate in the chunk
  uint64_t first;            // the chunk's first coordinate; a multiple of 512
  uint64_t count;            // > 0
  float a, c;
  Formation formation;
  float clip;
  uint64_t seed;
  uint64_t round;
  uint32_t share;
};
cudaError_t LaunchPack(const PackArguments& arguments, cudaStream_t stream);

// Largest() of one tensor, as LaunchPack() of `pack` would form it now. Of `pack` the state, the
// tables and numbers are read: not what a chunk is, nor the ballot.
struct LargestArguments {
  PackArguments pack;  // inputs, tensors: of this tensor alone
  uint64_t first;      // the tensor's
  uint64_t count;      // > 0
  float* largest;      // 0 before
};
cudaError_t LaunchLargest(const LargestArguments& arguments, cudaStream_t stream);

// Step() of one tensor. Of `pack` the state, the table and numbers are read, as for LaunchLargest().
struct LocalStepArguments {
  PackArguments pack;  // tensors: of this tensor alone
  uint64_t first;      // the tensor's
  uint64_t count;      // > 0
  const float* g;      // [count], not null
  float* y;            // [count]
  float length;
};
cudaError_t LaunchLocalStep(const LocalStepArguments& arguments, cudaStream_t stream);

// Tiles that hold `count` coordinates.
constexpr uint64_t Tiles(uint64_t count) {
  return (count + kTileCoordinates - 1) / kTileCoordinates;
}
// Slots of PackArguments::pieces. Along the chunk each piece has a larger tile + tensor than the
// one before, both counted from the chunk's first, so no two share a slot. Slots between them are
// not written.
constexpr uint64_t PieceSlots(uint64_t count, uint64_t tensor_count) {
  return Tiles(count) + tensor_count - 1;
}

// x ← apply(x, step) on coordinates [first, first + count).
struct ApplyArguments {
  float* const* x;           // [tensor_count] the first coordinate of each tensor
  const float* x0;           // [d] the starting point when rho ≠ 1, else unused
  const uint32_t* verdict;   // packed verdict of the whole model
  const TensorRow* tensors;  // the whole table
  uint32_t tensor_count;
  uint64_t first;
  uint64_t count;  // > 0
  float gamma;
  float rho;
  float decay_step;     // stepsize of the weight decay
  const float* scales;  // [tensor_count] of the commit, or null
};
cudaError_t LaunchApply(const ApplyArguments& arguments, cudaStream_t stream);

// The same of a step of counts: how many of `ballots` ballots have bit 1, for coordinates from `first`
// on. step.verdict is not read.
struct CountsArguments {
  ApplyArguments step;
  const uint32_t* planes;  // [plane_count · plane_words] packed bits, the plane of weight 1 first
  uint64_t plane_words;
  uint32_t plane_count;
  uint32_t ballots;
  uint64_t first;  // the coordinate of each plane's bit 0
};
cudaError_t LaunchApplyCounts(const CountsArguments& arguments, cudaStream_t stream);

// The same of a dense step: values of coordinates from `first` on, fp32 or bf16. step.verdict is not
// read.
struct DenseArguments {
  ApplyArguments step;
  const void* values;
  bool bf16;
  uint64_t first;
};
cudaError_t LaunchApplyDense(const DenseArguments& arguments, cudaStream_t stream);

}  // namespace signvote::cuda
