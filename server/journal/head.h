#pragma once
// Layout and payloads of a run as the journal's messages have them.
//
// Threads: pure functions.

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "signvote/v1/journal.pb.h"
#include "signvote/v1/state.pb.h"

namespace signvote::journal {

void FillLayout(const Layout& layout, v1::RunState* out);
// No tensors: a layout of none. DATA_LOSS: a treatment that there is not. INVALID_ARGUMENT as of
// Layout::Make().
absl::StatusOr<Layout> LayoutFrom(const v1::RunState& state);

void FillPlan(const PayloadPlan& plan, v1::JournalHead* out);
// DATA_LOSS: chunks or ranges that do not cover the layout, or a kind that there is not.
absl::StatusOr<PayloadPlan> PlanFrom(const v1::JournalHead& head, uint64_t coordinates);

// Whether bytes that one of them describes can be read by the other.
bool SamePlan(const PayloadPlan& a, const PayloadPlan& b);

// Takes from `after` where the run stands: what JournalCommit.after has.
void MoveOn(const v1::RunState& after, v1::RunState* state);

}  // namespace signvote::journal
