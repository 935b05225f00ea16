#include "lab/run/run_report.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>
#include <string_view>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

using Json = nlohmann::json;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The objects of JSON lines; a line that is none, because its writer was killed amid it, is left out.
std::vector<Json> Objects(std::string_view text) {
  std::vector<Json> objects;
  for (const absl::string_view line : absl::StrSplit(ToAbsl(text), '\n', absl::SkipEmpty())) {
    Json object = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (object.is_object()) objects.push_back(std::move(object));
  }
  return objects;
}

double NumberOf(const Json& object, const char* key, double otherwise = kNan) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : otherwise;
}

std::optional<uint64_t> CountOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_unsigned()) return std::nullopt;
  return found->get<uint64_t>();
}

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::vector<std::string> TextsOf(const Json& object, const char* key) {
  std::vector<std::string> texts;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return texts;
  for (const Json& item : *found)
    if (item.is_string()) texts.push_back(item.get<std::string>());
  return texts;
}

const char* KindWord(ScenarioEventKind kind) {
  switch (kind) {
    case ScenarioEventKind::kJoin:
      return "joined";
    case ScenarioEventKind::kLeave:
      return "left";
    case ScenarioEventKind::kKill:
      return "worker_killed";
    case ScenarioEventKind::kPause:
      return "paused";
    case ScenarioEventKind::kResume:
      return "resumed";
    case ScenarioEventKind::kServerKill:
      return "server_killed";
    case ScenarioEventKind::kSlow:
      return "slowed";
    case ScenarioEventKind::kLink:
      return "link_changed";
  }
  return "";
}

class Maker {
 public:
  explicit Maker(const RunInputs& inputs) : in_(inputs) {}

  absl::StatusOr<RunReport> Make() {
    ReadRounds();
    if (lines_.empty()) return absl::InvalidArgumentError("the round log has no round");
    out_.name = in_.name;
    out_.chosen = in_.chosen;
    out_.outcome = in_.record.outcome;
    AddPoints();
    AddHeldOut();
    AddWork();
    AddReplicas();
    AddEvents();
    return std::move(out_);
  }

 private:
  // A commit that was lost and made again counts as what it became.
  void ReadRounds() {
    for (Json& line : Objects(in_.round_log)) {
      const auto round = CountOf(line, "round");
      if (!round.has_value()) continue;
      if (lines_.contains(*round)) lost_.insert(*round);
      lines_[*round] = std::move(line);
    }
  }

  uint64_t MinibatchesOf(uint64_t round) const {
    const auto line = lines_.find(round);
    return line == lines_.end() ? 1 : CountOf(line->second, "local_steps").value_or(1);
  }

  // Ballots of the round that were counted with every chunk: no more than the chunk with the fewest has.
  static uint64_t WholeBallots(const Json& line) {
    uint64_t whole = TextsOf(line, "voters").size();
    const auto counted = line.find("counted");
    if (counted == line.end() || !counted->is_array()) return whole;
    for (const Json& chunk : *counted)
      if (chunk.is_number_unsigned()) whole = std::min(whole, chunk.get<uint64_t>());
    return whole;
  }

  void AddPoints() {
    // Counters begin anew with each of the server's processes.
    uint64_t base_up = 0, base_down = 0, up = 0, down = 0, minibatches = 0;
    double waited = 0, took = 0;
    opened_ = NumberOf(lines_.begin()->second, "unix_time", 0) -
              NumberOf(lines_.begin()->second, "seconds", 0);
    for (const auto& [round, line] : lines_) {
      RoundPoint p{.round = round};
      p.main_rounds = CountOf(line, "main_rounds").value_or(0);
      p.unix_seconds = NumberOf(line, "unix_time", 0);
      p.seconds = p.unix_seconds - opened_;
      p.round_seconds = NumberOf(line, "seconds", 0);
      p.wait_seconds = NumberOf(line, "wait_seconds", 0);
      p.loss = NumberOf(line, "loss");
      p.stepsize = NumberOf(line, "stepsize");
      const uint64_t up_now = CountOf(line, "up_rounds_bytes").value_or(0);
      const uint64_t down_now = CountOf(line, "down_rounds_bytes").value_or(0);
      if (up_now < up || down_now < down) {
        base_up += up;
        base_down += down;
      }
      up = up_now;
      down = down_now;
      p.bytes_up = base_up + up;
      p.bytes_down = base_down + down;
      minibatches += WholeBallots(line) * MinibatchesOf(round);
      p.minibatches = minibatches;
      p.members = static_cast<uint32_t>(TextsOf(line, "members").size());
      p.voters = static_cast<uint32_t>(TextsOf(line, "voters").size());
      waited += p.wait_seconds;
      took += p.round_seconds;
      out_.points.push_back(p);
    }
    const RoundPoint& last = out_.points.back();
    out_.rounds = last.round + 1;
    out_.unlogged_rounds = out_.rounds - lines_.size();
    out_.main_rounds = last.main_rounds;
    out_.seconds = last.seconds;
    out_.minibatches_counted = minibatches;
    out_.wait_share = took > 0 ? waited / took : 0;
  }

