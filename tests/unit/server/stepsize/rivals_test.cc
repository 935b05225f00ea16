// Prodigy and Mechanic on votes, and SOS: their formulas, and what they have in common.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "server/stepsize/mechanic.h"
#include "server/stepsize/prodigy.h"
#include "server/stepsize/sos.h"
#include "tests/unit/server/stepsize/toy_run.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const std::vector<ScalarKind> kAsked = {ScalarKind::kX0Inner, ScalarKind::kX0Distance};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

StepsizeDecision Next(StepsizeRule& rule, uint64_t t, const std::vector<WorkerScalars>& workers,
                      uint64_t main_rounds = 100, double x0_max_abs = 0.5) {
  return rule.Decide({.ahead = {.round = Round(t), .main_rounds = t},
                      .main_rounds_max = main_rounds,
                      .x0_max_abs = x0_max_abs,
                      .asked = kAsked,
                      .workers = workers});
}

WorkerScalars Worker(double inner, double g_l1) {
  // x is so far away that every product is possible.
  return {.loss = 1, .g_l1 = g_l1, .g_l2_squared = g_l1 * g_l1, .wanted = {inner, 1e3}};
}

TEST(ProdigyRuleTest, EachLineOfItsFormula) {
  auto rule = MakeProdigyRule({.d0 = 1e-3, .schedule = {.kind = ScheduleKind::kLinear}});
  EXPECT_THAT(rule->Wanted({.main_rounds = 0}), IsEmpty());
  EXPECT_THAT(rule->Wanted({.main_rounds = 1}),
              ElementsAre(ScalarKind::kX0Inner, ScalarKind::kX0Distance));
  const double beta3 = std::sqrt(0.999);
  double d = 1e-3, a = 0, b = 0;
  for (uint64_t t = 0; t < 20; ++t) {
    const double inner = t == 0 ? kNan : 0.01 * static_cast<double>(t),
                 norm = 3 + 0.1 * static_cast<double>(t);
    const double f = 1 - static_cast<double>(t) / 100;
    a = beta3 * a + d / 1e-3 * d * f * (t == 0 ? 0 : inner);
    b = beta3 * b + d / 1e-3 * d * f * norm;
    d = std::max(d, a / b);
    EXPECT_FLOAT_EQ(Next(*rule, t, {Worker(inner, norm)}).gamma, static_cast<float>(d * f)) << t;
  }
  EXPECT_GT(d, 2e-3);
}

TEST(ProdigyRuleTest, TheDistanceNeverFallsAndStaysWithoutScalars) {
  auto rule = MakeProdigyRule({});
  EXPECT_EQ(Next(*rule, 0, {Worker(kNan, 1)}, 100, 40).gamma, static_cast<float>(4e-4));
  Next(*rule, 1, {Worker(2, 1)}, 100, 40);
  const float grown = Next(*rule, 2, {Worker(2, 1)}, 100, 40).gamma;
  EXPECT_GT(grown, 0.1f);
  EXPECT_EQ(Next(*rule, 3, {Worker(-50, 1)}, 100, 40).gamma, grown);
  EXPECT_EQ(Next(*rule, 4, {}, 100, 40).gamma, grown);
  EXPECT_EQ(Next(*rule, 5, {Worker(kNan, 1)}, 100, 40).gamma, grown);
  EXPECT_EQ(Next(*rule, 6, {Worker(1e300, 1e-100)}, 100, 40).gamma, grown);
}

// Of two whose replicas are the same to the last bit one of them is wrong, and nobody knows which.
TEST(ProdigyRuleTest, OfTwoWorkersTheOneThatIsFarthestAwayDoesNotSetTheDistance) {
  auto rule = MakeProdigyRule({});
  Next(*rule, 0, {Worker(kNan, 1), Worker(kNan, 1)});
  const float before = Next(*rule, 1, {Worker(0, 1), Worker(0, 1)}).gamma;
  WorkerScalars liar{.loss = 1, .g_l1 = 1, .g_l2_squared = 1, .wanted = {1e30, 1e30}};
  EXPECT_EQ(Next(*rule, 2, {Worker(0, 1), liar}).gamma, before);
}

