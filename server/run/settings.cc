#include "server/run/settings.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/direction_config.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::run {
namespace {

std::string Number(double value) { return absl::StrFormat("%.17g", value); }

std::string Words(Envelope envelope) {
  switch (envelope) {
    case Envelope::kNone:
      return "off";
    case Envelope::kCoordinate:
      return "coordinate";
    case Envelope::kTensor:
      return "tensor";
    case Envelope::kOne:
      return "one";
  }
  return "";
}

std::vector<std::pair<std::string, std::string>> SettingsOf(const RunOptions& options) {
  const DirectionConfig& direction = options.direction;
  return {{"--seed", absl::StrCat(options.seed)},
          {"--rule", ChosenRule(options.rule, RuleRunOf(options))},
          {"--direction", std::string(DirectionName(direction.kind))},
          {"--beta", Number(direction.beta)},
          {"--beta2", Number(direction.beta2)},
          {"--noise", Words(direction.envelope)},
          {"--noise-decay", Number(direction.envelope_decay)},
          {"--error-feedback", direction.error_feedback ? "on" : "off"},
          {"--feedback-keep", Number(direction.feedback_keep)},
          {"--state-dtype", direction.state_dtype == StateDtype::kBf16 ? "bf16" : "f32"},
          {"--clip-norm", options.clip_norm.has_value() ? Number(*options.clip_norm) : "off"},
          {"--local-steps", options.local_steps.text()}};
}

}  // namespace

void FillSettings(const RunOptions& options, v1::JournalHead* head) {
  for (auto& [flag, value] : SettingsOf(options)) {
    v1::JournalSetting& setting = *head->add_settings();
    setting.set_flag(flag);
    setting.set_value(value);
  }
}

absl::Status CheckSettings(const v1::JournalHead& head, const RunOptions& options) {
  for (const auto& [flag, value] : SettingsOf(options)) {
    for (const v1::JournalSetting& setting : head.settings()) {
      if (setting.flag() != flag || setting.value() == value) continue;
      return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                              "the run has ", flag, " ", setting.value(), ", and this server has ",
                              flag, " ", value, "; start it with ", flag, " ", setting.value())),
                          ExitCode::kBadInput);
    }
  }
  return absl::OkStatus();
}

}  // namespace signvote::run
