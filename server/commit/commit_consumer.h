#pragma once
// Who applies published commits: the seam between the pipeline and the master replica.

#include <cstdint>
#include <memory>
#include <optional>

#include "common/clock.h"
#include "common/ids.h"
#include "server/commit/commit_record.h"

namespace signvote {

// One commit was applied.
struct Applied {
  Round next_round;                // the replica holds all commits before it
  std::optional<uint64_t> digest;  // when the commit asked for it
  Duration took{};                 // apply and digest
};

class CommitConsumer {
 public:
  virtual ~CommitConsumer() = default;
  // Takes the next commit, never waits. False: no room; `record` is then untouched, and there will
  // be room when something was applied.
  [[nodiscard]] virtual bool TryPush(const std::shared_ptr<const CommitRecord>& record) = 0;
};

}  // namespace signvote
