#include "worker/vote/replica_copy.h"

#include <span>

#include "common/status.h"

namespace signvote {

HostReplicaCopy::HostReplicaCopy(const Layout* layout, TensorPointers values)
    : layout_(layout), values_(values.begin(), values.end()) {}

absl::Status HostReplicaCopy::Refresh(ReplicaMemory* replica, uint64_t first, uint64_t count) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(*layout_, values_.size()));
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaRange(layout_->coordinates(), first, count));
  absl::Status status;
  ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
    if (!status.ok()) return;
    status =
        replica->Read(range.first, std::span(values_[range.tensor] + range.offset, range.count));
  });
  return status;
}

}  // namespace signvote
