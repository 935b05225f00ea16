#include "server/run/tokens.h"

#include <cstdint>

#include "common/exit_codes.h"
#include "common/join_token.h"
#include "common/status.h"

namespace signvote::run {
namespace {

bool EqualInConstantTime(const std::string& given, const std::string& wanted) {
  // The loop's length depends on the caller's own input only.
  volatile uint8_t difference = given.size() == wanted.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const char other = wanted.empty() ? '\0' : wanted[i % wanted.size()];
    difference = static_cast<uint8_t>(difference | static_cast<uint8_t>(given[i] ^ other));
  }
  return difference == 0;
}

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Parse(std::string_view text, const std::string& source) {
  TokenTable table;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<NamedToken> lines, ParseNamedTokens(source, text));
  for (const NamedToken& line : lines) table.tokens_.emplace(line.name, line.token);
  if (table.tokens_.empty()) {
    return WithExitCode(absl::InvalidArgumentError(
                            source + ": holds no token; add one line \"NAME TOKEN\" per worker"),
                        ExitCode::kBadInput);
  }
  return table;
}

absl::Status TokenTable::Check(const std::string& name, const std::string& token) const {
  const auto it = tokens_.find(name);
  const bool known = it != tokens_.end();
  const bool equal = EqualInConstantTime(token, known ? it->second : std::string());
  if (known && equal && !token.empty()) return absl::OkStatus();
  return absl::UnauthenticatedError(
      "wrong or missing join token for worker '" + name +
      "'; the server's token file has one line \"NAME TOKEN\" per worker");
}

std::vector<std::string> TokenTable::WithdrawnFrom(const TokenTable& other) const {
  std::vector<std::string> names;
  for (const auto& [name, token] : other.tokens_) {
    const auto it = tokens_.find(name);
    if (it == tokens_.end() || it->second != token) names.push_back(name);
  }
  return names;
}

}  // namespace signvote::run
