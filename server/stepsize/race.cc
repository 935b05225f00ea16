#include "server/stepsize/race.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status.h"
#include "server/stepsize/local_schedule.h"

namespace signvote {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint64_t kTrialsMax = 16;      // in each part
constexpr uint64_t kFailuresMax = 3;     // h' is doubled so often
constexpr uint64_t kClimbingTrials = 3;  // that the budget keeps for the second part
constexpr double kStandardErrors = 4;    // by which a trial that ends early is worse
constexpr uint64_t kBehindMax = 8;       // pairs in a row that a larger stepsize may lose
constexpr uint64_t kPairsMin = 4;        // steps without which a standard error tells nothing
constexpr uint64_t kEarliestPart = 4;    // of its rounds a trial has done a quarter by then
constexpr uint64_t kTellingPart = 4;     // of the steps that are asked a quarter tells something
constexpr uint64_t kFirstTelling = 1;    // at step 0 every trial is at x_0
constexpr double kStill = 0.01;          // of its loss, by which a trial that stands still moves
// Stepsizes are fp32, and their product with a displacement must be.
constexpr double kGammaMin = 1e-37, kGammaMax = 1e30;

// The step from which on a trial of so many rounds is scored: the second half of them.
uint64_t FirstScored(uint64_t rounds) { return std::max(kFirstTelling, rounds / 2); }

int64_t Stride(bool up, uint64_t taken) {
  if (up) return taken == 0 ? 2 : 4;
  return -(taken == 0 ? 1 : taken == 1 ? 2 : 4);
}

}  // namespace

Race::Race(const RaceConfig& config) : config_(config), short_rounds_(config.short_rounds) {
  SIGNVOTE_CHECK(config.start > 0 && std::isfinite(config.start));
  SIGNVOTE_CHECK(config.short_rounds > 1);
  SIGNVOTE_CHECK(config.rounds_max / 5 >= config.short_rounds);
  SIGNVOTE_CHECK(
      config.parts == 0 ||
      (config.parts > 1 && std::min(config.short_rounds, config.long_rounds) >= config.parts));
  BeginPart(RaceState::kExpanding, 0, short_rounds_);
}

double Race::Gamma(int64_t k) const {
  return config_.start * std::pow(10.0, static_cast<double>(k) / 2);
}

bool Race::IsStepsize(int64_t k) const {
  const double gamma = Gamma(k);
  return gamma >= kGammaMin && gamma <= kGammaMax;
}

uint64_t Race::minibatches_left() const {
  return config_.rounds_max - std::min(config_.rounds_max, minibatches_);
}

void Race::CountRound() {
  ++rounds_;
  minibatches_ += trial_.minibatches;
}

void Race::BeginPart(RaceState part, int64_t k, uint64_t length) {
  state_ = part;
  part_trials_ = 0;
  part_first_ = k;
  part_losses_ = false;
  best_.reset();
  scores_.clear();
  way_ = Way::kUnknown;
  strides_ = 0;
  if (part == RaceState::kExpanding) {
    lowest_ = highest_ = k;
    still_.clear();
  }
  BeginTrial(k, length);
}

void Race::BeginTrial(int64_t k, uint64_t length) {
  trial_ = {.k = k, .rounds = length};
  if (config_.parts > 0) {
    trial_.rounds = config_.parts;
    trial_.minibatches = std::min<uint64_t>(length / config_.parts, kLocalStepsMax);
  }
  lowest_ = std::min(lowest_, k);
  highest_ = std::max(highest_, k);
  ++trials_;
  ++part_trials_;
}

void Race::Compare(uint64_t step) {
  if (!best_.has_value() || step < kFirstTelling) return;
  const std::optional<double> above = trial_.losses.AboveAt(best_->losses, step);
  if (!above.has_value()) return;
  trial_.above.Add(step, *above);
  if (step >= FirstScored(trial_.rounds)) trial_.above_late.Add(step, *above);
  trial_.behind = *above > 0 ? trial_.behind + 1 : 0;
}

bool Race::ClearlyWorse() const {
  if (!best_.has_value() || trial_.k < best_->k) return false;
  const std::optional<LossDifference> above = AboveBest();
  if (!above.has_value() || above->steps < kPairsMin || !(above->mean > 0)) return false;
  if (trial_.behind >= kBehindMax) return true;
  return kEarliestPart * trial_.step >= trial_.rounds &&
         above->mean > kStandardErrors * above->standard_error;
}

