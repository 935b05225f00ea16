#include "server/stepsize/stepsize_rule.h"

namespace signvote {

StepsizeDecision StepsizeRule::DecideWithoutBallot(const RuleInput& input) {
  StepsizeDecision decision;
  decision.kind = CommitKind::kNone;
  decision.gamma = input.gamma;
  decision.main_round = false;
  return decision;
}

}  // namespace signvote
