#pragma once
// Holds a run to what must never be broken. It stands at the seams of Run: what streams bring and are
// told, what is given to the tally, the durability policy and the applier; and at every replica.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/layout.h"
#include "server/commit/commit_consumer.h"
#include "server/commit/commit_record.h"
#include "server/run/run_state.h"
#include "signvote/v1/training.pb.h"

namespace signvote::sim {

// Safety, checked at each step:
//   commits are proposed, released, published and applied in this order, each gap-free; rounds and
//   attempts only grow; no two seats of an attempt share a name or a share of the data; an evicted
//   worker never gets a seat;
//   a (round, attempt, chunk) closes once, with ballots of members of that attempt, each once, and the
//   first that came of each;
//   it closes when at least the quorum has answered, by that chunk or by abstaining: who is silent or
//   gone has not; while a live member has not answered, only behind the deadline;
//   a commit is what was tallied; one without a step comes only after its round was opened again, and
//   moves nothing;
//   a replica holds what was committed: equal round ⇒ equal digest;
//   one at a time is asked for a held-out loss, one that can; for no longer than a period nobody is
//   while somebody can; what the run shows is the loss of that round's replica.
//
// Failure: the first broken rule is kept as text; later ones are its consequences.
class Checker {
 public:
  // `quorum`: as the operator asked for it; 0: half of the members. Without `sees_proposals` commits
  // are released as they are proposed, and the first sight of one is what a worker is told, or the
  // applier gets.
  // `evaluate_every`: rounds of a period; 0: nobody is asked.
  Checker(Layout layout, uint32_t chunks, uint32_t quorum, bool sees_proposals,
          uint64_t evaluate_every);

  // ---- the run
  // The initial parameters, once they are complete.
  void Begin(std::span<const float> x0);
  bool begun() const { return !digests_.empty(); }
  // A Run was made that stands at this round. Streams of an earlier one are gone.
  void OnEpoch(Round round);
  // The same, of a run that a server which died left in its journal. Nothing that anybody was told of may
  // be lost, unless the disk has lied; commits that were on the disk and told to nobody are told now, or
  // are not there. Whether some that were told are not.
  bool OnRecovered(const run::RunState& state, bool disk_lied);
  // The operator stops it: from `patience_ends` on the open round is closed with what is there.
  void OnStop(Time patience_ends) { patience_ends_ = patience_ends; }
  void OnEvict(const std::string& name) { evicted_.emplace(name, proposed_); }

  // The server is about to be given an input.
  void OnInput() { ++goes_; }

  // ---- streams, by their number
  void OnRoundOpen(uint64_t peer, const std::string& name, const v1::RoundOpen& open, Time now);
  // A chunk of a ballot was taken, with this checksum.
  void OnChunk(uint64_t peer, Round round, Attempt attempt, ChunkIndex chunk, uint64_t checksum);
  void OnAbstain(uint64_t peer, Round round, Attempt attempt, bool nonfinite_loss);
  // It said in its Join that it can measure a held-out loss.
  void OnAble(uint64_t peer) { able_.insert(peer); }
  // Nobody waits for it any more.
  void OnStreamEnd(uint64_t peer);
  void OnCommitSent(const v1::Commit& commit);

  // ---- a closed chunk: whose ballots are counted, with the checksum of what lies there
  void OnTally(Round round, Attempt attempt, ChunkIndex chunk,
               std::span<const std::pair<uint64_t, uint64_t>> ballots, Time now);
  // ---- commits
  void OnProposed(const CommitRecord& record);
  void OnReleased(Round round);
  void OnHandedOver(const CommitRecord& record);
  void OnApplied(const Applied& applied);

  // ---- held-out losses
  // The run says that this is the loss of the replica that held all commits before `round`.
  void OnHeldOut(Round round, double loss, uint64_t windows);

  // ---- replicas
  // One holds all commits before `round`, and has this digest.
  void OnReplica(const std::string& whose, Round round, uint64_t digest);

