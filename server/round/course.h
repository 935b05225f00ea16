#pragma once
// Where a run stands: which minibatch comes next, how many main rounds are done, the last stepsize,
// and whether the run is over. The one place that turns what a rule proposes into what a commit
// does.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/round/config.h"
#include "server/round/state.h"
#include "server/round/types.h"
#include "server/stepsize/stepsize_rule.h"

namespace signvote::round {

// How a round ended.
enum class CourseEnd {
  kVerdict,            // every chunk was voted on
  kNonFiniteLoss,      // some chunk has no ballot: every member abstained for a non-finite loss
  kNonFiniteGradient,  // the same, and for some it was the gradient
  kWithoutBallots,     // some chunk has no ballot, for whatever other reason
  kWithoutLengths,     // every chunk was voted on, and no worker says how far to go: local steps
};

// Rules:
//   kind       a rule's own after a verdict; without one none, or rewind if the rule says so
//   γ          the rule's; none keeps the last one, unless it closes a round in which nobody was to vote
//   data_step  the next one is the rule's wish, else the one after all that this round asked for; none
//              never votes on the same minibatch again
//   main round a step that the rule counts
//   the end    main_rounds_max main rounds, or the rule's word
// Threads: thread-compatible.
class Course {
 public:
  // The course of a run that stands at `state`. Errors are those of StepsizeRule::Restore.
  // REQUIRES: a rule, and a valid config.
  static absl::StatusOr<Course> Make(const EngineConfig& config, std::unique_ptr<StepsizeRule> rule,
                                     const CourseState& state);

  DataStep data_step() const { return state_.data_step; }  // of the next round
  uint64_t main_rounds() const { return state_.main_rounds; }
  uint64_t minibatches() const { return state_.minibatches; }
  bool run_done() const { return state_.run_done; }
  // The rule's, of its last decision; not OK: the run is over.
  absl::Status failure() const { return rule_->failure(); }
  // So many rounds in a row closed without any finite loss that the run is lost; a rewind leads away
  // from where they are not finite.
  bool diverged() const { return state_.nonfinite_in_a_row >= nonfinite_rounds_; }
  RaceProgress race() const { return race_; }  // as the rule said last
  // How long the next round is held back: 0 unless the last ones closed without a step for reasons
  // other than a non-finite loss; then 1 s, doubling to 30 s.
  Duration BackOff() const;

  std::vector<ScalarKind> Wanted(Round round) const;
  // How the round takes its minibatches.
  LocalSteps Local(Round round) const;
  // The rule has needed x0, and needs it no more from this round on.
  bool x0_over(Round round) const;
  // How many of them this share is asked for.
  size_t WantedOf(Round round, Share share, size_t wanted) const;
  // Asks the rule and moves on. Of `commit` it reads round, local, asked and scalars, and fills in kind,
  // gamma, rho, both data steps, main round and rounds, minibatches, run_done, reason and the rule's
  // words; chunks and scales stay only with a step. Returns what is to be told when the rule's warning has changed.
  // INTERNAL names the rule, and what it answered that no commit can carry out. The course has not moved
  // then, and the run is over.
  absl::StatusOr<std::optional<Notice>> Decide(CourseEnd end, CommitRound& commit);

  CourseState State() const;

 private:
  Course(const EngineConfig& config, std::unique_ptr<StepsizeRule> rule, const CourseState& state);
  RoundAhead Ahead(Round round) const;
  absl::StatusOr<StepsizeDecision> Ask(CourseEnd end, const CommitRound& commit);
  absl::Status Check(const StepsizeDecision& decision, CourseEnd end, const CommitRound& commit,
                     bool x0_over) const;
  void CountWithoutStep(CourseEnd end);
  std::optional<Notice> Warn(std::string warning);

  // Constant after construction.
  uint64_t main_rounds_max_;
  uint32_t nonfinite_rounds_;
  double x0_max_abs_;
  double step_scale_max_;
  uint64_t coordinates_;

  std::unique_ptr<StepsizeRule> rule_;
  CourseState state_;    // its rule bytes are filled in by State() only
  std::string warning_;  // of the rule; an engine that takes the run up says it again
  RaceProgress race_;    // what the rule said last
};

}  // namespace signvote::round
