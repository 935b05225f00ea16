#pragma once
// Packs the ballots of one worker chunk by chunk, on the device where its gradients are.
//
// Start() queues a chunk's packing behind the work that computes its gradient; Finish() waits for
// it. So on a GPU the bits of one chunk travel while the gradients of the next are being computed;
// in host memory Start() does it all.

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "worker/direction/direction.h"

namespace signvote {

// Ownership: owns the direction's state. The layout that it was made for must outlive it. The
//            arrays of pointers in ChunkInput are read in Start() only; what they point to, until
//            Finish() of the chunk.
// Threads:   calls must not overlap; Start() may come from another thread than Finish(). On CUDA,
//            Start() queues on the calling thread's current stream.
// Failure:   as ReplicaMemory: a call that does not fit is refused and changes nothing.
class BallotPacker {
 public:
  virtual ~BallotPacker() = default;

  // A ballot begins, of which each chunk is packed once at most: what Direction::Begin() says.
  // REQUIRES: no chunk is in flight.
  virtual absl::Status Begin() = 0;
  // Packs chunk k into ballot[0, plan.Bytes(k)), padding bits zero. `input.g`, `u` and `h` point to
  // memory of the device. `input.prev_verdict`, if given, is the verdict that was last applied to
  // the replica of the same WorkerDevice. `ballot` is memory of WorkerDevice::host_memory() and is
  // written until Finish(k) returned.
  // INVALID_ARGUMENT: CheckChunkInput() (checks.h). FAILED_PRECONDITION: chunk k is in flight, or no
  // replica was made whose verdict it could be. What lies in host memory is never in flight.
  virtual absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) = 0;
  // Whether Finish(k) would return without waiting. INVALID_ARGUMENT, FAILED_PRECONDITION: no such
  // chunk, or not in flight; here and below.
  virtual absl::StatusOr<bool> Ready(ChunkIndex k) = 0;
  // Waits until the ballot of chunk k is there and returns the chunk's scalars; it is no longer in
  // flight.
  virtual absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) = 0;

  // What the chunks' scalars will say, added up over the whole model: of g alone, and of the previous
  // verdict where it is given, as in ChunkInput. Nothing is signed and no state moves. Waits for it.
  // INVALID_ARGUMENT: CheckGradient(). FAILED_PRECONDITION: as Start(). REQUIRES: no chunk is in flight.
  virtual absl::StatusOr<ChunkScalars> Sums(ConstTensorPointers g, const uint8_t* prev_verdict) = 0;

  // One local step (Direction::Step) in memory of the device, behind the work on the calling thread's
  // current stream. INVALID_ARGUMENT, UNIMPLEMENTED: CheckStep(); UNIMPLEMENTED also where the device
  // takes none. REQUIRES: no chunk is in flight.
  virtual absl::Status Step(const Direction::StepInput& input) = 0;

  // The direction's state as planes of bytes, as in Direction: what a checkpoint holds, the same on
  // every device. INVALID_ARGUMENT: CheckStateRange(). REQUIRES: no chunk is in flight.
  virtual absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) = 0;
  virtual absl::Status RestoreState(size_t plane, uint64_t first,
                                    std::span<const std::byte> bytes) = 0;
  // Zero state, as a rewind commit asks for. REQUIRES: no chunk is in flight.
  virtual absl::Status Reset() = 0;
};

}  // namespace signvote
