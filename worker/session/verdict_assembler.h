#pragma once
// Verdict chunks and commits, put together: chunks into slots, a commit with its slot into a
// CommitEvent, which is what moves a replica.
//
// A verdict counts only when each of its chunks has come with the right checksum, all are of the
// commit's vote, and their checksums and counts have the commit's hash. Chunks of a later vote take
// the place of those of an earlier one.
//
// Ownership: refers to the store, which must outlive it; the slot of a CommitEvent belongs to whoever
//            took it and goes back by VerdictStore::Release().
// Threads:   not thread-safe, and no lock of its own.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/vote_terms.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/types.h"
#include "worker/session/verdict_store.h"

namespace signvote {

// What a VerdictChunk says of itself, but for its run.
struct VerdictHeader {
  Epoch epoch;
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint64_t checksum = 0;  // XXH3-64 of the payload
};

// A commit whose verdict, if its kind has one, is here, whole and with the commit's hash.
struct CommitEvent {
  Round round;
  Epoch epoch;
  CommitKind kind = CommitKind::kStep;
  float stepsize = 0;
  float rho = 1;
  float decay_step = 0;
  std::vector<float> scales;  // per tensor; empty: the layout's
  double loss = 0;
  uint32_t voters = 0;
  uint64_t main_round = 0;
  DataStep next_data_step;
  bool run_done = false;
  bool digest_due = false;
  std::string reason;
  std::string run_state;               // where the run stands behind it; "": not said
  VerdictStore::Slot* slot = nullptr;  // kStep only
  RoundTimes times;                    // first_verdict and committed
};

class VerdictAssembler {
 public:
  explicit VerdictAssembler(VerdictStore* store) : store_(store) {}
  ~VerdictAssembler() { Drop(); }
  VerdictAssembler(const VerdictAssembler&) = delete;
  VerdictAssembler& operator=(const VerdictAssembler&) = delete;

  enum class Added {
    kKept,
    kNoRoom,  // every slot is in use; nothing was changed, and the chunk may be given again
  };
  // Fills `out` with the payload; DATA_LOSS: it has not the header's checksum.
  using Copy = std::function<absl::Status(std::span<uint8_t> out)>;
  // INVALID_ARGUMENT: no chunk of this run. Otherwise the status of `copy`, after which the chunk
  // counts as not there.
  absl::StatusOr<Added> Add(const VerdictHeader& header, uint64_t payload_bytes, const Copy& copy,
                            Time now);
  // The same, of bytes at hand.
  absl::StatusOr<Added> Add(const VerdictHeader& header, std::span<const uint8_t> payload,
                            Time now);

  // The event of a commit that CheckCommit() accepts. DATA_LOSS: its verdict is not here, or not as
  // it says; the message says which. Either way nothing of this round or an earlier one is kept.
  absl::StatusOr<CommitEvent> Take(const v1::Commit& commit, Time now);

  // Forgets every chunk.
  void Drop();

 private:
  VerdictStore::Slot* Find(Round round);
  // Takes the round's slot out and frees those before it.
  VerdictStore::Slot* TakeSlot(Round round);

  VerdictStore* const store_;
  std::vector<VerdictStore::Slot*> assembled_;  // at most kRoundsMax, in no order
};

}  // namespace signvote
