#include "worker/codec/replica_memory.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/payload_plan.h"
#include "common/status.h"

namespace signvote {
namespace {

absl::Status NoX0() {
  return absl::UnimplementedError(
      "this replica's memory keeps no starting point; runs whose stepsize rule needs x0 need "
      "another");
}

absl::Status CheckModel(const ReplicaMemory& replica, const Layout& layout) {
  if (layout.coordinates() == replica.coordinates()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the layout has ", layout.coordinates(),
                                                 " coordinates and the replica ",
                                                 replica.coordinates()));
}

}  // namespace

absl::Status CheckReplicaPointers(const Layout& layout, size_t pointers) {
  if (pointers == layout.tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(pointers, " pointers for the model's ", layout.tensors().size(), " tensors"));
}

absl::Status CheckReplicaRange(uint64_t coordinates, uint64_t first, uint64_t count) {
  if (first <= coordinates && count <= coordinates - first) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(count, " coordinates from ", first,
                                                 " on are beyond the replica's ", coordinates));
}

absl::Status RequireX0(const ReplicaMemory& replica) {
  if (replica.keeps_x0()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "this replica keeps no starting point; call KeepX0 before it is used");
}

absl::Status CheckApply(const ReplicaMemory& replica, const Layout& layout,
                        const StepArguments& step, uint64_t first, uint64_t count) {
  SIGNVOTE_RETURN_IF_ERROR(CheckModel(replica, layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(replica.coordinates(), first, count));
  if (step.rho != 1.0f) SIGNVOTE_RETURN_IF_ERROR(RequireX0(replica));
  if (step.scales.empty() || step.scales.size() == layout.tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the step has ", step.scales.size(),
                                                 " scales for the model's ",
                                                 layout.tensors().size(), " tensors"));
}

absl::StatusOr<GradientRange> ReplicaMemory::RangeOf(const Layout&, ConstTensorPointers) {
  return absl::UnimplementedError(
      "this replica's memory does not tell the extrema of a gradient; runs whose stepsize rule "
      "needs "
      "them need another");
}

absl::Status CheckApplyCounts(const ReplicaMemory& replica, const Layout& layout,
                              const StepArguments& step, uint64_t first, uint64_t count,
                              const CountsView& counts) {
  SIGNVOTE_RETURN_IF_ERROR(CheckApply(replica, layout, step, first, count));
  if (counts.first <= first && counts.ballots >= 1 && counts.ballots <= kBallotsMax)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("counts of ", counts.ballots, " ballots from ",
                                                 "coordinate ", counts.first,
                                                 " on, for a step from ", first, " on"));
}

absl::Status CheckApplyDense(const ReplicaMemory& replica, const Layout& layout,
                             const StepArguments& step, uint64_t first, uint64_t count,
                             const DenseView& dense) {
  SIGNVOTE_RETURN_IF_ERROR(CheckApply(replica, layout, step, first, count));
  if (dense.first <= first) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("values from coordinate ", dense.first, " on, for a step from ", first, " on"));
}

absl::Status ReplicaMemory::KeepX0() { return NoX0(); }
absl::Status ReplicaMemory::WriteX0(uint64_t, std::span<const float>) { return NoX0(); }
absl::Status ReplicaMemory::ReadX0(uint64_t, std::span<float>) { return NoX0(); }
absl::Status ReplicaMemory::Rewind(uint64_t, uint64_t) { return NoX0(); }
absl::StatusOr<X0Sums> ReplicaMemory::SumsAboutX0(const Layout&, ConstTensorPointers) {
  return NoX0();
}

void AddX0Block(const float* g, const float* x, const float* x0, uint64_t count, X0Sums* block) {
  for (uint64_t i = 0; i < count; ++i) {
    const double moved = static_cast<double>(x[i] - x0[i]);
    block->distance_squared += moved * moved;
    if (g != nullptr && std::isfinite(g[i])) block->inner -= static_cast<double>(g[i]) * moved;
  }
}

void RangeBuilder::Add(const float* g, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const float value = g == nullptr ? 0.0f : g[i];
    if (!std::isfinite(value)) continue;
    range_.max = any_ ? std::max(range_.max, value) : value;
    range_.min = any_ ? std::min(range_.min, value) : value;
    any_ = true;
    if (g == nullptr) return;
  }
}

HostReplicaMemory::HostReplicaMemory(std::span<float> x) : coordinates_(x.size()) {
  pieces_.push_back({.x = x.data(), .first = 0, .count = x.size()});
}

HostReplicaMemory::HostReplicaMemory(const Layout& layout, TensorPointers x)
    : coordinates_(layout.coordinates()) {
  SIGNVOTE_CHECK(x.size() == layout.tensors().size());
  for (size_t k = 0; k < x.size(); ++k) {
    const TensorSpec& tensor = layout.tensors()[k];
    // Tensors that are neighbours in memory too are one piece: less to walk.
    if (!pieces_.empty() && pieces_.back().x + pieces_.back().count == x[k]) {
      pieces_.back().count += tensor.count;
    } else {
      pieces_.push_back({.x = x[k], .first = tensor.first, .count = tensor.count});
    }
  }
}

