#include "server/stepsize/sos.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status.h"
#include "server/stepsize/first_step.h"
#include "server/stepsize/input_means.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/trial_losses.h"

namespace signvote {
namespace {

constexpr uint32_t kStateVersion = 2;
constexpr uint64_t kUnknownLength = 1000;
constexpr uint64_t kTrialMax = 256;
constexpr uint64_t kTrialsMin = 3;
constexpr double kGammaMax = 1e30;
constexpr uint64_t kWidenings = 6;  // 2^(2^6) is beyond any stepsize

// In order.
enum class Part : uint64_t { kStill, kWidening, kBisecting, kMain };

class SosRule final : public StepsizeRule {
 public:
  explicit SosRule(const SosConfig& config) : config_(config) {
    SIGNVOTE_CHECK(config.start == 0 ||
                   IsStepsize(static_cast<double>(static_cast<float>(config.start))));
    SIGNVOTE_CHECK(config.main_rounds == 0 ||
                   config.main_rounds / 4 >= kTrialsMin * config.trial_min);
    SIGNVOTE_CHECK(config.trial_min >= 2);
  }

  std::string_view name() const override { return "sos"; }
  bool probes() const override { return true; }
  bool needs_x0() const override { return true; }
  bool x0_over(const RoundAhead&) const override { return part_ == Part::kMain; }
  std::vector<ScalarKind> Wanted(const RoundAhead&) const override {
    // In a trial's first round there is no step behind it.
    if (part_ == Part::kStill || part_ == Part::kMain || step_ == 0) return {};
    return {ScalarKind::kProbeL1};
  }

  StepsizeDecision Decide(const RuleInput& input) override {
    if (part_ == Part::kMain) {
      StepsizeDecision decision{.gamma = static_cast<float>(lo_)};
      decision.reason = absl::StrFormat("sos: %.6g", lo_);
      Tell(decision);
      return decision;
    }
    Begin(input);
    losses_.Add(step_, input);
    if (const auto change = MeanOf(input, ScalarKind::kProbeL1);
        change.has_value() && std::isfinite(change_ + *change)) {
      change_ += *change;
      ++probes_;
    }
    ++step_;
    ++votes_;
    ++rounds_;
    skipped_ = false;
    if (step_ >= trial_rounds()) return EndTrial(Phi());
    StepsizeDecision decision{.gamma = static_cast<float>(gamma()), .main_round = false};
    decision.reason =
        absl::StrFormat("sos: round %d of %d at %.6g", step_, trial_rounds(), gamma());
    Tell(decision);
    return decision;
  }

  StepsizeDecision DecideWithoutBallot(const RuleInput& input) override {
    // Before the first trial another minibatch will do as well.
    if (part_ == Part::kMain || !first_step_.has_value())
      return StepsizeRule::DecideWithoutBallot(input);
    if (!input.nonfinite) {
      if (votes_ > 0) {
        ++rounds_;
        return EndTrial(std::nullopt);
      }
      // At x_0 no stepsize is to blame, however long.
      rounds_ -= step_;
      BeginTrial();
      return Rewind("the trial begins again");
    }
    ++rounds_;
    ++step_;
    const bool second = std::exchange(skipped_, true) && votes_ > 0;
    if (second && part_ != Part::kStill) return EndTrial(0);
    if (step_ >= trial_rounds()) return EndTrial(Phi());
    StepsizeDecision decision{.kind = CommitKind::kNone, .gamma = input.gamma};
    decision.reason = absl::StrFormat("sos: the trial goes on behind round %d", step_);
    Tell(decision);
    return decision;
  }

