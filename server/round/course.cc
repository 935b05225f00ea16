#include "server/round/course.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote::round {
namespace {

constexpr Duration kBackOffFirst = std::chrono::seconds(1);
constexpr Duration kBackOffMax = std::chrono::seconds(30);
constexpr uint32_t kBackOffDoublings = 5;  // 2^5 s is above the longest

bool IsStepsize(float gamma) { return std::isfinite(gamma) && gamma >= 0; }

}  // namespace

Course::Course(const EngineConfig& config, std::unique_ptr<StepsizeRule> rule,
               const CourseState& state)
    : main_rounds_max_(config.main_rounds_max),
      nonfinite_rounds_(config.nonfinite_rounds),
      x0_max_abs_(config.x0_max_abs),
      step_scale_max_(config.step_scale_max),
      coordinates_(config.coordinates),
      rule_(std::move(rule)),
      state_(state),
      race_(rule_->race()) {
  state_.rule.clear();
}

absl::StatusOr<Course> Course::Make(const EngineConfig& config, std::unique_ptr<StepsizeRule> rule,
                                    const CourseState& state) {
  SIGNVOTE_CHECK(rule != nullptr);
  if (!state.rule.empty()) {
    if (absl::Status status = rule->Restore(state.rule); !status.ok()) return status;
  }
  return Course(config, std::move(rule), state);
}

RoundAhead Course::Ahead(Round round) const {
  return {.round = round, .data_step = state_.data_step, .main_rounds = state_.main_rounds};
}

std::vector<ScalarKind> Course::Wanted(Round round) const { return rule_->Wanted(Ahead(round)); }

bool Course::x0_over(Round round) const {
  return rule_->needs_x0() && rule_->x0_over(Ahead(round));
}

LocalSteps Course::Local(Round round) const { return rule_->Local(Ahead(round)); }

size_t Course::WantedOf(Round round, Share share, size_t wanted) const {
  return std::min(wanted, rule_->WantedOf(Ahead(round), share, wanted));
}

Duration Course::BackOff() const {
  if (state_.stepless_in_a_row == 0) return Duration{0};
  const uint32_t doublings = std::min(state_.stepless_in_a_row - 1, kBackOffDoublings);
  return std::min(kBackOffFirst * (int64_t{1} << doublings), kBackOffMax);
}

absl::Status Course::Check(const StepsizeDecision& decision, CourseEnd end,
                           const CommitRound& commit, bool x0_over) const {
  const auto bad = [&](const auto&... what) {
    return absl::InternalError(absl::StrCat("the stepsize rule '", ToAbsl(rule_->name()),
                                            "' answers round ", commit.round.value(), " with ",
                                            what...,
                                            ", which no commit can carry out; train with another "
                                            "--rule, and report this one"));
  };
  if (decision.kind == CommitKind::kNone) return absl::OkStatus();  // its numbers are not used
  const std::string_view kind = Words(decision.kind);
  if (!IsStepsize(decision.gamma)) {
    return bad("the stepsize ", decision.gamma);
  }
  if (!std::isfinite(decision.rho) || decision.rho <= 0) return bad("rho ", decision.rho);
  const bool voted = end == CourseEnd::kVerdict && !commit.local.plan.is_silent();
  if (decision.kind == CommitKind::kStep && !voted) {
    return bad("a step although there is no verdict");
  }
  if (decision.kind != CommitKind::kStep && decision.rho != 1.0f) {
    return bad("rho ", decision.rho, " and a ", ToAbsl(kind));
  }
  if (x0_over && (decision.kind == CommitKind::kRewind || decision.rho != 1.0f)) {
    return bad("a ", ToAbsl(kind), " and rho ", decision.rho,
               " although it does without the starting parameters");
  }
  return absl::OkStatus();
}

absl::StatusOr<StepsizeDecision> Course::Ask(CourseEnd end, const CommitRound& commit) {
  std::vector<Share> shares;
  for (const ScalarsSource& from : commit.scalars_from) shares.push_back(from.share);
  const RuleInput input{
      .ahead = Ahead(commit.round),
      .main_rounds_max = main_rounds_max_,
      .gamma = state_.gamma,
      .x0_max_abs = x0_max_abs_,
      .step_scale_max = step_scale_max_,
      .coordinates = coordinates_,
      .asked = commit.asked,
      .workers = commit.scalars,
      .nonfinite = end == CourseEnd::kNonFiniteLoss || end == CourseEnd::kNonFiniteGradient,
      .shares = shares,
      .local = commit.local.plan};
  const bool x0_over = rule_->x0_over(input.ahead);  // deciding may end its need
  StepsizeDecision decision =
      end == CourseEnd::kVerdict ? rule_->Decide(input) : rule_->DecideWithoutBallot(input);
  SIGNVOTE_RETURN_IF_ERROR(Check(decision, end, commit, x0_over));
  return decision;
}