TEST(MechanicRuleTest, EachLineOfItsFormula) {
  auto rule = MakeMechanicRule({.start = 1e-4, .schedule = {.kind = ScheduleKind::kLinear}});
  const double epsilon = 1e-8;
  std::vector<double> r(6, 0.0), m(6, epsilon), v(6, 0.0), s(6, 1e-4 / 6);
  double total = 1e-4;
  for (uint64_t t = 0; t < 30; ++t) {
    const double inner = t == 0 ? kNan : 1e-5 * (t % 5 == 0 ? -2.0 : 1.0 + static_cast<double>(t));
    const double before = total, f = 1 - static_cast<double>(t) / 100;
    if (t > 0) {
      const double h = inner / total;
      total = 0;
      for (size_t i = 0; i < 6; ++i) {
        const double beta = 1 - std::pow(10.0, -static_cast<double>(i) - 1);
        r[i] = beta * r[i] + std::clamp(h, -m[i], m[i]) * s[i];
        m[i] = std::max(beta * m[i], std::abs(h) + epsilon);
        v[i] = beta * beta * v[i] + h * h;
        s[i] = (1e-4 / 6 * m[i] + std::max(0.0, r[i])) / (std::sqrt(v[i]) + epsilon);
        total += s[i];
      }
    }
    const StepsizeDecision decision = Next(*rule, t, {Worker(inner, 1)});
    EXPECT_NEAR(decision.gamma, total * f, 1e-6 * total) << t;
    EXPECT_NEAR(decision.rho, t == 0 ? 1 : total / before, 1e-6 * total / before) << t;
  }
  EXPECT_GT(total, 3e-4);
}

TEST(MechanicRuleTest, ItsSmallestAndLargestStartsAreSavedAndRestored) {
  for (const double start : {kMechanicStartMin, kMechanicStartMax}) {
    auto rule = MakeMechanicRule({.start = start}), other = MakeMechanicRule({.start = start});
    Next(*rule, 0, {});
    EXPECT_TRUE(other->Restore(rule->Save()).ok()) << start;
  }
  auto huge = MakeMechanicRule({}), other = MakeMechanicRule({});
  EXPECT_EQ(Next(*huge, 0, {}, 100, 1e30).gamma, 1e12f) << "of what max|x_0| would give";
  EXPECT_TRUE(other->Restore(huge->Save()).ok());
}

TEST(MechanicRuleTest, WithoutScalarsOrWithHugeOnesItKeepsAStepsize) {
  auto rule = MakeMechanicRule({});
  EXPECT_EQ(Next(*rule, 0, {}).gamma, 1e-5f);
  EXPECT_EQ(Next(*rule, 1, {}).gamma, 1e-5f);
  EXPECT_EQ(Next(*rule, 1, {}).rho, 1.0f);
  for (const double inner : {1e300, -1e300, 1e-300, 0.0, 900.0, -900.0}) {
    const StepsizeDecision decision = Next(*rule, 2, {Worker(inner, 1)});
    EXPECT_TRUE(decision.gamma > 0 && std::isfinite(decision.gamma)) << inner;
    EXPECT_TRUE(decision.rho > 0 && std::isfinite(decision.rho)) << inner;
  }
}

// ---- SOS

