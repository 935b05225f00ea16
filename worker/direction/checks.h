#pragma once
// What a packer of ballots refuses, the same on every device: callers from outside reach it, and a
// wrong range would write beyond somebody's memory.
//
// Threads: pure functions.

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/direction_config.h"
#include "common/ids.h"
#include "common/layout.h"
#include "worker/direction/direction.h"

namespace signvote {

// INVALID_ARGUMENT: the chunks do not cover the layout.
absl::Status CheckPlan(const Layout& layout, const ChunkPlan& plan);
// INVALID_ARGUMENT: the plan has no chunk k.
absl::Status CheckChunk(const ChunkPlan& plan, ChunkIndex k);
// INVALID_ARGUMENT: no such chunk; or g, u or h have not one entry per tensor; or u has a null entry
// where the chunk lies.
absl::Status CheckChunkInput(const Layout& layout, const ChunkPlan& plan, ChunkIndex k,
                             const Direction::ChunkInput& input);
// OK for the directions that local steps are made of: signSGD, Signum, Nesterov-Signum and Lion, which
// step by signs, and Adam and momentum SGD, which step by their updates (LocalStepsByUpdate); without
// noise and without error feedback. UNIMPLEMENTED, with the name and the remedy: any other.
absl::Status CheckStepDirection(const DirectionConfig& config);
// The same; and INVALID_ARGUMENT: g or y have not one entry per tensor, or y has a null one.
absl::Status CheckStep(const Layout& layout, const DirectionConfig& config,
                       const Direction::StepInput& input);
// INVALID_ARGUMENT: no such plane, `bytes` are no whole elements, or reach beyond the plane from
// element `first` on.
absl::Status CheckStateRange(const Layout& layout, std::span<const StatePlane> planes, size_t plane,
                             uint64_t first, size_t bytes);
// INVALID_ARGUMENT: not one entry per tensor.
absl::Status CheckGradient(const Layout& layout, ConstTensorPointers g);

}  // namespace signvote