  void AddWork() {
    for (const RecordedProcess& process : in_.record.processes) {
      out_.process_seconds += process.end_unix_seconds.value_or(process.start_unix_seconds) -
                              process.start_unix_seconds;
      uint64_t computed = 0, last = 0;
      std::set<uint64_t> seen;
      if (const auto log = in_.worker_logs.find(process.name); log != in_.worker_logs.end()) {
        for (const Json& line : Objects(log->second)) {
          const auto round = CountOf(line, "round");
          if (!round.has_value()) continue;
          // The same process, told of the same round's commit twice.
          if (!seen.insert(*round).second || *round >= out_.rounds) lost_.insert(*round);
          computed += MinibatchesOf(*round);
          last = *round;
        }
      }
      // What a killed process was at counts as computed whole.
      if (process.killed && WasMember(process)) computed += MinibatchesOf(last + 1);
      out_.minibatches_computed += computed;
    }
    for (const auto& [round, line] : lines_) {
      const std::vector<std::string> voters = TextsOf(line, "voters");
      const std::set<std::string> counted(voters.begin(), voters.end());
      const auto workers = line.find("workers");
      if (workers == line.end() || !workers->is_array()) continue;
      for (const Json& worker : *workers)
        if (worker.is_object() && counted.contains(TextOf(worker, "name")))
          out_.counted_seconds += NumberOf(worker, "compute_seconds", 0);
    }
    out_.lost_commits = lost_.size();
    out_.work_kept = Quotient(static_cast<double>(out_.minibatches_counted),
                              static_cast<double>(out_.minibatches_computed));
    out_.goodput = Quotient(out_.counted_seconds, out_.process_seconds);
  }

  void AddHeldOut() {
    for (const auto& [_, line] : lines_) {
      const auto measured = line.find("held_out");
      if (measured == line.end() || !measured->is_array()) continue;
      for (const Json& one : *measured) {
        const auto round = one.is_object() ? CountOf(one, "round") : std::nullopt;
        const double loss = round.has_value() ? NumberOf(one, "loss") : kNan;
        if (!std::isfinite(loss)) continue;
        out_.held_out.push_back({.round = *round,
                                 .minibatches = CountedBefore(*round),
                                 .loss = loss,
                                 .error = NumberOf(one, "error", 0)});
      }
    }
    std::stable_sort(out_.held_out.begin(), out_.held_out.end(),
                     [](const auto& a, const auto& b) { return a.round < b.round; });
  }

  uint64_t CountedBefore(uint64_t round) const {
    const auto after =
        std::lower_bound(out_.points.begin(), out_.points.end(), round,
                         [](const RoundPoint& p, uint64_t r) { return p.round < r; });
    return after == out_.points.begin() ? 0 : std::prev(after)->minibatches;
  }

  static double Quotient(double a, double b) { return b > 0 ? a / b : 0; }

  // Whether some round during the process's life had its worker as a member.
  bool WasMember(const RecordedProcess& process) const {
    const double end = process.end_unix_seconds.value_or(process.start_unix_seconds);
    return std::any_of(lines_.begin(), lines_.end(), [&](const auto& entry) {
      const double at = NumberOf(entry.second, "unix_time", 0);
      if (at < process.start_unix_seconds || at > end) return false;
      const std::vector<std::string> members = TextsOf(entry.second, "members");
      return std::find(members.begin(), members.end(), process.worker) != members.end();
    });
  }

  void AddReplicas() {
    bool equal = true;
    if (in_.server.has_value()) {
      out_.digests["server"] = in_.server->digest;
      equal = in_.server->round == out_.rounds;
    }
    size_t workers = 0;
    for (const RecordedProcess& process : in_.record.processes) {
      const auto text = in_.worker_reports.find(process.name);
      if (text == in_.worker_reports.end()) continue;
      const Json report = Json::parse(text->second, nullptr, /*allow_exceptions=*/false);
      // One that left before the end has the replica of its last round.
      if (!report.is_object() || CountOf(report, "next_round") != out_.rounds) continue;
      const std::string digest = TextOf(report, "digest");
      if (digest.empty()) continue;
      out_.digests[process.worker] = digest;
      ++workers;
    }
    std::set<std::string> different;
    for (const auto& [_, digest] : out_.digests) different.insert(digest);
    out_.replicas_equal = equal && workers > 0 && different.size() == 1;
  }

  std::optional<double> CommitAfter(double unix_seconds) const {
    for (const RoundPoint& p : out_.points)
      if (p.unix_seconds > unix_seconds) return p.unix_seconds - unix_seconds;
    return std::nullopt;
  }

  std::optional<double> FirstBallotAfter(double unix_seconds, const std::string& worker) const {
    for (const auto& [_, line] : lines_) {
      const double at = NumberOf(line, "unix_time", 0);
      if (at <= unix_seconds) continue;
      const std::vector<std::string> voters = TextsOf(line, "voters");
      if (std::find(voters.begin(), voters.end(), worker) != voters.end()) return at - unix_seconds;
    }
    return std::nullopt;
  }

