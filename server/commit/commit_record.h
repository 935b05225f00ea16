#pragma once
// One committed round: what it did, and the payload with which every replica repeats it.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/payload_plan.h"
#include "common/vote_terms.h"

namespace signvote {

// A stretch of a commit's payload: consecutive chunks of one kind, one after the other in memory
// as PayloadPlan::Offset() counts them.
struct PayloadPart {
  ChunkIndex first;
  uint32_t chunks = 0;
  PayloadKind kind = PayloadKind::kSigns;
  uint64_t first_coordinate = 0;
  uint64_t coordinates = 0;
  // The first byte of chunk `first`; null: the bytes lie elsewhere, with whoever counted them.
  std::shared_ptr<const uint8_t> bytes;
};

// Ownership: immutable once made and shared: the ring, the applier, the journal and the peers' send
//            queues hold the same record.
// Invariants: as MakeCommitRecord() checks them.
struct CommitRecord {
  Round round;
  Attempt attempt;
  CommitKind kind = CommitKind::kStep;
  DataStep data_step;                // the minibatch that was voted on
  DataStep next_data_step;           // the minibatch of the next round
  uint64_t main_round = 0;           // main rounds committed, this one included if it is one
  bool run_done = false;             // the last commit of the run
  float gamma = 0;                   // ≥ 0, finite; kind none keeps it
  float rho = 1;                     // ≥ 0, finite: rescaling about x0 before the step; 1: none
  std::optional<float> decay_step;   // stepsize of the weight decay; absent: gamma
  std::vector<float> scales;         // per tensor; empty: 1 each
  std::vector<ChunkSum> chunks;      // per chunk; empty without a payload
  std::vector<PayloadPart> payload;  // in order of the chunks; empty without a payload
  uint64_t payload_hash = 0;         // PayloadHash(chunks); 0 without a payload
  uint64_t payload_bytes = 0;        // memory of the parts that lie here
  bool digest_due = false;           // every replica is digested after this commit
  std::optional<double> loss;        // robust mean of the voters' losses
  uint32_t voters = 0;               // workers that were counted
  std::string reason;                // of kinds none and rewind, for people

  PayloadPlan plan;  // that it was made with; where the payload's chunks lie

  // The payload of chunk k, null when it lies elsewhere. REQUIRES: kind is step. Valid as long as the
  // record is.
  std::span<const uint8_t> Chunk(ChunkIndex k) const;
  // What keeps those bytes alive.
  const std::shared_ptr<const uint8_t>& ChunkOwner(ChunkIndex k) const;
};

// The part that holds `chunks` chunks from `first` on, all of one kind of the plan.
PayloadPart MakePart(const PayloadPlan& plan, ChunkIndex first, uint32_t chunks,
                     std::shared_ptr<const uint8_t> bytes);

// The whole payload, which lies in one buffer of plan.TotalBytes().
std::vector<PayloadPart> WholePayload(const PayloadPlan& plan,
                                      std::shared_ptr<const uint8_t> bytes);

// Checks a record and fills in payload_hash, payload_bytes and plan. `tensors`: of the layout.
//   INVALID_ARGUMENT: a step whose chunks or parts do not cover the plan in order, a payload or
//   chunks with another kind, a number out of its range, a wrong number of scales.
//   UNIMPLEMENTED: a payload that no replica applies yet: its bytes lie elsewhere.
absl::StatusOr<std::shared_ptr<const CommitRecord>> MakeCommitRecord(CommitRecord record,
                                                                     const PayloadPlan& plan,
                                                                     size_t tensors);

}  // namespace signvote
