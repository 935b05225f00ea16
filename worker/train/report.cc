#include "worker/train/report.h"

#include <cmath>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace signvote {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }
Json Number(const std::optional<double>& value) {
  return value.has_value() ? Number(*value) : Json(nullptr);
}

Json ToJson(const HeldOutLoss& held_out) {
  return {{"loss", Number(held_out.loss)},
          {"error", Number(held_out.error)},
          {"perplexity", Number(held_out.perplexity)},
          {"round", held_out.round.value()},
          {"windows", absl::StrFormat("%016x", held_out.windows)}};
}
Json ToJson(const std::optional<HeldOutLoss>& held_out) {
  return held_out.has_value() ? ToJson(*held_out) : Json(nullptr);
}

// written: the round of the file; resumed: null (it began without one) or how, round, age_rounds.
Json ToJson(const WorkerCheckpoints::Stats& stats) {
  Json resumed = nullptr;
  if (stats.resumed.has_value()) {
    resumed = {{"how", std::string(Words(stats.resumed->how))},
               {"round", stats.resumed->round.value()},
               {"age_rounds", stats.resumed->age_rounds}};
  }
  return {{"written", stats.written.has_value() ? Json(stats.written->value()) : Json(nullptr)},
          {"written_total", stats.written_total},
          {"failed_total", stats.failed_total},
          {"resumed", std::move(resumed)}};
}

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

}  // namespace

std::string ReportJson(const ReportContext& context, const TrainerReport& report,
                       const SessionStats& stats) {
  const double voted = static_cast<double>(stats.rounds_voted);
  const double received = static_cast<double>(stats.rounds_received);
  const double fp32_per_round = 4.0 * static_cast<double>(context.coordinates);
  Json json;
  json["name"] = context.name;
  json["model"] = context.model;
  json["device"] = context.device;
  json["data"] = context.data;
  json["target_unit"] = context.target_unit;
  json["outcome"] = context.outcome;
  json["run_id"] = report.run.run_id.empty() ? Json(nullptr) : Json(report.run.run_id.ToText());
  json["coordinates"] = context.coordinates;
  json["next_round"] = report.next_round.value();
  json["main_rounds"] = report.main_rounds;
  json["rounds_voted"] = report.rounds_voted;
  json["rounds_abstained"] = report.rounds_abstained;
  json["rounds_applied"] = stats.rounds_applied;
  json["loss"] = {{"first", Number(report.loss_first)}, {"last", Number(report.loss_last)}};
  json["held_out"] = {{"first", ToJson(report.held_out_first)},
                      {"last", ToJson(report.held_out_last)}};
  json["wire"] = {
      {"sent_bytes", stats.wire_sent_bytes},
      {"received_bytes", stats.wire_received_bytes},
      {"setup_sent_bytes", stats.setup_sent_bytes},
      {"setup_received_bytes", stats.setup_received_bytes},
      {"fp32_bytes", fp32_per_round * (voted + received)},
      {"sent_bytes_per_round", Ratio(static_cast<double>(stats.wire_sent_bytes), voted)},
      {"received_bytes_per_round", Ratio(static_cast<double>(stats.wire_received_bytes), received)},
      {"fp32_bytes_per_round", fp32_per_round}};
  json["digest"] =
      report.digest.has_value() ? Json(absl::StrFormat("%016x", *report.digest)) : Json(nullptr);
  json["incarnation"] = stats.incarnation;
  json["reconnects"] = stats.reconnects;
  json["state_transfers"] = stats.state_transfers;
  json["verdict_mismatches"] = stats.verdict_mismatches;
  json["join_seconds"] = stats.join_seconds;
  json["seconds"] = report.seconds;
  json["minibatches"] = report.minibatches;
  json["targets"] = report.targets;
  json["targets_per_second"] = Ratio(static_cast<double>(report.targets), report.seconds);
  json["first_chunk_overlap_ratio"] = Ratio(static_cast<double>(report.rounds_overlapped),
                                            static_cast<double>(report.rounds_voted));
  json["time_split"] = {{"compute", report.compute_seconds},
                        {"pack", report.pack_seconds},
                        {"wait", report.wait_seconds},
                        {"apply", report.apply_seconds},
                        {"evaluate", report.eval_seconds}};
  json["checkpoint"] =
      context.checkpoints.has_value() ? ToJson(*context.checkpoints) : Json(nullptr);
  // A path need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string RoundLogLine(const RoundReport& round) {
  const bool voted = !round.abstained.has_value();
  Json json;
  json["round"] = round.round.value();
  json["data_step"] = round.data_step.value();
  json["share"] = round.share.value();
  json["members"] = round.members;
  json["voters"] = round.voters;
  json["observer"] = round.observer;
  json["abstained"] = voted ? Json(nullptr) : Json(Words(*round.abstained));
  json["loss"] = Number(round.scalars.loss);
  json["run_loss"] = Number(round.run_loss);
  json["held_out"] = ToJson(round.held_out);
  if (round.held_out.has_value()) json["held_out"]["own"] = round.held_out_own;
  json["commit"] = std::string(Words(round.kind));
  json["main_round"] = round.main_round;
  json["stepsize"] = Number(static_cast<double>(round.stepsize));
  json["g_l1"] = voted ? Number(round.scalars.g_l1) : Json(nullptr);
  json["g_l2_squared"] = voted ? Number(round.scalars.g_l2_squared) : Json(nullptr);
  json["probe_l1"] = Number(round.probe_l1);
  json["prev_inner"] = Number(round.prev_inner);
  json["minibatches"] = round.minibatches;
  json["targets"] = round.targets;
  json["first_chunk_ms"] = voted ? Number(round.first_chunk_seconds * 1e3) : Json(nullptr);
  json["backward_end_ms"] = voted ? Number(round.backward_end_seconds * 1e3) : Json(nullptr);
  json["compute_ms"] = round.compute_took_seconds * 1e3;
  json["pack_ms"] = round.pack_took_seconds * 1e3;
  json["wait_ms"] = round.wait_took_seconds * 1e3;
  json["apply_ms"] = round.apply_took_seconds * 1e3;
  json["round_ms"] = round.round_took_seconds * 1e3;
  json["first_chunk_overlapped"] = round.first_chunk_overlapped;
  return json.dump();
}

}  // namespace signvote
