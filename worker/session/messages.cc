#include "worker/session/messages.h"
#include "common/message_size.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/payload_plan.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote {
namespace {

// Everything of a chunk's message but its payload.
constexpr uint64_t kChunkHeaderBytesMax = 256;

absl::Status Upgrade(std::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("the server asks for ", ToAbsl(what),
                   ", which this version does not know; upgrade the worker"));
}

absl::StatusOr<DirectionKind> KindFrom(v1::Direction::Kind kind) {
  switch (kind) {
    case v1::Direction::KIND_SIGNSGD:
      return DirectionKind::kSignSgd;
    case v1::Direction::KIND_SIGNUM:
      return DirectionKind::kSignum;
    case v1::Direction::KIND_NESTEROV_SIGNUM:
      return DirectionKind::kNesterovSignum;
    case v1::Direction::KIND_LION:
      return DirectionKind::kLion;
    case v1::Direction::KIND_STOSIGN:
      return DirectionKind::kStoSign;
    case v1::Direction::KIND_ADAM:
      return DirectionKind::kAdam;
    case v1::Direction::KIND_MOMENTUM_SGD:
      return DirectionKind::kMomentumSgd;
    case v1::Direction::KIND_MUON:
      return DirectionKind::kMuon;
    default:
      return Upgrade(absl::StrCat("direction ", static_cast<int>(kind)));
  }
}

absl::StatusOr<Envelope> EnvelopeFrom(v1::Direction::Envelope envelope) {
  switch (envelope) {
    case v1::Direction::ENVELOPE_UNSPECIFIED:
      return Envelope::kNone;
    case v1::Direction::ENVELOPE_COORDINATE:
      return Envelope::kCoordinate;
    case v1::Direction::ENVELOPE_TENSOR:
      return Envelope::kTensor;
    case v1::Direction::ENVELOPE_ONE:
      return Envelope::kOne;
    default:
      return Upgrade(absl::StrCat("noise with envelope ", static_cast<int>(envelope)));
  }
}

absl::StatusOr<StateDtype> DtypeFrom(v1::StatePlane::Element element) {
  switch (element) {
    case v1::StatePlane::ELEMENT_UNSPECIFIED:
    case v1::StatePlane::ELEMENT_FP32:
      return StateDtype::kFp32;
    case v1::StatePlane::ELEMENT_BF16:
      return StateDtype::kBf16;
    default:
      return Upgrade(absl::StrCat("state in elements of kind ", static_cast<int>(element)));
  }
}

absl::StatusOr<TensorTreatment> TreatmentFrom(v1::Tensor::Treatment treatment) {
  switch (treatment) {
    case v1::Tensor::TREATMENT_UNSPECIFIED:
      return TensorTreatment::kUsual;
    case v1::Tensor::TREATMENT_SPARSE:
      return TensorTreatment::kSparse;
    case v1::Tensor::TREATMENT_PLAIN:
      return TensorTreatment::kPlain;
    default:
      return Upgrade(absl::StrCat("treatment ", static_cast<int>(treatment), " of a tensor"));
  }
}

absl::StatusOr<DirectionConfig> DirectionFrom(const v1::Direction& direction) {
  DirectionConfig config;
  SIGNVOTE_ASSIGN_OR_RETURN(config.kind, KindFrom(direction.kind()));
  if (config.kind != DirectionKind::kSignSgd) config.beta = direction.beta();
  if (config.kind == DirectionKind::kLion || config.kind == DirectionKind::kAdam)
    config.beta2 = direction.beta2();
  SIGNVOTE_ASSIGN_OR_RETURN(config.envelope, EnvelopeFrom(direction.envelope()));
  if (config.envelope == Envelope::kCoordinate) config.envelope_decay = direction.envelope_decay();
  SIGNVOTE_ASSIGN_OR_RETURN(config.state_dtype, DtypeFrom(direction.state_element()));
  config.error_feedback = direction.error_feedback();
  if (config.error_feedback) config.feedback_keep = direction.feedback_keep();
  if (const absl::Status fits = CheckDirection(config); !fits.ok())
    return WithContext(fits, "the server's direction");
  return config;
}

