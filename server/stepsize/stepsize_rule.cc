#include "server/stepsize/stepsize_rule.h"

namespace signvote {

size_t StepsizeRule::WantedOf(const RoundAhead&, Share, size_t wanted) const { return wanted; }

StepsizeDecision StepsizeRule::DecideWithoutBallot(const RuleInput& input) {
  StepsizeDecision decision;
  decision.kind = CommitKind::kNone;
  decision.gamma = input.gamma;
  decision.main_round = false;
  return decision;
}

}  // namespace signvote
