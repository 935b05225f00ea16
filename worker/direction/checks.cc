#include "worker/direction/checks.h"

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {
namespace {

absl::Status CheckPointers(const char* what, const Layout& layout, ConstTensorPointers values) {
  if (values.size() == layout.tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " has ", values.size(),
                                                 " entries and the model ", layout.tensors().size(),
                                                 " tensors"));
}

}  // namespace

absl::Status CheckPlan(const Layout& layout, const ChunkPlan& plan) {
  if (plan.coordinates() == layout.coordinates()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the chunks cover ", plan.coordinates(),
                                                 " coordinates and the model has ",
                                                 layout.coordinates()));
}

absl::Status CheckChunk(const ChunkPlan& plan, ChunkIndex k) {
  if (k.value() < plan.chunks()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no chunk ", k.value(), ": a ballot has ", plan.chunks()));
}

absl::Status CheckChunkInput(const Layout& layout, const ChunkPlan& plan, ChunkIndex k,
                             const Direction::ChunkInput& input) {
  SIGNVOTE_RETURN_IF_ERROR(CheckChunk(plan, k));
  SIGNVOTE_RETURN_IF_ERROR(CheckGradient(layout, input.g));
  if (!input.h.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(CheckPointers("the probe gradient", layout, input.h));
  }
  if (input.u.empty()) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(CheckPointers("what is to be signed", layout, input.u));
  absl::Status status;
  ForEachTensorRange(layout, plan.First(k), plan.Count(k), [&](const TensorRange& range) {
    if (!status.ok() || input.u[range.tensor] != nullptr) return;
    status = absl::InvalidArgumentError(absl::StrCat("nothing is to be signed of tensor \"",
                                                     layout.tensors()[range.tensor].name,
                                                     "\"; give every tensor, or none"));
  });
  return status;
}

absl::Status CheckGradient(const Layout& layout, ConstTensorPointers g) {
  return CheckPointers("the gradient", layout, g);
}

absl::Status CheckStateRange(const Layout& layout, std::span<const StatePlane> planes, size_t plane,
                             uint64_t first, size_t bytes) {
  if (plane >= planes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no plane ", plane, ": the direction's state has ", planes.size()));
  }
  const size_t element_bytes = planes[plane].element_bytes;
  if (bytes % element_bytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes, " bytes of state are no whole elements of ", element_bytes));
  }
  const uint64_t elements = planes[plane].elements(layout.coordinates());
  const uint64_t count = bytes / element_bytes;
  if (first <= elements && count <= elements - first) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(count, " elements of state from ", first,
                                                 " on are beyond the plane's ", elements));
}

}  // namespace signvote
