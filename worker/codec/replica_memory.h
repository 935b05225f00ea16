#pragma once
// Where a worker's replica lies and how it is moved: host memory here, a GPU in cuda_replica.h.
//
// The replica may be the model's own parameters, or other memory that a model's are copied from
// (worker/vote): bf16 models need the latter. While local steps run it holds what they move, and the
// replica lies aside (worker/vote/local_steps.h).
//
// Threads: calls may come from different threads, one at a time; on a GPU each is queued behind the
//          work on the calling thread's current stream and waits for its own end.
// Failure: a call that does not fit is refused and changes nothing: INVALID_ARGUMENT, a range that is
//          not within [0, d), or a layout, pointers or scales of another model; FAILED_PRECONDITION,
//          x0 is wanted and not kept. Beyond that host memory never fails. A device that failed stays
//          failed: every later call returns the first status.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/apply.h"
#include "common/layout.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote {

// Sums over the whole model, d = x − x0 rounded to fp32. In fp64, block by block of
// kReplicaDigestBlock coordinates: ascending within a block, then the blocks ascending; so they are
// the same on every device.
struct X0Sums {
  double inner = 0;  // Σ g_i·(x0_i − x_i); a coordinate whose g_i is not finite adds none
  double distance_squared = 0;  // Σ (x_i − x0_i)²
};

// The extrema of a gradient; a tensor without one is zero, and coordinates that are not finite are left
// out.
struct GradientRange {
  float max = 0;
  float min = 0;
};

class ReplicaMemory {
 public:
  virtual ~ReplicaMemory() = default;

  virtual uint64_t coordinates() const = 0;  // d
  // Coordinates [first, first + values.size()) ← values, and the reverse.
  virtual absl::Status Write(uint64_t first, std::span<const float> values) = 0;
  virtual absl::Status Read(uint64_t first, std::span<float> values) = 0;
  // Applies a step (common/apply.h) to coordinates [first, first + count) of `layout`, the
  // replica's. `verdict` is host memory and holds the whole model's packed bits; it and the step's
  // scales may be reused on return. Wants x0 unless step.rho is 1.
  virtual absl::Status Apply(const Layout& layout, const StepArguments& step, uint64_t first,
                             uint64_t count, const uint8_t* verdict) = 0;
  // The same of a step of counts (common/apply.h); `counts` too is host memory. INVALID_ARGUMENT
  // also where they begin behind `first`, or are of no ballot or too many.
  virtual absl::Status ApplyCounts(const Layout& layout, const StepArguments& step, uint64_t first,
                                   uint64_t count, const CountsView& counts) = 0;
  // The same of a dense step.
  virtual absl::Status ApplyDense(const Layout& layout, const StepArguments& step, uint64_t first,
                                  uint64_t count, const DenseView& dense) = 0;
  // Of a commit with nothing but γ; and with ρ too.
  absl::Status ApplyStep(const Layout& layout, float gamma, uint64_t first, uint64_t count,
                         const uint8_t* verdict) {
    return Apply(layout, {.gamma = gamma}, first, count, verdict);
  }
  absl::Status ApplyRescaledStep(const Layout& layout, float gamma, float rho, uint64_t first,
                                 uint64_t count, const uint8_t* verdict) {
    return Apply(layout, {.gamma = gamma, .rho = rho}, first, count, verdict);
  }
  // docs/wire_format.md, "Replica digest".
  virtual absl::StatusOr<uint64_t> Digest() = 0;
  // Of the gradient in memory of the replica's device, by tensor of `layout`; null entries are zero.
  // UNIMPLEMENTED: this memory cannot.
  virtual absl::StatusOr<GradientRange> RangeOf(const Layout& layout, ConstTensorPointers g);

  // ---- x0, the run's starting point, as a second plane. Not every memory can keep one.

  // Makes room for x0, all zero; 4 d bytes. RESOURCE_EXHAUSTED: there is none. UNIMPLEMENTED: this
  // memory keeps no x0.
  virtual absl::Status KeepX0();
  virtual bool keeps_x0() const { return false; }
  // Gives that memory back; KeepX0() may make room again.
  virtual void DropX0() {}
  // As Write and Read, of x0. All that follow want it.
  virtual absl::Status WriteX0(uint64_t first, std::span<const float> values);
  virtual absl::Status ReadX0(uint64_t first, std::span<float> values);
  // x ← x0 on coordinates [first, first + count).
  virtual absl::Status Rewind(uint64_t first, uint64_t count);
  // `g` is the gradient in memory of the replica's device, by tensor of `layout`; null entries are
  // zero.
  virtual absl::StatusOr<X0Sums> SumsAboutX0(const Layout& layout, ConstTensorPointers g);
};

