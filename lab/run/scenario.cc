#include "lab/run/scenario.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <string_view>

// Compiled in: the library that Debian builds of it throws.
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

constexpr double kSecondsMax = 1e7;
constexpr double kRateMax = 1e6;  // Mbit/s
constexpr int64_t kRoundsMax = int64_t{1} << 40;
constexpr int64_t kMillisecondsMax = 3'600'000;

constexpr std::string_view kTop[] = {"seed",   "rounds",  "seconds", "minibatches", "undisturbed",
                                     "server", "workers", "worker",  "events",      "churn",
                                     "links",  "link",    "matrix"};
constexpr std::string_view kEventKeys[] = {"round",    "seconds",     "kind",       "worker",
                                           "count",    "for_seconds", "compute_ms", "rate_mbit",
                                           "delay_ms", "cut"};
constexpr std::string_view kChurnKeys[] = {"mean_life", "mean_absence", "from_seconds",
                                           "notice_seconds"};
constexpr std::string_view kLinkKeys[] = {"rate_mbit", "delay_ms"};
// What the lab itself says to the programs.
constexpr std::string_view kOwnOfServer[] = {"listen",
                                             "http",
                                             "port-file",
                                             "insecure",
                                             "insecure-bind",
                                             "tls-ca",
                                             "tls-certificate",
                                             "tls-key",
                                             "tokens",
                                             "round-log",
                                             "event-log",
                                             "export",
                                             "export-dtype",
                                             "export-shard-bytes",
                                             "config",
                                             "print-config",
                                             "rounds",
                                             "max-rounds",
                                             "seed",
                                             "length-unknown"};
constexpr std::string_view kOwnOfWorker[] = {
    "server",  "name",       "token-file", "tls-ca",          "tls-certificate", "tls-key",
    "tls-dir", "http",       "insecure",   "report",          "round-log",       "config",
    "save",    "save-every", "start-fifo", "compute-ms-file", "print-config",    "selftest"};
constexpr std::pair<std::string_view, ScenarioEventKind> kKinds[] = {
    {"join", ScenarioEventKind::kJoin},     {"leave", ScenarioEventKind::kLeave},
    {"kill", ScenarioEventKind::kKill},     {"pause", ScenarioEventKind::kPause},
    {"resume", ScenarioEventKind::kResume}, {"server_kill", ScenarioEventKind::kServerKill},
    {"slow", ScenarioEventKind::kSlow},     {"link", ScenarioEventKind::kLink}};

bool Contains(std::span<const std::string_view> words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string Joined(std::span<const std::string_view> words) {
  std::string all;
  for (const std::string_view word : words)
    absl::StrAppend(&all, all.empty() ? "" : ", ", std::string(word));
  return all;
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(path, ": ", what)), ExitCode::kUsage);
}

// Where a value was said: a line of the file, or a setting, which is parsed under its own text as path.
std::string WhereIs(const toml::node& node) {
  const auto& source = node.source();
  if (source.path != nullptr) return *source.path;
  return absl::StrCat("line ", source.begin.line);
}

std::string TextOf(const toml::node& node) {
  if (const auto text = node.value_exact<std::string>()) return *text;
  if (const auto whole = node.value_exact<int64_t>()) return absl::StrCat(*whole);
  if (const auto number = node.value_exact<double>()) return absl::StrFormat("%.15g", *number);
  if (const auto boolean = node.value_exact<bool>()) return *boolean ? "true" : "false";
  return "";
}

// Reads one scenario from a file whose settings and choices are already in place.
class ScenarioReader {
 public:
  ScenarioReader(const std::string& path, const toml::table& root) : path_(path), root_(root) {}

  absl::StatusOr<Scenario> Read() {
    SIGNVOTE_RETURN_IF_ERROR(CheckKeys(root_, "at the top", kTop));
    SIGNVOTE_RETURN_IF_ERROR(ReadTop());
    SIGNVOTE_RETURN_IF_ERROR(ReadServer());
    SIGNVOTE_RETURN_IF_ERROR(ReadWorkers());
    SIGNVOTE_RETURN_IF_ERROR(ReadLinks());
    SIGNVOTE_RETURN_IF_ERROR(ReadChurn());
    SIGNVOTE_RETURN_IF_ERROR(ReadEvents());
    SIGNVOTE_RETURN_IF_ERROR(ReadOwn());
    if (undisturbed_) {
      scenario_.events.clear();
      scenario_.churn.reset();
    }
    return std::move(scenario_);
  }

