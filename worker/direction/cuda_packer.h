#pragma once
// Packs ballots on a GPU.
//
// Start() queues three things: the pack kernel on the calling thread's current stream, behind the
// work that computes the gradient, and on a stream of the packer's own, once the kernel is done,
// the copies of bits and sums to the host. So the copies of one chunk overlap with whatever the GPU
// computes next. Device memory: the state's planes, the ballot's bits, and of each tensor of a chunk
// where its values lie, which is sent again when a framework has moved them.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "worker/codec/cuda_memory.h"
#include "worker/direction/ballot_packer.h"

namespace signvote::cuda {

// Ownership: refers to device, layout and verdict.
class CudaPacker : public BallotPacker {
 public:
  // `*verdict` is where CudaReplicaMemory::verdict() will be when a chunk with a previous verdict
  // is packed.
  static absl::StatusOr<std::unique_ptr<CudaPacker>> Make(const Device* device,
                                                          const Layout* layout, ChunkPlan plan,
                                                          const DirectionConfig& config,
                                                          const uint32_t* const* verdict);
  // Waits for what is in flight, because it writes to the callers' ballots.
  ~CudaPacker() override;

  absl::Status Begin() override;
  absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) override;
  absl::StatusOr<bool> Ready(ChunkIndex k) override;
  absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) override;
  absl::StatusOr<ChunkScalars> Sums(ConstTensorPointers g, const uint8_t* prev_verdict) override;
  absl::Status Step(const Direction::StepInput& input) override;
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override;
  absl::Status RestoreState(size_t plane, uint64_t first,
                            std::span<const std::byte> bytes) override;
  absl::Status Reset() override;

 private:
  struct Chunk {
    uint32_t first_tensor = 0;  // that holds its first coordinate
    uint32_t tensors = 0;       // with a coordinate in it
    uint64_t first_piece = 0;   // in pieces_
    uint64_t pieces = 0;
    uint64_t first_input = 0;  // in inputs_; one per tensor
    CudaEvent packed, copied;
    bool in_flight = false;
  };

  CudaPacker(const Device* device, const Layout* layout, ChunkPlan plan,
             const DirectionConfig& config, const uint32_t* const* verdict)
      : device_(device),
        layout_(layout),
        plan_(plan),
        config_(config),
        coefficients_(CoefficientsOf(config)),
        planes_(PlanesOf(config, StatePlane::Holder::kPacker)),
        verdict_(verdict) {}
  // Brings the chunk's part of inputs_ up to date. REQUIRES: the chunk is not in flight.
  absl::Status SendInputs(const Chunk& chunk, const Direction::ChunkInput& input,
                          cudaStream_t stream);
  absl::Status CheckInFlight(ChunkIndex k) const;
  template <typename Function>
  absl::Status Guarded(const Function& function);
  absl::Status Queue(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot);
  // Of a chunk, with its direction; bits, sums and tables are this packer's.
  PackArguments ArgumentsOf(ChunkIndex k, const Direction::ChunkInput& input) const;
  // Queues what measures the envelopes of the chunk's tensors that no chunk of this ballot has
  // touched yet.
  absl::Status MeasureEnvelopes(const Chunk& chunk, const PackArguments& of_chunk,
                                cudaStream_t stream);
  ChunkScalars AddUp(ChunkIndex k) const;

  const Device* const device_;
  const Layout* const layout_;
  const ChunkPlan plan_;
  const DirectionConfig config_;
  const DirectionCoefficients coefficients_;
  const std::vector<StatePlane> planes_;
  const uint32_t* const* const verdict_;
  DeviceBuffer<TensorRow> tensors_;
  std::vector<DeviceBuffer<std::byte>> state_;  // by plane; of a single element none
  uint64_t steps_ = 0;                          // as in Direction
  bool begun_ = true;
  DeviceBuffer<float> envelopes_;           // [tensors], with Envelope::kTensor
  std::vector<bool> measured_;              // by tensor, in this ballot
  DeviceBuffer<TensorInputs> inputs_;       // of all chunks
  PinnedBuffer<TensorInputs> host_inputs_;  // what was sent there last
  DeviceBuffer<uint16_t> bits_;             // [⌈d/16⌉]
  DeviceBuffer<PackScalars> pieces_;        // of all chunks
  PinnedBuffer<PackScalars> host_pieces_;
  Stream copies_;
  std::vector<Chunk> chunks_;
  absl::Status poison_;  // OK until a call of CUDA failed
};

}  // namespace signvote::cuda
