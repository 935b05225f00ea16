#pragma once
// Where one session's ballot lies while a round is open. Receiving threads copy chunks in; the
// engine's thread opens attempts and reads what is complete.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"

namespace signvote::rpc {

// A chunk's slot:
//   free ──Begin──▶ writing ──End(good)──▶ full
//   any ──Close──▶ closed;   any ──Open──▶ free
// A late or repeated chunk finds its slot full or closed and is never written, so that what was or
// is being tallied stays as it is. A writer whose slot was closed or opened anew under it writes on
// into memory that nobody reads: a session has one receiving call at a time, so no other chunk can
// be there, and End() then does not mark it full.
//
// Threads: Begin and End: the session's receiving callback. The rest: the engine's thread.
class BallotSlots {
 public:
  // `buffer` holds plan.TotalBytes() bytes.
  BallotSlots(ChunkPlan plan, std::shared_ptr<uint8_t> buffer);

  const ChunkPlan& plan() const { return plan_; }

  enum class Place {
    kWrite,      // copy the payload to *out, then call End()
    kNotNeeded,  // repeated, or late: nothing to copy; the engine counts it
    kNotOpen,    // a round or attempt that was never opened to this session
  };
  // REQUIRES: chunk < plan().chunks().
  Place Begin(Round round, Attempt attempt, ChunkIndex chunk, std::span<uint8_t>* out);
  // `good`: the chunk lies whole and checked in its place. False: it came too late to be counted.
  bool End(Round round, Attempt attempt, ChunkIndex chunk, bool good);

  // Every slot is free, for this attempt only.
  void Open(Round round, Attempt attempt);
  // Nothing is written any more into this chunk in this attempt.
  void Close(ChunkIndex chunk);
  // The chunk's bits. Valid for reading when End() returned true for it in the open attempt.
  const uint8_t* chunk(ChunkIndex k) const { return buffer_.get() + plan_.ByteOffset(k); }

 private:
  enum class Slot : uint8_t { kFree, kWriting, kFull, kClosed };

  // Constant after construction.
  const ChunkPlan plan_;
  const std::shared_ptr<uint8_t> buffer_;  // contents ordered by mu_ and the engine's queue

  Mutex mu_;
  bool opened_ ABSL_GUARDED_BY(mu_) = false;
  Round round_ ABSL_GUARDED_BY(mu_);
  Attempt attempt_ ABSL_GUARDED_BY(mu_);
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::rpc
