#include "tests/unit/server/stepsize/toy_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "common/check.h"
#include "common/rng.h"
#include "server/stepsize/fixed.h"

namespace signvote::toy {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

double Sign(double u, uint64_t coin) { return u > 0 || (u == 0 && (coin & 1) != 0) ? 1.0 : -1.0; }

class QuadraticProblem final : public Problem {
 public:
  std::vector<double> Start() const override { return std::vector<double>(kD, 1.0); }
  double Gradient(const std::vector<double>& x, Share, DataStep,
                  std::vector<double>* g) const override {
    g->resize(kD);
    for (size_t i = 0; i < kD; ++i) (*g)[i] = H(i) * (x[i] - Target(i));
    return Loss(x);
  }
  double Loss(const std::vector<double>& x) const override {
    double loss = 0.01;  // the race takes logarithms
    for (size_t i = 0; i < kD; ++i) loss += 0.5 * H(i) * (x[i] - Target(i)) * (x[i] - Target(i));
    return loss;
  }

 private:
  static constexpr size_t kD = 24;
  static double H(size_t i) { return std::pow(100.0, static_cast<double>(i) / (kD - 1)); }
  static double Target(size_t i) { return std::sin(static_cast<double>(3 * i)); }
};

class LogisticProblem final : public Problem {
 public:
  LogisticProblem() {
    Rng rng(5, 1);
    std::vector<double> truth(kD);
    for (double& w : truth) w = 2 * rng.Bell();
    for (size_t s = 0; s < kSamples; ++s) {
      double margin = 0;
      for (size_t i = 0; i < kD; ++i) {
        const double scale = std::pow(30.0, -static_cast<double>(i) / (kD - 1));
        features_.push_back(scale * rng.Bell());
        margin += truth[i] * features_.back();
      }
      labels_.push_back(rng.Uniform() < 1 / (1 + std::exp(-margin)) ? 1.0 : -1.0);
    }
  }
  std::vector<double> Start() const override { return std::vector<double>(kD, 0.0); }
  double Gradient(const std::vector<double>& x, Share share, DataStep step,
                  std::vector<double>* g) const override {
    g->assign(kD, 0.0);
    Rng rng(9, Mix(2, share.value(), step.value()));
    double loss = 0;
    for (size_t k = 0; k < kBatch; ++k) loss += Add(x, rng.Below(kSamples), 1.0 / kBatch, g);
    return loss / kBatch;
  }
  double Loss(const std::vector<double>& x) const override {
    std::vector<double> g(kD);
    double loss = 0;
    for (size_t s = 0; s < kSamples; ++s) loss += Add(x, s, 0, &g);
    return loss / kSamples;
  }

 private:
  static constexpr size_t kD = 40, kSamples = 2000, kBatch = 8;
  double Add(const std::vector<double>& x, size_t sample, double weight,
             std::vector<double>* g) const {
    double margin = 0;
    for (size_t i = 0; i < kD; ++i) margin += x[i] * features_[sample * kD + i];
    margin *= labels_[sample];
    const double slope = -labels_[sample] / (1 + std::exp(margin));
    for (size_t i = 0; i < kD; ++i) (*g)[i] += weight * slope * features_[sample * kD + i];
    return margin > 0 ? std::log1p(std::exp(-margin)) : std::log1p(std::exp(margin)) - margin;
  }
  std::vector<double> features_, labels_;
};

}  // namespace

std::unique_ptr<Problem> Quadratic() { return std::make_unique<QuadraticProblem>(); }
std::unique_ptr<Problem> Logistic() { return std::make_unique<LogisticProblem>(); }

