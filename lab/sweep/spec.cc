#include "lab/sweep/spec.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <tuple>
#include <utility>

// Compiled in: the library that Debian builds of it throws.
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "lab/sweep/methods.h"
#include "lab/sweep/plan.h"
#include "server/stepsize/local_schedule.h"

namespace signvote::lab {
namespace {

// Where nothing else is said: --stepsize's own default.
constexpr double kGridMiddle = 1e-3;
// A grid goes six decades from its middle, and --stepsize from 1e-30 to 1e30.
constexpr double kGridLeast = 1e-24;
constexpr double kGridMost = 1e24;

constexpr std::string_view kCells = "cells";
// The lists, and what else stands at the top of a file.
constexpr std::string_view kLists[] = {"tasks",       "directions", "rules", "aggregate",
                                       "local_steps", "workers",    "seeds"};
constexpr std::string_view kTop[] = {
    "tasks", "directions", "rules", "aggregate", "local_steps", "workers", "seeds",
    kCells,  "run",        "task",  "direction", "rule",        "schedule"};
// What the lists say, beside the name of a section's own base.
constexpr std::string_view kListed[] = {"direction", "rule",      "aggregate", "local-steps",
                                        "seed",      "init-seed", "workers"};
// Files that all runs would write at the same time.
constexpr std::string_view kWritten[] = {"export", "export-every", "round-log", "event-log"};

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

std::string LineOf(const toml::node& node) {
  return absl::StrCat("line ", node.source().begin.line);
}

// Exact: a flag is read back as the same number.
std::string NumberText(double value) { return absl::StrFormat("%.17g", value); }

// Reads one file.
class Reader {
 public:
  Reader(const std::string& path, const toml::table& root) : path_(path), root_(root) {}

  absl::StatusOr<SweepSpec> Read() {
    SIGNVOTE_RETURN_IF_ERROR(CheckKeys(root_, kTop));
    Lists all{.directions = {"signum"},
              .aggregates = {"vote"},
              .local_steps = {"1"},
              .workers = {4},
              .seeds = {1}};
    SIGNVOTE_RETURN_IF_ERROR(ReadLists(root_, &all));
    const toml::node* const cells = root_.get(kCells);
    if (cells == nullptr) {
      SIGNVOTE_RETURN_IF_ERROR(AddGroups(all, /*line=*/1));
    } else {
      const toml::array* const blocks = cells->as_array();
      if (blocks == nullptr || blocks->empty() || !blocks->is_homogeneous<toml::table>()) {
        return Bad(path_, absl::StrCat(LineOf(*cells), ": \"cells\" must be sections [[cells]]"));
      }
      for (const toml::node& block : *blocks) {
        const toml::table& table = *block.as_table();
        SIGNVOTE_RETURN_IF_ERROR(CheckKeys(table, kLists));
        Lists lists = all;
        SIGNVOTE_RETURN_IF_ERROR(ReadLists(table, &lists));
        SIGNVOTE_RETURN_IF_ERROR(AddGroups(lists, block.source().begin.line));
      }
    }
    SIGNVOTE_RETURN_IF_ERROR(CheckUsed("task", &CellGroup::task));
    SIGNVOTE_RETURN_IF_ERROR(CheckUsed("direction", &CellGroup::direction));
    SIGNVOTE_RETURN_IF_ERROR(CheckUsed("rule", &CellGroup::rule));
    SIGNVOTE_RETURN_IF_ERROR(CheckUsed("schedule", &CellGroup::local_steps));
    return std::move(spec_);
  }

 private:
  // What is combined.
  struct Lists {
    std::vector<std::string> tasks, directions, rules, aggregates, local_steps;
    std::vector<uint64_t> workers, seeds;
  };

  absl::Status CheckKeys(const toml::table& table, std::span<const std::string_view> known) {
    for (const auto& [key, node] : table) {
      if (Contains(known, key.str())) continue;
      return Bad(path_, absl::StrCat(LineOf(node), ": \"", std::string(key.str()),
                                     "\" is not known; there are ", Joined(known),
                                     ", and flags of a run stand under [run]"));
    }
    return absl::OkStatus();
  }

