#pragma once
// The workers of `signvote top` as a table: which columns fit, in which order, from which worker
// on. Pure.

#include <cstddef>

#include "ctl/top_model.h"
#include "ctl/top_view.h"

namespace signvote::ctl {

// Appends the head and at most `rows` workers to frame->lines, and says in the frame which they
// are.
void AddTable(const TopModel& model, const TopView& view, size_t rows, Frame* frame);

}  // namespace signvote::ctl
