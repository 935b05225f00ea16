// The reader of the file that --config names (common/flags/config_file.h). What it lets through CLI11
// takes without an exception of another kind than its own, and nothing in it is a section.
//
// Input: the file.

#include <sstream>

#include "common/check.h"
#include "common/flags/config_file.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  const auto plain = PlainConfig("run.toml", fuzz::Input(data, size).Rest());
  if (!plain.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(plain.status()));
    return 0;
  }
  SIGNVOTE_CHECK(plain->size() <= size + 1);
  std::istringstream stream(*plain);
  try {
    for (const CLI::ConfigItem& item : CLI::ConfigTOML().from_config(stream)) {
      SIGNVOTE_CHECK(!item.name.empty());
      SIGNVOTE_CHECK(item.name != "++" && item.name != "--");
      SIGNVOTE_CHECK(item.parents.empty());
    }
  } catch (const CLI::ParseError&) {
    return 0;
  }
  return 0;
}