 private:
  absl::Status At(const toml::node& node, const std::string& what) const {
    return Bad(path_, absl::StrCat(WhereIs(node), ": ", what));
  }

  absl::Status CheckKeys(const toml::table& table, const std::string& where,
                         std::span<const std::string_view> known) const {
    for (const auto& [key, node] : table) {
      if (Contains(known, key.str())) continue;
      return At(node, absl::StrCat("\"", std::string(key.str()), "\" is not known ", where,
                                   "; there are ", Joined(known)));
    }
    return absl::OkStatus();
  }

  absl::Status Whole(const toml::table& table, std::string_view key, int64_t least, int64_t most,
                     std::optional<int64_t>* out) const {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    const auto value = node->value_exact<int64_t>();
    if (!value.has_value() || *value < least || *value > most) {
      return At(*node, absl::StrCat("\"", std::string(key), "\" must be a whole number from ",
                                    least, " to ", most));
    }
    *out = *value;
    return absl::OkStatus();
  }

  // `least` itself is taken where it is 0 and `above` is not said.
  absl::Status Number(const toml::table& table, std::string_view key, double least, double most,
                      std::optional<double>* out) const {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    const auto value = node->is_number() ? node->value<double>() : std::nullopt;
    if (!value.has_value() || !(*value >= least && *value <= most)) {
      return At(*node, absl::StrCat("\"", std::string(key), "\" must be a number from ", least,
                                    " to ", most));
    }
    *out = *value;
    return absl::OkStatus();
  }

  absl::Status Boolean(const toml::table& table, std::string_view key, bool* out) const {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    const auto value = node->value_exact<bool>();
    if (!value.has_value())
      return At(*node, absl::StrCat("\"", std::string(key), "\" must be true or false"));
    *out = *value;
    return absl::OkStatus();
  }

  // nullptr: it is not there.
  absl::StatusOr<const toml::table*> Section(std::string_view name) const {
    const toml::node* const node = root_.get(name);
    if (node == nullptr) return nullptr;
    if (node->as_table() == nullptr)
      return At(*node, absl::StrCat("\"", std::string(name), "\" must be a section [",
                                    std::string(name), "]"));
    return node->as_table();
  }

  absl::Status Flag(const toml::key& key, const toml::node& node,
                    std::span<const std::string_view> own, FlagMap* flags) const {
    const std::string name(key.str());
    if (Contains(own, name)) {
      const bool at_top = name == "rounds" || name == "max-rounds" || name == "seed";
      return At(node, absl::StrCat("\"", name, "\" is said by the lab",
                                   at_top ? " from the top of the file" : "", "; leave it away"));
    }
    if (name.empty() ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") != std::string::npos)
      return At(node, absl::StrCat("\"", name,
                                   "\" is no flag's name: without dashes in front, and "
                                   "with dashes within"));
    if (node.is_table() || node.is_array() || node.is_date() || node.is_time() ||
        node.is_date_time())
      return At(node, absl::StrCat("\"", name, "\" must be a text, a number, true or false"));
    (*flags)[name] = FlagText(node);
    return absl::OkStatus();
  }

  // Exact: a flag is read back as the same number.
  static std::string FlagText(const toml::node& node) {
    const auto number = node.value_exact<double>();
    return number.has_value() ? absl::StrFormat("%.17g", *number) : TextOf(node);
  }

  absl::Status ReadTop() {
    std::optional<int64_t> seed, rounds;
    SIGNVOTE_RETURN_IF_ERROR(Whole(root_, "seed", 0, INT64_MAX, &seed));
    SIGNVOTE_RETURN_IF_ERROR(Whole(root_, "rounds", 1, kRoundsMax, &rounds));
    SIGNVOTE_RETURN_IF_ERROR(Number(root_, "seconds", 0.001, kSecondsMax, &scenario_.seconds));
    std::optional<int64_t> minibatches;
    SIGNVOTE_RETURN_IF_ERROR(Whole(root_, "minibatches", 1, kRoundsMax, &minibatches));
    if (minibatches.has_value()) scenario_.minibatches = static_cast<uint64_t>(*minibatches);
    SIGNVOTE_RETURN_IF_ERROR(Boolean(root_, "undisturbed", &undisturbed_));
    if (seed.has_value()) scenario_.seed = static_cast<uint64_t>(*seed);
    if (rounds.has_value()) scenario_.rounds = static_cast<uint64_t>(*rounds);
    if (!rounds.has_value() && !scenario_.seconds.has_value() && !minibatches.has_value()) {
      return Bad(
          path_,
          "nothing ends the run; say at the top \"rounds\" = so many main rounds, \"seconds\" "
          "after the first commit, or \"minibatches\" that are counted");
    }
    return absl::OkStatus();
  }

  absl::Status ReadServer() {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section("server"));
    if (section == nullptr) return absl::OkStatus();
    for (const auto& [key, node] : *section) {
      if (key.str() == "journal") {
        SIGNVOTE_RETURN_IF_ERROR(Boolean(*section, "journal", &scenario_.journal));
        continue;
      }
      SIGNVOTE_RETURN_IF_ERROR(Flag(key, node, kOwnOfServer, &scenario_.server));
    }
    return absl::OkStatus();
  }