  void Fail(std::string what);
  void Require(bool condition, const char* what) {
    if (!condition) Fail(what);
  }
  const std::optional<std::string>& failure() const { return failure_; }
  // Commits of which somebody was told.
  Round published() const { return published_; }
  uint64_t digest(Round round) const { return digests_.at(round.value()); }
  // The last commits in a row that were of kind none, and whose every abstention was a loss that is
  // not finite.
  uint32_t nonfinite_in_a_row() const { return at_.nonfinite_in_a_row; }
  uint64_t steps() const { return steps_; }
  uint64_t rewinds() const { return rewinds_; }
  uint64_t races() const { return races_; }  // that were won
  uint64_t rounds_without_step() const { return nones_; }
  uint64_t partial_commits() const { return partial_; }
  uint64_t reopenings() const { return reopenings_; }
  uint64_t averages() const { return averages_; }                // steps by counts
  uint64_t silent() const { return silent_; }                    // a trial's, in which nobody votes
  uint64_t silent_reopened() const { return silent_reopened_; }  // likewise, that opened again
  uint64_t dense() const { return dense_; }                      // steps with dense chunks
  uint64_t uncounted() const { return uncounted_; }  // openings told to one that is warmed up
  uint64_t evaluators_changed() const { return evaluators_changed_; }

 private:
  struct Seat {
    bool member = false;
    uint32_t share = 0;
    bool live = true;
    bool abstained = false;
    std::map<uint32_t, uint64_t> chunks;  // checksum, by chunk
  };
  struct Open {
    Round round;
    Attempt attempt;
    Time opened;
    std::optional<Duration> deadline;
    uint32_t members = 0, quorum = 0;
    uint64_t data_step = 0, minibatches = 1;
    bool silent = false;             // a trial's local steps: nobody votes
    std::map<uint64_t, Seat> seats;  // by stream
    std::set<std::string> names;
    std::set<uint32_t> shares;
    std::map<uint32_t, uint32_t> closed;  // ballots, by chunk
    std::set<uint64_t> voters;
    bool other_abstention = false;
    uint32_t abstained = 0;
    std::optional<uint64_t> asked;  // for a held-out loss
    uint64_t go = 0;                // in which the first heard of it
    uint32_t told_at_once = 0;      // in that go
    bool able_at_once = false;      // one of them can measure
    // Of the round, whatever its attempts: one that can heard of it at once; one was asked.
    bool could_ask = false, was_asked = false;
  };
  // What a commit says of its round.
  struct Law {
    Round round;
    Attempt attempt;
    CommitKind kind = CommitKind::kStep;
    float gamma = 0;
    uint64_t data_step = 0, next_data_step = 0, main_round = 0;
    uint32_t voters = 0;
    std::vector<uint32_t> counted;
    bool has_payload = false;
    uint64_t payload_hash = 0;
  };
  Seat* Find(uint64_t peer, Round round, Attempt attempt);
  void CountUnasked();
  void Learn(const Law& law);

  // Constant after construction.
  const Layout layout_;
  const uint32_t chunks_, quorum_;
  const bool sees_proposals_;
  const uint64_t evaluate_every_;

  std::optional<std::string> failure_;
  std::map<std::string, Round> evicted_;  // and how much was proposed by then
  std::optional<Time> patience_ends_;
  std::optional<Open> open_;
  Round proposed_, released_, published_, handed_, applied_;
  // Where the run stands behind what was proposed.
  struct Standing {
    uint64_t next_data_step = 0, main_round = 0;
    float gamma = 0;
    uint32_t nonfinite_in_a_row = 0;
    uint64_t payload_hash = 0;  // of the commit before
  };
  Standing at_;
  std::vector<Standing> behind_ = {{}};  // by number of commits
  std::map<uint64_t, uint64_t> law_;     // payload hash of a published round
  // The reference: what every replica must be. Invariant: x_ holds the commits before handed_.
  std::vector<float> x_, x0_;
  std::vector<uint64_t> digests_;       // by number of commits
  std::map<uint64_t, uint64_t> early_;  // digests of rounds that x_ has not come to
  std::set<uint64_t> able_;
  uint64_t goes_ = 0;  // of RoundOpens one behind the other: who is sent a commit before was behind
  std::optional<uint64_t> asked_last_;  // the stream
  // Rounds in which somebody could have been asked and nobody was, since one was asked or went.
  uint64_t unasked_ = 0;
  std::string evaluator_;  // asked last
  uint64_t evaluators_changed_ = 0;
  uint64_t steps_ = 0, rewinds_ = 0, races_ = 0, nones_ = 0, partial_ = 0, reopenings_ = 0;
  uint64_t averages_ = 0, dense_ = 0, uncounted_ = 0, silent_ = 0, silent_reopened_ = 0;
};

}  // namespace signvote::sim
