#pragma once
// Where one session's ballot lies while a round is open. Receiving threads copy chunks in; the
// run's thread opens attempts and lends what is complete to a tally.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "common/payload_plan.h"

namespace signvote {

// A chunk's slot:
//   free ──Begin──▶ writing ──End(good)──▶ full
//   any ──Close──▶ closed;   any ──Open──▶ free
// A late or repeated chunk finds its slot full or closed and is never written, so that what was or
// is being tallied stays as it is. A writer whose slot was closed or opened anew under it writes on
// into memory that nobody reads: a session has one receiving call at a time, so no other chunk can
// be there, and End() then does not mark it full.
//
// Ownership: shares its buffer with the tallies that read it and with the chunk that is being
//            written: one that is replaced under them lives until they are done.
// Threads:   Begin and End: the session's receiving callback. The rest: the run's thread.
class BallotSlots {
 public:
  // `buffer` holds payload.TotalBytes() bytes.
  BallotSlots(PayloadPlan payload, std::shared_ptr<uint8_t> buffer);

  const ChunkPlan& plan() const { return payload_.chunk_plan(); }
  const PayloadPlan& payload() const { return payload_; }  // of ballots

  enum class Place {
    kWrite,      // copy the payload to *out, then call End()
    kNotNeeded,  // repeated, or late: nothing to copy; the engine counts it
    kNotOpen,    // a round or attempt that was never opened to this session
  };
  // *out stays valid until End(). REQUIRES: chunk < plan().chunks(); no Begin() before the End() of
  // the last kWrite.
  Place Begin(Round round, Attempt attempt, ChunkIndex chunk, std::span<uint8_t>* out);
  // `good`: the chunk lies whole and checked in its place. False: it came too late to be counted.
  bool End(Round round, Attempt attempt, ChunkIndex chunk, bool good);

  // Every slot is free, for this attempt only. REQUIRES: no tally reads the buffer any more.
  void Open(Round round, Attempt attempt);
  // The same with another buffer, while tallies may still read the old one.
  void OpenIn(std::shared_ptr<uint8_t> buffer, Round round, Attempt attempt);
  // Nothing is written any more into this chunk in this attempt. Whether it was full.
  bool Close(ChunkIndex chunk);
  // The buffer that holds chunk k's bytes from payload().Offset(k) on; the caller's share keeps it
  // alive. A chunk is valid for reading when End() returned true for it in the open attempt.
  std::shared_ptr<const uint8_t> buffer() const;

 private:
  enum class Slot : uint8_t { kFree, kWriting, kFull, kClosed };
  void OpenLocked(Round round, Attempt attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const PayloadPlan payload_;

  mutable Mutex mu_;
  // Contents ordered by mu_ and the run's queue.
  std::shared_ptr<uint8_t> buffer_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<uint8_t> written_ ABSL_GUARDED_BY(mu_);  // from Begin() to End()
  bool opened_ ABSL_GUARDED_BY(mu_) = false;
  Round round_ ABSL_GUARDED_BY(mu_);
  Attempt attempt_ ABSL_GUARDED_BY(mu_);
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote
