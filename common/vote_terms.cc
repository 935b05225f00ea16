#include "common/vote_terms.h"

namespace signvote {

std::string_view Words(AbstainReason reason) {
  switch (reason) {
    case AbstainReason::kNonFiniteLoss:
      return "non-finite loss";
    case AbstainReason::kNonFiniteGradient:
      return "non-finite gradient";
    case AbstainReason::kOther:
      break;
  }
  return "other reason";
}

std::string_view Words(CommitKind kind) {
  switch (kind) {
    case CommitKind::kStep:
      return "step";
    case CommitKind::kRewind:
      return "rewind";
    case CommitKind::kNone:
      break;
  }
  return "none";
}

std::string_view Words(Aggregate aggregate) {
  return aggregate == Aggregate::kVote ? "vote" : "average";
}

std::string_view Words(PayloadKind kind) {
  switch (kind) {
    case PayloadKind::kSigns:
      return "signs";
    case PayloadKind::kCounts:
      return "counts";
    case PayloadKind::kFp32:
      return "fp32";
    case PayloadKind::kBf16:
      break;
  }
  return "bf16";
}

std::string_view Words(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kProbeL1:
      return "probe_l1";
    case ScalarKind::kPrevInner:
      return "prev_inner";
    case ScalarKind::kX0Inner:
      return "x0_inner";
    case ScalarKind::kX0Distance:
      return "x0_distance";
    case ScalarKind::kLocalInner:
      return "local_inner";
    case ScalarKind::kLocalProduct:
      return "local_product";
    case ScalarKind::kProbeInner:
      return "probe_inner";
    case ScalarKind::kChangeL1:
      return "change_l1";
    case ScalarKind::kGradientMax:
      return "gradient_max";
    case ScalarKind::kGradientMin:
      break;
  }
  return "gradient_min";
}

}  // namespace signvote