absl::StatusOr<std::vector<RunStatePlane>> PlanesFrom(const v1::Direction& direction) {
  std::vector<RunStatePlane> planes;
  for (const v1::StatePlane& plane : direction.planes()) {
    switch (plane.element()) {
      case v1::StatePlane::ELEMENT_FP32:
        planes.push_back({plane.name(), 4, plane.single()});
        break;
      case v1::StatePlane::ELEMENT_BF16:
        planes.push_back({plane.name(), 2, plane.single()});
        break;
      case v1::StatePlane::ELEMENT_UINT64:
        planes.push_back({plane.name(), 8, plane.single()});
        break;
      default:
        return Upgrade(
            absl::StrCat("state in elements of kind ", static_cast<int>(plane.element())));
    }
  }
  return planes;
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// The run's tensors are the model's, in any order.
absl::Status RequireTensors(const Layout& run, const ModelDescription& model) {
  std::map<std::string_view, const TensorSpec*> own;
  for (const TensorSpec& tensor : model.tensors) own.emplace(tensor.name, &tensor);
  for (const TensorSpec& tensor : run.tensors()) {
    const auto it = own.find(tensor.name);
    if (it == own.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the run trains tensor ", tensor.name, " ", ShapeText(tensor.shape),
                       ", which this worker's model has not; start it with the run's model"));
    }
    if (it->second->shape != tensor.shape) {
      return absl::FailedPreconditionError(absl::StrCat(
          "tensor ", tensor.name, " is ", ShapeText(tensor.shape), " in the run and ",
          ShapeText(it->second->shape), " in this worker's model; start it with the run's model"));
    }
    own.erase(it);
  }
  if (!own.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this worker's model trains tensor ", std::string(own.begin()->first),
                     ", which the run does not; start it with the run's model"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Layout> LayoutFrom(const v1::Layout& layout) {
  std::vector<TensorSpec> tensors;
  tensors.reserve(static_cast<size_t>(layout.tensors_size()));
  for (const v1::Tensor& tensor : layout.tensors()) {
    TensorSpec spec;
    spec.name = tensor.name();
    spec.shape.assign(tensor.shape().begin(), tensor.shape().end());
    spec.step_scale = tensor.step_scale();
    spec.weight_decay = tensor.weight_decay();
    SIGNVOTE_ASSIGN_OR_RETURN(spec.treatment, TreatmentFrom(tensor.treatment()));
    spec.dense = tensor.dense();
    tensors.push_back(std::move(spec));
  }
  absl::StatusOr<Layout> made = Layout::Make(std::move(tensors));
  if (!made.ok()) return WithContext(made.status(), "the server's layout");
  if (made->digest() != layout.digest()) {
    return absl::InvalidArgumentError("the server's layout does not match its digest");
  }
  return made;
}

absl::StatusOr<PayloadKind> KindFrom(v1::PayloadKind kind) {
  switch (kind) {
    case v1::PAYLOAD_UNSPECIFIED:
    case v1::PAYLOAD_SIGNS:
      return PayloadKind::kSigns;
    case v1::PAYLOAD_COUNTS:
      return PayloadKind::kCounts;
    case v1::PAYLOAD_FP32:
      return PayloadKind::kFp32;
    case v1::PAYLOAD_BF16:
      return PayloadKind::kBf16;
    default:
      return Upgrade(absl::StrCat("payloads of kind ", static_cast<int>(kind)));
  }
}

// What comes down follows from what went up: signs make signs or counts, values make values.
absl::Status CheckPair(const PayloadKinds& kinds) {
  const bool counted = kinds.down == PayloadKind::kCounts;
  if (kinds.up == kinds.down && !counted) return absl::OkStatus();
  if (kinds.up == PayloadKind::kSigns && counted) return absl::OkStatus();
  return Upgrade(absl::StrCat("ballots of ", std::string(Words(kinds.up)), " and commits of ",
                              std::string(Words(kinds.down))));
}

absl::StatusOr<std::vector<PayloadKinds>> PayloadsFrom(const v1::Welcome& welcome,
                                                       const ChunkPlan& plan) {
  if (welcome.payloads().empty()) {
    return std::vector<PayloadKinds>{{.first = ChunkIndex(0), .chunks = plan.chunks()}};
  }
  std::vector<PayloadKinds> payloads;
  uint64_t covered = 0;
  for (const v1::PayloadRange& range : welcome.payloads()) {
    if (range.first_chunk() != covered || range.chunks() == 0 ||
        range.chunks() > plan.chunks() - covered) {
      return absl::InvalidArgumentError(
          absl::StrCat("the server's payloads of chunks from ", range.first_chunk(),
                       " do not cover the run's ", plan.chunks(), " chunks in order"));
    }
    PayloadKinds kinds{.first = ChunkIndex(range.first_chunk()), .chunks = range.chunks()};
    SIGNVOTE_ASSIGN_OR_RETURN(kinds.up, KindFrom(range.up()));
    SIGNVOTE_ASSIGN_OR_RETURN(kinds.down, KindFrom(range.down()));
    SIGNVOTE_RETURN_IF_ERROR(CheckPair(kinds));
    covered += range.chunks();
    payloads.push_back(kinds);
  }
  if (covered != plan.chunks()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the server's payloads cover ", covered, " of ", plan.chunks(), " chunks"));
  }
  return payloads;
}

// Where the chunks of a ballot lie.
absl::StatusOr<PayloadPlan> BallotPlanFrom(const RunInfo& run) {
  std::vector<PayloadRange> ranges;
  for (const PayloadKinds& kinds : run.payloads)
    ranges.push_back({.first = kinds.first, .chunks = kinds.chunks, .kind = kinds.up});
  return PayloadPlan::Make(run.plan, std::move(ranges), 1);
}

// Where the chunks of a commit's payload lie.
absl::StatusOr<PayloadPlan> CommitPlanFrom(const v1::Welcome& welcome, const RunInfo& run) {
  std::vector<PayloadRange> ranges;
  bool counts = false;
  for (const PayloadKinds& kinds : run.payloads) {
    ranges.push_back({.first = kinds.first, .chunks = kinds.chunks, .kind = kinds.down});
    counts = counts || kinds.down == PayloadKind::kCounts;
  }
  if (counts && (welcome.ballots_max() == 0 || welcome.ballots_max() > kBallotsMax)) {
    return absl::InvalidArgumentError(absl::StrCat("the server counts up to ",
                                                   welcome.ballots_max(),
                                                   " ballots; counts are of 1 to ", kBallotsMax));
  }
  return PayloadPlan::Make(run.plan, std::move(ranges), welcome.ballots_max());
}

absl::StatusOr<ScalarKind> ScalarFrom(int kind) {
  switch (kind) {
    case v1::SCALAR_PROBE_L1:
      return ScalarKind::kProbeL1;
    case v1::SCALAR_PREV_INNER:
      return ScalarKind::kPrevInner;
    case v1::SCALAR_X0_INNER:
      return ScalarKind::kX0Inner;
    case v1::SCALAR_X0_DISTANCE:
      return ScalarKind::kX0Distance;
    case v1::SCALAR_LOCAL_INNER:
      return ScalarKind::kLocalInner;
    case v1::SCALAR_LOCAL_PRODUCT:
      return ScalarKind::kLocalProduct;
    case v1::SCALAR_PROBE_INNER:
      return ScalarKind::kProbeInner;
    case v1::SCALAR_CHANGE_L1:
      return ScalarKind::kChangeL1;
    case v1::SCALAR_GRADIENT_MAX:
      return ScalarKind::kGradientMax;
    case v1::SCALAR_GRADIENT_MIN:
      return ScalarKind::kGradientMin;
    default:
      return Upgrade(absl::StrCat("scalar ", kind));
  }
}

bool IsStepsize(float value) { return std::isfinite(value) && value >= 0; }

}  // namespace

