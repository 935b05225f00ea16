#pragma once
// Phase A of Lever: a race of stepsizes. Every trial begins at x_0 with fresh direction state, replays
// the same minibatches at a constant stepsize, and is scored by its training loss. docs/algorithms/
// lever.md has the formulas and why they are so.
//
//   grid      γ(k) = start·10^(k/2)
//   expand    trials of h' rounds: k = 0, 1; then k += 2, 4, 4, … while not worse (ties go up), or, where
//             1 was worse than 0, k −= 1, 2, 4, 4, … while better
//   climb     trials of h rounds: the winner, then whichever neighbour of the best is unknown, the lower
//             one first unless no larger stepsize was tried, until both are known. A lower neighbour that
//             stands still is no end: the one below it is tried too, and wins, as γ_h, where its score is the
//             lower of the two. What learns above one that does not learned by luck, and the run would begin
//             between
//   still     a trial whose mean loss differs by less than 1 % between the second and the last quarter of
//             its rounds stood still
//   parabola  through the best's log-score and its neighbours': γ_h = γ(k + shift), |shift| ≤ ½; through
//             the scores themselves where one is not above 0. A neighbour at +∞ is the limit: ½ away
//   score     the mean loss over the second half of a trial's rounds, for the first one tells who is fast
//             and not who gets far; of one beside a best that of the best, and by how much the trial lies
//             above it, times ¾h (or ¾h') over the mean step of their pairs: a difference is taken to
//             grow with the steps, whichever of them were heard of. All steps count where the second half
//             tells too little
//   end       a trial above the best ends early where it is worse and lost eight pairs in a row, or has
//             a quarter of its rounds and is worse by more than four standard errors of the difference. A larger stepsize
//             goes faster at first: one that does not never will. A smaller one is behind at first, and
//             has all its rounds
//   diverged  a trial is at +∞ after two rounds in a row without a finite loss or gradient. One alone is
//             left out, as in the run: it may be its minibatch's doing, and the others replay that. So is
//             any before the first vote, where no stepsize is to blame
//   budget    at most 16 trials in each part, and rounds_max rounds in all. What expanding must leave is
//             three climbing trials of h' rounds; what is left then, shared by three, is h where that is
//             less; less than h', and the winner of the expansion is γ_h
//   failure   no trial lowers the loss: the best one is at +∞, below the floor, at which steps move
//             nothing, or the sixteenth on the way down. h' doubles and expanding begins again, three
//             times at most
//   unheard   where there is no room for that and no trial of the part has a finite score, what was not
//             refuted wins: the part's first stepsize where no trial came to any loss, because nobody
//             could vote; else, before the sixteenth trial, the next one below all that diverged
//
// "Better" is by TrialLosses::Above(); a trial without a pair in common with the best is run once more,
// and compared by its own mean then.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/trial_losses.h"
#include "server/stepsize/types.h"

namespace signvote {

struct RaceConfig {
  double start = 1e-3;        // γ(0), a positive fp32 number
  uint64_t short_rounds = 0;  // h' at first, ≥ 2
  uint64_t long_rounds = 0;   // h
  uint64_t rounds_max = 0;    // of all trials together; ≥ 5 h'
  // Local steps: every trial is of so many rounds, and the three above count minibatches, of which each
  // round takes an equal part, kLocalStepsMax at most; 0: a round takes one.
  uint64_t parts = 0;
};

enum class RaceState : uint64_t { kExpanding, kClimbing, kWon, kFailed };

// What the round's commit does for the trial in progress.
enum class TrialMove : uint8_t {
  kStep,    // a step at gamma()
  kSkip,    // none, and the trial goes on with the next minibatch
  kRewind,  // the trial is over
};

// On which side of the winner no worse stepsize was tried.
enum class RaceEdge : uint64_t { kNone, kUpper, kLower };

// Threads: thread-compatible.
class Race {
 public:
  // REQUIRES: values in the ranges above.
  explicit Race(const RaceConfig& config);

  // Steps at stepsizes below this move no coordinate by much: 1e-6 of the largest one.
  void set_floor(double floor) { floor_ = floor; }

  RaceState state() const { return state_; }
  bool over() const { return state_ == RaceState::kWon || state_ == RaceState::kFailed; }
  // The stepsize of the trial that goes on. REQUIRES: !over().
  double gamma() const { return Gamma(trial_.k); }
  // γ_h. REQUIRES: state() is kWon.
  double winner() const { return winner_; }
  // γ_h lies between a smaller stepsize that is worse and the next larger one, which stood still: steps that
  // are not much longer end the learning. REQUIRES: state() is kWon.
  bool below_still() const {
    return still_.contains(winner_k_ + 1) && scores_.contains(winner_k_ - 1);
  }
  // γ_h was a trial's own, not only one that none refuted.
  bool measured() const { return best_.has_value(); }
  // REQUIRES: state() is kWon.
  RaceEdge edge() const;
  // How the last trial that is over ended: "trial 3 at 0.01: 2.91, +0.12 over the best, early". Not
  // saved: empty until one ends.
  const std::string& ended() const { return ended_; }
  uint64_t rounds() const { return rounds_; }  // of all trials so far
  uint64_t trials() const { return trials_; }  // that were begun
  uint64_t step() const { return trial_.step; }
  uint64_t trial_rounds() const { return trial_.rounds; }
  uint64_t minibatches() const { return trial_.minibatches; }  // of each of the trial's rounds

