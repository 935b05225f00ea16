#include "worker/codec/replica_memory.h"

#include <algorithm>

#include "common/apply.h"
#include "common/check.h"
#include "common/checksum.h"

namespace signvote {

absl::Status HostReplicaMemory::Write(uint64_t first, std::span<const float> values) {
  SIGNVOTE_CHECK(first <= x_.size() && values.size() <= x_.size() - first);
  std::copy(values.begin(), values.end(), x_.begin() + static_cast<ptrdiff_t>(first));
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::Read(uint64_t first, std::span<float> values) {
  SIGNVOTE_CHECK(first <= x_.size() && values.size() <= x_.size() - first);
  std::copy_n(x_.begin() + static_cast<ptrdiff_t>(first), values.size(), values.begin());
  return absl::OkStatus();
}

absl::Status HostReplicaMemory::ApplyStep(const Layout& layout, float gamma, uint64_t first,
                                          uint64_t count, const uint8_t* verdict) {
  SIGNVOTE_CHECK(first <= x_.size() && count <= x_.size() - first);
  signvote::ApplyStep(layout, gamma, first, count, verdict, 0, x_.data() + first);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> HostReplicaMemory::Digest() {
  return ReplicaDigest(x_.data(), 0, x_.size());
}

}  // namespace signvote
