#include "common/join_token.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote {
namespace {

using Words = std::vector<absl::string_view>;

Words WordsOf(absl::string_view line) {
  Words words = absl::StrSplit(line, absl::ByAnyChar(" \t\v\f\r"), absl::SkipEmpty());
  words.erase(std::find_if(words.begin(), words.end(),
                           [](absl::string_view word) { return word.front() == '#'; }),
              words.end());
  return words;
}

std::vector<Words> LinesOf(std::string_view text) {
  std::vector<Words> lines;
  for (const absl::string_view line : absl::StrSplit(ToAbsl(WithoutMark(text)), '\n'))
    lines.push_back(WordsOf(line));
  return lines;
}

absl::Status Bad(const std::string& message) {
  return WithExitCode(absl::InvalidArgumentError(message), ExitCode::kBadInput);
}

// What is wrong with it; "": nothing.
std::string Unfit(absl::string_view token) {
  if (token.size() > kJoinTokenBytesMax)
    return absl::StrCat("has ", token.size(), " characters; at most ", kJoinTokenBytesMax,
                        " are allowed");
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph))
    return "has characters that are not printable ASCII";
  return "";
}

}  // namespace

absl::StatusOr<std::vector<NamedToken>> ParseNamedTokens(const std::string& path,
                                                         std::string_view text) {
  std::vector<NamedToken> table;
  std::set<std::string> names;
  std::map<std::string, std::string> owners;  // by token
  int number = 0;
  for (const Words& words : LinesOf(text)) {
    ++number;
    if (words.empty()) continue;
    const auto bad = [&](const std::string& what) {
      return Bad(absl::StrCat(path, ":", number, ": ", what));
    };
    if (words.size() != 2) return bad("expected one line \"NAME TOKEN\" per worker");
    NamedToken line{.name = std::string(words[0]), .token = std::string(words[1])};
    if (const absl::Status s = ValidateWorkerName(line.name); !s.ok())
      return bad(std::string(ToStd(s.message())));
    if (const std::string what = Unfit(words[1]); !what.empty())
      return bad(absl::StrCat("the token of '", line.name, "' ", what));
    if (!names.insert(line.name).second)
      return bad(absl::StrCat("the worker '", line.name, "' has a token already"));
    if (const auto [other, is_new] = owners.emplace(line.token, line.name); !is_new) {
      return bad(absl::StrCat("the workers '", other->second, "' and '", line.name,
                              "' share a token; give each its own"));
    }
    table.push_back(std::move(line));
  }
  return table;
}

absl::StatusOr<std::string> ParseOwnToken(const std::string& path, std::string_view text) {
  Words all;
  const std::vector<Words> lines = LinesOf(text);
  for (const Words& words : lines) all.insert(all.end(), words.begin(), words.end());
  if (all.empty())
    return Bad(absl::StrCat("token file ", path, " holds no token; give the worker's own"));
  if (all.size() > 1)
    return Bad(
        absl::StrCat("token file ", path, " holds more than one token; give the worker's own"));
  if (const std::string what = Unfit(all[0]); !what.empty())
    return Bad(absl::StrCat("the token in ", path, " ", what));
  return std::string(all[0]);
}

}  // namespace signvote
