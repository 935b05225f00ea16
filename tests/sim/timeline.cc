#include "tests/sim/timeline.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote::sim {

void Timeline::SleepFor(Duration) { SIGNVOTE_CHECK(!"somebody waits in a simulated run"); }

void Timeline::At(Time at, std::function<void()> what) {
  queue_.push({std::max(at, now_), sequence_++, std::move(what)});
}

bool Timeline::RunOne() {
  if (queue_.empty()) return false;
  // The item is moved out before it is popped: top() is const only to protect the order, which
  // `what` is no part of.
  std::function<void()> what = std::move(const_cast<Item&>(queue_.top()).what);
  now_ = queue_.top().at;
  queue_.pop();
  ++events_;
  what();
  return true;
}

}  // namespace signvote::sim
