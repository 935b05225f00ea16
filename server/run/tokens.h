#pragma once
// The join tokens of a run's workers, from a file with one line "NAME TOKEN" for each
// (common/join_token.h). docs/operations.md, "Security".

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote::run {

// Threads: immutable.
class TokenTable {
 public:
  // PERMISSION_DENIED: others can read the file. INVALID_ARGUMENT: what ParseNamedTokens() refuses, or
  // no token at all. Messages never quote a token.
  static absl::StatusOr<TokenTable> Load(FileSystem* fs, const std::string& path);

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
