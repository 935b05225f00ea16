#include "server/run/messages.h"

#include <algorithm>
#include <limits>

#include "common/process.h"
#include "server/run/admission.h"

namespace signvote::run {
namespace {

v1::Direction::Kind ToProto(DirectionKind kind) {
  switch (kind) {
    case DirectionKind::kSignSgd:
      return v1::Direction::KIND_SIGNSGD;
    case DirectionKind::kSignum:
      return v1::Direction::KIND_SIGNUM;
    case DirectionKind::kNesterovSignum:
      return v1::Direction::KIND_NESTEROV_SIGNUM;
    case DirectionKind::kLion:
      return v1::Direction::KIND_LION;
    case DirectionKind::kStoSign:
      return v1::Direction::KIND_STOSIGN;
    case DirectionKind::kAdam:
      return v1::Direction::KIND_ADAM;
    case DirectionKind::kMomentumSgd:
      return v1::Direction::KIND_MOMENTUM_SGD;
    case DirectionKind::kMuon:
      break;
  }
  return v1::Direction::KIND_MUON;
}

v1::Direction::Envelope ToProto(Envelope envelope) {
  switch (envelope) {
    case Envelope::kNone:
      break;
    case Envelope::kCoordinate:
      return v1::Direction::ENVELOPE_COORDINATE;
    case Envelope::kTensor:
      return v1::Direction::ENVELOPE_TENSOR;
    case Envelope::kOne:
      return v1::Direction::ENVELOPE_ONE;
  }
  return v1::Direction::ENVELOPE_UNSPECIFIED;
}

v1::Tensor::Treatment ToProto(TensorTreatment treatment) {
  switch (treatment) {
    case TensorTreatment::kUsual:
      break;
    case TensorTreatment::kSparse:
      return v1::Tensor::TREATMENT_SPARSE;
    case TensorTreatment::kPlain:
      return v1::Tensor::TREATMENT_PLAIN;
  }
  return v1::Tensor::TREATMENT_UNSPECIFIED;
}

v1::StatePlane::Element ElementOf(size_t bytes) {
  return bytes == 8   ? v1::StatePlane::ELEMENT_UINT64
         : bytes == 2 ? v1::StatePlane::ELEMENT_BF16
                      : v1::StatePlane::ELEMENT_FP32;
}

v1::Commit::Kind ToProto(CommitKind kind) {
  switch (kind) {
    case CommitKind::kStep:
      return v1::Commit::KIND_STEP;
    case CommitKind::kRewind:
      return v1::Commit::KIND_REWIND;
    case CommitKind::kNone:
      break;
  }
  return v1::Commit::KIND_NONE;
}

v1::PayloadKind ToProto(PayloadKind kind) {
  switch (kind) {
    case PayloadKind::kSigns:
      return v1::PAYLOAD_SIGNS;
    case PayloadKind::kCounts:
      return v1::PAYLOAD_COUNTS;
    case PayloadKind::kFp32:
      return v1::PAYLOAD_FP32;
    case PayloadKind::kBf16:
      break;
  }
  return v1::PAYLOAD_BF16;
}

v1::ScalarKind ToProto(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kProbeL1:
      return v1::SCALAR_PROBE_L1;
    case ScalarKind::kPrevInner:
      return v1::SCALAR_PREV_INNER;
    case ScalarKind::kX0Inner:
      return v1::SCALAR_X0_INNER;
    case ScalarKind::kX0Distance:
      return v1::SCALAR_X0_DISTANCE;
    case ScalarKind::kLocalInner:
      return v1::SCALAR_LOCAL_INNER;
    case ScalarKind::kLocalProduct:
      return v1::SCALAR_LOCAL_PRODUCT;
    case ScalarKind::kProbeInner:
      return v1::SCALAR_PROBE_INNER;
    case ScalarKind::kChangeL1:
      return v1::SCALAR_CHANGE_L1;
    case ScalarKind::kGradientMax:
      return v1::SCALAR_GRADIENT_MAX;
    case ScalarKind::kGradientMin:
      break;
  }
  return v1::SCALAR_GRADIENT_MIN;
}

v1::RoundOpen::Start ToProto(StepsFrom from) {
  switch (from) {
    case StepsFrom::kReplica:
      break;
    case StepsFrom::kContinue:
      return v1::RoundOpen::START_CONTINUE;
    case StepsFrom::kX0:
      return v1::RoundOpen::START_X0;
  }
  return v1::RoundOpen::START_REPLICA;
}

// At least 1: zero would mean none.
uint64_t MillisecondsLeft(Duration whole, Duration since) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(whole - since).count();
  return static_cast<uint64_t>(std::max<int64_t>(1, ms));
}

