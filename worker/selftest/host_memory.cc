#include <algorithm>
#include <cstring>

#include "worker/selftest/selftest.h"

namespace signvote {

absl::StatusOr<std::span<float>> HostSelftestMemory::Allocate(uint64_t count) {
  arrays_.push_back(std::make_unique<float[]>(count));
  return std::span(arrays_.back().get(), count);
}

absl::Status HostSelftestMemory::Write(float* to, std::span<const float> from) {
  std::copy(from.begin(), from.end(), to);
  return absl::OkStatus();
}

absl::Status HostSelftestMemory::Read(std::span<float> to, const float* from) {
  std::copy_n(from, to.size(), to.begin());
  return absl::OkStatus();
}

absl::Status HostSelftestMemory::CopyWithin(float* to, const float* from, uint64_t count) {
  std::memcpy(to, from, count * sizeof(float));
  return absl::OkStatus();
}

}  // namespace signvote
