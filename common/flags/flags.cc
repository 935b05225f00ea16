#include "common/flags/flags.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/exit_codes.h"
#include "common/flags/config_file.h"
#include "common/flags/describe.h"
#include "common/flags/own_files.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr char kConfigExtra[] = "INI was not able to parse ";
constexpr char kSeeHelp[] = "; --help lists what there is";
constexpr char kEmpty[] = "the value is empty; give one, or leave the flag out";
constexpr size_t kLineBytesMax = 2000;

bool ParseUnsigned(const std::string& text, uint64_t* value) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos &&
         absl::SimpleAtoi(text, value);
}

CLI::Validator Checked(std::string description, std::function<std::string(std::string&)> check) {
  return CLI::Validator(std::move(check), std::move(description));
}

std::string Refused(const std::string& text, absl::string_view kind, absl::string_view least,
                    absl::string_view most) {
  return absl::StrCat("'", text, "' is not a ", kind, " from ", least, " to ", most);
}

CLI::Validator UnsignedCheck(std::string description, uint64_t least, uint64_t most) {
  return Checked(std::move(description), [least, most](std::string& text) {
    uint64_t value = 0;
    if (ParseUnsigned(text, &value) && value >= least && value <= most) return std::string();
    return Refused(text, "whole number", absl::StrCat(least), absl::StrCat(most));
  });
}

// A message stays one line, and a short one, whatever was typed or stands in a file.
std::string OneLine(const std::string& text) { return ForPeople(text, kLineBytesMax); }

absl::Status Usage(const std::string& text) {
  return WithExitCode(absl::InvalidArgumentError(OneLine(text)), ExitCode::kUsage);
}

std::string ConfigPath(const CLI::App& app) {
  const CLI::Option* const option = app.get_config_ptr();
  return option != nullptr && !option->results().empty() ? option->results().back() : "";
}

absl::Status ConfigFailed(const CLI::App& app, const std::string& what) {
  absl::string_view item = what;
  if (!absl::ConsumePrefix(&item, kConfigExtra))
    return Usage(absl::StrCat("--config: ", ConfigPath(app), ": ", what));
  return Usage(absl::StrCat("--config: ", ConfigPath(app), ": '", item, "' is no flag", kSeeHelp));
}

// CLI11 misses the subcommand before it looks at what stands in its place.
absl::Status RequiredFailed(const CLI::App& app, const std::string& what) {
  const std::vector<std::string> rest = app.remaining();
  if (rest.empty() || absl::StartsWith(rest[0], "-")) return Usage(absl::StrCat(what, kSeeHelp));
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (names.empty()) return Usage(absl::StrCat(what, kSeeHelp));
  return Usage(absl::StrCat("'", rest[0], "' is no command; use ", absl::StrJoin(names, ", ")));
}

// CLI11 takes the word behind "--flag=" for its value, whatever it is.
absl::Status RequireValues(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const absl::string_view word = argv[i];
    if (absl::StartsWith(word, "--") && word.find('=') == word.size() - 1)
      return Usage(absl::StrCat(word.substr(0, word.size() - 1), ": ", kEmpty));
  }
  return absl::OkStatus();
}

}  // namespace

const char* NameOf(ValueKind kind) {
  switch (kind) {
    case ValueKind::kFile:
      return "file";
    case ValueKind::kPath:
      return "path";
    case ValueKind::kFolder:
      return "folder";
    case ValueKind::kNewFile:
      return "new file";
    case ValueKind::kNewModel:
      return "new model";
    case ValueKind::kLog:
      return "log";
    case ValueKind::kNewFolder:
      return "new folder";
    case ValueKind::kDial:
      return "dial";
    case ValueKind::kListen:
      return "listen";
    case ValueKind::kHost:
      return "host";
    case ValueKind::kText:
      return "text";
  }
  return "";
}

CLI::Validator Kind(ValueKind kind) {
  return CLI::Validator(
      [](std::string& text) { return text.empty() ? std::string(kEmpty) : std::string(); },
      /*validator_desc=*/"", NameOf(kind));
}

CLI::Validator UnsignedBetween(uint64_t least, uint64_t most) {
  return UnsignedCheck(absl::StrCat("UINT in [", least, " - ", most, "]"), least, most);
}

CLI::Validator AnyUnsigned(uint64_t most) { return UnsignedCheck("", 0, most); }

CLI::Validator NumberBetween(double least, double most) {
  return Checked(absl::StrCat("FLOAT in [", least, " - ", most, "]"),
                 [least, most](std::string& text) {
                   double value = 0;
                   if (absl::SimpleAtod(text, &value) && value >= least && value <= most)
                     return std::string();  // "nan" compares with nothing
                   return Refused(text, "number", absl::StrCat(least), absl::StrCat(most));
                 });
}

absl::Status ParseFlags(CLI::App* app, int argc, const char* const* argv, FileSystem* fs,
                        std::string* print) {
  // For programs, not for people: no option of --help.
  if (argc == 2 && absl::string_view(argv[1]) == "--describe") {
    *print = DescribeJson(*app);
    return absl::OkStatus();
  }
  SIGNVOTE_RETURN_IF_ERROR(RequireValues(argc, argv));
  const auto config = std::make_shared<ConfigFile>(fs);
  app->config_formatter(config);
  if (CLI::Option* const option = app->get_config_ptr(); option != nullptr) {
    // CLI11 checks the path before it opens the file. An app that is parsed again has a check of each time.
    option->check(CLI::Validator(
        [app](std::string& path) {
          const auto file = std::static_pointer_cast<ConfigFile>(app->get_config_formatter());
          file->Read(path);
          return std::string(file->status().message());
        },
        /*validator_desc=*/""));
  }
  // CLI11 reports by exceptions; they end here.
  try {
    app->parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    *print = app->help();
  } catch (const CLI::CallForVersion& e) {
    *print = absl::StrCat(e.what(), "\n");
  } catch (const CLI::ConfigError& e) {
    return ConfigFailed(*app, e.what());
  } catch (const CLI::RequiredError& e) {
    return RequiredFailed(*app, e.what());
  } catch (const CLI::ExtrasError& e) {
    return Usage(absl::StrCat(e.what(), kSeeHelp));
  } catch (const CLI::ParseError& e) {
    if (!config->status().ok()) {
      return WithExitCode(
          absl::Status(config->status().code(), OneLine(std::string(config->status().message()))),
          ExitCodeFor(config->status()));
    }
    return Usage(e.what());
  }
  return print->empty() ? RequireOwnFiles(*app, fs) : absl::OkStatus();
}

}  // namespace signvote