  // Those that the table has take the place of what is there.
  absl::Status ReadLists(const toml::table& table, Lists* lists) {
    SIGNVOTE_RETURN_IF_ERROR(Words(table, "tasks", &lists->tasks));
    SIGNVOTE_RETURN_IF_ERROR(Words(table, "directions", &lists->directions));
    SIGNVOTE_RETURN_IF_ERROR(Words(table, "rules", &lists->rules));
    SIGNVOTE_RETURN_IF_ERROR(Words(table, "aggregate", &lists->aggregates));
    SIGNVOTE_RETURN_IF_ERROR(LocalStepsOf(table, &lists->local_steps));
    SIGNVOTE_RETURN_IF_ERROR(Counts(table, "workers", &lists->workers));
    return Counts(table, "seeds", &lists->seeds);
  }

  // `line`: where the lists stand.
  absl::Status AddGroups(const Lists& lists, uint32_t line) {
    if (lists.tasks.empty() || lists.rules.empty()) {
      return Bad(path_, absl::StrCat("line ", line,
                                     ": \"tasks\" and \"rules\" must each name at least one"));
    }
    for (const std::string& task : lists.tasks)
      for (const std::string& direction : lists.directions)
        for (const std::string& rule : lists.rules)
          for (const std::string& aggregate : lists.aggregates)
            for (const std::string& local_steps : lists.local_steps)
              for (const uint64_t n : lists.workers) {
                CellGroup group{.task = task,
                                .direction = direction,
                                .rule = rule,
                                .aggregate = aggregate,
                                .local_steps = local_steps,
                                .workers = static_cast<uint32_t>(n),
                                .seeds = lists.seeds};
                if (!groups_.insert({task, direction, rule, aggregate, local_steps, n}).second) {
                  return Bad(path_, absl::StrCat("line ", line, ": ", task, " ", direction, " ",
                                                 rule, " ", aggregate, " H=", local_steps, " n=", n,
                                                 " is in an earlier [[cells]]; name it once"));
                }
                SIGNVOTE_RETURN_IF_ERROR(Fill(&group));
                spec_.groups.push_back(std::move(group));
              }
    return absl::OkStatus();
  }

  // `words` as they are where the key is missing.
  absl::Status Words(const toml::table& table, std::string_view key,
                     std::vector<std::string>* words) {
    const toml::node* const node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    const auto wrong = [&] {
      return Bad(path_, absl::StrCat(LineOf(*node), ": \"", std::string(key),
                                     "\" must be a list of words, none of them twice"));
    };
    const toml::array* const list = node->as_array();
    if (list == nullptr || list->empty()) return wrong();
    words->clear();
    for (const toml::node& item : *list) {
      const auto word = item.value_exact<std::string>();
      // They are columns of results.csv.
      if (!word.has_value() || word->empty() ||
          word->find_first_of(",\"\n\r") != std::string::npos ||
          std::find(words->begin(), words->end(), *word) != words->end())
        return wrong();
      words->push_back(*word);
    }
    return absl::OkStatus();
  }

  // Likewise; numbers, and names of schedules.
  absl::Status LocalStepsOf(const toml::table& table, std::vector<std::string>* all) {
    const toml::node* const node = table.get("local_steps");
    if (node == nullptr) return absl::OkStatus();
    const auto wrong = [&] {
      return Bad(path_, absl::StrCat(LineOf(*node),
                                     ": \"local_steps\" must be a list of numbers from 1 to ",
                                     kLocalStepsMax,
                                     " and names of sections [schedule.NAME], none of them twice"));
    };
    const toml::array* const list = node->as_array();
    if (list == nullptr || list->empty()) return wrong();
    all->clear();
    for (const toml::node& item : *list) {
      std::string one;
      if (const auto steps = item.value_exact<int64_t>()) {
        if (*steps < 1 || *steps > int64_t{kLocalStepsMax}) return wrong();
        one = absl::StrCat(*steps);
      } else if (const auto name = item.value_exact<std::string>()) {
        const toml::table* const schedules = root_["schedule"].as_table();
        if (schedules == nullptr || !schedules->contains(*name)) return wrong();
        one = *name;
      }
      if (one.empty() || one.find_first_of(",\"\n\r") != std::string::npos ||
          std::find(all->begin(), all->end(), one) != all->end())
        return wrong();
      all->push_back(one);
    }
    return absl::OkStatus();
  }