// Ownership: refers to the replica's memory, which must outlive it; owns x0.
class HostReplicaMemory : public ReplicaMemory {
 public:
  explicit HostReplicaMemory(std::span<float> x);
  // By tensor; the pointers are copied. The layout need not outlive the call. REQUIRES:
  // CheckReplicaPointers().
  HostReplicaMemory(const Layout& layout, TensorPointers x);

  uint64_t coordinates() const override { return coordinates_; }
  absl::Status Write(uint64_t first, std::span<const float> values) override;
  absl::Status Read(uint64_t first, std::span<float> values) override;
  absl::Status Apply(const Layout& layout, const StepArguments& step, uint64_t first,
                     uint64_t count, const uint8_t* verdict) override;
  absl::Status ApplyCounts(const Layout& layout, const StepArguments& step, uint64_t first,
                           uint64_t count, const CountsView& counts) override;
  absl::Status ApplyDense(const Layout& layout, const StepArguments& step, uint64_t first,
                          uint64_t count, const DenseView& dense) override;
  absl::StatusOr<uint64_t> Digest() override;
  absl::StatusOr<GradientRange> RangeOf(const Layout& layout, ConstTensorPointers g) override;
  absl::Status KeepX0() override;
  bool keeps_x0() const override { return !x0_.empty(); }
  void DropX0() override { x0_ = std::vector<float>(); }
  absl::Status WriteX0(uint64_t first, std::span<const float> values) override;
  absl::Status ReadX0(uint64_t first, std::span<float> values) override;
  absl::Status Rewind(uint64_t first, uint64_t count) override;
  absl::StatusOr<X0Sums> SumsAboutX0(const Layout& layout, ConstTensorPointers g) override;

 private:
  // A run of coordinates that lie behind each other.
  struct Piece {
    float* x;
    uint64_t first;
    uint64_t count;
  };
  // visit(x of the part's first coordinate, that coordinate, how many) for the parts of
  // [first, first + count) that lie behind each other, in order.
  template <typename Visit>
  void ForEachPart(uint64_t first, uint64_t count, const Visit& visit) const;
  uint64_t coordinates_ = 0;
  std::vector<Piece> pieces_;  // in order of coordinate, without gaps
  std::vector<float> x0_;      // [d], or empty
};

// What every replica's memory refuses. INVALID_ARGUMENT: not one pointer per tensor; [first, first +
// count) is not within the `coordinates`. FAILED_PRECONDITION: no x0.
absl::Status CheckReplicaPointers(const Layout& layout, size_t pointers);
absl::Status CheckReplicaRange(uint64_t coordinates, uint64_t first, uint64_t count);
absl::Status RequireX0(const ReplicaMemory& replica);
// Of Apply(): the range, x0 where the step wants it, and one scale per tensor or none.
absl::Status CheckApply(const ReplicaMemory& replica, const Layout& layout,
                        const StepArguments& step, uint64_t first, uint64_t count);

// A GradientRange, piece by piece.
class RangeBuilder {
 public:
  // `count` values that lie behind each other; null: they are zero.
  void Add(const float* g, uint64_t count);
  // All zero where nothing finite was added.
  GradientRange range() const { return any_ ? range_ : GradientRange(); }

 private:
  bool any_ = false;
  GradientRange range_;
};

// Of ApplyCounts(): that, and counts that can be.
absl::Status CheckApplyCounts(const ReplicaMemory& replica, const Layout& layout,
                              const StepArguments& step, uint64_t first, uint64_t count,
                              const CountsView& counts);

// Of ApplyDense(): that of Apply(), and values that begin where they must.
absl::Status CheckApplyDense(const ReplicaMemory& replica, const Layout& layout,
                             const StepArguments& step, uint64_t first, uint64_t count,
                             const DenseView& dense);

// One block of X0Sums, whose values are `count` neighbours; g may be null.
void AddX0Block(const float* g, const float* x, const float* x0, uint64_t count, X0Sums* block);

}  // namespace signvote
