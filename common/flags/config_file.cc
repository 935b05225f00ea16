#include "common/flags/config_file.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr uint64_t kConfigBytesMax = 1 << 20;
constexpr size_t kShownBytesMax = 80;
constexpr char kNoComments = '\0';  // PlainConfig() has taken them out

absl::string_view WithoutComment(absl::string_view line) {
  char quote = '\0';
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote != '\0') {
      if (c == quote) quote = '\0';
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '#') {
      return line.substr(0, i);
    }
  }
  return line;
}

bool IsNameOfAFlag(absl::string_view name) {
  if (name.size() >= 2 && name.front() == '"' && name.back() == '"')
    name = name.substr(1, name.size() - 2);
  const auto in_a_word = [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); };
  return !name.empty() && in_a_word(name.front()) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return in_a_word(c) || c == '-' || c == '_'; });
}

// Whether a value that begins with `text` goes on in the next line, as CLI11 reads arrays.
bool OpensArray(absl::string_view text) {
  return text.size() > 1 && text.front() == '[' && text.back() != ']';
}

}  // namespace

absl::StatusOr<std::string> PlainConfig(const std::string& path, std::string_view text) {
  const auto bad = [&](const std::string& what) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(path, ":", what)),
                        ExitCode::kUsage);
  };
  std::string plain;
  bool in_array = false;
  int number = 0;
  for (const absl::string_view raw : absl::StrSplit(ToAbsl(WithoutMark(text)), '\n')) {
    ++number;
    if (raw.find('\0') != absl::string_view::npos)
      return bad(absl::StrCat(number, ": a byte of no text; give a text file of flags"));
    const absl::string_view line = absl::StripAsciiWhitespace(WithoutComment(raw));
    if (line.empty()) continue;
    if (in_array) {
      in_array = line.back() != ']';
    } else {
      const size_t equals = line.find('=');
      const absl::string_view name = absl::StripAsciiWhitespace(line.substr(0, equals));
      if (!IsNameOfAFlag(name)) {
        return bad(absl::StrCat(
            number, ": '", ForPeople(ToStd(name), kShownBytesMax),
            "' is no flag; a line is NAME = VALUE, without sections; --help lists what there is"));
      }
      if (equals != absl::string_view::npos)
        in_array = OpensArray(absl::StripAsciiWhitespace(line.substr(equals + 1)));
    }
    absl::StrAppend(&plain, line, "\n");
  }
  return plain;
}

ConfigFile::ConfigFile(FileSystem* fs) : fs_(fs) {}

void ConfigFile::Read(const std::string& path) {
  status_ = absl::OkStatus();
  text_.clear();
  absl::StatusOr<std::string> text = fs_->ReadFile(path, kConfigBytesMax);
  if (text.ok()) text = PlainConfig(path, *text);
  if (text.ok()) {
    text_ = *std::move(text);
  } else {
    status_ = WithContext(text.status(), "--config");
  }
}

std::vector<CLI::ConfigItem> ConfigFile::from_config(std::istream&) const {
  CLI::ConfigTOML reader;
  reader.comment(kNoComments);
  std::istringstream text(text_);
  return reader.from_config(text);
}

std::string ConfigFile::to_config(const CLI::App* app, bool default_also, bool write_description,
                                  std::string prefix) const {
  const std::string text =
      CLI::ConfigTOML::to_config(app, default_also, write_description, std::move(prefix));
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (std::string& line : lines)
    if (absl::EndsWith(line, "=\"\"")) line.insert(0, "# ");
  return absl::StrJoin(lines, "\n");
}

}  // namespace signvote
