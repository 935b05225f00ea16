#include "server/journal/head.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote::journal {

void FillLayout(const Layout& layout, v1::RunState* out) {
  for (const TensorSpec& t : layout.tensors()) {
    v1::StateTensor& tensor = *out->add_tensors();
    tensor.set_name(t.name);
    tensor.mutable_shape()->Assign(t.shape.begin(), t.shape.end());
    tensor.set_step_scale(t.step_scale);
    tensor.set_weight_decay(t.weight_decay);
    tensor.set_treatment(static_cast<uint32_t>(t.treatment));
    tensor.set_dense(t.dense);
  }
}

absl::StatusOr<Layout> LayoutFrom(const v1::RunState& state) {
  if (state.tensors_size() == 0) return Layout();
  std::vector<TensorSpec> tensors;
  for (const v1::StateTensor& t : state.tensors()) {
    TensorSpec tensor;
    tensor.name = t.name();
    tensor.shape = {t.shape().begin(), t.shape().end()};
    tensor.step_scale = t.step_scale();
    tensor.weight_decay = t.weight_decay();
    if (t.treatment() > static_cast<uint32_t>(TensorTreatment::kPlain)) {
      return absl::DataLossError(
          absl::StrCat("tensor ", t.name(), " has a treatment ", t.treatment()));
    }
    tensor.treatment = static_cast<TensorTreatment>(t.treatment());
    tensor.dense = t.dense();
    tensors.push_back(std::move(tensor));
  }
  return Layout::Make(std::move(tensors));
}

void FillPlan(const PayloadPlan& plan, v1::JournalHead* out) {
  out->set_chunk_coordinates(plan.chunk_plan().chunk_coordinates());
  out->set_ballots_max(plan.ballots_max());
  for (const PayloadRange& range : plan.ranges()) {
    v1::JournalRange& to = *out->add_ranges();
    to.set_chunks(range.chunks);
    to.set_kind(static_cast<uint32_t>(range.kind));
  }
}

absl::StatusOr<PayloadPlan> PlanFrom(const v1::JournalHead& head, uint64_t coordinates) {
  const uint64_t size = head.chunk_coordinates();
  if (coordinates == 0 || size == 0 || size % kChunkCoordinatesMultiple != 0 ||
      (coordinates - 1) / size >= UINT32_MAX) {
    return absl::DataLossError(absl::StrCat("chunks of ", size, " coordinates of ", coordinates));
  }
  std::vector<PayloadRange> ranges;
  uint64_t next = 0;
  for (const v1::JournalRange& range : head.ranges()) {
    if (range.kind() > static_cast<uint32_t>(PayloadKind::kBf16) || next > UINT32_MAX)
      return absl::DataLossError(absl::StrCat("a payload of kind ", range.kind()));
    ranges.push_back({.first = ChunkIndex(static_cast<uint32_t>(next)),
                      .chunks = range.chunks(),
                      .kind = static_cast<PayloadKind>(range.kind())});
    next += range.chunks();
  }
  if (head.ballots_max() == 0 || head.ballots_max() > kBallotsMax)
    return absl::DataLossError(absl::StrCat("at most ", head.ballots_max(), " ballots"));
  absl::StatusOr<PayloadPlan> plan =
      PayloadPlan::Make(ChunkPlan(coordinates, size), std::move(ranges), head.ballots_max());
  if (!plan.ok()) return absl::DataLossError(plan.status().message());
  return plan;
}

bool SamePlan(const PayloadPlan& a, const PayloadPlan& b) {
  return a.chunks() == b.chunks() && a.ballots_max() == b.ballots_max() &&
         a.chunk_plan().coordinates() == b.chunk_plan().coordinates() &&
         a.chunk_plan().chunk_coordinates() == b.chunk_plan().chunk_coordinates() &&
         std::equal(a.ranges().begin(), a.ranges().end(), b.ranges().begin(), b.ranges().end());
}

void MoveOn(const v1::RunState& after, v1::RunState* state) {
  *state->mutable_engine() = after.engine();
  *state->mutable_names() = after.names();
  state->set_next_worker_id(after.next_worker_id());
  state->set_paused(after.paused());
  state->set_optimizer_steps(after.optimizer_steps());
  state->set_optimizer_numbers(after.optimizer_numbers());
  state->set_optimizer_kind(after.optimizer_kind());
  state->set_optimizer_weights(after.optimizer_weights());
  state->set_optimizer_r(after.optimizer_r());
  state->set_optimizer_d(after.optimizer_d());
  *state->mutable_begun() = after.begun();
}

}  // namespace signvote::journal
