#include "tests/sim/turns_rule.h"

#include <algorithm>

#include "common/coin.h"
#include "server/stepsize/rule_state.h"

namespace signvote::sim {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint64_t kNeedsX0MainRounds = 40;

}  // namespace

bool TurnsRule::x0_over(const RoundAhead& ahead) const {
  return ahead.main_rounds >= kNeedsX0MainRounds;
}

std::vector<ScalarKind> TurnsRule::Wanted(const RoundAhead& ahead) const {
  if (x0_over(ahead)) return {ScalarKind::kPrevInner};
  switch (Mix(seed_, ahead.round.value(), 0) % 4) {
    case 0:
      return {};
    case 1:
      return {ScalarKind::kX0Distance, ScalarKind::kProbeL1};
    case 2:
      return {ScalarKind::kPrevInner};
    default:
      return {ScalarKind::kX0Inner, ScalarKind::kX0Distance, ScalarKind::kPrevInner};
  }
}

StepsizeDecision TurnsRule::Decide(const RuleInput& input) {
  ++decisions_;
  StepsizeDecision decision{.reason = "turns"};
  // The last decision depends on all before it: a state that lost one is found out.
  gamma_ =
      std::clamp(gamma_ * (1.0 + 1e-3 * static_cast<double>(input.workers.size())), 1e-4, 1e-2);
  decision.gamma = static_cast<float>(gamma_);
  const uint64_t turn = Mix(seed_, input.ahead.round.value(), decisions_) % 12;
  const bool x0 = !x0_over(input.ahead);
  if (turn == 0 && x0) {
    decision.kind = CommitKind::kRewind;
    decision.main_round = false;
    decision.next_data_step = DataStep(0);
  } else if (turn < 4 && x0) {
    decision.rho = 0.875f;
  } else if (turn == 4) {
    decision.main_round = false;
  }
  return decision;
}

std::string TurnsRule::Save() const {
  RuleStateWriter writer(name(), kVersion);
  writer.Add(decisions_);
  writer.Add(gamma_);
  return writer.Take();
}

absl::Status TurnsRule::Restore(std::string_view bytes) {
  RuleStateReader reader(bytes, name(), kVersion);
  const uint64_t decisions = reader.U64();
  const double gamma = reader.Double();
  if (const absl::Status status = reader.Finish(); !status.ok()) return status;
  decisions_ = decisions;
  gamma_ = gamma;
  return absl::OkStatus();
}

}  // namespace signvote::sim
