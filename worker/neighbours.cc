#include "worker/neighbours.h"

#include <algorithm>

namespace signvote {

std::optional<ThreadsAdvice> NeighbourWatch::Look(Time now) {
  if (told_ || (next_.has_value() && now < *next_)) return std::nullopt;
  next_ = now + kLookEvery;
  const std::optional<ProcessEntry> self = table_->Self();
  if (!self.has_value()) return std::nullopt;
  const uint32_t processors = self->ProcessorCount();
  if (threads_ < 2 || threads_ < processors) return std::nullopt;
  uint32_t workers = 1;
  for (const ProcessEntry& other : table_->Others()) {
    if (other.program == self->program && other.SharesProcessorsWith(*self)) ++workers;
  }
  if (workers == 1) return std::nullopt;
  told_ = true;
  return ThreadsAdvice{
      .workers = workers, .processors = processors, .threads = std::max(1u, processors / workers)};
}

}  // namespace signvote
