#pragma once
// Other workers on this one's processors.
//
// A worker computes with as many threads as there are processors, unless --threads says otherwise. Two
// that do so on one machine wait for each other in every layer, and both are slower than with half of
// the threads. The default stays, because a run repeats to the bit only with the same --threads
// (docs/operations.md, "The same run twice"); so people are told, once, what to give.
//
// Threads: not thread-safe.

#include <cstdint>
#include <optional>

#include "common/clock.h"
#include "common/process_table.h"

namespace signvote {

// What --threads would share the processors evenly.
struct ThreadsAdvice {
  uint32_t workers = 0;     // this one and those beside it
  uint32_t processors = 0;  // that this one may run on
  uint32_t threads = 0;     // for each of them; at least one
};

class NeighbourWatch {
 public:
  static constexpr Duration kLookEvery = std::chrono::minutes(1);

  // `threads` are this worker's. `table` must outlive the object.
  NeighbourWatch(ProcessTable* table, uint32_t threads) : table_(table), threads_(threads) {}

  // Looks around when that is due: at once, then every kLookEvery until there was something to say.
  // The advice, once: when this worker takes every processor that it has, and others of the same
  // program run on one of them.
  std::optional<ThreadsAdvice> Look(Time now);

 private:
  ProcessTable* const table_;
  const uint32_t threads_;
  std::optional<Time> next_;  // nullopt: at once
  bool told_ = false;
};

}  // namespace signvote
