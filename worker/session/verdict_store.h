#pragma once
// Payloads of commits on their way from the stream to the replica: one slot per round in flight,
// reused from round to round. A caller that lagged costs memory while it lags, and no longer.
//
// Ownership: owns the slots; a pointer, and what it points to, is valid until Release().
// Threads:   thread-safe; a slot's content belongs to whoever holds it.

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "common/payload_plan.h"

namespace signvote {

class VerdictStore {
 public:
  struct Slot {
    Round round;
    const PayloadPlan* plan = nullptr;  // the store's
    // The whole payload: chunk k from plan->Offset(k) on. Of signs alone: the whole model's packed
    // bits.
    std::pmr::vector<uint8_t> bits;
    // Which vote each chunk's bytes come from; a payload counts only when all are of the commit's
    // epoch and attempt.
    struct Origin {
      bool present = false;
      Epoch epoch;
      Attempt attempt;
      uint64_t checksum = 0;  // of the chunk's bytes
      uint64_t bytes = 0;
    };
    std::vector<Origin> chunks;
    std::vector<ChunkSum> sums;  // by chunk, as the commit says; empty until it came
    Time first_chunk;            // when the first chunk arrived

    // Every chunk is there and is of this vote.
    bool IsWhole(Epoch epoch, Attempt attempt) const;
  };

  // Free slots that are kept, for the rounds of a caller that keeps up: one under way, its successor,
  // and the one behind the last outcome.
  static constexpr size_t kFreeMax = 3;

  // At most `slots_max` (at least 1) at a time, each allocated when it is needed; their bits
  // from `memory`, which must outlive the store and be thread-safe.
  VerdictStore(PayloadPlan plan, size_t slots_max, std::pmr::memory_resource* memory);
  // An empty slot for `round`; nullptr when all are in use.
  Slot* Acquire(Round round) ABSL_LOCKS_EXCLUDED(mu_);
  void Release(Slot* slot) ABSL_LOCKS_EXCLUDED(mu_);

  const PayloadPlan& plan() const { return plan_; }

 private:
  const PayloadPlan plan_;
  const size_t slots_max_;
  std::pmr::memory_resource* const memory_;

  Mutex mu_;
  std::vector<std::unique_ptr<Slot>> slots_ ABSL_GUARDED_BY(mu_);
  std::vector<Slot*> free_ ABSL_GUARDED_BY(mu_);  // Invariant: at most kFreeMax, all in slots_
};

}  // namespace signvote
