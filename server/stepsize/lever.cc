#include "server/stepsize/lever.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status.h"
#include "server/stepsize/lever_scale.h"
#include "server/stepsize/race.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/x0_reports.h"

namespace signvote {
namespace {

constexpr uint32_t kStateVersion = 3;
constexpr uint32_t kLocalStateVersion = 4;
constexpr uint64_t kFirstLeg = 1000;
constexpr double kGainMax = 4;
constexpr double kGainLocal = 2;
constexpr double kGainLite = 1;
// Of the largest parameter: smaller steps move few coordinates in fp32.
constexpr double kFloorRelative = 1e-6;
constexpr uint64_t kLongTrialMax = 60;
constexpr double kKappaMomentum = 0.5;
constexpr double kKappaCareful = 0.25;  // right below a stepsize that stood still
// Raw signs: from a quarter of the run on s grows as readily as it shrinks.
constexpr double kUpRaw = 4;
constexpr double kKappaRaw = 8;  // times the part of the run that a trial is
constexpr double kKappaRawLocal = 1.0 / 3;
constexpr uint64_t kLocalStillPart = 16;  // of a run's minibatches s stays at first
constexpr uint64_t kLocalTrialRounds = 4;

// The part of a run whose schedule goes from s to 0.
struct Leg {
  uint64_t first = 0, rounds = 0;
  bool is_first() const { return first == 0; }
};

Leg LegAt(uint64_t t, uint64_t main_rounds) {
  if (main_rounds > 0) return {.first = 0, .rounds = main_rounds};
  Leg leg{.first = 0, .rounds = kFirstLeg};
  while (t - leg.first >= leg.rounds) {
    leg.first += leg.rounds;
    leg.rounds *= 2;
  }
  return leg;
}

// h of a leg.
uint64_t LongTrial(const LeverConfig& config, uint64_t rounds) {
  return std::clamp(rounds / 16, config.long_trial_min, std::max(kLongTrialMax, rounds / 80));
}

RaceConfig ConfigOfRace(const LeverConfig& config) {
  const bool local = config.local.on();
  const uint64_t rounds = local ? config.local.minibatches() : LegAt(0, config.main_rounds).rounds;
  const uint64_t h = LongTrial(config, rounds);
  return {.start = config.start,
          .short_rounds = std::max(config.short_trial_min, h / 3),
          .long_rounds = h,
          .rounds_max = rounds / 4,
          .parts = local ? kLocalTrialRounds : 0};
}

class LeverRule final : public StepsizeRule {
 public:
  explicit LeverRule(const LeverConfig& config) : config_(config), scale_(config.start) {
    SIGNVOTE_CHECK(std::isfinite(config.start) && config.start > 0);
    SIGNVOTE_CHECK(!config.local.on() || config.main_rounds > 0);
    if (!config.race) return;
    race_.emplace(ConfigOfRace(config));
  }

  std::string_view name() const override { return "lever"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return true; }
  bool x0_over(const RoundAhead& ahead) const override {
    return !Racing() && Frozen(TimeAt(ahead.main_rounds));
  }
  absl::Status failure() const override {
    if (!Racing() || race_->state() != RaceState::kFailed) return absl::OkStatus();
    return absl::AbortedError(
        absl::StrFormat("the stepsize race found in %d trials no stepsize that lowers the training "
                        "loss; look at the "
                        "model and its data, give another --lever-start, or choose --rule fixed",
                        race_->trials()));
  }
  RaceProgress race() const override {
    if (!config_.race) return {};
    return {.trials = Racing() ? race_->trials() : race_trials_,
            .rounds = Racing() ? race_->rounds() : race_rounds_,
            .rounds_max = RaceRoundsMax(),
            .over = !Racing() || race_->over()};
  }

  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    if (Racing() || !Measures(TimeAt(ahead.main_rounds))) return {};
    if (IsLocal()) return {ScalarKind::kLocalInner, ScalarKind::kLocalProduct};
    return X0ReportScalars();
  }