  void AddEvents() {
    for (const RecordedEvent& event : in_.record.events) {
      if (!event.applied) continue;
      ReportEvent e{.kind = KindWord(event.kind),
                    .worker = event.worker,
                    .round = event.round,
                    .seconds = event.unix_seconds - opened_,
                    .seconds_to_next_commit = CommitAfter(event.unix_seconds)};
      if (event.kind == ScenarioEventKind::kJoin)
        e.seconds_to_first_ballot = FirstBallotAfter(event.unix_seconds, event.worker);
      out_.events.push_back(std::move(e));
    }
  }

  const RunInputs& in_;
  RunReport out_;
  std::map<uint64_t, Json> lines_;  // the server's, by round
  std::set<uint64_t> lost_;
  double opened_ = 0;  // unix seconds
};

nlohmann::ordered_json OrNull(const std::optional<double>& value) {
  if (!value.has_value()) return nullptr;
  return *value;
}

std::string OrEmpty(const std::optional<double>& value) {
  return value.has_value() ? absl::StrFormat("%.3f", *value) : "";
}

nlohmann::ordered_json ToJson(const RunReport& r) {
  nlohmann::ordered_json chosen = nlohmann::ordered_json::object();
  for (const auto& [key, value] : r.chosen) chosen[key] = value;
  nlohmann::ordered_json held_out = nullptr;
  if (!r.held_out.empty()) {
    const HeldOutPoint& last = r.held_out.back();
    held_out = {{"loss", last.loss},
                {"error", last.error},
                {"round", last.round},
                {"minibatches", last.minibatches}};
  }
  nlohmann::ordered_json json = {
      {"name", r.name},
      {"chosen", chosen},
      {"outcome", r.outcome},
      {"rounds", r.rounds},
      {"main_rounds", r.main_rounds},
      {"unlogged_rounds", r.unlogged_rounds},
      {"seconds", r.seconds},
      {"loss", {{"first", r.points.front().loss}, {"last", r.points.back().loss}}},
      {"held_out", held_out},
      {"lost_commits", r.lost_commits},
      {"replicas_equal", r.replicas_equal},
      {"digests", r.digests},
      {"work_kept", r.work_kept},
      {"minibatches_counted", r.minibatches_counted},
      {"minibatches_computed", r.minibatches_computed},
      {"goodput", r.goodput},
      {"counted_seconds", r.counted_seconds},
      {"process_seconds", r.process_seconds},
      {"wait_share", r.wait_share},
      {"bytes_up", r.points.back().bytes_up},
      {"bytes_down", r.points.back().bytes_down}};
  json["events"] = nlohmann::ordered_json::array();
  for (const ReportEvent& e : r.events) {
    nlohmann::ordered_json event = {{"kind", e.kind}};
    if (!e.worker.empty()) event["worker"] = e.worker;
    event["round"] = e.round;
    event["seconds"] = e.seconds;
    event["seconds_to_next_commit"] = OrNull(e.seconds_to_next_commit);
    if (e.kind == "joined") event["seconds_to_first_ballot"] = OrNull(e.seconds_to_first_ballot);
    json["events"].push_back(std::move(event));
  }
  return json;
}

std::string Dumped(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

absl::StatusOr<RunReport> MakeRunReport(const RunInputs& inputs) { return Maker(inputs).Make(); }

std::string ReportJson(const RunReport& report) { return Dumped(ToJson(report)); }

std::string ReportsJson(const std::vector<RunReport>& reports) {
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  for (const RunReport& report : reports) runs.push_back(ToJson(report));
  return Dumped({{"runs", runs}});
}

std::string RoundsCsv(const RunReport& report) {
  std::string csv =
      "round,main_rounds,seconds,round_seconds,wait_seconds,loss,stepsize,bytes_up,bytes_down,"
      "minibatches,members,voters\n";
  for (const RoundPoint& p : report.points) {
    absl::StrAppend(
        &csv,
        absl::StrFormat("%d,%d,%.6f,%.6f,%.6f,%s,%.9g,%d,%d,%d,%d,%d\n", p.round, p.main_rounds,
                        p.seconds, p.round_seconds, p.wait_seconds,
                        std::isfinite(p.loss) ? absl::StrFormat("%.9g", p.loss) : "", p.stepsize,
                        p.bytes_up, p.bytes_down, p.minibatches, p.members, p.voters));
  }
  return csv;
}

std::string EventsCsv(const RunReport& report) {
  std::string csv = "kind,worker,round,seconds,seconds_to_next_commit,seconds_to_first_ballot\n";
  for (const ReportEvent& e : report.events) {
    absl::StrAppend(&csv, absl::StrFormat("%s,%s,%d,%.3f,%s,%s\n", e.kind, e.worker, e.round,
                                          e.seconds, OrEmpty(e.seconds_to_next_commit),
                                          OrEmpty(e.seconds_to_first_ballot)));
  }
  return csv;
}

}  // namespace signvote::lab