  RaceProgress race() const override {
    return {.trials = trials_,
            .rounds = rounds_,
            .rounds_max = length() / 4,
            .over = part_ == Part::kMain};
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    writer.Add(static_cast<uint64_t>(part_));
    writer.Add(uint64_t{first_step_.has_value() ? 1u : 0u});
    writer.Add(first_step_.value_or(DataStep(0)).value());
    for (const double value : {lo_, hi_, change_}) writer.Add(value);
    for (const uint64_t value : {widenings_, step_, votes_, probes_, trials_, rounds_})
      writer.Add(value);
    for (const bool value : {again_, skipped_, measured_}) writer.Add(uint64_t{value ? 1u : 0u});
    losses_.Save(writer);
    still_.Save(writer);
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    SosRule other(config_);
    RuleStateReader reader(bytes, name(), kStateVersion);
    const uint64_t part = reader.U64(), begun = reader.U64(), first_step = reader.U64();
    for (double* value : {&other.lo_, &other.hi_, &other.change_}) *value = reader.Double();
    for (uint64_t* value : {&other.widenings_, &other.step_, &other.votes_, &other.probes_,
                            &other.trials_, &other.rounds_}) {
      *value = reader.U64();
    }
    uint64_t flags_max = 0;
    for (bool* value : {&other.again_, &other.skipped_, &other.measured_}) {
      const uint64_t flag = reader.U64();
      flags_max = std::max(flags_max, flag);
      *value = flag == 1;
    }
    const absl::Status losses = other.losses_.Restore(reader), still = other.still_.Restore(reader);
    SIGNVOTE_RETURN_IF_ERROR(reader.Finish());
    other.part_ = static_cast<Part>(part);
    if (begun == 1) other.first_step_ = DataStep(first_step);
    const auto in_range = [](double gamma) { return gamma > 0 && gamma <= kGammaMax; };
    const bool searches = part == static_cast<uint64_t>(Part::kWidening) ||
                          part == static_cast<uint64_t>(Part::kBisecting);
    const bool fits =
        losses.ok() && still.ok() && part <= static_cast<uint64_t>(Part::kMain) && begun <= 1 &&
        (begun == 1 ? in_range(other.lo_) : part == 0 && other.lo_ == 0) &&
        (searches ? in_range(other.hi_) : std::isfinite(other.hi_) && other.hi_ >= 0) &&
        std::isfinite(other.change_) && flags_max <= 1 && other.widenings_ <= kWidenings &&
        other.step_ < trial_rounds() && other.votes_ <= other.step_ &&
        other.probes_ <= other.votes_ && other.step_ <= other.rounds_ &&
        other.rounds_ <= length() / 4 && other.trials_ <= other.rounds_ + 1 &&
        other.losses_.end() <= other.step_ && other.still_.end() <= trial_rounds();
    if (!fits) {
      return absl::DataLossError(
          "the saved state of stepsize rule 'sos' has values that this run's flags cannot give; "
          "start the server with the flags that it was started with before");
    }
    part_ = other.part_;
    first_step_ = other.first_step_;
    lo_ = other.lo_;
    hi_ = other.hi_;
    change_ = other.change_;
    widenings_ = other.widenings_;
    step_ = other.step_;
    votes_ = other.votes_;
    probes_ = other.probes_;
    again_ = other.again_;
    skipped_ = other.skipped_;
    measured_ = other.measured_;
    trials_ = other.trials_;
    rounds_ = other.rounds_;
    losses_ = std::move(other.losses_);
    still_ = std::move(other.still_);
    return absl::OkStatus();
  }

 private:
  uint64_t length() const { return config_.main_rounds > 0 ? config_.main_rounds : kUnknownLength; }
  uint64_t trial_rounds() const { return std::clamp(length() / 32, config_.trial_min, kTrialMax); }
  // The last quarter of a trial, over which N is taken.
  uint64_t last_rounds() const { return std::max<uint64_t>(1, trial_rounds() / 4); }
  bool Affordable(uint64_t trials) const {
    return rounds_ + trials * trial_rounds() <= length() / 4;
  }

  // Of the trial in progress.
  double gamma() const {
    switch (part_) {
      case Part::kStill:
        return 0;
      case Part::kWidening:
        return hi_;
      case Part::kBisecting:
        return std::sqrt(lo_) * std::sqrt(hi_);
      case Part::kMain:
        break;
    }
    return lo_;
  }

  void Begin(const RuleInput& input) {
    if (first_step_.has_value()) return;
    first_step_ = input.ahead.data_step;
    trials_ = 1;
    lo_ = config_.start > 0 ? config_.start : double{FirstStepsize(input.x0_max_abs)};
    lo_ = std::min(lo_, kGammaMax);
  }

  // φ of the trial that is over; of the still one 0. nullopt: nothing tells it.
  std::optional<double> Phi() const {
    const uint64_t last = last_rounds(), first = trial_rounds() - last;
    const uint64_t needed = (last + 1) / 2;
    if (part_ == Part::kStill) {
      const auto mean = losses_.Mean(first);
      return mean.has_value() && mean->steps >= needed ? std::optional(0.0) : std::nullopt;
    }
    const auto above = still_.Above(losses_, first);
    if (!above.has_value() || above->steps < needed || probes_ == 0) return std::nullopt;
    const double steps = static_cast<double>(trial_rounds() - 1);
    const double phi = above->mean / (change_ / static_cast<double>(probes_) * steps);
    return std::isfinite(phi) ? phi : 0;
  }

