#include "worker/checkpoint/worker_state.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"

namespace signvote {
namespace {

// A section of so many elements, which the caller fills.
absl::StatusOr<Section*> Add(WorkerState* state, SectionKind kind, uint32_t element_bytes,
                             uint64_t elements) {
  Section section{.kind = kind, .element_bytes = element_bytes, .elements = 0, .memory = {}};
  SIGNVOTE_RETURN_IF_ERROR(section.Take(elements));
  state->sections.push_back(std::move(section));
  return &state->sections.back();
}

absl::Status AddCopy(WorkerState* state, SectionKind kind, uint32_t element_bytes,
                     std::span<const std::byte> bytes) {
  if (bytes.empty()) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(Section* const section,
                            Add(state, kind, element_bytes, bytes.size() / element_bytes));
  std::memcpy(section->bytes().data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

// Values that lie tensor by tensor in memory of the device. A tensor that is not there is zero.
absl::Status AddTensors(WorkerState* state, SectionKind kind, const StateOwner& owner,
                        ConstTensorPointers values) {
  const Layout& layout = owner.run->layout;
  SIGNVOTE_ASSIGN_OR_RETURN(Section* const section,
                            Add(state, kind, sizeof(float), layout.coordinates()));
  for (size_t k = 0; k < layout.tensors().size(); ++k) {
    const TensorSpec& tensor = layout.tensors()[k];
    if (values[k] == nullptr) continue;
    SIGNVOTE_RETURN_IF_ERROR(owner.device->CopyToHost(
        values[k], std::span(section->memory).subspan(tensor.first, tensor.count)));
  }
  return absl::OkStatus();
}

absl::Status CheckFits(const WorkerState& state, const RunInfo& run) {
  if (state.run_id != run.run_id) {
    return absl::FailedPreconditionError(absl::StrCat("it is of run ", state.run_id.ToText(),
                                                      ", and this is run ", run.run_id.ToText()));
  }
  if (state.layout_digest != run.layout.digest() || state.coordinates != run.layout.coordinates()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "it is of a model of %d coordinates with layout %016x, and the run's has %d and %016x",
        state.coordinates, state.layout_digest, run.layout.coordinates(), run.layout.digest()));
  }
  if (state.direction == run.direction) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "it is of direction ", ToAbsl(DirectionName(state.direction.kind)),
      " with other settings, and the run signs ", ToAbsl(DirectionName(run.direction.kind))));
}

std::span<const float> Values(const Section* section) {
  return section == nullptr ? std::span<const float>()
                            : std::span(section->memory).first(section->elements);
}

// All that a ballot goes on from but the planes.
absl::Status GiveCarried(const WorkerState& state, const StateOwner& owner, Round round,
                         const GivenBack& given_back) {
  Voter::Carried carried{.clip = state.clip, .lost = state.lost, .verdict = {}, .continuation = {}};
  const auto give = [&](SectionKind kind, const auto& back, bool* there) -> absl::Status {
    const Section* const section = state.Find(kind);
    if (section == nullptr || !back) return absl::OkStatus();
    *there = true;
    return back(Values(section));
  };
  SIGNVOTE_RETURN_IF_ERROR(
      give(SectionKind::kPreviousReplica, given_back.previous, &carried.previous));
  SIGNVOTE_RETURN_IF_ERROR(
      give(SectionKind::kLastGradient, given_back.gradient, &carried.gradient));
  carried.continuation = Values(state.Find(SectionKind::kContinuation));
  std::vector<uint8_t> verdict;
  if (const Section* const section = state.Find(SectionKind::kVerdict); section != nullptr) {
    verdict.resize(section->size());
    std::memcpy(verdict.data(), section->bytes().data(), verdict.size());
  }
  carried.verdict = verdict;
  return owner.voter->GoOnFrom(round, carried);
}

}  // namespace

std::string_view Words(Resumed::How how) {
  switch (how) {
    case Resumed::How::kExactly:
      return "exactly";
    case Resumed::How::kAsItWas:
      return "as it was";
    case Resumed::How::kForgotten:
      break;
  }
  return "forgotten";
}

absl::StatusOr<WorkerState> TakeWorkerState(const StateOwner& owner, const KeptByCaller& kept,
                                            const StateOrigin& origin) {
  const RunInfo& run = *owner.run;
  WorkerState state{.run_id = run.run_id,
                    .worker = origin.worker,
                    .round = origin.round,
                    .unsettled = !owner.voter->settled(),
                    .share = origin.share,
                    .main_round = origin.main_round,
                    .layout_digest = run.layout.digest(),
                    .coordinates = run.layout.coordinates(),
                    .direction = run.direction,
                    .sections = {}};
  SIGNVOTE_ASSIGN_OR_RETURN(state.replica_digest, owner.replica->Digest());
  const std::span<const StatePlane> planes = owner.voter->planes();
  for (size_t k = 0; k < planes.size(); ++k) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        Section* const section,
        Add(&state, SectionOf(planes[k].kind), static_cast<uint32_t>(planes[k].element_bytes),
            planes[k].elements(state.coordinates)));
    SIGNVOTE_RETURN_IF_ERROR(owner.voter->SaveState(k, 0, section->bytes()));
  }
  // Nobody goes on exactly from a ballot whose end is not known.
  if (state.unsettled) return state;
  const Voter::Carried carried = owner.voter->carried();
  state.clip = carried.clip;
  state.lost = carried.lost;
  SIGNVOTE_RETURN_IF_ERROR(
      AddCopy(&state, SectionKind::kVerdict, 1, std::as_bytes(carried.verdict)));
  SIGNVOTE_RETURN_IF_ERROR(AddCopy(&state, SectionKind::kContinuation, sizeof(float),
                                   std::as_bytes(carried.continuation)));
  if (carried.previous && !kept.previous.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(
        AddTensors(&state, SectionKind::kPreviousReplica, owner, kept.previous));
  }
  if (carried.gradient && !kept.gradient.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(AddTensors(&state, SectionKind::kLastGradient, owner, kept.gradient));
  }
  return state;
}

absl::StatusOr<Resumed> GiveWorkerState(const WorkerState& state, const StateOwner& owner,
                                        Round round, const GivenBack& given_back) {
  SIGNVOTE_RETURN_IF_ERROR(CheckFits(state, *owner.run));
  Resumed resumed{.how = Resumed::How::kAsItWas, .round = state.round};
  const uint64_t seen = state.round.value() + (state.unsettled ? 1 : 0);
  if (round.value() > seen) resumed.age_rounds = round.value() - seen;
  if (!state.unsettled && state.round == round) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, owner.replica->Digest());
    if (digest == state.replica_digest) resumed.how = Resumed::How::kExactly;
  }
  // A rewind, which sets every state to zero, may lie between the two: nobody tells this worker.
  if (resumed.how != Resumed::How::kExactly && state.main_round == 0) {
    resumed.how = Resumed::How::kForgotten;
    return resumed;
  }
  for (size_t k = 0; k < owner.voter->planes().size(); ++k)
    SIGNVOTE_RETURN_IF_ERROR(owner.voter->RestoreState(k, 0, state.plane(k).bytes()));
  if (resumed.how == Resumed::How::kExactly)
    SIGNVOTE_RETURN_IF_ERROR(GiveCarried(state, owner, round, given_back));
  return resumed;
}

}  // namespace signvote
