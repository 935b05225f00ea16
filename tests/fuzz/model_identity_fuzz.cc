// A model's identity, made of text that whoever joins sends (common/model_identity.h). The canonical
// form is its own canonical form.
//
// Input: the config.

#include "common/check.h"
#include "common/model_identity.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  const auto identity = ModelIdentity::FromConfig(fuzz::Input(data, size).Rest());
  if (!identity.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(identity.status()));
    return 0;
  }
  const auto again = ModelIdentity::FromConfig(identity->json());
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(again->json() == identity->json());
  SIGNVOTE_CHECK(FirstDifference(*identity, *again).empty());
  const auto other = ModelIdentity::FromConfig(R"({"hidden_size": 7})");
  SIGNVOTE_CHECK(other.ok());
  SIGNVOTE_CHECK(FirstDifference(*identity, *other).empty() == (*identity == *other));
  return 0;
}