  StepsizeDecision Rewind(std::string reason) {
    StepsizeDecision decision{.kind = CommitKind::kRewind,
                              .gamma = static_cast<float>(gamma()),
                              .next_data_step = *first_step_,
                              .main_round = false,
                              .reason = "sos: " + std::move(reason)};
    Tell(decision);
    return decision;
  }

  void BeginTrial() {
    step_ = votes_ = probes_ = 0;
    change_ = 0;
    skipped_ = false;
    losses_.Clear();
  }

  // phi: of the trial that is over; nullopt: it tells nothing.
  StepsizeDecision EndTrial(std::optional<double> phi) {
    const double tried = gamma();
    const bool still = part_ == Part::kStill;
    if (!phi.has_value() && (still ? Affordable(2) : !again_ && Affordable(1))) {
      again_ = !still;
      ++trials_;
      BeginTrial();
      return Rewind(absl::StrFormat("the trial at %.6g tells nothing: once more", tried));
    }
    again_ = false;
    measured_ = measured_ || (!still && phi.has_value());
    const bool holds = phi.has_value() && *phi >= tried;
    if (still && !phi.has_value()) {
      part_ = Part::kMain;
    } else if (still) {
      still_ = std::exchange(losses_, TrialLosses());
      part_ = Part::kWidening;
      hi_ = Wider();
    } else if (part_ == Part::kWidening && holds) {
      lo_ = hi_;
      hi_ = Wider();
      if (widenings_ == kWidenings) part_ = Part::kMain;
    } else if (part_ == Part::kWidening) {
      part_ = Part::kBisecting;
    } else if (holds) {
      lo_ = tried;
    } else {
      hi_ = tried;
    }
    if (part_ == Part::kWidening && hi_ > kGammaMax) part_ = Part::kMain;
    if (part_ == Part::kBisecting && hi_ <= 2 * lo_) part_ = Part::kMain;
    if (!Affordable(1)) part_ = Part::kMain;
    BeginTrial();
    if (part_ == Part::kMain) still_.Clear();
    if (part_ != Part::kMain) ++trials_;
    return Rewind(phi.has_value() ? absl::StrFormat("phi(%.6g)=%.6g", tried, *phi)
                                  : absl::StrFormat("phi(%.6g) unknown", tried));
  }

  // The first of all stepsizes times 2^(2^k).
  double Wider() {
    ++widenings_;
    const double first =
        widenings_ == 1 ? lo_ : lo_ / std::exp2(std::exp2(static_cast<double>(widenings_ - 1)));
    return first * std::exp2(std::exp2(static_cast<double>(widenings_)));
  }

  void Tell(StepsizeDecision& decision) const {
    decision.state = {{"lo", lo_}, {"hi", hi_}};
    decision.race = race();
    if (part_ != Part::kMain || measured_) return;
    decision.warning = absl::StrFormat(
        "no trial of SOS told anything of a stepsize, and the run keeps its start value %.3g: "
        "begin it "
        "again with workers that stay through its first quarter, or choose --rule lever",
        lo_);
  }

  const SosConfig config_;
  Part part_ = Part::kStill;
  std::optional<DataStep> first_step_;  // the minibatch that all trials begin with
  double lo_ = 0, hi_ = 0;
  uint64_t widenings_ = 0;
  uint64_t trials_ = 0;    // that were begun
  uint64_t rounds_ = 0;    // of all of them
  bool measured_ = false;  // some φ is known

  // The trial in progress.
  uint64_t step_ = 0;     // rounds done
  uint64_t votes_ = 0;    // of them with a verdict
  uint64_t probes_ = 0;   // of them with a probe
  bool again_ = false;    // it is run once more
  bool skipped_ = false;  // its last round had no finite loss
  double change_ = 0;     // the probes' sum
  TrialLosses losses_;
  TrialLosses still_;  // of the first trial; empty once the run goes on
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeSosRule(const SosConfig& config) {
  return std::make_unique<SosRule>(config);
}

}  // namespace signvote