  // What --local-steps says of a group.
  absl::StatusOr<std::string> StepsText(const CellGroup& group) {
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section,
                              Section("schedule", group.local_steps));
    if (section == nullptr) return group.local_steps;
    const toml::node* const node = section->get("local-steps");
    const auto text = node == nullptr ? std::nullopt : node->value_exact<std::string>();
    if (!text.has_value() || section->size() != 1) {
      return Bad(path_, absl::StrCat(LineOf(*section),
                                     ": a schedule has one key, \"local-steps\", "
                                     "with a text such as \"16,96@25\""));
    }
    // The flag says what is wrong with it, where the runs are checked.
    return *text;
  }

  // Likewise.
  absl::Status Counts(const toml::table& table, std::string_view key,
                      std::vector<uint64_t>* counts) {
    constexpr int64_t kMost = 1'000'000;
    const toml::node* const node = table.get(key);
    if (node == nullptr) return absl::OkStatus();
    const auto wrong = [&] {
      return Bad(path_, absl::StrCat(LineOf(*node), ": \"", std::string(key),
                                     "\" must be a list of numbers from 1 to ", kMost,
                                     ", none of them twice"));
    };
    const toml::array* const list = node->as_array();
    if (list == nullptr || list->empty()) return wrong();
    counts->clear();
    for (const toml::node& item : *list) {
      const auto count = item.value_exact<int64_t>();
      if (!count.has_value() || *count < 1 || *count > kMost) return wrong();
      const auto value = static_cast<uint64_t>(*count);
      if (std::find(counts->begin(), counts->end(), value) != counts->end()) return wrong();
      counts->push_back(value);
    }
    return absl::OkStatus();
  }

  // A section's keys, which may be missing.
  absl::StatusOr<const toml::table*> Section(std::string_view kind, std::string_view name) {
    const toml::node* node = root_.get(kind);
    if (node != nullptr && !name.empty()) {
      if (node->as_table() == nullptr)
        return Bad(path_, absl::StrCat(LineOf(*node), ": \"", std::string(kind),
                                       "\" must be sections [", std::string(kind), ".NAME]"));
      node = node->as_table()->get(name);
    }
    if (node == nullptr) return nullptr;
    if (node->as_table() == nullptr)
      return Bad(path_,
                 absl::StrCat(LineOf(*node), ": \"", std::string(kind), "\" must be a section"));
    return node->as_table();
  }

  // A section that nothing names is a word spelt wrong.
  absl::Status CheckUsed(std::string_view kind, std::string CellGroup::*column) {
    const toml::table* const sections = root_[kind].as_table();
    if (sections == nullptr) return absl::OkStatus();  // Section() has looked at what else there is
    for (const auto& [name, node] : *sections) {
      const std::string_view word = name.str();
      const auto named = [&](const CellGroup& group) { return group.*column == word; };
      if (std::any_of(spec_.groups.begin(), spec_.groups.end(), named)) continue;
      return Bad(path_, absl::StrCat(LineOf(node), ": no run has the ", std::string(kind), " \"",
                                     std::string(word),
                                     "\"; name it in the list, or leave the section away"));
    }
    return absl::OkStatus();
  }

