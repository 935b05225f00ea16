#pragma once
// Holds a run to what must never be broken. It sees everything: what the engine decides and what
// replicas do.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "server/round/types.h"
#include "tests/sim/options.h"

namespace signvote::sim {

// A commit as everybody must see it.
struct CommitRecord {
  Round round;
  Attempt attempt;
  float gamma = 0;
  uint64_t verdict_hash = 0;
  bool digest_due = false;
};

// Safety, checked at each step:
//   commits are gap-free; rounds and attempts only grow; no two seats share a name or a share of
//   the data; a (round, attempt, chunk) closes once, with members of that attempt only, each of
//   them once; a commit's counts, voters and abstentions are those of its own closed chunks; a
//   replica applies only what is committed, in order; equal round ⇒ equal digest; an evicted worker
//   never sits again.
// Failure: the first broken rule is kept as text; later ones are its consequences.
class Checker {
 public:
  void OnOpen(const round::OpenRound& open);
  void OnClose(const round::CloseChunk& close);
  void OnCommit(const round::CommitRound& commit, uint64_t verdict_hash, uint64_t digest);
  // A replica moved from `round` to the next by this commit; `digest` is what it became.
  void OnApply(uint32_t worker, const CommitRecord& applied, uint64_t verdict_hash,
               uint64_t digest);
  // A replica was replaced by a snapshot of all commits before `round`.
  void OnSnapshot(uint32_t worker, Round round, uint64_t digest);
  void OnEvict(uint32_t worker) { evicted_.insert(worker); }

  void Fail(std::string what);
  void Require(bool condition, const char* what);
  const std::optional<std::string>& failure() const { return failure_; }
  uint64_t commits() const { return log_.size(); }
  uint64_t abstentions() const { return abstentions_; }
  void SetStart(uint64_t digest) { digests_ = {digest}; }
  uint64_t digest(Round round) const { return digests_[round.value()]; }

 private:
  std::optional<std::string> failure_;
  std::vector<CommitRecord> log_;
  std::vector<uint64_t> digests_;  // by number of commits applied
  std::optional<round::OpenRound> open_;
  std::array<std::optional<std::vector<round::WorkerId>>, kChunks> closed_;
  std::set<uint32_t> evicted_;
  uint64_t abstentions_ = 0;
};

}  // namespace signvote::sim