void FillDirection(const DirectionConfig& config, v1::Direction* out) {
  out->set_kind(ToProto(config.kind));
  if (config.kind != DirectionKind::kSignSgd) out->set_beta(config.beta);
  if (config.kind == DirectionKind::kLion || config.kind == DirectionKind::kAdam)
    out->set_beta2(config.beta2);
  for (const StatePlane& plane : PlanesOf(config)) {
    v1::StatePlane& added = *out->add_planes();
    added.set_name(std::string(plane.name()));
    added.set_element(ElementOf(plane.element_bytes));
    added.set_single(plane.single);
  }
  out->set_envelope(ToProto(config.envelope));
  if (config.envelope == Envelope::kCoordinate) out->set_envelope_decay(config.envelope_decay);
  if (config.state_dtype == StateDtype::kBf16) out->set_state_element(v1::StatePlane::ELEMENT_BF16);
  out->set_error_feedback(config.error_feedback);
  if (config.error_feedback) out->set_feedback_keep(config.feedback_keep);
}

void FillLayout(const Layout& layout, v1::Layout* out) {
  for (const TensorSpec& tensor : layout.tensors()) {
    v1::Tensor& added = *out->add_tensors();
    added.set_name(tensor.name);
    added.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    added.set_step_scale(tensor.step_scale);
    added.set_weight_decay(tensor.weight_decay);
    added.set_treatment(ToProto(tensor.treatment));
    added.set_dense(tensor.dense);
  }
  out->set_digest(layout.digest());
}

// Of what no worker takes for granted.
void FillPayloads(const RunPayloads& payloads, v1::Welcome* out) {
  if (payloads.commits.OnlySigns()) return;
  for (const PayloadRange& range : payloads.commits.ranges()) {
    v1::PayloadRange& added = *out->add_payloads();
    added.set_first_chunk(range.first.value());
    added.set_chunks(range.chunks);
    added.set_up(ToProto(payloads.ballots.kind(range.first)));
    added.set_down(ToProto(range.kind));
  }
  out->set_ballots_max(payloads.commits.ballots_max());
}

}  // namespace

v1::ServerMessage WelcomeMessage(const WelcomeFacts& facts, const Layout& layout,
                                 const RunPayloads& payloads, const WelcomeNow& now) {
  v1::ServerMessage message;
  v1::Welcome& out = *message.mutable_welcome();
  out.set_protocol(kProtocolVersion);
  out.set_software_version(SoftwareVersion());
  out.set_run_id(std::string(facts.run_id.bytes()));
  out.set_epoch(facts.epoch.value());
  out.set_incarnation(now.incarnation.value());
  out.set_ticket(now.ticket);
  out.set_state(now.state);
  out.set_chunk_coordinates(payloads.commits.chunk_plan().chunk_coordinates());
  out.set_seed(facts.seed);
  out.set_main_rounds(facts.main_rounds);
  FillDirection(facts.direction, out.mutable_direction());
  out.set_digest_every(facts.digest_every);
  out.set_evaluate_every(facts.evaluate_every);
  out.set_message_bytes_max(facts.message_bytes_max);
  out.set_round(now.round.value());
  FillLayout(layout, out.mutable_layout());
  if (facts.clip_norm.has_value()) {
    out.mutable_clip()->set_kind(v1::Clip::KIND_NORM);
    out.mutable_clip()->set_max_norm(*facts.clip_norm);
  }
  FillPayloads(payloads, &out);
  out.set_rule(facts.rule);
  out.set_probes(facts.probes);
  out.set_needs_x0(facts.needs_x0);
  out.set_keeps_gradients(facts.keeps_gradients);
  out.set_main_round(now.main_rounds);
  if (facts.local_steps_max > 1) out.set_local_steps_max(facts.local_steps_max);
  out.set_run_head(now.run_head);
  return message;
}