  // What a direction or rule begins with, which its section goes on from: the flags of its short name, or
  // of that which the section names.
  absl::Status Begin(std::string_view kind, std::span<const Method> methods,
                     const std::string& name, CellGroup* group) {
    std::string base = name;
    SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section(kind, name));
    if (const toml::node* const node = section == nullptr ? nullptr : section->get(kind)) {
      const auto word = node->value_exact<std::string>();
      if (!word.has_value())
        return Bad(path_,
                   absl::StrCat(LineOf(*node), ": \"", std::string(kind), "\" must be a text"));
      base = *word;
    }
    const Method* const method = FindMethod(methods, base);
    if (method == nullptr) {
      group->flags[std::string(kind)] = base;  // the server's word, or none
      return absl::OkStatus();
    }
    for (const MethodFlag& flag : method->flags)
      group->flags[std::string(flag.name)] = std::string(flag.value);
    return absl::OkStatus();
  }

  absl::Status Fill(CellGroup* group) {
    group->task_options.name = group->task;
    grid_ = kGridMiddle;
    minibatches_.reset();
    SIGNVOTE_RETURN_IF_ERROR(Begin("direction", NamedDirections(), group->direction, group));
    SIGNVOTE_RETURN_IF_ERROR(Begin("rule", NamedRules(), group->rule, group));
    // With local steps the server has a choice of its own.
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string steps, StepsText(*group));
    if (group->aggregate != "vote" || steps != "1") group->flags["aggregate"] = group->aggregate;
    if (steps != "1") group->flags["local-steps"] = steps;
    const std::pair<std::string_view, std::string_view> sections[] = {
        {"run", ""}, {"task", group->task}, {"direction", group->direction}, {"rule", group->rule}};
    for (const auto& [kind, name] : sections) {
      SIGNVOTE_ASSIGN_OR_RETURN(const toml::table* const section, Section(kind, name));
      if (section == nullptr) continue;
      for (const auto& [key, node] : *section) {
        if (key.str() == kind && kind != "task") continue;  // Begin() has read it
        SIGNVOTE_RETURN_IF_ERROR(Key(std::string(key.str()), node, group));
      }
    }
    if (minibatches_.has_value()) {
      const absl::StatusOr<uint64_t> rounds = LocalSchedule::RoundsOf(steps, *minibatches_);
      if (!rounds.ok()) return Bad(path_, std::string(rounds.status().message()));
      group->flags["max-rounds"] = absl::StrCat(*rounds);
    }
    if (group->flags["rule"] == "fixed" && !group->flags.contains("stepsize")) group->grid = grid_;
    return absl::OkStatus();
  }

  absl::Status Key(const std::string& key, const toml::node& node, CellGroup* group) {
    if (Contains(kListed, key)) {
      return Bad(
          path_,
          absl::StrCat(
              LineOf(node), ": \"", key,
              "\" is said by the lists at the top of the file, or of [[cells]]; leave it away"));
    }
    if (Contains(kWritten, key)) {
      return Bad(path_, absl::StrCat(LineOf(node), ": every run would write the same \"", key,
                                     "\"; leave it away, or train that one run by signvote lab "
                                     "train"));
    }
    const auto count = [&](uint32_t* out) {
      const auto value = node.value_exact<int64_t>();
      if (!value.has_value() || *value < 1 || *value > 1'000'000) {
        return Bad(path_, absl::StrCat(LineOf(node), ": \"", key,
                                       "\" must be a whole number from 1 to 1000000"));
      }
      *out = static_cast<uint32_t>(*value);
      return absl::OkStatus();
    };
    if (key == "minibatches") {
      const auto value = node.value_exact<int64_t>();
      if (!value.has_value() || *value < 1) {
        return Bad(path_, absl::StrCat(LineOf(node), ": \"", key,
                                       "\" must be a whole number, 1 or more: a worker's, in place "
                                       "of \"max-rounds\""));
      }
      minibatches_ = static_cast<uint64_t>(*value);
      return absl::OkStatus();
    }
    if (key == "max-rounds") minibatches_.reset();  // a later section's word
    if (key == "batch") return count(&group->task_options.rows);
    if (key == "accumulate") return count(&group->accumulate);
    if (key == "task-seed") {
      const auto seed = node.value_exact<int64_t>();
      if (!seed.has_value() || *seed < 0)
        return Bad(path_,
                   absl::StrCat(LineOf(node), ": \"", key, "\" must be a whole number, 0 or more"));
      group->task_options.task_seed = static_cast<uint64_t>(*seed);
      return absl::OkStatus();
    }
    if (key == "grid") {
      grid_ = node.value<double>().value_or(0);
      if (grid_ >= kGridLeast && grid_ <= kGridMost) return absl::OkStatus();
      return Bad(path_, absl::StrCat(LineOf(node), ": \"grid\" must be a number from ", kGridLeast,
                                     " to ", kGridMost, ", in the middle of the stepsizes to try"));
    }
    if (key == "task" || key == "data") {
      const auto text = node.value_exact<std::string>();
      if (!text.has_value())
        return Bad(path_, absl::StrCat(LineOf(node), ": \"", key, "\" must be a text"));
      (key == "task" ? group->task_options.name : group->task_options.data) = *text;
      return absl::OkStatus();
    }
    // A flag of the run.
    if (const auto boolean = node.value_exact<bool>(); boolean.has_value()) {
      group->flags[key] = *boolean ? "true" : "false";
    } else if (const auto whole = node.value_exact<int64_t>(); whole.has_value()) {
      group->flags[key] = absl::StrCat(*whole);
    } else if (const auto number = node.value_exact<double>(); number.has_value()) {
      group->flags[key] = NumberText(*number);
    } else if (const auto text = node.value_exact<std::string>(); text.has_value()) {
      group->flags[key] = *text;
    } else {
      return Bad(path_, absl::StrCat(LineOf(node), ": \"", key,
                                     "\" must be a text, a number, true or false"));
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const toml::table& root_;
  SweepSpec spec_;
  // What each group is called.
  std::set<std::tuple<std::string, std::string, std::string, std::string, std::string, uint64_t>>
      groups_;
  // Of the group at hand.
  double grid_ = kGridMiddle;
  std::optional<uint64_t> minibatches_;
};

}  // namespace

