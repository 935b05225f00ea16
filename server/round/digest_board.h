#pragma once
// Compares the digests of the workers' replicas with the master's, round by round.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "common/ids.h"
#include "server/round/types.h"

namespace signvote::round {

struct DigestFinding {
  // Workers found to differ from the master that no earlier finding named, by WorkerId.
  std::vector<WorkerId> differing;
  // Not empty: most of the workers that were asked, and at least two, agree with each other against
  // the master. `differing` is then empty: nobody shall be re-synced from a damaged master.
  std::vector<WorkerId> majority_against_master;
};

// The majority is one of all who were asked, whether they have answered, never will, or are gone: a
// few that answer first, or stay longest, cannot end a run. A worker that differs is named only when
// the majority can no longer turn out to stand against the master: while answers are outstanding
// that could decide so, the finding waits for them.
//
// Threads: thread-compatible.
// Memory:  at most kRoundsMax rounds, one answer per worker each.
// Cost:    an answer is compared once: AddWorker() and Forget() are O(log workers), Check() is O(1)
//          beside what it finds; TakeBack() is O(workers).
class DigestBoard {
 public:
  static constexpr size_t kRoundsMax = 4;

  // A digest of `round` is due from these workers. Answers to earlier rounds are outstanding no
  // more.
  void Expect(Round round, const std::vector<WorkerId>& workers);
  bool Expects(Round round) const { return entries_.contains(round); }
  // False when the round is not due, or the worker has answered already. An answer of one that was
  // not asked is compared, and no part of a majority.
  bool AddWorker(Round round, WorkerId worker, uint64_t digest);
  void AddMaster(Round round, uint64_t digest);
  bool HasMaster(Round round) const;
  // The worker is gone; nobody waits for its answers.
  void Forget(WorkerId worker);
  // It gives up the replica that it has answered of: its answers are taken back, and nobody waits for
  // others. It may answer again, of the next one.
  void TakeBack(WorkerId worker);

  std::vector<Round> Rounds() const;
  // Empty while the master's digest is missing. With `final`, what has not been answered never will
  // be.
  DigestFinding Check(Round round, bool final);

 private:
  struct Entry {
    std::optional<uint64_t> master;
    std::map<WorkerId, uint64_t> answers;
    std::set<WorkerId> asked;
    std::set<WorkerId> outstanding;
    // Of the answers that differ from the master's, once that is there.
    std::map<uint64_t, size_t> groups;  // of those who were asked, by digest
    uint64_t rival = 0;                 // the digest of the largest group
    size_t rivals = 0;                  // and its size
    std::vector<WorkerId> unnamed;      // that no finding has named
  };
  // An answer beside the master's. REQUIRES: the master's is there.
  static void Compare(Entry& entry, WorkerId worker, uint64_t digest);

  std::map<Round, Entry> entries_;
};

}  // namespace signvote::round
