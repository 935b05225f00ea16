#pragma once
// What workers say of the way from x_0 to x, as far as it fits together. Of one gradient and one
// displacement these numbers cannot be chosen freely, so that most lies are found out alone, and one by
// one, whatever the others say.

#include <vector>

#include "server/stepsize/types.h"

namespace signvote {

// Of one worker.
struct X0Report {
  double inner = 0;     // ⟨g, x_0 − x⟩
  double norm_l1 = 0;   // ‖g‖₁
  double norm_l2 = 0;   // ‖g‖₂
  double distance = 0;  // ‖x − x_0‖₂
};

// The scalars that a rule asks for to have these.
std::vector<ScalarKind> X0ReportScalars();

// The reports of a round in which everything is finite and
//   ‖x − x_0‖₂ is what more than half of all say: the replicas are the same to the last bit, and where
//   no such value is, as of two who differ, nobody knows who is right and there is no report
//   ‖g‖₂ ≤ ‖g‖₁ ≤ √d·‖g‖₂, where d is known
//   |⟨g, x_0 − x⟩| ≤ ‖g‖₂·‖x − x_0‖₂
// each up to rounding. The others are left out.
std::vector<X0Report> X0Reports(const RuleInput& input);

}  // namespace signvote
