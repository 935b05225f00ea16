// The reader of the tokens file (server/run/tokens.h). What it takes admits nobody who shows no
// token, and withdraws nobody's token from itself.
//
// Input: the file.

#include "common/check.h"
#include "server/run/tokens.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  const auto table = run::TokenTable::Parse(fuzz::Input(data, size).Rest(), "tokens");
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
