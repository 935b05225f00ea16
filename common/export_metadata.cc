#include "common/export_metadata.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr char kRunId[] = "signvote.run_id";
constexpr char kRound[] = "signvote.round";
constexpr char kRule[] = "signvote.rule";
constexpr char kStepsize[] = "signvote.stepsize";
constexpr char kAlias[] = "alias";
constexpr size_t kShownBytesMax = 40;

}  // namespace

std::map<std::string, std::string> ExportMetadata(const ExportOrigin& origin) {
  std::map<std::string, std::string> metadata = {{"format", "pt"},
                                                 {kRunId, origin.run_id.ToText()},
                                                 {kRound, std::to_string(origin.round.value())},
                                                 {kRule, origin.rule}};
  // Nine digits tell every fp32 number from its neighbours.
  if (origin.stepsize.has_value()) metadata[kStepsize] = absl::StrFormat("%.9g", *origin.stepsize);
  return metadata;
}

absl::StatusOr<std::optional<float>> AliasStepsizeOf(
    const std::map<std::string, std::string>& metadata) {
  const auto rule = metadata.find(kRule);
  const auto text = metadata.find(kStepsize);
  if (rule == metadata.end() || rule->second != kAlias || text == metadata.end()) {
    return std::optional<float>();
  }
  float stepsize = 0;
  if (!absl::SimpleAtof(text->second, &stepsize) || !std::isfinite(stepsize) || stepsize <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "its metadata has '", ForPeople(text->second, kShownBytesMax), "' as ", kStepsize,
        ", which is no stepsize; say where ALIAS begins with --alias-eta0"));
  }
  return std::optional<float>(stepsize);
}

void LastStepsize::Note(CommitKind kind, float stepsize) {
  if (kind != CommitKind::kStep || !(stepsize > 0)) return;
  if (first_ == 0) first_ = stepsize;
  changed_ = changed_ || stepsize != first_;
  last_ = stepsize;
}

std::optional<float> LastStepsize::value() const {
  return changed_ ? std::optional(last_) : std::nullopt;
}

}  // namespace signvote
