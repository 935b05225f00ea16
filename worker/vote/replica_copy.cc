#include "worker/vote/replica_copy.h"

#include <span>

#include "common/check.h"

namespace signvote {

HostReplicaCopy::HostReplicaCopy(const Layout* layout, TensorPointers values)
    : layout_(layout), values_(values.begin(), values.end()) {
  SIGNVOTE_CHECK(values_.size() == layout_->tensors().size());
}

absl::Status HostReplicaCopy::Refresh(ReplicaMemory* replica, uint64_t first, uint64_t count) {
  absl::Status status;
  ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
    if (!status.ok()) return;
    status =
        replica->Read(range.first, std::span(values_[range.tensor] + range.offset, range.count));
  });
  return status;
}

}  // namespace signvote
