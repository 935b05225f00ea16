#pragma once
// The file of join tokens (--tokens), read for the run, which touches no file.

#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "server/run/tokens.h"

namespace signvote {

// Errors carry the exit code kBadInput: PERMISSION_DENIED, others can read the file; those of
// TokenTable::Parse(), with the path and the line; RESOURCE_EXHAUSTED, it is no file of tokens by its
// size; those of FileSystem.
absl::StatusOr<run::TokenTable> ReadTokensFile(FileSystem* fs, const std::string& path);

}  // namespace signvote