void FillJoin(const ModelDescription& model, v1::Join* join) {
  join->set_protocol_min(kSessionProtocol);
  join->set_protocol_max(kSessionProtocol);
  join->set_software_version(SoftwareVersion());
  for (const TensorSpec& tensor : model.tensors) {
    v1::TensorShape* const to = join->add_tensors();
    to->set_name(tensor.name);
    for (const uint64_t dimension : tensor.shape) to->add_shape(dimension);
  }
  join->set_model_config_json(model.config_json);
  join->set_identity_text(model.identity_text);
  join->set_can_probe(model.can_probe);
  if (model.held_out_hash) join->set_held_out_hash(*model.held_out_hash);
}

absl::StatusOr<RunInfo> RunFrom(const v1::Welcome& welcome, const ModelDescription& model) {
  if (welcome.protocol() != kSessionProtocol) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the server speaks protocol ", welcome.protocol(), ", this worker ", kSessionProtocol));
  }
  RunInfo run;
  SIGNVOTE_ASSIGN_OR_RETURN(run.run_id, RunId::FromBytes(welcome.run_id()));
  run.seed = welcome.seed();
  SIGNVOTE_ASSIGN_OR_RETURN(run.layout, LayoutFrom(welcome.layout()));
  SIGNVOTE_RETURN_IF_ERROR(RequireTensors(run.layout, model));
  const uint64_t coordinates = run.layout.coordinates();
  const uint64_t chunk = welcome.chunk_coordinates();
  if (chunk == 0 || chunk % kChunkCoordinatesMultiple != 0 ||
      coordinates / chunk >= std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("the server's chunks have ", chunk,
                                                   " coordinates, which is no multiple of ",
                                                   kChunkCoordinatesMultiple));
  }
  run.plan = ChunkPlan(coordinates, chunk);
  SIGNVOTE_ASSIGN_OR_RETURN(run.payloads, PayloadsFrom(welcome, run.plan));
  SIGNVOTE_ASSIGN_OR_RETURN(run.ballot_plan, BallotPlanFrom(run));
  SIGNVOTE_ASSIGN_OR_RETURN(run.commit_plan, CommitPlanFrom(welcome, run));
  uint64_t message_bytes = run.plan.Bytes(ChunkIndex(0));
  for (const PayloadRange& range : run.commit_plan.ranges())
    message_bytes = std::max<uint64_t>(message_bytes, run.commit_plan.Room(range.first));
  message_bytes += kChunkHeaderBytesMax;
  if (message_bytes > welcome.message_bytes_max() || message_bytes > kMessageBytesMost) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunks of ", message_bytes,
                     " bytes exceed the largest message (--message-bytes-max of the "
                     "server ",
                     welcome.message_bytes_max(), ", of which a worker takes ", kMessageBytesMost,
                     "); start the server with a smaller --chunk-coordinates"));
  }
  if (!welcome.endpoints().empty()) return Upgrade("data endpoints beside this stream");
  SIGNVOTE_ASSIGN_OR_RETURN(run.direction, DirectionFrom(welcome.direction()));
  SIGNVOTE_ASSIGN_OR_RETURN(run.planes, PlanesFrom(welcome.direction()));
  run.rule = welcome.rule();
  run.probes = welcome.probes();
  run.keeps_gradients = welcome.keeps_gradients();
  switch (welcome.clip().kind()) {
    case v1::Clip::KIND_UNSPECIFIED:
      break;
    case v1::Clip::KIND_NORM:
      if (!std::isfinite(welcome.clip().max_norm()) || welcome.clip().max_norm() <= 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("the server clips gradients to norm ", welcome.clip().max_norm()));
      }
      run.clip_norm = welcome.clip().max_norm();
      break;
    default:
      return Upgrade(absl::StrCat("clipping ", static_cast<int>(welcome.clip().kind())));
  }
  run.needs_x0 = welcome.needs_x0();
  run.local_steps_max = std::max(welcome.local_steps_max(), 1u);
  if (welcome.main_rounds() > 0) run.main_rounds = welcome.main_rounds();
  run.main_round = welcome.main_round();
  run.digest_every = welcome.digest_every();
  run.evaluate_every = welcome.evaluate_every();
  run.run_head = welcome.run_head();
  return run;
}