TEST(SosRuleTest, TheFirstTrialStandsStillAndTheSearchIsABisectionOfPhi) {
  // A loss of 10·γ·step·(1 − γ/γ*) below the start; the gradient changes by γ: D = m·γ.
  auto rule = MakeSosRule({.start = 1e-3, .main_rounds = 3200});  // m = 100, 800 rounds in all
  const double best = 0.05, per_step = 2;
  std::vector<double> tried;
  double gamma = 0;
  uint64_t step = 0, rounds = 0;
  StepsizeDecision decision;
  float final_gamma = 0;
  while (rounds < 900) {
    const RoundAhead ahead{.round = Round(rounds), .data_step = DataStep(step)};
    const std::vector<ScalarKind> asked = rule->Wanted(ahead);
    const double loss = 5 - per_step * gamma * static_cast<double>(step) * (1 - gamma / best);
    const std::vector<WorkerScalars> workers = {
        {.loss = loss, .wanted = std::vector<double>(asked.size(), 4 * gamma)}};
    decision = rule->Decide({.ahead = ahead, .asked = asked, .workers = workers});
    if (decision.main_round) {
      final_gamma = decision.gamma;
      break;
    }
    ++rounds;
    if (decision.kind == CommitKind::kRewind) {
      EXPECT_EQ(step, 99u);
      EXPECT_EQ(decision.next_data_step, DataStep(0));
      tried.push_back(gamma);
      step = 0;
      gamma = 0;
    } else {
      gamma = decision.gamma;
      ++step;
    }
  }
  // φ(γ) = per_step·mean step·(1 − γ/γ*)/(4·99)…: above γ up to about .044.
  const auto phi_holds = [&](double g) { return per_step * 87 * (1 - g / best) / (4 * 99) >= g; };
  ASSERT_GE(tried.size(), 5u);
  EXPECT_EQ(tried[0], 0.0);
  EXPECT_FLOAT_EQ(static_cast<float>(tried[1]), 4e-3f);
  EXPECT_FLOAT_EQ(static_cast<float>(tried[2]), 1.6e-2f);
  EXPECT_FLOAT_EQ(static_cast<float>(tried[3]), 0.256f);
  EXPECT_FLOAT_EQ(static_cast<float>(tried[4]), 0.064f);
  EXPECT_FLOAT_EQ(static_cast<float>(tried[5]), 0.032f);
  EXPECT_TRUE(phi_holds(0.032) && !phi_holds(0.064));
  EXPECT_FLOAT_EQ(final_gamma, 0.032f);
}

TEST(SosRuleTest, ItsTrialsTakeNoMoreThanAQuarterOfTheRun) {
  const auto problem = toy::Logistic();
  for (const uint64_t rounds : {192u, 640u, 1280u}) {
    auto rule = MakeSosRule({.main_rounds = rounds});
    const toy::Result result = toy::Train(*problem, rule.get(), {.main_rounds = rounds});
    EXPECT_LE(result.race_rounds, rounds / 4);
    EXPECT_EQ(result.decisions[result.race_rounds - 1].kind, CommitKind::kRewind);
    const auto rewinds = static_cast<uint64_t>(
        std::count_if(result.decisions.begin(), result.decisions.end(),
                      [](const StepsizeDecision& d) { return d.kind == CommitKind::kRewind; }));
    EXPECT_TRUE(rule->x0_over({})) << "its trials are over";
    EXPECT_EQ(result.decisions.front().race, (RaceProgress{1, 1, rounds / 4, false}));
    EXPECT_EQ(result.decisions.back().race,
              (RaceProgress{rewinds, result.race_rounds, rounds / 4, true}));
  }
}

// A search by hand: one worker of a share, whose loss falls by 2γ a step, and rises where γ is above `best`.
class SosSearch {
 public:
  explicit SosSearch(double best = 0.05)
      : best_(best), rule_(MakeSosRule({.start = 1e-3, .main_rounds = 640})) {}
  StepsizeRule& rule() { return *rule_; }
  // With this share; `round` of the trial counts from 0.
  StepsizeDecision Vote(uint32_t share = 0, bool probe = true) {
    const RoundAhead ahead{.data_step = DataStep(step_)};
    const std::vector<ScalarKind> asked = rule_->Wanted(ahead);
    const double loss = 5 + share - 2 * gamma_ * static_cast<double>(step_) * (1 - gamma_ / best_);
    const std::vector<WorkerScalars> workers = {
        {.loss = loss,
         .wanted = std::vector<double>(asked.size(), probe ? 4 * gamma_ : std::nan(""))}};
    const std::vector<Share> shares = {Share(share)};
    return Take(
        rule_->Decide({.ahead = ahead, .asked = asked, .workers = workers, .shares = shares}));
  }
  StepsizeDecision Without(bool nonfinite) {
    return Take(rule_->DecideWithoutBallot(
        {.ahead = {.data_step = DataStep(step_)}, .nonfinite = nonfinite}));
  }
  // Through the trials that are left; the stepsize of the run.
  float Finish(uint32_t share = 0) {
    StepsizeDecision decision;
    do {
      decision = Vote(share);
    } while (!decision.main_round || decision.kind != CommitKind::kStep);
    warning_ = decision.warning;
    return decision.gamma;
  }
  uint64_t step() const { return step_; }
  const std::string& warning() const { return warning_; }

