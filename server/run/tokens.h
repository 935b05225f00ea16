#pragma once
// The join tokens: one line "NAME TOKEN" per worker; '#' starts a comment. docs/operations.md,
// "Security".

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
  // PERMISSION_DENIED: others can read the file. INVALID_ARGUMENT names the line that is not "NAME
  // TOKEN", or the name that is repeated or not a worker name. Messages never quote a token.
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