absl::StatusOr<SweepSpec> ParseSweep(std::string_view text, const std::string& path) {
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return Bad(path, absl::StrCat("line ", parsed.error().source().begin.line, ": ",
                                  std::string(parsed.error().description())));
  }
  return Reader(path, parsed.table()).Read();
}

SweepCell CellOf(const SweepSpec& spec, size_t group_index, uint64_t seed, int grid_step) {
  const CellGroup& group = spec.groups[group_index];
  SweepCell cell{.group = group_index, .seed = seed};
  std::map<std::string, std::string> flags = group.flags;
  flags["seed"] = absl::StrCat(seed);
  if (group.grid.has_value()) flags["stepsize"] = NumberText(GridStepsize(*group.grid, grid_step));
  // What is no number is refused where the flags are read.
  if (double given = 0; flags.contains("stepsize") && absl::SimpleAtod(flags["stepsize"], &given))
    cell.stepsize = given;
  for (const auto& [name, value] : flags) {
    // So that whoever reads the flags says whether it is a switch.
    const bool off = value == "false";
    cell.flags.push_back(absl::StrCat("--", name, off ? "=false" : ""));
    if (!off && value != "true") cell.flags.push_back(value);
  }
  const TaskOptions& task = group.task_options;
  const std::string all = absl::StrCat(
      absl::StrJoin(cell.flags, "\n"), "\n", task.name, "\n", task.data, "\n", task.rows, "\n",
      task.task_seed, "\n", group.workers, "\n", group.accumulate, "\n", group.local_steps, "\n",
      group.task, "\n", group.direction, "\n", group.rule, "\n", group.inputs);
  cell.id = absl::StrFormat("%016x", Xxh3(all.data(), all.size()));
  return cell;
}

}  // namespace signvote::lab