  absl::Status ReadWorkers() {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section("workers"));
    std::optional<int64_t> count;
    if (section != nullptr)
      SIGNVOTE_RETURN_IF_ERROR(Whole(*section, "count", 1, kScenarioWorkersMax, &count));
    if (!count.has_value()) {
      return Bad(path_, "[workers] must have \"count\", how many there are at the start");
    }
    for (int64_t i = 1; i <= *count; ++i) scenario_.workers.push_back(absl::StrCat("w", i));
    for (const auto& [key, node] : *section) {
      if (key.str() == "count") continue;
      if (key.str() != "kind") {
        SIGNVOTE_RETURN_IF_ERROR(Flag(key, node, kOwnOfWorker, &scenario_.worker_flags));
        continue;
      }
      const auto kind = node.value_exact<std::string>();
      if (kind != "synthetic" && kind != "model") {
        return At(node,
                  "\"kind\" must be \"synthetic\" (a quadratic objective, without LibTorch) or "
                  "\"model\" (signvote-worker)");
      }
      scenario_.program = *kind == "model" ? WorkerProgram::kModel : WorkerProgram::kSynthetic;
    }
    return absl::OkStatus();
  }

  absl::Status ReadShape(const toml::table& table, LinkShape* shape) const {
    std::optional<double> rate, delay;
    SIGNVOTE_RETURN_IF_ERROR(Number(table, "rate_mbit", 0, kRateMax, &rate));
    SIGNVOTE_RETURN_IF_ERROR(Number(table, "delay_ms", 0, kMillisecondsMax, &delay));
    shape->rate_mbit = rate.value_or(shape->rate_mbit);
    shape->delay_ms = delay.value_or(shape->delay_ms);
    return absl::OkStatus();
  }

  absl::Status ReadLinks() {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section("links"));
    if (section == nullptr) return absl::OkStatus();
    SIGNVOTE_RETURN_IF_ERROR(CheckKeys(*section, "in [links]", kLinkKeys));
    scenario_.links.emplace();
    return ReadShape(*section, &*scenario_.links);
  }

  absl::Status ReadChurn() {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section("churn"));
    if (section == nullptr) return absl::OkStatus();
    SIGNVOTE_RETURN_IF_ERROR(CheckKeys(*section, "in [churn]", kChurnKeys));
    std::optional<double> life, absence, from, notice;
    SIGNVOTE_RETURN_IF_ERROR(Number(*section, "mean_life", 0.1, kSecondsMax, &life));
    SIGNVOTE_RETURN_IF_ERROR(Number(*section, "mean_absence", 0.1, kSecondsMax, &absence));
    SIGNVOTE_RETURN_IF_ERROR(Number(*section, "from_seconds", 0, kSecondsMax, &from));
    SIGNVOTE_RETURN_IF_ERROR(Number(*section, "notice_seconds", 0, kSecondsMax, &notice));
    if (!life.has_value() || !absence.has_value())
      return At(*section, "[churn] must have \"mean_life\" and \"mean_absence\", in seconds");
    scenario_.churn = Churn{.mean_life_seconds = *life,
                            .mean_absence_seconds = *absence,
                            .from_seconds = from.value_or(0),
                            .notice_seconds = notice.value_or(0)};
    return absl::OkStatus();
  }

  bool IsKnown(const std::string& worker) const {
    return std::find(names_.begin(), names_.end(), worker) != names_.end();
  }

  absl::Status ReadEvents() {
    names_ = scenario_.workers;
    const toml::node* const node = root_.get("events");
    if (node == nullptr) return absl::OkStatus();
    const toml::array* const blocks = node->as_array();
    if (blocks == nullptr || (!blocks->empty() && !blocks->is_homogeneous<toml::table>()))
      return At(*node, "\"events\" must be sections [[events]]");
    // Names that events give are known to all others, wherever they stand.
    for (const toml::node& block : *blocks) SIGNVOTE_RETURN_IF_ERROR(ReadEvent(*block.as_table()));
    for (size_t i = 0; i < scenario_.events.size(); ++i) {
      for (const std::string& worker : scenario_.events[i].workers) {
        if (IsKnown(worker)) continue;
        return At((*blocks)[i],
                  absl::StrCat("there is no worker \"", worker,
                               "\"; those of the start are w1 to w", scenario_.workers.size(),
                               ", others are named by the event that they join with"));
      }
    }
    if (names_.size() > kScenarioWorkersMax)
      return At(*node, absl::StrCat("there are ", names_.size(), " workers; at most ",
                                    kScenarioWorkersMax, " take part in a run, joiners included"));
    return absl::OkStatus();
  }

  absl::Status ReadEvent(const toml::table& table) {
    SIGNVOTE_RETURN_IF_ERROR(CheckKeys(table, "in [[events]]", kEventKeys));
    ScenarioEvent event;
    const toml::node* const kind = table.get("kind");
    const auto word = kind == nullptr ? std::nullopt : kind->value_exact<std::string>();
    const auto* const found = std::find_if(std::begin(kKinds), std::end(kKinds),
                                           [&](const auto& k) { return word == k.first; });
    if (found == std::end(kKinds)) {
      std::string words;
      for (const auto& [text, _] : kKinds)
        absl::StrAppend(&words, words.empty() ? "" : ", ", std::string(text));
      return At(kind == nullptr ? table : *kind,
                absl::StrCat("an event's \"kind\" must be one of ", words));
    }
    event.kind = found->second;
    std::optional<int64_t> round;
    SIGNVOTE_RETURN_IF_ERROR(Whole(table, "round", 0, kRoundsMax, &round));
    SIGNVOTE_RETURN_IF_ERROR(Number(table, "seconds", 0, kSecondsMax, &event.seconds));
    if (round.has_value() == event.seconds.has_value()) {
      return At(table,
                "an event must have either \"round\", after so many commits, or \"seconds\", "
                "so long after the first");
    }
    if (round.has_value()) event.round = static_cast<uint64_t>(*round);
    SIGNVOTE_RETURN_IF_ERROR(Number(table, "for_seconds", 0, kSecondsMax, &event.for_seconds));
    SIGNVOTE_RETURN_IF_ERROR(ReadEventWorkers(table, &event));
    SIGNVOTE_RETURN_IF_ERROR(ReadEventValues(table, &event));
    scenario_.events.push_back(std::move(event));
    return absl::OkStatus();
  }

  absl::Status ReadEventWorkers(const toml::table& table, ScenarioEvent* event) {
    std::optional<int64_t> count;
    SIGNVOTE_RETURN_IF_ERROR(Whole(table, "count", 1, kScenarioWorkersMax, &count));
    if (count.has_value() && event->kind != ScenarioEventKind::kJoin)
      return At(*table.get("count"), "\"count\" is of events that join; name the \"worker\"");
    const toml::node* const node = table.get("worker");
    if (event->kind == ScenarioEventKind::kServerKill) {
      if (node == nullptr) return absl::OkStatus();
      return At(*node, "an event of the server has no \"worker\"; leave it away");
    }
    if (count.has_value() && node == nullptr) {
      for (int64_t i = 0; i < *count; ++i) {
        event->workers.push_back(absl::StrCat("w", names_.size() + 1));
        names_.push_back(event->workers.back());
      }
      return absl::OkStatus();
    }
    if (node == nullptr || count.has_value()) {
      return At(table, event->kind == ScenarioEventKind::kJoin
                           ? "a join must have either \"worker\", a name or several, or \"count\", "
                             "of new ones"
                           : "an event must have \"worker\", a name or a list of several");
    }
    const auto take = [&](const toml::node& item) {
      const auto name = item.value_exact<std::string>();
      if (!name.has_value() || name->empty() || name->size() > 64 ||
          name->find_first_not_of(
              "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") !=
              std::string::npos ||
          std::find(event->workers.begin(), event->workers.end(), *name) != event->workers.end()) {
        return At(item,
                  "\"worker\" must be a name of letters, digits, - and _, or a list of several, "
                  "none of them twice");
      }
      event->workers.push_back(*name);
      if (event->kind == ScenarioEventKind::kJoin && !IsKnown(*name)) names_.push_back(*name);
      return absl::OkStatus();
    };
    const toml::array* const list = node->as_array();
    if (list == nullptr) return take(*node);
    if (list->empty()) return At(*node, "\"worker\" names nobody");
    for (const toml::node& item : *list) SIGNVOTE_RETURN_IF_ERROR(take(item));
    return absl::OkStatus();
  }

  // What only some kinds have.
  absl::Status ReadEventValues(const toml::table& table, ScenarioEvent* event) {
    const auto only = [&](std::string_view key, bool fits, const char* whose) {
      const toml::node* const node = table.get(key);
      if (node == nullptr || fits) return absl::OkStatus();
      return At(*node, absl::StrCat("\"", std::string(key), "\" is of ", whose, "; leave it away"));
    };
    const ScenarioEventKind kind = event->kind;
    SIGNVOTE_RETURN_IF_ERROR(
        only("for_seconds",
             kind == ScenarioEventKind::kKill || kind == ScenarioEventKind::kLeave ||
                 kind == ScenarioEventKind::kPause || kind == ScenarioEventKind::kServerKill,
             "events that kill, leave, pause or kill the server"));
    SIGNVOTE_RETURN_IF_ERROR(
        only("compute_ms", kind == ScenarioEventKind::kSlow, "events that slow a worker down"));
    for (const std::string_view key : {"rate_mbit", "delay_ms", "cut"})
      SIGNVOTE_RETURN_IF_ERROR(only(key, kind == ScenarioEventKind::kLink, "events of a link"));
    if (kind == ScenarioEventKind::kSlow) {
      std::optional<int64_t> ms;
      SIGNVOTE_RETURN_IF_ERROR(Whole(table, "compute_ms", 0, kMillisecondsMax, &ms));
      if (!ms.has_value())
        return At(table, "a \"slow\" event must have \"compute_ms\", from then on");
      if (scenario_.program != WorkerProgram::kSynthetic)
        return At(table,
                  "only synthetic workers take as long as they are told; a model's is slowed "
                  "down by \"pause\" with \"for_seconds\"");
      event->compute_ms = static_cast<uint32_t>(*ms);
    }
    if (kind == ScenarioEventKind::kLink) {
      if (!scenario_.links.has_value())
        return At(table, "links are shaped where there is a section [links]; add one");
      event->link = *scenario_.links;
      SIGNVOTE_RETURN_IF_ERROR(ReadShape(table, &event->link));
      SIGNVOTE_RETURN_IF_ERROR(Boolean(table, "cut", &event->link.cut));
    }
    if (kind == ScenarioEventKind::kServerKill && !scenario_.journal)
      return At(table,
                "a server without a journal takes its run with it; leave \"journal\" = false away");
    return absl::OkStatus();
  }

  // [worker.NAME] and [link.NAME].
  absl::Status ReadOwn() {
    for (const std::string_view kind : {"worker", "link"}) {
      const toml::node* const node = root_.get(kind);
      if (node == nullptr) continue;
      const std::string word(kind);
      if (node->as_table() == nullptr)
        return At(*node, absl::StrCat("\"", word, "\" must be sections [", word, ".NAME]"));
      for (const auto& [key, section] : *node->as_table()) {
        const std::string name(key.str());
        if (!section.is_table() || !IsKnown(name)) {
          return At(section, absl::StrCat("[", word, ".", name, "] is of no worker of this run"));
        }
        const toml::table& table = *section.as_table();
        if (kind == "worker") {
          for (const auto& [flag, value] : table)
            SIGNVOTE_RETURN_IF_ERROR(Flag(flag, value, kOwnOfWorker, &scenario_.own_flags[name]));
          continue;
        }
        if (!scenario_.links.has_value())
          return At(section, "links are shaped where there is a section [links]; add one");
        SIGNVOTE_RETURN_IF_ERROR(CheckKeys(table, "in [link.NAME]", kLinkKeys));
        LinkShape shape = *scenario_.links;
        SIGNVOTE_RETURN_IF_ERROR(ReadShape(table, &shape));
        scenario_.own_links[name] = shape;
      }
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const toml::table& root_;
  Scenario scenario_;
  bool undisturbed_ = false;
  std::vector<std::string> names_;  // of all workers, those that join too
};

// One key of the matrix: where its values go, and how many there are.
struct Axis {
  std::vector<std::string> key;
  size_t values = 0;
};

std::string DottedName(const Axis& axis) { return absl::StrJoin(axis.key, "."); }

absl::Status FindAxes(const std::string& path, const toml::table& table,
                      std::vector<std::string>* key, std::vector<Axis>* axes) {
  for (const auto& [name, node] : table) {
    key->emplace_back(name.str());
    if (const toml::table* const deeper = node.as_table()) {
      SIGNVOTE_RETURN_IF_ERROR(FindAxes(path, *deeper, key, axes));
    } else {
      const toml::array* const list = node.as_array();
      const bool scalars = list != nullptr && !list->empty() &&
                           std::none_of(list->begin(), list->end(), [](const toml::node& item) {
                             return item.is_table() || item.is_array();
                           });
      if (!scalars)
        return Bad(path, absl::StrCat(WhereIs(node), ": a key of [matrix], here \"",
                                      absl::StrJoin(*key, "."), "\", must have a list of values"));
      axes->push_back({.key = *key, .values = list->size()});
    }
    key->pop_back();
  }
  return absl::OkStatus();
}

// Puts what `from` has into `root`, table by table.
void Merge(toml::table&& from, toml::table* root) {
  for (auto&& [key, node] : from) {
    toml::node* const there = root->get(key.str());
    if (node.is_table() && there != nullptr && there->is_table()) {
      Merge(std::move(*node.as_table()), there->as_table());
    } else {
      root->insert_or_assign(key.str(), std::move(node));
    }
  }
}

// "a.b=4" as a table. Text need not be quoted.
absl::StatusOr<toml::table> ReadSetting(const std::string& setting) {
  const std::string where = absl::StrCat("--set ", setting);
  const size_t equals = setting.find('=');
  const auto wrong = [&](const std::string& what) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(where, ": ", what)),
                        ExitCode::kUsage);
  };
  if (equals == std::string::npos || equals == 0)
    return wrong("must be KEY=VALUE, with dots in the key: workers.count=4");
  const std::string key = setting.substr(0, equals), value = setting.substr(equals + 1);
  if (setting.find_first_of("\n\r") != std::string::npos || key.find('#') != std::string::npos)
    return wrong("must be one KEY=VALUE");
  toml::parse_result parsed = toml::parse(absl::StrCat(key, " = ", value), where);
  if (!parsed && value.find_first_of("\"\\'") == std::string::npos)
    parsed = toml::parse(absl::StrCat(key, " = \"", value, "\""), where);
  if (!parsed) return wrong(std::string(parsed.error().description()));
  return std::move(parsed).table();
}