template <typename Visit>
void HostReplicaMemory::ForEachPart(uint64_t first, uint64_t count, const Visit& visit) const {
  const uint64_t end = first + count;
  auto piece = std::partition_point(pieces_.begin(), pieces_.end(),
                                    [first](const Piece& p) { return p.first + p.count <= first; });
  for (; first < end; ++piece) {
    const uint64_t stop = std::min(end, piece->first + piece->count);
    visit(piece->x + (first - piece->first), first, stop - first);
    first = stop;
  }
}

absl::Status HostReplicaMemory::Write(uint64_t first, std::span<const float> values) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates_, first, values.size()));
  ForEachPart(first, values.size(), [&](float* x, uint64_t at, uint64_t count) {
    std::copy_n(values.data() + (at - first), count, x);
  });
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::Read(uint64_t first, std::span<float> values) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates_, first, values.size()));
  ForEachPart(first, values.size(), [&](const float* x, uint64_t at, uint64_t count) {
    std::copy_n(x, count, values.data() + (at - first));
  });
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::Apply(const Layout& layout, const StepArguments& step,
                                      uint64_t first, uint64_t count, const uint8_t* verdict) {
  SIGNVOTE_RETURN_IF_ERROR(CheckApply(*this, layout, step, first, count));
  ForEachPart(first, count, [&](float* x, uint64_t at, uint64_t part) {
    const float* const x0 = step.rho == 1.0f ? nullptr : x0_.data() + at;
    signvote::ApplyStep(layout, step, at, part, verdict, 0, x0, x);
  });
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::ApplyCounts(const Layout& layout, const StepArguments& step,
                                            uint64_t first, uint64_t count,
                                            const CountsView& counts) {
  SIGNVOTE_RETURN_IF_ERROR(CheckApplyCounts(*this, layout, step, first, count, counts));
  ForEachPart(first, count, [&](float* x, uint64_t at, uint64_t part) {
    const float* const x0 = step.rho == 1.0f ? nullptr : x0_.data() + at;
    signvote::ApplyCounts(layout, step, at, part, counts, x0, x);
  });
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::ApplyDense(const Layout& layout, const StepArguments& step,
                                           uint64_t first, uint64_t count, const DenseView& dense) {
  SIGNVOTE_RETURN_IF_ERROR(CheckApplyDense(*this, layout, step, first, count, dense));
  ForEachPart(first, count, [&](float* x, uint64_t at, uint64_t part) {
    const float* const x0 = step.rho == 1.0f ? nullptr : x0_.data() + at;
    signvote::ApplyDense(layout, step, at, part, dense, x0, x);
  });
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> HostReplicaMemory::Digest() {
  uint64_t digest = 0;
  std::vector<float> across;  // a block that lies in several pieces
  for (uint64_t first = 0; first < coordinates_;) {
    // Whole blocks where they lie; a block that no piece holds alone, as a copy.
    const auto piece =
        std::partition_point(pieces_.begin(), pieces_.end(),
                             [first](const Piece& p) { return p.first + p.count <= first; });
    const uint64_t in_piece = piece->first + piece->count - first;
    uint64_t count = piece->first + piece->count == coordinates_
                         ? in_piece
                         : in_piece / kReplicaDigestBlock * kReplicaDigestBlock;
    if (count > 0) {
      digest += ReplicaDigest(piece->x + (first - piece->first), first, count);
    } else {
      count = std::min(kReplicaDigestBlock, coordinates_ - first);
      across.resize(count);
      (void)Read(first, across);  // within the replica, and host memory never fails
      digest += ReplicaDigest(across.data(), first, count);
    }
    first += count;
  }
  return digest;
}

absl::StatusOr<GradientRange> HostReplicaMemory::RangeOf(const Layout& layout,
                                                         ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(CheckModel(*this, layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(layout, g.size()));
  RangeBuilder range;
  for (size_t k = 0; k < g.size(); ++k) range.Add(g[k], layout.tensors()[k].count);
  return range.range();
}

absl::Status HostReplicaMemory::KeepX0() {
  x0_.assign(coordinates_, 0.0f);
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::WriteX0(uint64_t first, std::span<const float> values) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates_, first, values.size()));
  std::copy(values.begin(), values.end(), x0_.begin() + static_cast<ptrdiff_t>(first));
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::ReadX0(uint64_t first, std::span<float> values) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates_, first, values.size()));
  std::copy_n(x0_.begin() + static_cast<ptrdiff_t>(first), values.size(), values.begin());
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::Rewind(uint64_t first, uint64_t count) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(coordinates_, first, count));
  return Write(first, std::span(x0_).subspan(first, count));
}

absl::StatusOr<X0Sums> HostReplicaMemory::SumsAboutX0(const Layout& layout, ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(RequireX0(*this));
  SIGNVOTE_RETURN_IF_ERROR(CheckModel(*this, layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(layout, g.size()));
  X0Sums sums;
  for (uint64_t first = 0; first < coordinates_; first += kReplicaDigestBlock) {
    X0Sums block;
    const uint64_t count = std::min(kReplicaDigestBlock, coordinates_ - first);
    ForEachTensorRange(layout, first, count, [&](const TensorRange& range) {
      const float* const of_tensor = g[range.tensor];
      ForEachPart(range.first, range.count, [&](const float* x, uint64_t at, uint64_t part) {
        AddX0Block(of_tensor == nullptr ? nullptr : of_tensor + range.offset + (at - range.first),
                   x, x0_.data() + at, part, &block);
      });
    });
    sums.inner += block.inner;
    sums.distance_squared += block.distance_squared;
  }
  return sums;
}

}  // namespace signvote