 private:
  StepsizeDecision Take(StepsizeDecision decision) {
    ++step_;
    if (decision.kind == CommitKind::kStep) gamma_ = decision.gamma;
    if (decision.kind == CommitKind::kRewind) {
      step_ = 0;
      gamma_ = 0;
    }
    return decision;
  }
  const double best_;
  std::unique_ptr<StepsizeRule> rule_;
  double gamma_ = 0;
  uint64_t step_ = 0;
  std::string warning_;
};

TEST(SosRuleTest, AnOutageInTheStillTrialRunsItAgainAndTheSearchFindsTheSame) {
  SosSearch undisturbed;
  const float expected = undisturbed.Finish();
  EXPECT_GT(expected, 1e-2f);
  SosSearch search;
  for (int i = 0; i < 3; ++i) search.Vote();
  EXPECT_EQ(search.Without(false).kind, CommitKind::kRewind);
  EXPECT_EQ(search.rule().race().trials, 2u);
  EXPECT_EQ(search.Finish(), expected);
  EXPECT_EQ(search.warning(), "");
}

TEST(SosRuleTest, ATrialWithoutPairsIsRunOnceMore) {
  SosSearch undisturbed, search;
  const float expected = undisturbed.Finish();
  for (int i = 0; i < 20; ++i) search.Vote();
  for (int i = 0; i < 20; ++i) search.Vote(1);
  EXPECT_EQ(search.rule().race().trials, 3u);
  EXPECT_EQ(search.Finish(), expected);
  EXPECT_EQ(search.warning(), "");
}

TEST(SosRuleTest, WhereNoTrialTellsAnythingItKeepsItsStartAndSaysSo) {
  SosSearch search;
  for (int i = 0; i < 20; ++i) search.Vote();
  EXPECT_EQ(search.Finish(1), 1e-3f);
  EXPECT_THAT(search.warning(), testing::HasSubstr("no trial of SOS told anything"));
}

TEST(SosRuleTest, AMinibatchWithoutAFiniteLossCostsEveryTrialThatRoundAndNoTrial) {
  SosSearch undisturbed, search;
  const float expected = undisturbed.Finish();
  StepsizeDecision decision;
  while (!search.rule().race().over)
    decision = search.step() == 6 ? search.Without(true) : search.Vote();
  EXPECT_EQ(search.Finish(), expected);
}

TEST(SosRuleTest, RoundsWithoutAProbeMakeAStepsizeNoLonger) {
  const double never = std::numeric_limits<double>::infinity();  // D alone says where to stop
  SosSearch undisturbed(never), search(never);
  const float expected = undisturbed.Finish();
  while (!search.rule().race().over) search.Vote(0, search.step() % 4 == 0);
  EXPECT_EQ(search.Finish(), expected);
}

TEST(SosRuleTest, TwoRoundsWithoutAFiniteLossEndATrialAndAnOutageBeforeItsFirstVoteDoesNot) {
  SosSearch search;
  EXPECT_EQ(search.Without(true).kind, CommitKind::kNone) << "none was begun";
  for (int i = 0; i < 20; ++i) search.Vote();
  const uint64_t rounds = search.rule().race().rounds;
  for (int i = 0; i < 9; ++i) EXPECT_EQ(search.Without(false).kind, CommitKind::kRewind);
  EXPECT_EQ(search.rule().race().trials, 2u) << "before its first vote no stepsize is to blame";
  EXPECT_EQ(search.rule().race().rounds, rounds);
  search.Vote();
  search.Vote();
  EXPECT_EQ(search.Without(true).kind, CommitKind::kNone);
  const StepsizeDecision decision = search.Without(true);
  EXPECT_EQ(decision.kind, CommitKind::kRewind);
  EXPECT_EQ(decision.reason, "sos: phi(0.004)=0");
  EXPECT_FALSE(decision.main_round);
}