uint64_t Race::StepsNeeded(uint64_t first) const {
  const uint64_t part = (trial_.step - first + kTellingPart - 1) / kTellingPart;
  return std::min(std::max(kPairsMin, part), trial_.rounds - first);
}

std::optional<LossDifference> Race::AboveBest() const {
  const uint64_t half = FirstScored(trial_.rounds);
  if (trial_.step >= trial_.rounds) {
    const std::optional<LossDifference> late = trial_.above_late.Get();
    if (late.has_value() && late->steps >= StepsNeeded(half)) return late;
  }
  std::optional<LossDifference> above = trial_.above.Get();
  if (above.has_value() && above->steps < StepsNeeded(kFirstTelling)) above.reset();
  return above;
}

std::optional<Race::Own> Race::OwnMean() const {
  for (const uint64_t first : {FirstScored(trial_.rounds), kFirstTelling}) {
    if (trial_.step <= first) continue;
    const std::optional<LossMean> mean = trial_.losses.Mean(first);
    if (mean.has_value() && mean->steps >= StepsNeeded(first)) return Own{mean->mean, first};
  }
  return std::nullopt;
}

bool Race::StandsStill() const {
  const uint64_t rounds = trial_.rounds, quarter = rounds / 4;
  if (quarter == 0 || trial_.step < rounds) return false;
  const std::optional<LossMean> second = trial_.losses.Mean(quarter, 2 * quarter);
  const std::optional<LossMean> last = trial_.losses.Mean(rounds - quarter);
  return second.has_value() && last.has_value() &&
         std::fabs(last->mean - second->mean) < kStill * std::fabs(second->mean);
}

TrialMove Race::OnVerdict(const RuleInput& input) {
  SIGNVOTE_CHECK(!over());
  trial_.losses.Add(trial_.step, input);
  Compare(trial_.step);
  ++trial_.step;
  ++trial_.votes;
  CountRound();
  trial_.skipped = false;
  if (trial_.step < trial_.rounds && !ClearlyWorse()) return TrialMove::kStep;
  EndTrial();
  return TrialMove::kRewind;
}

TrialMove Race::OnNoVerdict(const RuleInput& input) {
  SIGNVOTE_CHECK(!over());
  if (!input.nonfinite) {
    if (trial_.votes == 0) {  // at x_0 no stepsize is to blame
      rounds_ -= trial_.step;
      minibatches_ -= trial_.step * trial_.minibatches;
      trial_.step = 0;
      trial_.skipped = false;
      return TrialMove::kRewind;
    }
    CountRound();
    if (RunAgain("nobody could vote")) return TrialMove::kRewind;
    EndWith(kInfinity, false, "nobody could vote, for the second time");
    return TrialMove::kRewind;
  }
  CountRound();
  const uint64_t step = trial_.step++;
  const bool told = trial_.votes > 0 || config_.parts > 0;
  const bool second = std::exchange(trial_.skipped, true) && told;
  const bool last = trial_.step >= trial_.rounds;
  // In its last round nothing can follow that tells whose doing it is, but the best's round may.
  const bool alone = last && trial_.votes > 0 && best_.has_value() && best_->losses.Has(step);
  if (second || alone) {
    part_losses_ = true;
    EndWith(kInfinity, false, "no finite loss");
    return TrialMove::kRewind;
  }
  if (!last) return TrialMove::kSkip;
  EndTrial();
  return TrialMove::kRewind;
}

bool Race::RunAgain(std::string_view why) {
  if (trial_.again || part_trials_ >= kTrialsMax || minibatches_left() < trial_.length())
    return false;
  Tell(absl::StrCat(ToAbsl(why), ", once more"));
  BeginTrial(trial_.k, trial_.length());
  trial_.again = true;
  return true;
}

void Race::Tell(std::string_view how) {
  ended_ = absl::StrFormat("trial %d at %.3g: %s", trials_, gamma(), how);
}