v1::ServerMessage RoundOpenMessage(const round::OpenRound& open, const round::Seat& seat,
                                   Duration since) {
  v1::ServerMessage message;
  v1::RoundOpen& out = *message.mutable_round_open();
  out.set_round(open.round.value());
  out.set_attempt(open.attempt.value());
  out.set_data_step(open.data_step.value());
  out.set_share(seat.share.value());
  out.set_role(seat.role == round::Role::kMember ? v1::RoundOpen::ROLE_MEMBER
                                                 : v1::RoundOpen::ROLE_OBSERVER);
  out.set_uncounted(seat.uncounted);
  for (const ScalarKind kind : std::span(open.wanted).first(seat.wanted))
    out.add_wanted(ToProto(kind));
  out.set_members(open.members);
  out.set_x0_over(open.x0_over);
  if (open.deadline.has_value()) out.set_deadline_ms(MillisecondsLeft(*open.deadline, since));
  if (open.local.is_vote()) return message;
  out.set_local_steps(open.local.steps);
  out.set_eta_first(open.local.eta_first);
  out.set_eta_last(open.local.eta_last);
  out.set_start(ToProto(open.local.from));
  if (seat.steps_until.has_value())
    out.set_steps_until_ms(MillisecondsLeft(*seat.steps_until, since));
  return message;
}

v1::ServerMessage CommitMessage(const CommitRecord& record, const RunId& run_id, Epoch epoch) {
  v1::ServerMessage message;
  v1::Commit& out = *message.mutable_commit();
  out.set_run_id(std::string(run_id.bytes()));
  out.set_epoch(epoch.value());
  out.set_round(record.round.value());
  out.set_attempt(record.attempt.value());
  out.set_kind(ToProto(record.kind));
  out.set_stepsize(record.gamma);
  out.set_rho(record.rho);
  out.mutable_counted()->Reserve(static_cast<int>(record.chunks.size()));
  for (const ChunkSum& chunk : record.chunks) out.add_counted(chunk.counted);
  out.set_payload_hash(record.payload_hash);
  out.set_data_step(record.data_step.value());
  out.set_digest_due(record.digest_due);
  out.set_loss(record.loss.value_or(std::numeric_limits<double>::quiet_NaN()));
  out.set_voters(record.voters);
  out.set_next_data_step(record.next_data_step.value());
  out.set_run_done(record.run_done);
  out.set_main_round(record.main_round);
  if (!record.payload.empty() && record.payload.front().kind != PayloadKind::kSigns) {
    out.set_payload(ToProto(record.payload.front().kind));
  }
  out.mutable_scales()->Add(record.scales.begin(), record.scales.end());
  if (record.decay_step.has_value()) out.set_decay_step(*record.decay_step);
  if (record.kind != CommitKind::kStep) out.set_reason(record.reason);
  return message;
}

v1::ServerMessage NoticeMessage(const std::string& text) {
  v1::ServerMessage message;
  message.mutable_notice()->set_text(text);
  return message;
}

v1::ServerMessage PingMessage(uint64_t nonce) {
  v1::ServerMessage message;
  message.mutable_ping()->set_nonce(nonce);
  return message;
}

v1::ServerMessage ResyncMessage(Round round, const std::string& reason) {
  v1::ServerMessage message;
  message.mutable_resync()->set_round(round.value());
  message.mutable_resync()->set_reason(reason);
  return message;
}

v1::ServerMessage DrainMessage() {
  v1::ServerMessage message;
  message.mutable_drain()->set_reason("the operator drains this worker");
  return message;
}

v1::ServerMessage FinishMessage(Round rounds) {
  v1::ServerMessage message;
  message.mutable_finish()->set_rounds(rounds.value());
  return message;
}

}  // namespace signvote::run