  // A round of the trial was voted on, `step` minibatches behind its first one. REQUIRES: !over().
  TrialMove OnVerdict(const RuleInput& input);
  // It closed without a verdict. Where that was for losses or gradients that are not finite, "diverged"
  // above says what follows. Else the trial is run once more, the second time it is at +∞; before its
  // first vote it begins again as if it had not been, however long. With local steps a trial's first round
  // moves already, and what is not finite there tells as much as in any other.
  TrialMove OnNoVerdict(const RuleInput& input);
  // Nothing was voted on yet.
  bool untouched() const { return trials_ == 1 && trial_.votes == 0; }

  void Save(RuleStateWriter& writer) const;
  // DATA_LOSS: values that no race of this config can have.
  absl::Status Restore(RuleStateReader& reader);

 private:
  enum class Way : uint64_t { kUnknown, kUp, kDown };
  struct Trial {
    int64_t k = 0;
    uint64_t rounds = 0;       // planned
    uint64_t minibatches = 1;  // of each of them
    uint64_t step = 0;         // rounds done
    uint64_t votes = 0;        // of them with a verdict
    bool again = false;        // it is run once more
    bool skipped = false;      // its last round had no finite loss
    TrialLosses losses;
    // To the best; all follow from the losses of the two.
    DifferenceSums above, above_late;  // behind x_0, and in the rounds that are scored
    uint64_t behind = 0;               // pairs in a row, up to the last one, in which it is worse
    uint64_t length() const { return rounds * minibatches; }
  };
  struct Best {
    int64_t k = 0;
    double score = 0;
    TrialLosses losses;
  };

  // A mean loss of the steps from `first` on.
  struct Own {
    double mean = 0;
    uint64_t first = 0;
  };

  double Gamma(int64_t k) const;
  bool IsStepsize(int64_t k) const;
  uint64_t minibatches_left() const;
  void CountRound();
  // A part begins anew, with a trial at k.
  void BeginPart(RaceState part, int64_t k, uint64_t length);
  void BeginTrial(int64_t k, uint64_t length);  // in minibatches
  // The same trial, unless this was the second time or there is no room.
  bool RunAgain(std::string_view why);
  void Compare(uint64_t step);  // with the best's losses at this step
  bool ClearlyWorse() const;    // than the best, so that no more rounds are spent on it
  // How many steps from `first` on must have a loss, or a pair, for them to tell something.
  uint64_t StepsNeeded(uint64_t first) const;
  // The difference to the best, and the trial's own mean: of the scored rounds, or, where those tell too
  // little or are to come, of all behind x_0. nullopt where these do as well.
  std::optional<LossDifference> AboveBest() const;
  std::optional<Own> OwnMean() const;
  bool StandsStill() const;
  void EndTrial();
  void EndWith(double score, bool better, std::string_view how);
  void NextExpansion(bool better);
  void EndExpansion();
  void NextClimb();
  // Below the best's lower neighbour, where that one stood still and a larger one than the best was tried.
  std::optional<int64_t> BelowStill() const;
  void Fail();
  std::optional<int64_t> Untried() const;  // that nothing speaks against
  void Win(int64_t k, double shift);
  void Tell(std::string_view how);  // into ended_
  double Shift() const;             // of the parabola's vertex from the best, in grid steps

  RaceConfig config_;  // constant after construction
  double floor_ = 0;
  RaceState state_ = RaceState::kExpanding;
  uint64_t rounds_ = 0, trials_ = 0;
  uint64_t minibatches_ = 0;  // of those rounds
  uint64_t short_rounds_;     // h'
  uint64_t failures_ = 0;     // of expansions
  double winner_ = 0;
  int64_t winner_k_ = 0;  // of the trial that it is from, once the race is won
  std::string ended_;

  // The part in progress.
  Trial trial_;
  uint64_t part_trials_ = 0;
  int64_t part_first_ = 0;            // k of its first trial
  bool part_losses_ = false;          // some trial ended by what its losses were, finite or not
  std::optional<Best> best_;          // nullopt while no trial of the part has a finite score
  std::map<int64_t, double> scores_;  // by k
  Way way_ = Way::kUnknown;
  uint64_t strides_ = 0;  // taken that way
  // Tried since expanding began last, by this part and the one before.
  int64_t lowest_ = 0, highest_ = 0;
  std::set<int64_t> still_;  // of those the ones whose last trial stood still
};

}  // namespace signvote
