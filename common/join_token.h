#pragma once
// Join tokens as files hold them, by one rule for all who read them: the server's file with a line
// "NAME TOKEN" for each worker, and a worker's with its token alone. docs/operations.md, "Security".
//
// A token is 1 to kJoinTokenBytesMax printable ASCII characters without white space, the first of
// which is no '#'. A '#' at the beginning of a word begins a comment, which lasts to the end of its
// line; anywhere else it is a character as any other. Lines may end as Windows ends them, and a file
// may begin with a byte-order mark.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote {

inline constexpr size_t kJoinTokenBytesMax = 1024;

struct NamedToken {
  std::string name;  // ValidateWorkerName()
  std::string token;
};

// The lines of the server's file, in order; none when it holds comments only. INVALID_ARGUMENT with
// exit code kBadInput names `path` and the line that is not "NAME TOKEN", or whose name or token
// another line has. Messages never quote a token.
absl::StatusOr<std::vector<NamedToken>> ParseNamedTokens(const std::string& path,
                                                         std::string_view text);

// The one token of a worker's file. Failure: as above.
absl::StatusOr<std::string> ParseOwnToken(const std::string& path, std::string_view text);

}  // namespace signvote