void Race::EndTrial() {
  const std::optional<LossDifference> above = AboveBest();
  const std::optional<Own> own = OwnMean();
  part_losses_ = part_losses_ || own.has_value();
  if (!own.has_value() || (best_.has_value() && !above.has_value())) {
    // Too few of those who were there for the best are there now: perhaps next time.
    if (RunAgain("too few losses to compare")) return;
  }
  if (!own.has_value()) return EndWith(kInfinity, false, "too few losses");
  if (!best_.has_value()) return EndWith(own->mean, true, "");
  double score = own->mean, difference = 0;
  if (above.has_value()) {
    difference = above->mean;
    const double middle = static_cast<double>(FirstScored(trial_.rounds) + trial_.rounds - 1) / 2;
    score = best_->score + above->mean * (middle / above->mean_step);
  } else if (const auto of_best = best_->losses.Mean(own->first)) {
    difference = own->mean - of_best->mean;
    score = best_->score + difference;
  }
  const bool better =
      std::isfinite(score) && (difference < 0 || (difference == 0 && trial_.k > best_->k));
  const char* how = !above.has_value()            ? ", by its own mean"
                    : trial_.step < trial_.rounds ? ", early"
                                                  : "";
  EndWith(score, better, absl::StrFormat(", %+.3g over the best%s", score - best_->score, how));
}

void Race::EndWith(double score, bool better, std::string_view how) {
  if (std::isfinite(score)) {
    Tell(absl::StrFormat("%.4g%s", score, how));
  } else {
    Tell(how);
  }
  scores_[trial_.k] = score;
  if (StandsStill()) {
    still_.insert(trial_.k);
  } else if (trial_.step >= trial_.rounds) {  // one that ended early does not tell
    still_.erase(trial_.k);
  }
  if (better) best_ = Best{.k = trial_.k, .score = score, .losses = std::move(trial_.losses)};
  if (state_ == RaceState::kExpanding) {
    NextExpansion(better);
  } else {
    NextClimb();
  }
}

RaceEdge Race::edge() const {
  SIGNVOTE_CHECK(state_ == RaceState::kWon);
  if (!best_.has_value()) return RaceEdge::kNone;
  if (highest_ <= best_->k) return RaceEdge::kUpper;
  return lowest_ >= best_->k ? RaceEdge::kLower : RaceEdge::kNone;
}

void Race::NextExpansion(bool better) {
  int64_t from = trial_.k;
  if (way_ == Way::kUnknown && trial_.k == 0 && better) return BeginTrial(1, short_rounds_);
  if (way_ == Way::kUnknown) {
    way_ = better ? Way::kUp : Way::kDown;
    if (way_ == Way::kDown) from = 0;
  } else if (!better && best_.has_value()) {
    return EndExpansion();
  } else {
    ++strides_;
  }
  const int64_t k = from + Stride(way_ == Way::kUp, strides_);
  const bool affordable = minibatches_left() >= (1 + kClimbingTrials) * short_rounds_;
  if (part_trials_ >= kTrialsMax || !affordable || !IsStepsize(k)) return EndExpansion();
  BeginTrial(k, short_rounds_);
}

void Race::EndExpansion() {
  const bool endless = way_ == Way::kDown && part_trials_ >= kTrialsMax;
  if (!best_.has_value() || Gamma(best_->k) < floor_ || endless) return Fail();
  const uint64_t share = minibatches_left() / kClimbingTrials;
  if (share < short_rounds_) return Win(best_->k, 0);
  BeginPart(RaceState::kClimbing, best_->k,
            std::min(share, std::max(config_.long_rounds, short_rounds_)));
}

void Race::NextClimb() {
  std::optional<int64_t> next;
  if (!best_.has_value()) {
    next = scores_.begin()->first - 1;
  } else {
    const std::optional<int64_t> below = BelowStill();
    if (below.has_value() && scores_.contains(*below) && scores_[*below] < scores_[*below + 1]) {
      return Win(*below, 0);
    }
    const int64_t first = highest_ > best_->k ? -1 : 1;
    const int64_t in_turn[] = {below.value_or(best_->k), best_->k + first, best_->k - first};
    for (const int64_t k : in_turn)
      if (!next.has_value() && !scores_.contains(k)) next = k;
  }
  const bool affordable = part_trials_ < kTrialsMax && minibatches_left() >= trial_.length();
  if (next.has_value() && affordable && IsStepsize(*next)) {
    return BeginTrial(*next, trial_.length());
  }
  if (!best_.has_value()) return Fail();
  Win(best_->k, Shift());
}

