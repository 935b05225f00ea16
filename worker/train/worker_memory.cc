#include "worker/train/worker_memory.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

// Of rounds that are received and not applied: as a rule of signs, and the most of what is larger.
constexpr uint64_t kVerdicts = 2;
// The one that is packed, and the last one while a slow network still sends it. Of signs that is little
// beside the rest, and rare.
constexpr uint64_t kDenseBallots = 2;
// What worker/models/update_source.cc holds of one tensor while it makes what is signed of it, with
// what an expression of LibTorch keeps until its end: copies of the tensor, and where Muon multiplies
// a matrix, of the product of its shorter side with itself.
constexpr uint64_t kMuonTensors = 5, kMuonProducts = 5, kFeedbackTensors = 4;

uint64_t ArithmeticBytes(const Layout& layout, const DirectionConfig& direction) {
  const bool muon = direction.kind == DirectionKind::kMuon;
  uint64_t most = 0;
  for (const TensorSpec& tensor : layout.tensors()) {
    uint64_t values = (muon ? kMuonTensors : kFeedbackTensors) * tensor.count;
    const bool usual = tensor.treatment == TensorTreatment::kUsual && !tensor.dense;
    if (muon && tensor.shape.size() > 1 && usual) {
      const uint64_t side = std::min(tensor.shape[0], tensor.count / tensor.shape[0]);
      values += kMuonProducts * side * side;
    }
    most = std::max(most, values);
  }
  return most * sizeof(float);
}

}  // namespace

std::vector<MemoryPart> ModelMemory(uint64_t coordinates) {
  const uint64_t plane = coordinates * sizeof(float);
  return {{.what = "parameters", .bytes = plane, .remedy = "a smaller --model"},
          {.what = "gradients", .bytes = plane, .remedy = ""}};
}

std::vector<MemoryPart> RunMemory(const RunInfo& run, const WorkerMemoryNeeds& needs) {
  const uint64_t d = run.layout.coordinates();
  const uint64_t plane = d * sizeof(float);
  std::vector<MemoryPart> parts;
  if (run.probes) {
    parts.push_back({.what = "the previous replica and its gradient, for the probe",
                     .bytes = 2 * plane,
                     .remedy = "--rule fixed at the server"});
  }
  if (run.keeps_gradients) {
    parts.push_back({.what = "the last round's gradient",
                     .bytes = plane,
                     .remedy = "a --rule at the server that does not need it"});
  }
  const std::string other = run.direction.error_feedback ? "no --error-feedback at the server"
                                                         : "--direction signsgd at the server";
  for (const RunStatePlane& state : run.planes) {
    parts.push_back({.what = absl::StrCat("the direction's state ", state.name),
                     .bytes = (state.single ? 1 : d) * state.element_bytes,
                     .remedy = other});
  }
  if (!PlanesOf(run.direction, StatePlane::Holder::kSource).empty()) {
    parts.push_back({.what = "what waits to be signed", .bytes = plane, .remedy = other});
    parts.push_back({.what = "what the direction's arithmetic takes of its largest tensor",
                     .bytes = ArithmeticBytes(run.layout, run.direction),
                     .remedy = ""});
  }
  if (run.local_steps_max > 1) {
    parts.push_back({.what = "the replica while local steps move its copy",
                     .bytes = plane,
                     .remedy = "no --local-steps at the server"});
  }
  if (needs.evaluates) {
    parts.push_back(
        {.what = "the replica that is evaluated", .bytes = plane, .remedy = "--eval off"});
  }
  if (run.needs_x0) {
    parts.push_back({.what = "the starting parameters",
                     .bytes = plane,
                     .remedy = "a --rule at the server that does not need them"});
  }
  if (needs.writes_copies) {
    parts.push_back({.what = "a copy that is written",
                     .bytes = plane,
                     .remedy = "no --save-every, for --save itself takes none"});
  }
  if (needs.checkpoints) {
    uint64_t bytes = run.commit_plan.TotalBytes();
    for (const RunStatePlane& state : run.planes)
      bytes += (state.single ? 1 : d) * state.element_bytes;
    bytes += (run.probes ? plane : 0) + (run.keeps_gradients ? plane : 0) +
             (run.local_steps_max > 1 ? plane : 0);
    parts.push_back(
        {.what = "a checkpoint that is written", .bytes = bytes, .remedy = "no --checkpoint"});
  }
  const uint64_t ballots = run.ballot_plan.OnlySigns() ? 1 : kDenseBallots;
  parts.push_back(
      {.what = "ballot and verdicts",
       .bytes = ballots * run.ballot_plan.TotalBytes() + kVerdicts * run.commit_plan.TotalBytes(),
       .remedy = ""});
  return parts;
}

absl::Status CheckRunMemory(const RunInfo& run, const WorkerMemoryNeeds& needs,
                            const std::optional<MemoryLimit>& left) {
  const uint64_t d = run.layout.coordinates();
  std::vector<MemoryPart> parts = ModelMemory(d);
  std::optional<MemoryLimit> with_model = left;
  // What the model has is not left any more.
  if (with_model.has_value()) with_model->bytes += TotalBytes(parts);
  for (MemoryPart& part : RunMemory(run, needs)) parts.push_back(std::move(part));
  return WithExitCode(
      CheckMemory(absl::StrCat("a worker of this run, whose model has ", d, " coordinates,"), parts,
                  with_model),
      ExitCode::kNoMemory);
}

}  // namespace signvote
