#include "server/rpc/run_log.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/log.h"
#include "common/status.h"

namespace signvote::rpc {
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

std::string Names(const std::vector<std::string>& names) {
  std::string out = "[";
  for (const std::string& name : names) out += (out.size() > 1 ? "," : "") + Quoted(name);
  return out + "]";
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

absl::StatusOr<std::unique_ptr<RunLog>> RunLog::Open(FileSystem* fs, const std::string& round_path,
                                                     const std::string& event_path) {
  auto log = std::make_unique<RunLog>();
  if (!round_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(log->rounds_, fs->OpenLog(round_path, 0644));
  }
  if (!event_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(log->events_, fs->OpenLog(event_path, 0644));
  }
  return log;
}

void RunLog::Round(const round::CommitRound& commit, const RoundLogExtras& extras) {
  if (rounds_ == nullptr) return;
  JsonLine state;
  for (const auto& [name, value] : commit.stepsize.state) state.Number(name, value);
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
    if (s.probe_l1.has_value()) line.Number("probe_l1", *s.probe_l1);
    if (s.prev_inner.has_value()) line.Number("prev_inner", *s.prev_inner);
    line.Count("nonfinite_coordinates", s.nonfinite_coordinates)
        .Count("samples", s.samples)
        .Number("compute_seconds", voter.compute_seconds)
        .Number("apply_seconds", voter.apply_seconds);
    workers += (workers.size() > 1 ? "," : "") + line.Object();
  }
  workers += "]";
  char bits[16], hash[20];
  std::snprintf(bits, sizeof(bits), "%08x", std::bit_cast<uint32_t>(commit.stepsize.gamma));
  std::snprintf(hash, sizeof(hash), "%016llx",
                static_cast<unsigned long long>(extras.verdict_hash));
  JsonLine line;
  line.Count("round", commit.round.value())
      .Count("attempt", commit.attempt.value())
      .Count("data_step", commit.data_step.value())
      .Number("unix_time", extras.unix_seconds)
      .Stepsize("stepsize", commit.stepsize.gamma)
      .Text("stepsize_bits", bits)
      .Text("reason", commit.stepsize.reason)
      .Raw("rule", state.Object())
      .Raw("loss", NumberText(commit.loss.value_or(std::nan("")), 17))
      .Raw("g_l1", NumberText(commit.g_l1.value_or(std::nan("")), 17))
      .Raw("density", NumberText(commit.density.value_or(std::nan("")), 17))
      .Raw("workers", workers)
      .Counts("counted", commit.counted)
      .Raw("members", Names(extras.members))
      .Raw("voters", Names(extras.counted_workers))
      .Count("abstentions", commit.abstentions)
      .Count("ties", extras.ties)
      .Text("verdict_hash", hash)
      .Number("seconds", ToSeconds(commit.opened_for))
      .Number("wait_seconds", ToSeconds(commit.wait))
      .Number("tally_seconds", extras.tally_seconds)
      .Number("commit_seconds", extras.commit_seconds)
      .Count("up_rounds_bytes", extras.up_rounds_bytes)
      .Count("down_rounds_bytes", extras.down_rounds_bytes);
  Write(&rounds_, line);
}

void RunLog::Event(const JsonLine& line) { Write(&events_, line); }

void RunLog::Write(std::unique_ptr<LogFile>* file, const JsonLine& line) {
  if (*file == nullptr) return;
  if (const absl::Status status = (*file)->Append(line.Object() + "\n"); !status.ok()) {
    LogError("a run log cannot be written and is closed", {{"error", Describe(status)}});
    file->reset();
  }
}

}  // namespace signvote::rpc
