#include "server/tokens_file.h"

#include <cstdint>

#include "common/status.h"

namespace signvote {
namespace {

// A hundred thousand workers.
constexpr uint64_t kFileBytesMax = 4 << 20;

}  // namespace

absl::StatusOr<run::TokenTable> ReadTokensFile(FileSystem* fs, const std::string& path) {
  SIGNVOTE_RETURN_IF_ERROR(fs->RequirePrivate(path));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kFileBytesMax));
  return run::TokenTable::Parse(text, path);
}

}  // namespace signvote
