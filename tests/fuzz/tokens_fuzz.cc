// The readers of tokens (common/join_token.h, server/run/tokens.h). The server's takes nothing that admits
// somebody who shows no token, and withdraws nobody's token from itself; what a worker reads in its file
// the server reads behind the worker's name.
//
// Input: the file.

#include <string>

#include "common/check.h"
#include "common/join_token.h"
#include "server/run/tokens.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  const std::string text(fuzz::Input(data, size).Rest());
  if (const auto own = ParseOwnToken("token", text); own.ok()) {
    const auto lines = ParseNamedTokens("tokens", "w " + *own + "\n");
    SIGNVOTE_CHECK(lines.ok() && lines->size() == 1 && (*lines)[0].token == *own);
  }
  const auto table = run::TokenTable::Parse(text, "tokens");
  if (!table.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(table.status()));
    return 0;
  }
  SIGNVOTE_CHECK(table->size() <= size);
  SIGNVOTE_CHECK(table->WithdrawnFrom(*table).empty());
  for (const char* name : {"", "a", "w0"})
    SIGNVOTE_CHECK(absl::IsUnauthenticated(table->Check(name, "")));
  return 0;
}
