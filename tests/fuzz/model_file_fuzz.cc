// A config.json that lies beside an export (common/model_file.h): the user's file and the model's own
// text are joined. What is joined says what both say, and joining it again changes nothing.
//
// Input: two texts, the user's and the model's, with a byte 0 between them.

#include <string>

#include "common/check.h"
#include "common/model_file.h"
#include "common/model_identity.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/memory_files.h"

namespace signvote {
namespace {

void Check(const std::string& there, const std::string& ours) {
  fuzz::MemoryFiles files({{"out/config.json", there}});
  const auto read = ReadConfigBeside(&files, "out/model.safetensors");
  SIGNVOTE_CHECK(read.ok() || absl::IsResourceExhausted(read.status()));
  if (!read.ok()) return;
  SIGNVOTE_CHECK(read->has_value() && **read == there);

  const auto joined = JoinConfigs(there, ours, TensorDtype::kF32);
  const absl::Status own = RequireOwnConfig("out/model.safetensors", there, ours);
  // "" is a model about which nothing is said yet, which JoinConfigs() is never asked about.
  if (!ours.empty()) SIGNVOTE_CHECK(own.code() == joined.status().code());
  if (!joined.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(joined.status()) ||
                   absl::IsFailedPrecondition(joined.status()));
    return;
  }
  if (joined->size() > ModelIdentity::kConfigBytesMax) return;  // two large ones
  SIGNVOTE_CHECK(ModelIdentity::FromConfig(*joined).ok());
  const auto again = JoinConfigs(*joined, ours, TensorDtype::kF32);
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(*again == *joined);
}

}  // namespace
}  // namespace signvote

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text = signvote::fuzz::Input(data, size).Rest();
  const size_t cut = text.find('\0');
  signvote::Check(text.substr(0, cut), cut == std::string::npos ? "" : text.substr(cut + 1));
  return 0;
}
