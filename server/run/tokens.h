#pragma once
// The join tokens of a run's workers, from a text with one line "NAME TOKEN" for each
// (common/join_token.h). docs/operations.md, "Security". The file is read by server/tokens_file.h.

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace signvote::run {

// Threads: immutable.
class TokenTable {
 public:
  // `source` names the text in messages, "SOURCE:LINE: …". INVALID_ARGUMENT, with the exit code
  // kBadInput: what ParseNamedTokens() refuses, or no token at all. Messages never quote a token.
  static absl::StatusOr<TokenTable> Parse(std::string_view text, const std::string& source);

  // UNAUTHENTICATED, with the same words for an unknown name and a wrong token. Takes the same time
  // for every token of one length, right or wrong.
  absl::Status Check(const std::string& name, const std::string& token) const;
  size_t size() const { return tokens_.size(); }
  // The names of `other` whose token is another one here, or that have none any more.
  std::vector<std::string> WithdrawnFrom(const TokenTable& other) const;

 private:
  std::map<std::string, std::string> tokens_;
};

}  // namespace signvote::run