absl::Status CheckCommit(const v1::Commit& commit, const RunInfo& run) {
  const auto bad = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("commit ", commit.round(), " has ", ToAbsl(what)));
  };
  switch (commit.kind()) {
    case v1::Commit::KIND_NONE:
      return absl::OkStatus();
    case v1::Commit::KIND_REWIND:
      return run.needs_x0 ? absl::OkStatus() : bad("a rewind in a run without x0");
    case v1::Commit::KIND_STEP:
      break;
    default:
      return absl::FailedPreconditionError(absl::StrCat(
          "commit ", commit.round(), " is of a kind (", static_cast<int>(commit.kind()),
          ") that this version cannot apply; upgrade the worker"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const PayloadKind payload, KindFrom(commit.payload()));
  if (payload != PayloadKind::kSigns && run.commit_plan.OnlySigns())
    return Upgrade(
        absl::StrCat("a payload of ", std::string(Words(payload)), " in a run of signs"));
  if (!IsStepsize(commit.stepsize())) return bad(absl::StrCat("stepsize ", commit.stepsize()));
  if (commit.has_decay_step() && !IsStepsize(commit.decay_step()))
    return bad(absl::StrCat("stepsize ", commit.decay_step(), " of the decay"));
  if (!std::isfinite(commit.rho())) return bad(absl::StrCat("rho ", commit.rho()));
  if (commit.rho() != 1.0f && !run.needs_x0) return bad("a rescaling in a run without x0");
  if (!commit.scales().empty()) {
    if (static_cast<size_t>(commit.scales_size()) != run.layout.tensors().size())
      return bad(absl::StrCat(commit.scales_size(), " scales for ", run.layout.tensors().size(),
                              " tensors"));
    for (const float scale : commit.scales()) {
      if (!std::isfinite(scale)) return bad(absl::StrCat("scale ", scale));
    }
  }
  if (static_cast<uint32_t>(commit.counted_size()) != run.plan.chunks()) {
    return bad(absl::StrCat("counts of ", commit.counted_size(), " chunks where there are ",
                            run.plan.chunks()));
  }
  for (uint32_t k = 0; k < run.plan.chunks(); ++k) {
    const uint32_t counted = commit.counted(static_cast<int>(k));
    if (run.commit_plan.kind(ChunkIndex(k)) == PayloadKind::kCounts &&
        (counted == 0 || counted > run.commit_plan.ballots_max())) {
      return bad(absl::StrCat("counts of ", counted, " ballots where ",
                              run.commit_plan.ballots_max(), " are the most"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<RoundTicket> TicketFrom(const v1::RoundOpen& open, Time now) {
  RoundTicket ticket;
  ticket.round = Round(open.round());
  ticket.data_step = DataStep(open.data_step());
  ticket.share = Share(open.share());
  for (const int kind : open.wanted()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const ScalarKind wanted, ScalarFrom(kind));
    ticket.wanted.push_back(wanted);
  }
  ticket.members = open.members();
  ticket.observer = open.role() == v1::RoundOpen::ROLE_OBSERVER;
  ticket.uncounted = open.uncounted();
  ticket.evaluate = open.evaluate();
  ticket.local_steps = open.local_steps() == 0 ? 1 : open.local_steps();
  ticket.eta_first = open.eta_first();
  ticket.eta_last = open.eta_last();
  if (!IsStepsize(ticket.eta_first) || !IsStepsize(ticket.eta_last)) {
    return absl::InvalidArgumentError(absl::StrCat("round ", open.round(), " has inner stepsizes ",
                                                   ticket.eta_first, " to ", ticket.eta_last));
  }
  if (open.steps_until_ms() > 0) {
    constexpr uint64_t kForever = 1000ull * 3600 * 24 * 365;
    ticket.steps_until =
        now + std::chrono::milliseconds(std::min<uint64_t>(open.steps_until_ms(), kForever));
  }
  ticket.x0_over = open.x0_over();
  switch (open.start()) {
    case v1::RoundOpen::START_UNSPECIFIED:
    case v1::RoundOpen::START_REPLICA:
      ticket.start = BallotStart::kReplica;
      break;
    case v1::RoundOpen::START_CONTINUE:
      ticket.start = BallotStart::kContinue;
      break;
    case v1::RoundOpen::START_X0:
      ticket.start = BallotStart::kX0;
      break;
    default:
      return Upgrade(absl::StrCat("start ", static_cast<int>(open.start()), " of a ballot"));
  }
  return ticket;
}

absl::StatusOr<v1::Scalars> ScalarsFrom(const BallotScalars& scalars, const RoundTicket& ticket,
                                        size_t tensors) {
  if (scalars.wanted.size() > ticket.wanted.size()) {
    return absl::InvalidArgumentError(absl::StrCat("round ", ticket.round.value(), " wants ",
                                                   ticket.wanted.size(), " scalars, not ",
                                                   scalars.wanted.size()));
  }
  if (!scalars.displacement_mean.empty() && scalars.displacement_mean.size() != tensors) {
    return absl::InvalidArgumentError(absl::StrCat(
        scalars.displacement_mean.size(), " displacement means for ", tensors, " tensors"));
  }
  v1::Scalars out;
  out.set_loss(scalars.loss);
  out.set_g_l1(scalars.g_l1);
  out.set_g_l2_squared(scalars.g_l2_squared);
  for (const double value : scalars.wanted) out.add_wanted(value);
  for (const float value : scalars.displacement_mean) out.add_displacement_mean(value);
  out.set_nonfinite_coordinates(scalars.nonfinite_coordinates);
  out.set_samples(scalars.samples);
  out.set_local_steps(scalars.local_steps);
  if (scalars.held_out) {
    out.set_held_out_loss(scalars.held_out->loss);
    out.set_held_out_error(scalars.held_out->error);
    out.set_held_out_round(scalars.held_out->round.value());
    out.set_held_out_hash(scalars.held_out->windows);
  }
  return out;
}

v1::Abstain::Reason ToProto(AbstainReason reason) {
  switch (reason) {
    case AbstainReason::kNonFiniteLoss:
      return v1::Abstain::REASON_NONFINITE_LOSS;
    case AbstainReason::kNonFiniteGradient:
      return v1::Abstain::REASON_NONFINITE_GRADIENT;
    case AbstainReason::kOther:
      break;
  }
  return v1::Abstain::REASON_OTHER;
}

}  // namespace signvote
