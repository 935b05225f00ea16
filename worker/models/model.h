#pragma once
// A model as the trainer sees it: parameters and gradients tensor by tensor, and a backward pass that
// says which coordinates are final while it is still running. Torch-free;
// worker/models/torch_model.cc implements it.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/direction_config.h"
#include "common/layout.h"
#include "worker/codec/tensor_pointers.h"
#include "worker/models/config.h"
#include "worker/vote/ballot_source.h"

namespace signvote {

// One micro-batch. The caller keeps its buffers alive and unchanged until Evaluate returned, or the
// Backward that follows its Forward: the graph reads them.
struct BatchView {
  uint64_t rows = 0;                 // sequences (LLaMA) or samples (MLP)
  uint64_t length = 0;               // tokens per sequence (LLaMA)
  std::span<const int64_t> inputs;   // [rows, length] tokens (LLaMA)
  std::span<const float> values;     // [rows, features] (MLP)
  std::span<const int64_t> targets;  // [rows, length] next tokens, or [rows] classes
};

// Which replica a pass computes at: x_t, the kept x_{t−1} of the probe, or one that is kept to be
// evaluated.
enum class ReplicaSlot { kCurrent, kPrevious, kSnapshot };

// Memory:    parameters and gradients are memory of the model's device, fp32, a pointer per tensor
//            in the order of layout(), which is the model's own and not the run's: host memory on
//            the CPU; on CUDA they must not be read or written by the host.
// Ownership: owns all buffers; their addresses never change.
// Threads:   one thread at a time. `ready` callbacks come on the calling thread (CPU) or on the
//            device's thread while the caller waits (CUDA), never two at once.
// Queueing:  on CUDA calls only queue their work on the calling thread's current stream, where it
// is done in order;
//            Forward and Evaluate wait, because they return a number.
// Failure:   what LibTorch throws becomes INTERNAL, or RESOURCE_EXHAUSTED when memory ran out.
class Model {
 public:
  virtual ~Model() = default;

  // Names, shapes and order of the tensors; scales and decays are the run's to say.
  virtual const Layout& layout() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual std::string device() const = 0;  // "cpu", "cuda:0"

  // The calling thread's current CUDA stream, a cudaStream_t; null on the CPU, and for CUDA's
  // default stream.
  virtual void* current_stream() const = 0;

  // Commits move parameters() between two steps.
  virtual TensorPointers parameters() = 0;
  virtual ConstTensorPointers gradient() const = 0;

  // Copies x_t to a slot, which its first call allocates: kPrevious takes another 8 bytes per
  // coordinate, kSnapshot, which has no gradient and can only be evaluated, another 4.
  virtual absl::Status Keep(ReplicaSlot slot) = 0;
  virtual ConstTensorPointers previous_parameters() const = 0;  // empty before Keep(kPrevious)
  virtual ConstTensorPointers previous_gradient() const = 0;    // likewise

  // Copies the gradient of x_t to a buffer of 4 bytes per coordinate, which its first call allocates.
  virtual absl::Status KeepGradient() = 0;
  virtual ConstTensorPointers kept_gradient() const = 0;  // empty before KeepGradient()

  // What Keep(kPrevious) or KeepGradient() copied in another process, coordinate by coordinate of
  // layout(). REQUIRES: it has been called here. UNIMPLEMENTED: this model takes none back, the default.
  enum class Kept : uint8_t { kPrevious, kGradient };
  virtual absl::Status PutBack(Kept what, std::span<const float> values);

  // Zeroes the slot's gradient.
  virtual absl::Status BeginStep(ReplicaSlot slot) = 0;

  // The mean loss of the batch in nats per target; keeps the graph, which refers to the batch's
  // buffers, for one Backward. A non-finite loss is a value.
  virtual absl::StatusOr<double> Forward(ReplicaSlot slot, const BatchView& batch) = 0;
  // Coordinates [first, first + count) of layout() are final in the slot's gradient; whole tensors.
  using GradientReady = std::function<void(uint64_t first, uint64_t count)>;
  // Adds weight · ∇loss of the last Forward to the slot's gradient. `ready`, when given, is called
  // once for every tensor that the loss depends on, alone or with its neighbours, as soon as its
  // gradient is final: computed, or on CUDA queued before whatever `ready` queues on its thread's current
  // stream.
  virtual absl::Status Backward(float weight, const GradientReady& ready) = 0;
  // Whether the device still works on the last Backward, which has returned. Never on the CPU.
  virtual absl::StatusOr<bool> BackwardRunning() = 0;

  // What makes the ballots of a run whose direction signs more than one coordinate at a time: Muon,
  // error feedback. Null: the packer needs none, or this model has none. `layout` and `seed` are the
  // run's; the layout must outlive the source. RESOURCE_EXHAUSTED: no memory for what it carries.
  virtual absl::StatusOr<std::unique_ptr<BallotSource>> MakeSource(const Layout* layout,
                                                                   const DirectionConfig& config,
                                                                   uint64_t seed);

  // The mean loss of each row, in order, without a graph. REQUIRES: the slot is kCurrent or was kept.
  virtual absl::StatusOr<std::vector<double>> Evaluate(ReplicaSlot slot,
                                                       const BatchView& batch) = 0;
};

struct ModelOptions {
  std::string device = "cpu";  // "cpu", "cuda" or "cuda:N"
  uint32_t threads = 1;        // of LibTorch's CPU kernels; process-wide
  uint64_t init_seed = 1;
};

// INVALID_ARGUMENT for an unknown device word; UNAVAILABLE with exit code kNoDevice, "no CUDA
// device: …", when there is none; INVALID_ARGUMENT for a config that does not fit together. Defined
// in torch_model.cc.
absl::StatusOr<std::unique_ptr<Model>> MakeTorchModel(const ModelConfig& config,
                                                      const ModelOptions& options);
// Model::MakeSource() of such a model on the CPU, for models of plain loops: LibTorch then has one thread
// in the whole process.
absl::StatusOr<std::unique_ptr<BallotSource>> MakeTorchSource(const Layout* layout,
                                                              const DirectionConfig& config,
                                                              uint64_t seed);

}  // namespace signvote
