#include "server/run/run_payloads.h"

#include <algorithm>
#include <utility>

#include "common/status.h"

namespace signvote::run {

void DenseLast(std::vector<TensorSpec>* tensors) {
  std::stable_partition(tensors->begin(), tensors->end(),
                        [](const TensorSpec& tensor) { return !tensor.dense; });
}

uint64_t RunPayloads::DenseCoordinates() const {
  uint64_t coordinates = 0;
  for (const PayloadRange& range : ballots.ranges()) {
    if (range.kind == PayloadKind::kSigns) continue;
    for (uint32_t i = 0; i < range.chunks; ++i)
      coordinates += ballots.chunk_plan().Count(ChunkIndex(range.first.value() + i));
  }
  return coordinates;
}

absl::StatusOr<RunPayloads> PlanPayloads(const Layout& layout, const ChunkPlan& chunks,
                                         Aggregate aggregate, PayloadKind dense_wire,
                                         uint32_t ballots_max) {
  const auto dense_begins = std::find_if(layout.tensors().begin(), layout.tensors().end(),
                                         [](const TensorSpec& tensor) { return tensor.dense; });
  const uint64_t first_dense =
      dense_begins == layout.tensors().end() ? layout.coordinates() : dense_begins->first;
  const auto voted = first_dense == layout.coordinates()
                         ? chunks.chunks()
                         : static_cast<uint32_t>(first_dense / chunks.chunk_coordinates());
  std::vector<PayloadRange> up, down;
  if (voted > 0) {
    const PayloadKind kind =
        aggregate == Aggregate::kVote ? PayloadKind::kSigns : PayloadKind::kCounts;
    up.push_back({.first = ChunkIndex(0), .chunks = voted, .kind = PayloadKind::kSigns});
    down.push_back({.first = ChunkIndex(0), .chunks = voted, .kind = kind});
  }
  if (voted < chunks.chunks()) {
    const PayloadRange dense{
        .first = ChunkIndex(voted), .chunks = chunks.chunks() - voted, .kind = dense_wire};
    up.push_back(dense);
    down.push_back(dense);
  }
  RunPayloads payloads;
  SIGNVOTE_ASSIGN_OR_RETURN(payloads.ballots, PayloadPlan::Make(chunks, std::move(up), 1));
  SIGNVOTE_ASSIGN_OR_RETURN(payloads.commits,
                            PayloadPlan::Make(chunks, std::move(down), ballots_max));
  return payloads;
}

}  // namespace signvote::run
