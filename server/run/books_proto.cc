#include "server/run/books_proto.h"

#include <limits>
#include <optional>

#include "common/process.h"

namespace signvote::run {
namespace {

v1::Status::Phase ToProto(PagePhase phase) {
  switch (phase) {
    case PagePhase::kWaitingForWorkers:
      return v1::Status::PHASE_WAITING_FOR_WORKERS;
    case PagePhase::kRoundOpen:
      return v1::Status::PHASE_ROUND_OPEN;
    case PagePhase::kPaused:
      return v1::Status::PHASE_PAUSED;
    case PagePhase::kFinishing:
      return v1::Status::PHASE_FINISHING;
    case PagePhase::kWaitingForApplier:
      return v1::Status::PHASE_WAITING_FOR_APPLIER;
    case PagePhase::kBackingOff:
      return v1::Status::PHASE_BACKING_OFF;
    case PagePhase::kEnded:
      break;
  }
  return v1::Status::PHASE_ENDED;
}

void Fill(const WireTotals& in, v1::WireTotals* out) {
  out->set_up_rounds_bytes(in.up_rounds_bytes);
  out->set_down_rounds_bytes(in.down_rounds_bytes);
  out->set_up_setup_bytes(in.up_setup_bytes);
  out->set_down_setup_bytes(in.down_setup_bytes);
  out->set_fp32_equivalent_bytes(in.fp32_equivalent_bytes);
  out->set_ballots(in.ballots);
  out->set_minibatches(in.minibatches);
}

v1::HeldOut ToProto(const HeldOut& in) {
  v1::HeldOut out;
  out.set_loss(in.loss);
  out.set_error(in.error);
  out.set_round(in.round.value());
  out.set_windows(in.windows);
  out.set_worker(in.worker);
  out.set_own(in.own);
  return out;
}

v1::HeldOut ToProto(const std::optional<HeldOut>& in) {
  return ToProto(in.value_or(HeldOut{.loss = std::numeric_limits<double>::quiet_NaN()}));
}

void Fill(const WorkerPage& in, v1::Worker* out) {
  out->set_name(in.name);
  out->set_incarnation(in.incarnation.value());
  out->set_share(in.share.value());
  out->set_role(in.member ? v1::Worker::ROLE_MEMBER : v1::Worker::ROLE_OBSERVER);
  out->set_connected(in.connected);
  out->set_address(in.address);
  out->set_metrics_address(in.metrics_address);
  out->set_ballots(in.ballots);
  out->set_abstentions(in.abstentions);
  out->set_late_chunks(in.late_chunks);
  out->set_duplicate_chunks(in.duplicate_chunks);
  out->set_agreement(in.agreement);
  out->set_loss(in.loss);
  out->set_arrival_seconds(in.arrival_seconds);
  Fill(in.wire, out->mutable_wire());
  out->set_has_final_digest(in.final_digest.has_value());
  out->set_final_digest(in.final_digest.value_or(0));
  out->set_joined_seconds(in.joined_seconds);
  *out->mutable_held_out() = ToProto(in.held_out);
}

}  // namespace

v1::Status ToProto(const StatusPage& page) {
  v1::Status out;
  out.set_software_version(SoftwareVersion());
  out.set_run_id(page.run_id);
  out.set_epoch(page.epoch.value());
  out.set_phase(ToProto(page.phase));
  out.set_round(page.round.value());
  out.set_attempt(page.attempt.value());
  out.set_main_round(page.main_round);
  out.set_main_rounds(page.main_rounds);
  out.set_minibatches(page.minibatches);
  out.set_minibatches_planned(page.minibatches_planned);
  out.set_up_bits(page.up_bits);
  out.set_down_bits(page.down_bits);
  out.set_coordinates(page.coordinates);
  out.set_layout_digest(page.layout_digest);
  out.set_rule(page.rule);
  out.set_stepsize(page.stepsize);
  out.set_rho(page.rho);
  out.set_stepsize_warning(page.stepsize_warning);
  for (const auto& [name, value] : page.rule_numbers) {
    v1::RuleNumber& number = *out.add_rule_numbers();
    number.set_name(name);
    number.set_value(value);
  }
  v1::Race& race = *out.mutable_race();
  race.set_trials(page.race.trials);
  race.set_rounds(page.race.rounds);
  race.set_rounds_max(page.race.rounds_max);
  race.set_over(page.race.over);
  out.set_loss(page.loss);
  out.set_g_l1(page.g_l1);
  out.set_density(page.density);
  out.set_round_seconds(page.round_seconds);
  Fill(page.wire, out.mutable_wire());
  for (const WorkerPage& worker : page.workers) Fill(worker, out.add_workers());
  out.set_joins(page.joins);
  out.set_losses(page.losses);
  out.set_abstentions(page.abstentions);
  out.set_late_chunks(page.late_chunks);
  out.set_duplicate_chunks(page.duplicate_chunks);
  out.set_master_digest(page.master_digest);
  out.set_master_digest_round(page.master_digest_round.value());
  out.set_resident_bytes(page.resident_bytes);
  out.set_direction(page.direction);
  out.set_uptime_seconds(page.uptime_seconds);
  v1::TimeSplit& split = *out.mutable_time_split();
  split.set_compute(page.split.compute);
  split.set_wait(page.split.wait);
  split.set_tally(page.split.tally);
  split.set_commit(page.split.commit);
  split.set_apply(page.split.apply);
  split.set_worker_apply(page.split.worker_apply);
  split.set_round(page.split.round);
  out.set_seconds_left(page.seconds_left);
  *out.mutable_held_out() = ToProto(page.held_out);
  out.set_evaluator(page.evaluator);
  return out;
}

v1::WatchReply ToProto(const WatchView& view) {
  v1::WatchReply out;
  *out.mutable_status() = ToProto(view.status);
  for (const Event& in : view.events) {
    v1::Event& event = *out.add_events();
    event.set_sequence(in.sequence);
    event.set_kind(static_cast<v1::Event::Kind>(in.kind));
    event.set_round(in.round);
    event.set_unix_time(in.unix_seconds);
    event.set_worker(in.worker);
    event.set_reason(in.reason);
  }
  if (view.series.has_value()) {
    v1::RoundSeries& series = *out.mutable_series();
    series.set_first_round(view.series->first_round);
    series.set_rounds_per_point(view.series->rounds_per_point);
    series.mutable_loss()->Assign(view.series->loss.begin(), view.series->loss.end());
    series.mutable_stepsize()->Assign(view.series->stepsize.begin(), view.series->stepsize.end());
  }
  for (const HeldOut& held_out : view.held_out) *out.add_held_out() = ToProto(held_out);
  return out;
}

}  // namespace signvote::run
