#pragma once
// The device on which a worker's hot path runs: it makes what holds the replica and what packs the
// ballots. HostDevice is the CPU; cuda_device.h has the GPU.

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "worker/codec/replica_memory.h"
#include "worker/direction/ballot_packer.h"
#include "worker/direction/direction.h"

namespace signvote {

// Ownership: must outlive whatever it made.
// Threads:   thread-compatible. One replica and one packer at a time.
class WorkerDevice {
 public:
  virtual ~WorkerDevice() = default;

  virtual std::string name() const = 0;  // "cpu (avx512)", "cuda:0 (NVIDIA H100)"
  // Memory of the host from which and to which packed bits travel: page-locked where that speeds up
  // their copies.
  // Thread-safe, and may outlive the device: a ballot that is still being sent lies in it.
  virtual std::shared_ptr<std::pmr::memory_resource> host_memory() = 0;
  // The replica that lies in x, memory of this device by tensor of the layout. RESOURCE_EXHAUSTED:
  // no memory for buffers.
  virtual absl::StatusOr<std::unique_ptr<ReplicaMemory>> MakeReplica(const Layout* layout,
                                                                     TensorPointers x) = 0;
  // values ← what lies at `from`, memory of this device, behind the work on the calling thread's
  // current stream.
  virtual absl::Status CopyToHost(const float* from, std::span<float> values) = 0;
  // Whether a packer reads ChunkInput::prev_verdict where it points to; else it takes the verdict that this
  // device's replica was last moved by.
  virtual bool takes_host_verdicts() const { return true; }
  // A packer with zero state. RESOURCE_EXHAUSTED: no memory for the state.
  virtual absl::StatusOr<std::unique_ptr<BallotPacker>> MakePacker(
      const Layout* layout, ChunkPlan plan, const DirectionConfig& config) = 0;
};

class HostDevice : public WorkerDevice {
 public:
  std::string name() const override;
  std::shared_ptr<std::pmr::memory_resource> host_memory() override;
  absl::StatusOr<std::unique_ptr<ReplicaMemory>> MakeReplica(const Layout* layout,
                                                             TensorPointers x) override;
  absl::Status CopyToHost(const float* from, std::span<float> values) override;
  absl::StatusOr<std::unique_ptr<BallotPacker>> MakePacker(const Layout* layout, ChunkPlan plan,
                                                           const DirectionConfig& config) override;
};

// What --device says: nothing for "cpu", the number of a GPU for "cuda" (0) and "cuda:N".
// INVALID_ARGUMENT for any other word.
absl::StatusOr<std::optional<int>> ParseDevice(std::string_view word);
// UNAVAILABLE with exit code kNoDevice: "no CUDA device N: why; " and the remedy. The one wording
// of it.
absl::Status NoCudaDevice(int64_t ordinal, std::string_view why);

}  // namespace signvote
