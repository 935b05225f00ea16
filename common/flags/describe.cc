#include "common/flags/describe.h"

#include <algorithm>
#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace signvote {
namespace {

using Json = nlohmann::ordered_json;

// CLI11 tells a validator only by its name, which those of flags.h have, and by its description:
// "{a,b}" of IsMember, "UINT in [1 - 9]" of this folder's bounds and of its own Range.
struct Checks {
  std::string descriptions;  // as they stand behind the type in Option::get_type_name()
  std::string kind;          // of flags.h; "": none of them
  std::vector<std::string> choices;
  std::string least, most;
};

void AddCheck(const CLI::Validator& check, Checks* checks) {
  if (!check.get_name().empty()) checks->kind = check.get_name();
  const std::string description = check.get_description();
  if (description.empty()) return;
  absl::StrAppend(&checks->descriptions, ":", description);
  absl::string_view text = description;
  if (absl::ConsumePrefix(&text, "{") && absl::ConsumeSuffix(&text, "}")) {
    checks->choices = absl::StrSplit(text, ',');
    return;
  }
  const size_t open = description.find(" in [");
  if (open == std::string::npos || !absl::EndsWith(description, "]")) return;
  const std::vector<std::string> bounds = absl::StrSplit(
      description.substr(open + 5, description.size() - open - 6), absl::MaxSplits(" - ", 1));
  if (bounds.size() == 2) {
    checks->least = bounds[0];
    checks->most = bounds[1];
  }
}

Checks ChecksOf(const CLI::Option& option) {
  Checks checks;
  // CLI11 has no count of validators, and its accessor is not const.
  auto& with_validators = const_cast<CLI::Option&>(option);
  for (int i = 0;; ++i) {
    try {
      AddCheck(*with_validators.get_validator(i), &checks);
    } catch (const CLI::OptionNotFound&) {
      return checks;
    }
  }
}

std::vector<std::string> NamesOf(const CLI::Option& option) {
  if (option.get_positional()) return {option.get_name(true)};
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

// CLI11 keeps them by address, in another order each time.
std::vector<std::string> Sorted(const std::set<CLI::Option*>& options) {
  std::vector<std::string> names;
  for (const CLI::Option* option : options) names.push_back(option->get_name());
  std::sort(names.begin(), names.end());
  return names;
}

std::string KindOf(const Checks& checks, const std::string& type) {
  if (!checks.kind.empty()) return checks.kind;
  if (type.empty()) return "switch";
  if (!checks.choices.empty()) return "word";
  return type == "UINT" || type == "INT" || type == "FLOAT" ? "number" : "";
}

Json OptionJson(const CLI::Option& option) {
  const Checks checks = ChecksOf(option);
  std::string type;
  if (option.get_type_size_max() != 0) {
    type = option.get_type_name();
    if (absl::EndsWith(type, checks.descriptions))
      type.resize(type.size() - checks.descriptions.size());
  }
  return {{"names", NamesOf(option)},
          {"text", option.get_description()},
          {"group", option.get_group()},
          {"type", type},
          {"kind", KindOf(checks, type)},
          {"choices", checks.choices},
          {"least", checks.least},
          {"most", checks.most},
          {"default", type.empty() ? "" : option.get_default_str()},
          {"many", option.get_expected_max() > 1},
          {"required", option.get_required()},
          {"env", option.get_envname()},
          {"needs", Sorted(option.get_needs())},
          {"excludes", Sorted(option.get_excludes())}};
}

Json CommandJson(const CLI::App& app) {
  Json options = Json::array(), positionals = Json::array(), subcommands = Json::array();
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;  // hidden, as in --help
    (option->get_positional() ? positionals : options).push_back(OptionJson(*option));
  }
  for (const CLI::App* command : app.get_subcommands({})) {
    if (!command->get_group().empty()) subcommands.push_back(CommandJson(*command));
  }
  return {{"name", app.get_name()},
          {"text", app.get_description()},
          {"options", options},
          {"positionals", positionals},
          {"subcommands", subcommands}};
}

}  // namespace

std::string KindNameOf(const CLI::Option& option) { return ChecksOf(option).kind; }

std::string DescribeJson(const CLI::App& app) { return CommandJson(app).dump(1) + "\n"; }

}  // namespace signvote