absl::StatusOr<toml::table> ReadRoot(std::string_view text, const std::string& path,
                                     std::span<const std::string> settings) {
  toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return Bad(path, absl::StrCat("line ", parsed.error().source().begin.line, ": ",
                                  std::string(parsed.error().description())));
  }
  toml::table root = std::move(parsed).table();
  for (const std::string& setting : settings) {
    SIGNVOTE_ASSIGN_OR_RETURN(toml::table table, ReadSetting(setting));
    Merge(std::move(table), &root);
  }
  return root;
}

// Whether some setting says the key, or a section that holds it.
bool IsSet(const Axis& axis, std::span<const std::string> settings) {
  return std::any_of(settings.begin(), settings.end(), [&](const std::string& setting) {
    const std::string key(absl::StripAsciiWhitespace(setting.substr(0, setting.find('='))));
    return key == DottedName(axis);
  });
}

}  // namespace

const char* Words(ScenarioEventKind kind) {
  for (const auto& [word, known] : kKinds)
    if (known == kind) return word.data();
  return "";
}

FlagMap Scenario::FlagsOf(const std::string& worker) const {
  FlagMap flags = worker_flags;
  if (const auto own = own_flags.find(worker); own != own_flags.end())
    for (const auto& [name, value] : own->second) flags[name] = value;
  return flags;
}