std::optional<int64_t> Race::BelowStill() const {
  if (highest_ <= best_->k) return std::nullopt;  // small steps stand still as well
  const int64_t lower = best_->k - 1;
  if (!scores_.contains(lower) || !still_.contains(lower)) return std::nullopt;
  return lower - 1;
}

double Race::Shift() const {
  const auto lower = scores_.find(best_->k - 1), upper = scores_.find(best_->k + 1);
  if (lower == scores_.end() || upper == scores_.end()) return 0;
  double low = lower->second, here = best_->score, high = upper->second;
  const bool low_finite = std::isfinite(low), high_finite = std::isfinite(high);
  if (!low_finite || !high_finite) return low_finite ? -0.5 : high_finite ? 0.5 : 0;
  if (low > 0 && here > 0 && high > 0) {
    low = std::log(low);
    here = std::log(here);
    high = std::log(high);
  }
  const double curvature = low - 2 * here + high;
  if (!(curvature > 0)) return 0;
  return std::clamp((low - high) / (2 * curvature), -0.5, 0.5);
}

void Race::Fail() {
  ++failures_;
  short_rounds_ *= 2;
  if (failures_ > kFailuresMax || minibatches_left() / 5 < short_rounds_) {
    if (const std::optional<int64_t> k = Untried()) return Win(*k, 0);
    state_ = RaceState::kFailed;
    return;
  }
  BeginPart(RaceState::kExpanding, 0, short_rounds_);
}

std::optional<int64_t> Race::Untried() const {
  if (!part_losses_) return part_first_;
  if (best_.has_value() || part_trials_ >= kTrialsMax || scores_.empty()) return std::nullopt;
  const int64_t below = scores_.begin()->first - 1;
  if (!IsStepsize(below)) return std::nullopt;
  return below;
}

void Race::Win(int64_t k, double shift) {
  state_ = RaceState::kWon;
  winner_k_ = k;
  winner_ = Gamma(k) * std::pow(10.0, shift / 2);
}

void Race::Save(RuleStateWriter& writer) const {
  writer.Add(static_cast<uint64_t>(state_));
  writer.Add(floor_);
  writer.Add(rounds_);
  writer.Add(trials_);
  writer.Add(short_rounds_);
  writer.Add(failures_);
  writer.Add(winner_);
  writer.Add(static_cast<uint64_t>(winner_k_));
  writer.Add(static_cast<uint64_t>(trial_.k));
  writer.Add(trial_.rounds);
  writer.Add(trial_.step);
  writer.Add(trial_.votes);
  writer.Add(uint64_t{trial_.again ? 1u : 0u});
  writer.Add(uint64_t{trial_.skipped ? 1u : 0u});
  trial_.losses.Save(writer);
  writer.Add(part_trials_);
  writer.Add(uint64_t{best_.has_value() ? 1u : 0u});
  if (best_.has_value()) {
    writer.Add(static_cast<uint64_t>(best_->k));
    writer.Add(best_->score);
    best_->losses.Save(writer);
  }
  writer.Add(uint64_t{scores_.size()});
  for (const auto& [k, score] : scores_) {
    writer.Add(static_cast<uint64_t>(k));
    writer.Add(score);
  }
  writer.Add(static_cast<uint64_t>(way_));
  writer.Add(strides_);
  writer.Add(static_cast<uint64_t>(part_first_));
  writer.Add(uint64_t{part_losses_ ? 1u : 0u});
  writer.Add(static_cast<uint64_t>(lowest_));
  writer.Add(static_cast<uint64_t>(highest_));
  writer.Add(uint64_t{still_.size()});
  for (const int64_t k : still_) writer.Add(static_cast<uint64_t>(k));
  if (config_.parts == 0) return;
  writer.Add(minibatches_);
  writer.Add(trial_.minibatches);
}

