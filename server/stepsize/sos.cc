#include "server/stepsize/sos.h"

#include <algorithm>
#include <cmath>
#include <optional>
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

constexpr uint32_t kStateVersion = 1;
constexpr uint64_t kUnknownLength = 1000;
constexpr uint64_t kTrialMin = 16, kTrialMax = 256;
constexpr double kGammaMax = 1e30;
constexpr uint64_t kWidenings = 6;  // 2^(2^6) is beyond any stepsize

// In order.
enum class Part : uint64_t { kStill, kWidening, kBisecting, kMain };

class SosRule final : public StepsizeRule {
 public:
  explicit SosRule(const SosConfig& config) : config_(config) {
    SIGNVOTE_CHECK(config.start == 0 ||
                   IsStepsize(static_cast<double>(static_cast<float>(config.start))));
    SIGNVOTE_CHECK(config.main_rounds == 0 || config.main_rounds >= kSosRoundsMin);
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
    if (const auto change = MeanOf(input, ScalarKind::kProbeL1); change.has_value()) {
      change_ += *change;
    }
    ++step_;
    ++rounds_;
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
    if (step_ == 0) {  // at x_0 no stepsize is to blame
      StepsizeDecision decision{.kind = CommitKind::kRewind,
                                .gamma = static_cast<float>(gamma()),
                                .next_data_step = *first_step_,
                                .main_round = false,
                                .reason = "sos: the trial begins again"};
      Tell(decision);
      return decision;
    }
    ++rounds_;
    return EndTrial(0);
  }

  std::string Save() const override {
    RuleStateWriter writer(name(), kStateVersion);
    writer.Add(static_cast<uint64_t>(part_));
    writer.Add(uint64_t{first_step_.has_value() ? 1u : 0u});
    writer.Add(first_step_.value_or(DataStep(0)).value());
    for (const double value : {lo_, hi_, change_}) writer.Add(value);
    for (const uint64_t value : {widenings_, step_, trials_, rounds_}) writer.Add(value);
    losses_.Save(writer);
    still_.Save(writer);
    return writer.Take();
  }

  absl::Status Restore(std::string_view bytes) override {
    SosRule other(config_);
    RuleStateReader reader(bytes, name(), kStateVersion);
    const uint64_t part = reader.U64(), begun = reader.U64(), first_step = reader.U64();
    for (double* value : {&other.lo_, &other.hi_, &other.change_}) *value = reader.Double();
    for (uint64_t* value : {&other.widenings_, &other.step_, &other.trials_, &other.rounds_}) {
      *value = reader.U64();
    }
    const absl::Status losses = other.losses_.Restore(reader), still = other.still_.Restore(reader);
    SIGNVOTE_RETURN_IF_ERROR(reader.Finish());
    other.part_ = static_cast<Part>(part);
    if (begun == 1) other.first_step_ = DataStep(first_step);
    const auto range = [](double gamma) { return std::isfinite(gamma) && gamma >= 0; };
    const bool fits = losses.ok() && still.ok() && part <= static_cast<uint64_t>(Part::kMain) &&
                      begun <= 1 && (begun == 1 ? other.lo_ > 0 : part == 0 && other.lo_ == 0) &&
                      range(other.lo_) && range(other.hi_) && std::isfinite(other.change_) &&
                      other.widenings_ <= kWidenings && other.step_ < trial_rounds() &&
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
    trials_ = other.trials_;
    rounds_ = other.rounds_;
    losses_ = std::move(other.losses_);
    still_ = std::move(other.still_);
    return absl::OkStatus();
  }

 private:
  uint64_t length() const { return config_.main_rounds > 0 ? config_.main_rounds : kUnknownLength; }
  uint64_t trial_rounds() const { return std::clamp(length() / 32, kTrialMin, kTrialMax); }
  bool Affordable() const { return rounds_ + trial_rounds() <= length() / 4; }

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
  }

  double Phi() const {
    const auto above = still_.Above(losses_, trial_rounds() - trial_rounds() / 4);
    if (!above.has_value() || !(change_ > 0)) return 0;
    const double phi = above->mean / change_;
    return std::isfinite(phi) ? phi : 0;
  }

  StepsizeDecision EndTrial(double phi) {
    StepsizeDecision decision{.kind = CommitKind::kRewind,
                              .gamma = static_cast<float>(gamma()),
                              .next_data_step = *first_step_,
                              .main_round = false};
    const double tried = gamma();
    if (part_ == Part::kStill) {
      still_ = std::exchange(losses_, TrialLosses());
      part_ = Part::kWidening;
      hi_ = Wider();
    } else if (part_ == Part::kWidening && phi >= tried) {
      lo_ = hi_;
      hi_ = Wider();
      if (widenings_ == kWidenings || hi_ > kGammaMax) part_ = Part::kMain;
    } else if (part_ == Part::kWidening) {
      part_ = Part::kBisecting;
    } else if (phi >= tried) {
      lo_ = tried;
    } else {
      hi_ = tried;
    }
    if (part_ == Part::kBisecting && hi_ <= 2 * lo_) part_ = Part::kMain;
    if (!Affordable()) part_ = Part::kMain;
    step_ = 0;
    change_ = 0;
    losses_.Clear();
    if (part_ == Part::kMain) still_.Clear();
    if (part_ != Part::kMain) ++trials_;
    decision.reason = absl::StrFormat("sos: phi(%.6g)=%.6g", tried, phi);
    Tell(decision);
    return decision;
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
    decision.race = {.trials = trials_,
                     .rounds = rounds_,
                     .rounds_max = length() / 4,
                     .over = part_ == Part::kMain};
  }

  const SosConfig config_;
  Part part_ = Part::kStill;
  std::optional<DataStep> first_step_;  // the minibatch that all trials begin with
  double lo_ = 0, hi_ = 0;
  uint64_t widenings_ = 0;
  uint64_t trials_ = 0;  // that were begun
  uint64_t rounds_ = 0;  // of all of them

  // The trial in progress.
  uint64_t step_ = 0;
  double change_ = 0;  // D so far
  TrialLosses losses_;
  TrialLosses still_;  // of the first trial; empty once the run goes on
};

}  // namespace

std::unique_ptr<StepsizeRule> MakeSosRule(const SosConfig& config) {
  return std::make_unique<SosRule>(config);
}

}  // namespace signvote
