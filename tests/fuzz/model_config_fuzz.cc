// The reader of a model's config.json (worker/models/config.h). What it takes has a layout, or is
// too large for one, and what we write of it is taken again and is the same model.
//
// Input: the file.

#include "common/check.h"
#include "tests/fuzz/fuzz_target.h"
#include "worker/models/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  const auto config = ParseModelConfig(fuzz::Input(data, size).Rest(), "config.json");
  if (!config.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(config.status()));
    return 0;
  }
  const std::string written = ModelConfigJson(*config);
  const auto again = ParseModelConfig(written, "config.json");
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(ModelConfigJson(*again) == written);
  const auto layout = MakeLayout(*config);
  const auto same = MakeLayout(*again);
  SIGNVOTE_CHECK(layout.ok() == same.ok());
  if (layout.ok()) SIGNVOTE_CHECK(layout->digest() == same->digest());
  if (!layout.ok()) SIGNVOTE_CHECK(absl::IsInvalidArgument(layout.status()));
  return 0;
}