Result Train(const Problem& problem, StepsizeRule* rule, const Options& options) {
  const std::vector<double> x0 = problem.Start();
  const size_t d = x0.size();
  double x0_max = 0;
  for (const double v : x0) x0_max = std::max(x0_max, std::abs(v));
  Result result{.x = x0};
  std::vector<double>& x = result.x;
  std::vector<double> x_prev, verdict, g, h;
  std::vector<std::vector<double>> g_prev(options.workers);  // empty: none of the round before
  std::vector<std::vector<double>> m(options.workers, std::vector<double>(d, 0.0));
  std::unique_ptr<StepsizeRule> replaced;
  RoundAhead ahead;
  float gamma = 0;
  while (ahead.main_rounds < options.main_rounds && ahead.round.value() < options.rounds_max) {
    if (options.replace) {
      const std::string bytes = rule->Save();
      std::unique_ptr<StepsizeRule> next = options.replace();
      SIGNVOTE_CHECK(next->Restore(bytes).ok());
      replaced = std::move(next);
      rule = replaced.get();
    }
    const std::vector<ScalarKind> asked = rule->Wanted(ahead);
    std::vector<WorkerScalars> workers;
    std::vector<Share> shares;
    std::vector<double> votes(d, 0.0);
    for (uint32_t w = 0; w < options.workers; ++w) {
      const Share share(w);
      if (options.present && !options.present(ahead.round, share)) {
        g_prev[w].clear();
        continue;
      }
      WorkerScalars s;
      s.loss = problem.Gradient(x, share, ahead.data_step, &g);
      const bool probe = !x_prev.empty();
      if (probe) (void)problem.Gradient(x_prev, share, ahead.data_step, &h);
      double probe_l1 = 0, prev_inner = 0, probe_inner = 0, x0_inner = 0, distance = 0;
      double change_l1 = 0;
      for (size_t i = 0; i < d; ++i) {
        s.g_l1 += std::abs(g[i]);
        s.g_l2_squared += g[i] * g[i];
        x0_inner += g[i] * (x0[i] - x[i]);
        distance += (x0[i] - x[i]) * (x0[i] - x[i]);
        if (probe) probe_l1 += std::abs(g[i] - h[i]);
        if (probe) prev_inner += g[i] * verdict[i];
        if (probe) probe_inner += h[i] * verdict[i];
        if (!g_prev[w].empty()) change_l1 += std::abs(g[i] - g_prev[w][i]);
        m[w][i] = options.momentum * m[w][i] + (1 - options.momentum) * g[i];
        votes[i] += Sign(m[w][i], Mix(w, ahead.round.value(), i));
      }
      const size_t wanted = rule->WantedOf(ahead, share, asked.size());
      for (const ScalarKind kind : std::span(asked).first(wanted)) {
        double value = kUnknown;
        if (kind == ScalarKind::kProbeL1 && probe) value = probe_l1;
        if (kind == ScalarKind::kPrevInner && probe) value = prev_inner;
        if (kind == ScalarKind::kProbeInner && probe) value = probe_inner;
        if (kind == ScalarKind::kChangeL1 && probe && !g_prev[w].empty()) value = change_l1;
        if (kind == ScalarKind::kGradientMax) value = *std::max_element(g.begin(), g.end());
        if (kind == ScalarKind::kGradientMin) value = *std::min_element(g.begin(), g.end());
        if (kind == ScalarKind::kX0Inner) value = x0_inner;
        if (kind == ScalarKind::kX0Distance) value = std::sqrt(distance);
        s.wanted.push_back(value);
      }
      g_prev[w] = g;
      if (options.tamper) options.tamper(ahead.round, share, &s);
      // As the engine refuses what no honest worker sends.
      if (!Plausible(s, asked)) continue;
      workers.push_back(s);
      shares.push_back(share);
    }
    RuleInput input{.ahead = ahead,
                    .main_rounds_max = options.main_rounds,
                    .gamma = gamma,
                    .x0_max_abs = x0_max,
                    .coordinates = d,
                    .asked = asked,
                    .workers = workers,
                    .shares = shares};
    const bool nonfinite = options.nonfinite && options.nonfinite(ahead.data_step);
    const bool verdictless =
        nonfinite || (options.without_verdict && options.without_verdict(ahead.round));
    input.nonfinite = nonfinite;
    const StepsizeDecision decision =
        verdictless ? rule->DecideWithoutBallot(input) : rule->Decide(input);
    result.decisions.push_back(decision);
    result.data_steps.push_back(ahead.data_step);
    x_prev.clear();
    switch (decision.kind) {
      case CommitKind::kRewind:
        x = x0;
        for (std::vector<double>& state : m) std::fill(state.begin(), state.end(), 0.0);
        break;
      case CommitKind::kNone:
        break;
      case CommitKind::kStep:
        x_prev = x;
        verdict.resize(d);
        for (size_t i = 0; i < d; ++i) {
          verdict[i] = Sign(votes[i], Mix(99, ahead.round.value(), i));
          x[i] =
              x0[i] + double{decision.rho} * (x[i] - x0[i]) - double{decision.gamma} * verdict[i];
        }
        break;
    }
    if (decision.kind != CommitKind::kNone) gamma = decision.gamma;
    ++ahead.round;
    ahead.data_step = decision.next_data_step.value_or(ahead.data_step.next());
    if (decision.kind == CommitKind::kStep && decision.main_round) {
      ++ahead.main_rounds;
    } else {
      ++result.race_rounds;
    }
    result.status = rule->failure();
    if (!result.status.ok()) break;
  }
  result.loss = problem.Loss(x);
  return result;
}

Best BestFixed(const Problem& problem, const Options& options) {
  Best best{.loss = std::numeric_limits<double>::infinity()};
  for (int k = -20; k <= 0; ++k) {
    const double stepsize = std::pow(10.0, k / 4.0);
    auto rule = MakeFixedRule({.gamma0 = stepsize, .schedule = {.kind = ScheduleKind::kLinear}});
    const double loss = Train(problem, rule.get(), options).loss;
    if (loss < best.loss) best = {.loss = loss, .stepsize = stepsize};
  }
  return best;
}

}  // namespace signvote::toy