LinkShape Scenario::LinkOf(const std::string& worker) const {
  const auto own = own_links.find(worker);
  return own != own_links.end() ? own->second : links.value_or(LinkShape{});
}

bool Scenario::IsSlowed(const std::string& worker) const {
  return std::any_of(events.begin(), events.end(), [&](const ScenarioEvent& event) {
    return event.kind == ScenarioEventKind::kSlow &&
           std::find(event.workers.begin(), event.workers.end(), worker) != event.workers.end();
  });
}

std::vector<std::string> Scenario::AllWorkers() const {
  std::vector<std::string> all = workers;
  std::set<std::string> known(all.begin(), all.end());
  for (const ScenarioEvent& event : events)
    for (const std::string& worker : event.workers)
      if (known.insert(worker).second) all.push_back(worker);
  return all;
}

std::string NameOf(const Scenario& scenario) {
  std::string name = absl::StrJoin(scenario.chosen, ",", [](std::string* out, const auto& choice) {
    absl::StrAppend(out, choice.first, "=", choice.second);
  });
  for (char& c : name) {
    const bool fine = absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                      std::string_view("._-=,").find(c) != std::string_view::npos;
    if (!fine) c = '_';
  }
  return name;
}

absl::StatusOr<std::vector<Scenario>> ParseScenarios(std::string_view text, const std::string& path,
                                                     std::span<const std::string> settings) {
  std::vector<Axis> axes;
  {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table root, ReadRoot(text, path, settings));
    if (const toml::node* const matrix = root.get("matrix")) {
      std::vector<std::string> key;
      if (matrix->as_table() == nullptr)
        return Bad(path, absl::StrCat(WhereIs(*matrix), ": \"matrix\" must be a section [matrix]"));
      SIGNVOTE_RETURN_IF_ERROR(FindAxes(path, *matrix->as_table(), &key, &axes));
    }
  }
  std::erase_if(axes, [&](const Axis& axis) { return IsSet(axis, settings); });
  size_t cells = 1;
  for (const Axis& axis : axes) {
    cells *= axis.values;
    if (cells > kScenarioCellsMax)
      return Bad(path, absl::StrCat("[matrix] has more than ", kScenarioCellsMax, " combinations"));
  }
  std::vector<Scenario> scenarios;
  for (size_t cell = 0; cell < cells; ++cell) {
    SIGNVOTE_ASSIGN_OR_RETURN(toml::table root, ReadRoot(text, path, settings));
    std::vector<std::pair<std::string, std::string>> chosen;
    size_t block = cells;
    for (const Axis& axis : axes) {
      block /= axis.values;
      // A copy would forget the line.
      toml::table* from = root.get("matrix")->as_table();
      toml::table* to = &root;
      for (size_t i = 0; i + 1 < axis.key.size(); ++i) {
        from = from->get(axis.key[i])->as_table();
        const auto [there, _] = to->insert(axis.key[i], toml::table{});
        to = there->second.as_table();
        if (to == nullptr)
          return Bad(path, absl::StrCat("[matrix]: \"", DottedName(axis), "\" lies in no section"));
      }
      toml::node& value = *from->get(axis.key.back())->as_array()->get(cell / block % axis.values);
      chosen.emplace_back(DottedName(axis), TextOf(value));
      to->insert_or_assign(axis.key.back(), std::move(value));
    }
    absl::StatusOr<Scenario> scenario = ScenarioReader(path, root).Read();
    SIGNVOTE_RETURN_IF_ERROR(scenario.status());
    scenario->chosen = std::move(chosen);
    scenarios.push_back(*std::move(scenario));
  }
  std::set<std::string> names;
  for (const Scenario& scenario : scenarios) {
    if (names.insert(NameOf(scenario)).second) continue;
    return Bad(path, absl::StrCat("[matrix] has the combination ", NameOf(scenario), " twice"));
  }
  return scenarios;
}

}  // namespace signvote::lab