  LocalSteps Local(const RoundAhead& ahead) const override {
    if (!IsLocal()) return {};
    if (Racing()) {
      const auto eta = static_cast<float>(race_->gamma());
      return {.steps = static_cast<uint32_t>(race_->minibatches()),
              .eta_first = eta,
              .eta_last = eta,
              .from = race_->step() == 0 ? StepsFrom::kX0 : StepsFrom::kContinue};
    }
    const uint32_t steps = config_.local.StepsAt(ahead.main_rounds);
    const uint64_t t = TimeAt(ahead.main_rounds);
    return {.steps = steps, .eta_first = Stepsize(t), .eta_last = Stepsize(t + steps - 1)};
  }
  uint32_t local_steps_max() const override {
    if (!IsLocal()) return 1;
    uint64_t most = config_.local.largest();
    if (config_.race) {
      // Of a trial; h' doubles at most as long as a fifth of the budget holds it.
      const RaceConfig race = ConfigOfRace(config_);
      most = std::max(most, std::max(race.long_rounds, race.rounds_max / 5) / race.parts);
      most = std::min<uint64_t>(most, kLocalStepsMax);
    }
    return static_cast<uint32_t>(most);
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    if (!Racing()) return Main(input);
    BeginRace(input);
    const float gamma = static_cast<float>(race_->gamma());
    if (race_->OnVerdict(input) == TrialMove::kRewind) return EndOfTrial(gamma);
    StepsizeDecision decision{.kind = IsLocal() ? CommitKind::kNone : CommitKind::kStep,
                              .gamma = gamma,
                              .main_round = false};
    decision.reason = absl::StrFormat("lever: trial %d, round %d of %d", race_->trials(),
                                      race_->step(), race_->trial_rounds());
    decision.race = race();
    return decision;
  }

