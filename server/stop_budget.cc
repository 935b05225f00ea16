#include "server/stop_budget.h"

#include <algorithm>
#include <utility>

namespace signvote {

StopBudget::StopBudget(Clock* clock, Duration whole, std::function<bool()> requested)
    : clock_(clock), whole_(whole), requested_(std::move(requested)) {}

bool StopBudget::Begun() {
  if (!begun_ && requested_()) {
    begun_ = true;
    deadline_ = clock_->Now() + whole_;
  }
  return begun_;
}

Duration StopBudget::Share(Duration wish, Duration reserve) {
  if (!Begun()) return wish;
  return std::clamp(deadline_ - clock_->Now() - reserve, Duration::zero(), wish);
}

StopBudget::Pause::Pause(StopBudget* budget)
    : budget_(budget), counting_(budget->Begun()), begin_(budget->clock_->Now()) {}

StopBudget::Pause::~Pause() {
  if (counting_) budget_->deadline_ = budget_->deadline_ + (budget_->clock_->Now() - begin_);
}

}  // namespace signvote
