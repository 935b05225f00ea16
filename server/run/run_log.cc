#include "server/run/run_log.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/clock.h"
#include "common/vote_terms.h"

namespace signvote::run {
namespace {

std::string Quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string NumberText(double value, int digits) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  std::snprintf(text, sizeof(text), "%.*g", digits, value);
  return text;
}

std::string Hex32(uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof(text), "%08x", value);
  return text;
}

std::string Hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

void JsonLine::Key(std::string_view key) {
  if (!body_.empty()) body_ += ',';
  body_ += Quoted(key);
  body_ += ':';
}

JsonLine& JsonLine::Text(std::string_view key, std::string_view value) {
  return Raw(key, Quoted(value));
}
JsonLine& JsonLine::Count(std::string_view key, uint64_t value) {
  return Raw(key, std::to_string(value));
}
JsonLine& JsonLine::Number(std::string_view key, double value) {
  return Raw(key, NumberText(value, 17));
}
JsonLine& JsonLine::Stepsize(std::string_view key, float value) {
  return Raw(key, NumberText(static_cast<double>(value), 9));
}
JsonLine& JsonLine::Raw(std::string_view key, std::string_view json) {
  Key(key);
  body_ += json;
  return *this;
}
JsonLine& JsonLine::Counts(std::string_view key, const std::vector<uint32_t>& values) {
  std::string list = "[";
  for (const uint32_t value : values) list += (list.size() > 1 ? "," : "") + std::to_string(value);
  return Raw(key, list + "]");
}

JsonLine& JsonLine::Floats(std::string_view key, const std::vector<float>& values) {
  std::string list = "[";
  for (const float value : values)
    list += (list.size() > 1 ? "," : "") + NumberText(static_cast<double>(value), 9);
  return Raw(key, list + "]");
}

JsonLine& JsonLine::Texts(std::string_view key, const std::vector<std::string>& values) {
  std::string list = "[";
  for (const std::string& value : values) list += (list.size() > 1 ? "," : "") + Quoted(value);
  return Raw(key, list + "]");
}

std::string RoundLine(const round::CommitRound& commit, const RoundLogExtras& extras) {
  JsonLine state;
  for (const auto& [name, value] : commit.rule.state) state.Number(name, value);
  std::string workers = "[";
  for (const RoundLogExtras::Voter& voter : extras.voters) {
    const WorkerScalars& s = voter.scalars;
    JsonLine line;
    line.Text("name", voter.name)
        .Count("share", voter.share.value())
        .Count("incarnation", voter.incarnation)
        .Number("loss", s.loss)
        .Number("g_l1", s.g_l1)
        .Number("g_l2_squared", s.g_l2_squared);
    for (size_t i = 0; i < commit.asked.size() && i < s.wanted.size(); ++i) {
      line.Number(Words(commit.asked[i]), s.wanted[i]);
    }
    if (!commit.local.plan.is_vote()) {
      line.Count("local_steps", s.local_steps > 0 ? s.local_steps : commit.local.plan.steps)
          .Floats("displacement_mean", s.displacement_mean);
    }
    line.Count("nonfinite_coordinates", s.nonfinite_coordinates)
        .Count("samples", s.samples)
        .Number("compute_seconds", voter.compute_seconds)
        .Number("apply_seconds", voter.apply_seconds);
    workers += (workers.size() > 1 ? "," : "") + line.Object();
  }
  workers += "]";
  std::string held_out = "[";
  for (const HeldOut& measured : extras.held_out) {
    JsonLine line;
    line.Text("worker", measured.worker)
        .Number("loss", measured.loss)
        .Number("error", measured.error)
        .Count("round", measured.round.value())
        .Text("windows", Hex64(measured.windows))
        .Raw("own", measured.own ? "true" : "false");
    held_out += (held_out.size() > 1 ? "," : "") + line.Object();
  }
  held_out += "]";
  const RaceProgress& race = commit.rule.race;
  JsonLine trials;
  if (race.rounds_max > 0) {
    trials.Count("trials", race.trials)
        .Count("rounds", race.rounds)
        .Count("rounds_max", race.rounds_max)
        .Raw("over", race.over ? "true" : "false");
  }
  std::vector<uint32_t> counted;
  counted.reserve(commit.chunks.size());
  for (const round::ChunkCount& chunk : commit.chunks) counted.push_back(chunk.counted);
  const double nan = std::nan("");
  JsonLine line;
  line.Count("round", commit.round.value())
      .Count("attempt", commit.attempt.value())
      .Text("kind", Words(commit.kind))
      .Count("data_step", commit.data_step.value())
      .Count("next_data_step", commit.next_data_step.value())
      .Count("main_rounds", commit.main_rounds)
      .Number("unix_time", extras.unix_seconds)
      .Stepsize("stepsize", commit.gamma)
      .Text("stepsize_bits", Hex32(std::bit_cast<uint32_t>(commit.gamma)))
      .Stepsize("rho", commit.rho)
      .Text("reason", commit.reason)
      .Raw("rule", state.Object())
      .Raw("race", trials.Object())
      .Number("loss", commit.loss.value_or(nan))
      .Number("g_l1", commit.gradient.l1.value_or(nan))
      .Number("density", commit.gradient.density.value_or(nan))
      .Raw("workers", workers)
      .Raw("held_out", held_out)
      .Counts("counted", counted)
      .Texts("members", extras.members)
      .Texts("voters", extras.counted_workers)
      .Count("abstentions", commit.abstentions)
      .Text("payload_hash", Hex64(extras.payload_hash))
      .Number("seconds", ToSeconds(commit.opened_for))
      .Number("wait_seconds", ToSeconds(commit.wait))
      .Number("tally_seconds", extras.tally_seconds)
      .Number("commit_seconds", extras.commit_seconds)
      .Count("up_rounds_bytes", extras.up_rounds_bytes)
      .Count("down_rounds_bytes", extras.down_rounds_bytes)
      .Count("minibatches", commit.local.minibatches);
  if (!commit.local.plan.is_vote()) {
    line.Count("local_steps", commit.local.plan.steps)
        .Stepsize("eta_first", commit.local.plan.eta_first)
        .Stepsize("eta_last", commit.local.plan.eta_last)
        .Raw("silent", commit.local.plan.is_silent() ? "true" : "false")
        .Floats("scales", commit.local.scales)
        .Stepsize("decay_step", commit.local.decay_step);
  }
  return line.Object();
}

}  // namespace signvote::run