void Course::CountWithoutStep(CourseEnd end) {
  switch (end) {
    case CourseEnd::kVerdict:
      state_.nonfinite_in_a_row = 0;
      state_.stepless_in_a_row = 0;
      return;
    case CourseEnd::kNonFiniteLoss:
      ++state_.nonfinite_in_a_row;
      state_.stepless_in_a_row = 0;
      return;
    case CourseEnd::kNonFiniteGradient:
    case CourseEnd::kWithoutBallots:
    case CourseEnd::kWithoutLengths:
      state_.nonfinite_in_a_row = 0;
      ++state_.stepless_in_a_row;
      return;
  }
}

std::optional<Notice> Course::Warn(std::string warning) {
  if (warning == warning_) return std::nullopt;
  warning_ = std::move(warning);
  if (warning_.empty()) {
    return Notice{NoticeLevel::kInfo, "the stepsize rule has what it was short of"};
  }
  return Notice{NoticeLevel::kWarning, warning_};
}

absl::StatusOr<std::optional<Notice>> Course::Decide(CourseEnd end, CommitRound& commit) {
  SIGNVOTE_ASSIGN_OR_RETURN(StepsizeDecision decision, Ask(end, commit));
  commit.kind = decision.kind;
  commit.gamma = decision.gamma;
  commit.rho = decision.rho;
  commit.data_step = state_.data_step;
  const DataStep after(state_.data_step.value() + commit.local.plan.steps);
  commit.next_data_step = decision.next_data_step.value_or(after);
  if (decision.kind == CommitKind::kNone) {
    const bool tried = commit.local.plan.is_silent() && IsStepsize(decision.gamma);
    commit.gamma = tried ? decision.gamma : state_.gamma;
    commit.rho = 1;
    if (commit.next_data_step == state_.data_step) commit.next_data_step = after;
  }
  commit.main_round = decision.kind == CommitKind::kStep && decision.main_round;
  if (commit.main_round) ++state_.main_rounds;
  commit.main_rounds = state_.main_rounds;
  state_.minibatches += commit.local.plan.steps;
  commit.local.minibatches = state_.minibatches;
  state_.run_done =
      decision.run_done || (main_rounds_max_ > 0 && state_.main_rounds >= main_rounds_max_);
  commit.run_done = state_.run_done;
  state_.data_step = commit.next_data_step;
  state_.gamma = commit.gamma;
  CountWithoutStep(end);
  if (commit.kind == CommitKind::kRewind) state_.nonfinite_in_a_row = 0;

  commit.reason = std::move(decision.reason);
  if (end != CourseEnd::kVerdict) {
    const char* why = end == CourseEnd::kNonFiniteLoss       ? "no finite loss"
                      : end == CourseEnd::kNonFiniteGradient ? "no finite gradient"
                      : end == CourseEnd::kWithoutLengths
                          ? "no worker says how far its minibatches went"
                          : "no ballot";
    commit.reason = commit.reason.empty() ? why : absl::StrCat(why, "; ", commit.reason);
  }
  commit.rule.state = std::move(decision.state);
  // A rule that says nothing of a round without a verdict has not stopped its trials.
  if (decision.race.rounds_max > 0) race_ = decision.race;
  commit.rule.race = race_;
  if (commit.kind != CommitKind::kStep) {
    commit.chunks.clear();
    commit.local.scales.clear();
    commit.local.decay_step = 0;
  }

  // A round without a verdict shows the rule nothing: what it was short of it still is.
  std::optional<Notice> told;
  if (end == CourseEnd::kVerdict) told = Warn(std::move(decision.warning));
  commit.rule.warning = warning_;
  return told;
}

CourseState Course::State() const {
  CourseState state = state_;
  state.rule = rule_->Save();
  return state;
}

}  // namespace signvote::round
