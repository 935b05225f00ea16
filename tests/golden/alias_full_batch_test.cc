// Goal:   on convex functions without noise, where ALIAS (Medyakov et al., "Sign-SGD via Parameter-Free
//         Optimization", ICLR 2026, arXiv 2506.03725, Algorithm 2) has its guarantees, whole runs of this
//         product keep them.
// Method: the function as the model of every worker of a run through Run, Voter, packing, tally, rule and
//         apply in fp32; beside it Algorithm 2 in plain double, and the inequalities of its proof,
//         evaluated in double at the replica's parameters.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/golden/whole_run.h"

namespace signvote {
namespace {

double Sign(double v) { return v > 0 ? 1.0 : -1.0; }
double L1(const std::vector<double>& v) {
  double sum = 0;
  for (const double value : v) sum += std::abs(value);
  return sum;
}
double Inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
std::vector<double> Less(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> out(a);
  for (size_t i = 0; i < out.size(); ++i) out[i] -= b[i];
  return out;
}

// The rounds at the beginning in which γ stays small and f(x_0) is measured: docs/algorithms/alias.md,
// "The start".
size_t StartRounds(size_t rounds) { return std::clamp<size_t>(rounds / 20, 1, 8); }

enum class Option { kOne, kTwo };
enum class Change { kNorm, kDirectional };  // of the gradient: --alias-probe same, directional

struct Form {
  const char* name;
  Option option;
  Change change;
};
constexpr Form kForms[] = {{"I", Option::kOne, Change::kNorm},
                           {"II", Option::kTwo, Change::kNorm},
                           {"I, directional", Option::kOne, Change::kDirectional},
                           {"II, directional", Option::kTwo, Change::kDirectional}};

constexpr double kD0 = 1e-6;  // --alias-d0's default

std::vector<std::string> Flags(const Form& form, size_t rounds) {
  return {"--rule",         "alias",
          "--direction",    "signsgd",
          "--alias-option", form.option == Option::kOne ? "I" : "II",
          "--alias-probe",  form.change == Change::kNorm ? "same" : "directional",
          "--max-rounds",   std::to_string(rounds)};
}

// ---- Algorithm 2 in plain double

struct Reference {
  std::vector<double> gammas, losses;      // γ_t and f(x_t), t < T
  std::vector<std::vector<double>> signs;  // b_t
};

Reference AliasInDouble(const Function& f, const Form& form, size_t rounds) {
  Reference out;
  std::vector<double> x = f.Start(), g, g_prev, b_prev;
  double x0_max = 0;
  for (const double v : x) x0_max = std::max(x0_max, std::abs(v));
  double eta = 0, a = 0, d = kD0, f0 = 0, gamma = 0;
  const size_t start = StartRounds(rounds);
  for (size_t t = 0; t < rounds; ++t) {
    const double loss = f.Value(x, &g);
    if (t < start) f0 += loss / static_cast<double>(start);
    if (t > 0) {
      const std::vector<double> change = Less(g, g_prev);
      eta += form.change == Change::kNorm ? L1(change) / gamma
                                          : std::max(0.0, -Inner(change, b_prev)) / gamma;
      a += gamma * Inner(g, b_prev);
      d = std::max(d, a);
    }
    if (t < start) {
      gamma = 1e-5 * std::max(1.0, x0_max);
    } else if (eta > 0) {
      gamma = std::sqrt((form.option == Option::kOne ? d : f0) / eta);
    }
    out.gammas.push_back(gamma);
    out.losses.push_back(loss);
    b_prev.resize(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      b_prev[i] = Sign(g[i]);
      x[i] -= gamma * b_prev[i];
    }
    out.signs.push_back(b_prev);
    g_prev = g;
  }
  return out;
}

// While all signs are the same, what is off is rounding: a step of 1e-5 from 1 is off by 0.3 % in fp32, and
// with it the curvature that the first eight rounds measure. In some round a coordinate so near its optimum
// that its sign is rounding too falls to the other side. It is then off by 2γ until it crosses again, and
// carries no other away, because the function is convex.
TEST(AliasFullBatch, ARunOfOneOrThreeWorkersFollowsAlgorithmTwoInPlainDouble) {
  constexpr size_t kRounds = 1000;
  for (const auto& f : ConvexFunctions()) {
    for (const Form& form : kForms) {
      const Reference reference = AliasInDouble(*f, form, kRounds);
      const WholeRun one = RunWhole(*f, 1, Flags(form, kRounds));
      ASSERT_EQ(one.gammas.size(), kRounds);
      double off_gamma = 0, off_gamma_alike = 0, off_loss = 0;
      size_t alike = 0;  // rounds before the first with a sign that differs
      std::vector<double> g;
      for (size_t t = 0; t < kRounds; ++t) {
        const double off = std::abs(static_cast<double>(one.gammas[t]) / reference.gammas[t] - 1);
        off_gamma = std::max(off_gamma, off);
        if (alike == t) off_gamma_alike = off_gamma;
        off_loss = std::max(
            off_loss, std::abs(f->Value(one.x[t], &g) - reference.losses[t]) / reference.losses[0]);
        bool same = true;
        for (size_t i = 0; i < g.size(); ++i)
          same = same && (one.x[t][i] > one.x[t + 1][i]) == (reference.signs[t][i] > 0);
        if (same && alike == t) ++alike;
      }
      std::printf(
          "%s %s: gamma %.2g off in the %zu rounds before a sign differs, %.2g after; loss "
          "%.2g of f(x_0); gamma %.3g to %.3g\n",
          f->name().c_str(), form.name, off_gamma_alike, alike, off_gamma, off_loss,
          reference.gammas[StartRounds(kRounds)], reference.gammas.back());
      EXPECT_GE(alike, 20u) << f->name() << ", " << form.name;
      EXPECT_LE(off_gamma_alike, 2e-3) << f->name() << ", " << form.name;
      EXPECT_LE(off_gamma, 0.15) << f->name() << ", " << form.name;
      EXPECT_LE(off_loss, 2e-3) << f->name() << ", " << form.name;
      // Three that see the same function agree in every coordinate: the vote is one worker's sign.
      const WholeRun three = RunWhole(*f, 3, Flags(form, kRounds));
      EXPECT_EQ(three.gammas, one.gammas) << f->name() << ", " << form.name;
      EXPECT_EQ(three.x, one.x) << f->name() << ", " << form.name;
    }
  }
}

// ---- the proof's inequalities

// What a run says of itself, in double: g_t = ∇f(x_t), ℓ_{t+1} of the step from x_t to x_{t+1}.
struct Course {
  std::vector<double> losses;              // f(x_t), t ≤ T
  std::vector<std::vector<double>> steps;  // x_t − x_{t+1}, t < T
  std::vector<std::vector<double>> g;      // t ≤ T
  std::vector<double> curvature;           // ℓ_{t+1}, t < T
};

Course CourseOf(const Function& f, const Form& form, const WholeRun& run) {
  Course course;
  for (size_t t = 0; t < run.x.size(); ++t) {
    std::vector<double> g;
    course.losses.push_back(f.Value(run.x[t], &g));
    course.g.push_back(g);
    if (t == 0) continue;
    course.steps.push_back(Less(run.x[t - 1], run.x[t]));
    double longest = 0;
    for (const double v : course.steps.back()) longest = std::max(longest, std::abs(v));
    const std::vector<double> change = Less(course.g[t], course.g[t - 1]);
    course.curvature.push_back(form.change == Change::kNorm
                                   ? L1(change) / longest
                                   : std::max(0.0, -Inner(change, course.steps.back())) /
                                         (longest * longest));
  }
  return course;
}

// γ_t²·η_t is the numerator that the run used. Option II's is f(x_0) − f̃. Option I's is a lower bound of
// the decrease that it needs no f̃ for: γ_i⟨g_{i+1}, b_i⟩ ≤ f(x_i) − f(x_{i+1}) by convexity.
TEST(AliasFullBatch, OptionOnesNumeratorNeverPassesTheDecreaseThatThereWas) {
  constexpr size_t kRounds = 1000;
  for (const auto& f : ConvexFunctions()) {
    for (const Form& form : kForms) {
      const WholeRun run = RunWhole(*f, 1, Flags(form, kRounds));
      const Course course = CourseOf(*f, form, run);
      double eta = 0, least = course.losses[0], last = 0;
      for (size_t t = 0; t < kRounds; ++t) {
        if (t > 0) eta += course.curvature[t - 1];
        least = std::min(least, course.losses[t]);
        if (t < StartRounds(kRounds)) continue;
        const auto gamma = static_cast<double>(run.gammas[t]);
        last = gamma * gamma * eta;
        if (form.option == Option::kTwo) {
          ASSERT_NEAR(last / course.losses[0], 1.0, 0.01) << f->name() << ", " << t;
          continue;
        }
        ASSERT_GE(last, 0.99 * kD0) << f->name() << ", " << t;
        ASSERT_LE(last, 1.01 * (course.losses[0] - least)) << f->name() << ", " << t;
      }
      if (form.option == Option::kTwo) continue;
      std::printf("%s %s: d_T %.3g of a decrease of %.3g\n", f->name().c_str(), form.name, last,
                  course.losses[0] - least);
      // A bound that stayed at d_0 would be kept by a rule that learns nothing.
      EXPECT_GT(last, 0.05 * (course.losses[0] - least)) << f->name() << ", " << form.name;
    }
  }
}

// Convexity and a step along the sign of the gradient give
//     Σ γ_t‖g_t‖₁ ≤ f(x_0) − f(x_T) + Σ γ_t² ℓ_{t+1},
// and with γ_t² = Δ/η_t, η_t the sum of the ℓ before it, the last sum is of the order of Δ·ln T. So the mean
// of ‖g‖₁ is what the best constant has, √(2ΔL/T) at most, up to a logarithm; on these functions not even
// that is seen. L: the largest ℓ of the run.
TEST(AliasFullBatch, TheMeanGradientFallsWithTheRootOfTheRoundsAsOfATunedConstant) {
  for (const auto& f : ConvexFunctions()) {
    for (const Form& form : kForms) {
      double last = 2.5;  // in units of √(ΔL/T)
      for (const size_t rounds : {100u, 400u, 1600u}) {
        const WholeRun run = RunWhole(*f, 1, Flags(form, rounds));
        const Course course = CourseOf(*f, form, run);
        double left = 0, second = 0, mean = 0, largest = 0;
        for (size_t t = 0; t < rounds; ++t) {
          const auto gamma = static_cast<double>(run.gammas[t]);
          left += gamma * L1(course.g[t]);
          second += gamma * gamma * course.curvature[t];
          mean += L1(course.g[t]) / static_cast<double>(rounds);
          largest = std::max(largest, course.curvature[t]);
        }
        const double decrease = course.losses[0] - course.losses[rounds];
        // fp32 steps are off by 2^-25·|x| each, which a γ of 1e-5 feels.
        EXPECT_LE(left, (decrease + second) * 1.001) << f->name() << ", " << form.name;
        const double unit = std::sqrt(course.losses[0] * largest / static_cast<double>(rounds));
        std::printf("%s %s T=%zu: mean |g| %.3g = %.2f sqrt(Delta L/T)\n", f->name().c_str(),
                    form.name, rounds, mean, mean / unit);
        EXPECT_LE(mean, 1.05 * last * unit) << f->name() << ", " << form.name;
        last = mean / unit;
      }
    }
  }
}

double BestLoss(const Function& f, const WholeRun& run) {
  std::vector<double> g;
  double best = f.Value(run.x[0], &g);
  for (const std::vector<double>& x : run.x) best = std::min(best, f.Value(x, &g));
  return best;
}

// Nothing to tune: from d_0 = 1e-6, 1e-3 and 1, and by either option, a run ends about as low as with the
// best constant of a √10 grid for this very length.
TEST(AliasFullBatch, WithoutTuningItEndsAboutAsLowAsTheBestConstant) {
  constexpr size_t kRounds = 1000;
  for (const auto& f : ConvexFunctions()) {
    double tuned = 1e300, worst = 0;
    for (int k = -10; k <= 0; ++k) {
      const double best =
          BestLoss(*f, RunWhole(*f, 1,
                                {"--rule", "fixed", "--direction", "signsgd", "--max-rounds",
                                 std::to_string(kRounds), "--stepsize",
                                 std::to_string(std::pow(10.0, k / 2.0))}));
      tuned = std::min(tuned, best);
      worst = std::max(worst, best);
    }
    std::vector<double> g;
    const double start = f->Value(f->Start(), &g);
    std::printf("%s: from %.6g, tuned constant %.6g, worst of the grid %.6g\n", f->name().c_str(),
                start, tuned, worst);
    for (const Form& form : kForms) {
      for (const char* d0 : {"1e-6", "1e-3", "1"}) {
        if (form.option == Option::kTwo && std::string(d0) != "1") continue;
        std::vector<std::string> flags = Flags(form, kRounds);
        if (form.option == Option::kOne) flags.insert(flags.end(), {"--alias-d0", d0});
        const double alias = BestLoss(*f, RunWhole(*f, 1, flags));
        std::printf("%s %s d_0 %s: %.6g, %.3g of the way left\n", f->name().c_str(), form.name, d0,
                    alias, (alias - tuned) / (start - tuned));
        EXPECT_LT(alias - tuned, 2e-3 * (start - tuned))
            << f->name() << ", " << form.name << ", " << d0;
      }
    }
    EXPECT_GT(worst - tuned, 0.2 * (start - tuned)) << "the stepsize does not matter here";
  }
}

// The authors' code takes one gradient a step and compares those of two minibatches. Where there is but
// one, that is Algorithm 2 itself, to the last bit.
TEST(AliasFullBatch, WithoutMinibatchesTheFormOfOneGradientIsTheSame) {
  for (const auto& f : ConvexFunctions()) {
    const Form form{"II", Option::kTwo, Change::kNorm};
    std::vector<std::string> flags = Flags(form, 300);
    const WholeRun same = RunWhole(*f, 3, flags);
    *std::find(flags.begin(), flags.end(), "same") = "previous";
    const WholeRun previous = RunWhole(*f, 3, flags);
    EXPECT_EQ(previous.gammas, same.gammas) << f->name();
    EXPECT_EQ(previous.x, same.x) << f->name();
  }
}

}  // namespace
}  // namespace signvote
