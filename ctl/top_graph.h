#pragma once
// The loss of `signvote top` as a graph of filled columns, in braille or plain characters. Pure.

#include <vector>

#include "ctl/top_model.h"
#include "ctl/top_view.h"

namespace signvote::ctl {

// Appends a title and `rows` lines. REQUIRES: rows > 0.
void AddGraph(const TopModel& model, const TopView& view, int rows, std::vector<Line>* out);

}  // namespace signvote::ctl