// ---- all of them

struct Rival {
  const char* name;
  std::function<std::unique_ptr<StepsizeRule>()> make;
};

std::vector<Rival> Rivals() {
  return {{"prodigy", [] { return MakeProdigyRule({}); }},
          {"mechanic", [] { return MakeMechanicRule({}); }},
          {"sos", [] { return MakeSosRule({.main_rounds = 640}); }}};
}

TEST(RivalsTest, TheyTrain) {
  const auto problem = toy::Logistic();
  const double start = problem->Loss(problem->Start());
  const toy::Options options{.main_rounds = 640};
  const toy::Best best = toy::BestFixed(*problem, options);
  for (const Rival& rival : Rivals()) {
    auto rule = rival.make();
    EXPECT_EQ(rule->name(), rival.name);
    EXPECT_TRUE(rule->needs_x0());
    const toy::Result result = toy::Train(*problem, rule.get(), options);
    std::printf("%s: %.5f, best %.5f of %.5f, last stepsize %.3e\n", rival.name, result.loss,
                best.loss, start, static_cast<double>(result.decisions.back().gamma));
    EXPECT_LT(result.loss, best.loss + 0.5 * (start - best.loss)) << rival.name;
  }
}

TEST(RivalsTest, RestoredBeforeEveryRoundTheyDecideTheSame) {
  const auto problem = toy::Logistic();
  for (const Rival& rival : Rivals()) {
    auto once = rival.make(), again = rival.make();
    const toy::Result first = toy::Train(*problem, once.get(), {.main_rounds = 640});
    const toy::Result second =
        toy::Train(*problem, again.get(), {.main_rounds = 640, .replace = rival.make});
    EXPECT_EQ(first.x, second.x) << rival.name;
  }
}

TEST(RivalsTest, ALyingWorkerOfFiveDoesNotMoveTheStepsizeMuch) {
  const auto problem = toy::Logistic();
  for (const Rival& rival : Rivals()) {
    auto honest = rival.make();
    const toy::Result expected =
        toy::Train(*problem, honest.get(), {.workers = 5, .main_rounds = 640});
    for (const double lie : {1e200, -1e200, kNan}) {
      auto rule = rival.make();
      const toy::Result lied = toy::Train(
          *problem, rule.get(),
          {.workers = 5, .main_rounds = 640, .tamper = [&](Round, Share share, WorkerScalars* s) {
             if (share != Share(2)) return;
             s->g_l1 = 1e200;
             for (double& value : s->wanted) value = lie;
           }});
      EXPECT_NEAR(std::log(lied.decisions.back().gamma / expected.decisions.back().gamma), 0, 1.2)
          << rival.name << " " << lie;
      EXPECT_NEAR(lied.loss / expected.loss, 1, 0.1) << rival.name << " " << lie;
    }
  }
}

TEST(RivalsTest, DamagedStatesAreRefusedAndChangeNothing) {
  for (const Rival& rival : Rivals()) {
    auto rule = rival.make();
    const std::string fresh = rule->Save();
    std::string flipped = fresh;
    flipped[flipped.size() / 2] = static_cast<char>(flipped[flipped.size() / 2] ^ 1);
    EXPECT_EQ(rule->Restore(flipped).code(), absl::StatusCode::kDataLoss);
    for (const Rival& other : Rivals()) {
      if (other.name == rival.name) continue;
      EXPECT_EQ(rule->Restore(other.make()->Save()).code(), absl::StatusCode::kInvalidArgument);
    }
    EXPECT_EQ(rule->Save(), fresh);
  }
}

}  // namespace
}  // namespace signvote