  StepsizeDecision DecideWithoutBallot(const RuleInput& input) override {
    // Before the first trial another minibatch will do as well.
    if (!Racing()) return StepsizeRule::DecideWithoutBallot(input);
    // With local steps a first round may have been passed over, and whoever comes has nothing to go on from.
    const bool moved = IsLocal() && (input.nonfinite || race_->step() > 0);
    if (race_->untouched() && !moved) return StepsizeRule::DecideWithoutBallot(input);
    BeginRace(input);
    const float gamma = static_cast<float>(race_->gamma());
    if (race_->OnNoVerdict(input) == TrialMove::kRewind) return EndOfTrial(gamma);
    StepsizeDecision decision{.kind = CommitKind::kNone, .gamma = input.gamma};
    decision.reason =
        absl::StrFormat("lever: trial %d goes on behind round %d", race_->trials(), race_->step());
    decision.race = race();
    return decision;
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), StateVersion());
    writer.Add(uint64_t{Racing() ? 1u : 0u});
    writer.Add(uint64_t{first_step_.has_value() ? 1u : 0u});
    writer.Add(first_step_.value_or(DataStep(0)).value());
    if (Racing()) {
      race_->Save(writer);
    } else {
      writer.Add(race_trials_);
      writer.Add(race_rounds_);
      writer.Add(static_cast<uint64_t>(edge_));
      writer.Add(winner_);
      scale_.Save(writer);
    }
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    LeverRule other(config_);
    RuleStateReader reader(bytes, name(), StateVersion());
    SIGNVOTE_RETURN_IF_ERROR(other.Read(reader));
    race_ = std::move(other.race_);
    first_step_ = other.first_step_;
    race_trials_ = other.race_trials_;
    race_rounds_ = other.race_rounds_;
    edge_ = other.edge_;
    winner_ = other.winner_;
    scale_ = other.scale_;
    return absl::OkStatus();
  }

 private:
  // For a copy in a state that does not matter afterwards.
  absl::Status Read(RuleStateReader& reader) {
    const uint64_t racing = reader.U64(), begun = reader.U64(), first_step = reader.U64();
    if (begun == 1) first_step_ = DataStep(first_step);
    absl::Status part;
    uint64_t edge = 0;
    if (racing == 1 && race_.has_value()) {
      part = race_->Restore(reader);
    } else {
      race_.reset();
      race_trials_ = reader.U64();
      race_rounds_ = reader.U64();
      edge = reader.U64();
      winner_ = reader.Double();
      part = scale_.Restore(reader);
    }
    SIGNVOTE_RETURN_IF_ERROR(reader.Finish());
    edge_ = static_cast<RaceEdge>(edge);
    const bool fits = part.ok() && racing <= (config_.race ? 1u : 0u) && begun <= 1 &&
                      (begun == 1 || first_step == 0) &&
                      edge <= static_cast<uint64_t>(RaceEdge::kLower) && std::isfinite(winner_) &&
                      (edge == 0 || winner_ > 0) && race_trials_ <= race_rounds_ + 1 &&
                      race_rounds_ <= race().rounds_max &&
                      (!race_.has_value() || race_->state() != RaceState::kWon);
    if (fits) return absl::OkStatus();
    return absl::DataLossError(
        "the saved state of stepsize rule 'lever' has values that this run's flags cannot give; "
        "start the server with the flags that it was started with before");
  }

  bool Racing() const { return race_.has_value(); }
  bool IsLocal() const { return config_.local.on(); }
  uint32_t StateVersion() const { return IsLocal() ? kLocalStateVersion : kStateVersion; }
  // t of a round, behind so many main rounds: of its first minibatch, with local steps.
  uint64_t TimeAt(uint64_t main_rounds) const { return config_.local.Before(main_rounds); }
  // Of the leg that t is in.
  Leg LegOf(uint64_t t) const {
    return LegAt(t, IsLocal() ? config_.local.minibatches() : config_.main_rounds);
  }
  uint64_t RaceRoundsMax() const {
    const RaceConfig race = ConfigOfRace(config_);
    if (race.parts == 0) return race.rounds_max;
    return race.rounds_max / std::min<uint64_t>(race.short_rounds / race.parts, kLocalStepsMax);
  }
  // s·(1 − t/T).
  float Stepsize(uint64_t t) const {
    const Leg leg = LegOf(t);
    // Of a run that goes on beyond its length every round is the last.
    const uint64_t at = std::min(t - leg.first, leg.rounds - 1);
    return static_cast<float>(scale_.s() *
                              (1 - static_cast<double>(at) / static_cast<double>(leg.rounds)));
  }

  void BeginRace(const RuleInput& input) {
    if (first_step_.has_value()) return;
    first_step_ = input.ahead.data_step;
    if (std::isfinite(input.x0_max_abs)) race_->set_floor(kFloorRelative * input.x0_max_abs);
  }

  // Back to x_0 and to the trials' first minibatch: for the next trial, or for the run.
  StepsizeDecision EndOfTrial(float gamma) {
    StepsizeDecision decision{.kind = CommitKind::kRewind,
                              .gamma = gamma,
                              .next_data_step = *first_step_,
                              .main_round = false};
    decision.reason = "lever: ";
    if (!race_->ended().empty()) decision.reason += race_->ended() + "; ";
    if (race_->state() == RaceState::kFailed) {
      decision.reason += "no trial lowers the loss";
    } else if (race_->state() == RaceState::kWon) {
      winner_ = race_->winner();
      edge_ = race_->edge();
      decision.reason +=
          absl::StrFormat("the race chose %.6g in %d rounds%s%s%s", winner_, race_->rounds(),
                          race_->measured() ? "" : ", in which no trial came to a finite loss",
                          race_->below_still() ? ", right below one that stood still" : "",
                          edge_ == RaceEdge::kUpper   ? ", the largest that it had rounds for"
                          : edge_ == RaceEdge::kLower ? ", the smallest that it had rounds for"
                                                      : "");
      race_trials_ = race_->trials();
      race_rounds_ = race_->rounds();
      scale_ = LeverScale(winner_ * Kappa());
      race_.reset();
    } else {
      decision.reason +=
          absl::StrFormat("trial %d begins at %.6g", race_->trials(), race_->gamma());
    }
    decision.race = race();
    decision.warning = Warning();
    return decision;
  }

  std::string Warning() const {
    if (edge_ == RaceEdge::kNone) return "";
    return absl::StrFormat(
        "Lever's race had no rounds left to try a stepsize %s %.3g, the best of its trials, and "
        "the "
        "run may begin far %s its best one: train for more rounds, or begin again with "
        "--lever-start "
        "%.3g",
        edge_ == RaceEdge::kUpper ? "above" : "below", winner_,
        edge_ == RaceEdge::kUpper ? "below" : "above", winner_);
  }

  double Kappa() const {
    if (IsLocal() && !config_.momentum) return kKappaRawLocal;
    return LeverKappa(config_.momentum, race_->below_still(), race_->trial_rounds(),
                      LegOf(0).rounds);
  }

  // Whether s may move in the round at t.
  bool Measures(uint64_t t) const {
    const uint64_t rounds = LegOf(t).rounds;
    return !Frozen(t) && t >= (IsLocal() ? rounds / kLocalStillPart : LongTrial(config_, rounds));
  }

  // Whether s stays from t on.
  bool Frozen(uint64_t t) const {
    const Leg leg = LegOf(t);
    if (!leg.is_first()) return true;
    return config_.form == LeverForm::kLite ? 2 * t >= leg.rounds : 4 * t >= 3 * leg.rounds;
  }

  // The part of the gain with which s grows in main round t.
  double Up(uint64_t t) const {
    if (config_.momentum) return 1;
    const double rounds = static_cast<double>(LegOf(t).rounds);
    return std::min(1.0, kUpRaw * static_cast<double>(t) / rounds);
  }

  StepsizeDecision Main(const RuleInput& input) {
    const uint64_t t = TimeAt(input.ahead.main_rounds);
    std::optional<Lean> lean;
    if (Measures(t)) lean = IsLocal() ? MeasureLocalLean(input) : MeasureLean(input);
    const bool lite = config_.form == LeverForm::kLite;
    const double before = scale_.s();
    if (lean.has_value() && IsLocal()) {
      scale_.MoveOver(*lean, t, t + input.local.steps, lite ? kGainLite : kGainLocal);
    } else if (lean.has_value()) {
      scale_.Move(*lean, t, lite ? kGainLite : kGainMax, Up(t));
    }
    const double s = scale_.s();
    StepsizeDecision decision;
    // What a round's minibatches were taken with was said before it.
    decision.gamma = IsLocal() ? input.local.eta_first : Stepsize(t);
    if (!lite) decision.rho = static_cast<float>(s / before);
    decision.state = {{"s", s}, {"rho", double{decision.rho}}};
    if (lean.has_value()) {
      decision.state.emplace_back("z", lean->z);
      decision.reason = absl::StrFormat("lever: s=%.6g z=%.3g", s, lean->z);
    } else if (Measures(t)) {
      decision.reason = absl::StrFormat("lever: s=%.6g kept, nothing tells its length", s);
    } else {
      decision.reason = absl::StrFormat("lever: s=%.6g", s);
    }
    if (!config_.race) decision.reason += ", without a race";
    decision.race = race();
    decision.warning = Warning();
    return decision;
  }

  const LeverConfig config_;
  std::optional<Race> race_;            // nullopt: won, or none was run
  std::optional<DataStep> first_step_;  // the minibatch that all trials begin with
  // Of the race that is won.
  uint64_t race_trials_ = 0, race_rounds_ = 0;
  RaceEdge edge_ = RaceEdge::kNone;
  double winner_ = 0;

  LeverScale scale_;
};

}  // namespace

double LeverKappa(bool momentum, bool below_still, uint64_t trial_rounds, uint64_t rounds) {
  if (momentum) return below_still ? kKappaCareful : kKappaMomentum;
  return kKappaRaw * static_cast<double>(trial_rounds) / static_cast<double>(rounds);
}

std::unique_ptr<StepsizeRule> MakeLeverRule(const LeverConfig& config) {
  return std::make_unique<LeverRule>(config);
}

}  // namespace signvote
