// A stepsize rule's saved state (server/stepsize/rule_state.h), as every rule restores it. What a rule
// takes it writes again so that the next one takes it as well, and it decides with it; what it refuses
// leaves it as it was.
//
// Input: one byte that names the rule, one that says whether the hash is put right, so that what lies
// behind it is reached as well; then the state.

#include <cmath>
#include <cstring>
#include <string>

#include "common/check.h"
#include "common/checksum.h"
#include "server/stepsize/rule_flags.h"
#include "tests/fuzz/fuzz_target.h"

namespace signvote {
namespace {

RuleFlags FlagsOf(uint8_t which) {
  switch (which % 10) {
    case 0:
      return {.rule = "alias", .alias_option = "I"};
    case 1:
      return {.rule = "alias", .alias_option = "II", .alias_probe_every = 3};
    case 2:
      return {.rule = "fixed"};
    case 3:
      return {.rule = "fixed", .schedule = "cosine", .warmup_rounds = 5};
    case 4:
      return {.rule = "lever"};
    case 5:
      return {.rule = "lever", .lever_form = "lite", .lever_race = "off"};
    case 6:
      return {.rule = "prodigy"};
    case 7:
      return {.rule = "mechanic", .rival_start = 1e-4};
    case 8:
      return {.rule = "sos"};
    default:
      return {.rule = "alias", .alias_probe = "extrema"};
  }
}

void Check(uint8_t which, const std::string& bytes) {
  const auto rule = MakeRule(FlagsOf(which)), second = MakeRule(FlagsOf(which));
  SIGNVOTE_CHECK(rule.ok() && second.ok());
  const std::string fresh = (*rule)->Save();
  const absl::Status status = (*rule)->Restore(bytes);
  if (!status.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(status) || absl::IsInvalidArgument(status));
    SIGNVOTE_CHECK((*rule)->Save() == fresh);
    return;
  }
  const std::string saved = (*rule)->Save();
  SIGNVOTE_CHECK((*second)->Restore(saved).ok());
  SIGNVOTE_CHECK((*second)->Save() == saved);
  if (!(*rule)->failure().ok()) return;  // the run ends, and nobody asks it
  const StepsizeDecision decision = (*rule)->Decide({.gamma = 0.5f});
  SIGNVOTE_CHECK(std::isfinite(decision.gamma) && decision.gamma >= 0);
}

}  // namespace
}  // namespace signvote

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t which = input.Byte();
  const bool repair = (input.Byte() & 1) != 0;
  std::string bytes = input.Rest();
  if (repair && bytes.size() >= 8) {
    const uint64_t hash = signvote::Xxh3(bytes.data(), bytes.size() - 8);
    std::memcpy(bytes.data() + bytes.size() - 8, &hash, sizeof(hash));
  }
  signvote::Check(which, bytes);
  return 0;
}
