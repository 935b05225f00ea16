#include "worker/direction/checks.h"

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {
namespace {

absl::Status CheckPointers(const char* what, const Layout& layout, size_t pointers) {
  if (pointers == layout.tensors().size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " has ", pointers, " entries and the model ",
                                                 layout.tensors().size(), " tensors"));
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
    SIGNVOTE_RETURN_IF_ERROR(CheckPointers("the probe gradient", layout, input.h.size()));
  }
  if (input.u.empty()) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(CheckPointers("what is to be signed", layout, input.u.size()));
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
  return CheckPointers("the gradient", layout, g.size());
}

absl::Status CheckStepDirection(const DirectionConfig& config) {
  bool takes = false;
  switch (config.kind) {
    case DirectionKind::kSignSgd:
    case DirectionKind::kSignum:
    case DirectionKind::kNesterovSignum:
    case DirectionKind::kLion:
    case DirectionKind::kAdam:
    case DirectionKind::kMomentumSgd:
      takes = config.envelope == Envelope::kNone && !config.error_feedback;
      break;
    case DirectionKind::kStoSign:
    case DirectionKind::kMuon:
      break;
  }
  if (takes) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "local steps are not made of ", std::string(DirectionName(config.kind)),
      config.envelope != Envelope::kNone ? " with noise" : "",
      config.error_feedback ? " with error feedback" : "",
      "; give the server --direction signsgd, signum, nesterov or lion without --noise and "
      "--error-feedback, adam or sgd with --noise off and --dense '*', or no --local-steps"));
}

absl::Status CheckStep(const Layout& layout, const DirectionConfig& config,
                       const Direction::StepInput& input) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStepDirection(config));
  SIGNVOTE_RETURN_IF_ERROR(CheckGradient(layout, input.g));
  SIGNVOTE_RETURN_IF_ERROR(CheckPointers("what the step moves", layout, input.y.size()));
  for (size_t k = 0; k < input.y.size(); ++k) {
    if (input.y[k] != nullptr) continue;
    return absl::InvalidArgumentError(absl::StrCat("the step is to move tensor \"",
                                                   layout.tensors()[k].name,
                                                   "\", of which there are no parameters"));
  }
  return absl::OkStatus();
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