absl::Status Race::Restore(RuleStateReader& reader) {
  const absl::Status impossible =
      absl::DataLossError("the saved race of stepsizes has values that none can have");
  const uint64_t state = reader.U64();
  const double floor = reader.Double();
  const uint64_t rounds = reader.U64(), trials = reader.U64(), short_rounds = reader.U64();
  const uint64_t failures = reader.U64();
  const double winner = reader.Double();
  const auto winner_k = static_cast<int64_t>(reader.U64());
  Trial trial;
  trial.k = static_cast<int64_t>(reader.U64());
  trial.rounds = reader.U64();
  trial.step = reader.U64();
  trial.votes = reader.U64();
  const uint64_t again = reader.U64(), skipped = reader.U64();
  if (absl::Status status = trial.losses.Restore(reader); !status.ok()) return status;
  const uint64_t part_trials = reader.U64(), has_best = reader.U64();
  std::optional<Best> best;
  if (has_best == 1) {
    best = Best{};
    best->k = static_cast<int64_t>(reader.U64());
    best->score = reader.Double();
    if (absl::Status status = best->losses.Restore(reader); !status.ok()) return status;
  }
  std::map<int64_t, double> scores;
  for (size_t count = reader.Count(2); count > 0; --count) {
    const auto k = static_cast<int64_t>(reader.U64());
    scores[k] = reader.Double();
  }
  const uint64_t way = reader.U64(), strides = reader.U64();
  const auto part_first = static_cast<int64_t>(reader.U64());
  const uint64_t part_losses = reader.U64();
  const auto lowest = static_cast<int64_t>(reader.U64());
  const auto highest = static_cast<int64_t>(reader.U64());
  std::set<int64_t> still;
  for (size_t count = reader.Count(1); count > 0; --count)
    still.insert(static_cast<int64_t>(reader.U64()));
  const bool local = config_.parts > 0;
  const uint64_t minibatches = local ? reader.U64() : rounds;
  if (local) trial.minibatches = reader.U64();

  bool fits =
      state <= static_cast<uint64_t>(RaceState::kFailed) && std::isfinite(floor) && floor >= 0 &&
      rounds <= config_.rounds_max && part_trials <= kTrialsMax && part_trials <= trials &&
      failures <= kFailuresMax + 1 && short_rounds == config_.short_rounds << failures &&
      has_best <= 1 && again <= 1 && skipped <= 1 && IsStepsize(trial.k) &&
      trial.step <= trial.rounds && trial.step <= rounds && trial.votes <= trial.step &&
      trial.losses.end() <= trial.step && trial.rounds > 1 && trial.rounds <= config_.rounds_max &&
      way <= 2 && strides <= kTrialsMax && IsStepsize(part_first) && part_losses <= 1 &&
      lowest <= highest && IsStepsize(lowest) && IsStepsize(highest) &&
      (still.empty() || (lowest <= *still.begin() && *still.rbegin() <= highest));
  const bool goes_on = state <= static_cast<uint64_t>(RaceState::kClimbing);
  if (goes_on) fits = fits && trial.step < trial.rounds;
  if (best.has_value()) fits = fits && IsStepsize(best->k) && std::isfinite(best->score);
  for (const auto& [k, score] : scores)
    fits = fits && IsStepsize(k) && (std::isfinite(score) || score == kInfinity);
  if (local) {
    fits = fits && trial.rounds == config_.parts && trial.minibatches > 0 &&
           trial.minibatches <= config_.rounds_max / config_.parts && minibatches >= rounds &&
           minibatches <= config_.rounds_max;
  }
  const bool won = state == static_cast<uint64_t>(RaceState::kWon);
  fits = fits && (won ? winner > 0 && std::isfinite(winner) : winner == 0 && winner_k == 0) &&
         IsStepsize(winner_k);
  if (!fits) return impossible;

  state_ = static_cast<RaceState>(state);
  floor_ = floor;
  rounds_ = rounds;
  minibatches_ = minibatches;
  trials_ = trials;
  short_rounds_ = short_rounds;
  failures_ = failures;
  winner_ = winner;
  winner_k_ = winner_k;
  trial.again = again == 1;
  trial.skipped = skipped == 1;
  trial_ = std::move(trial);
  part_trials_ = part_trials;
  best_ = std::move(best);
  scores_ = std::move(scores);
  way_ = static_cast<Way>(way);
  strides_ = strides;
  part_first_ = part_first;
  part_losses_ = part_losses == 1;
  lowest_ = lowest;
  highest_ = highest;
  still_ = std::move(still);
  for (uint64_t step = 0; step < trial_.losses.end(); ++step) Compare(step);
  return absl::OkStatus();
}

}  // namespace signvote
