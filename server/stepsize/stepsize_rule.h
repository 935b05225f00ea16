#pragma once
// The stepsize rules behind one small interface: a rule sees a few scalars per worker and round,
// and answers γ. Rules are pure: no clock, no randomness, no I/O. Formulas and sources:
// docs/algorithms.md, "Stepsize".

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace signvote {

// What one worker sends beside its ballot; all sums over the whole model, of the gradient of its
// mean loss.
struct WorkerScalars {
  double loss = 0;          // nats (or the model's unit), mean over the worker's minibatch
  double g_l1 = 0;          // ‖g‖₁
  double g_l2_squared = 0;  // ‖g‖₂²
  // ‖g_j − h_j‖₁, both gradients on the same minibatch, h at the previous replica
  std::optional<double> probe_l1;
  std::optional<double> prev_inner;  // Σ_k scale_k⟨g_k, b_k⟩ with the previous verdict b
  uint64_t nonfinite_coordinates = 0;
  // training samples behind the gradient (tokens for a language model)
  uint64_t samples = 0;
};

// The mean of one quantity over workers, as docs/algorithms.md, "Stepsize", defines it: non-finite
// values are left out; n ≤ 2: plain mean; else clipped to median ± 3·1.48·MAD, then the mean.
// nullopt when no finite value remains.
std::optional<double> RobustMean(std::span<const double> values);

struct RuleInput {
  Round round;                // the round being committed
  uint64_t rounds_max = 0;    // planned length of the run, for schedules
  double x0_max_abs = 0;      // max_i |x_0,i|
  double step_scale_max = 1;  // max_k scale_k
  // of the counted workers whose scalars arrived in time; may be empty
  std::span<const WorkerScalars> workers;
};

struct StepsizeDecision {
  float gamma = 0;  // ≥ 0, finite
  float rho = 1;
  std::string reason;  // a few words for the log: "alias: eta=… num=…", "no scalars: kept"
  // The rule's state after this decision, by name, for logs and metrics (e.g. {"eta", 12.5}).
  std::vector<std::pair<std::string, double>> state;
};

// Threads: thread-compatible. Called once per committed round, in order.
class StepsizeRule {
 public:
  virtual ~StepsizeRule() = default;
  virtual std::string_view name() const = 0;
  // Whether workers shall compute the probe gradient in `round`.
  virtual bool WantsProbe(Round round) const = 0;
  // With no worker's scalars the last stepsize is kept (the first one in round 0).
  virtual StepsizeDecision Decide(const RuleInput& input) = 0;
};

// The fixed rule: γ_t = γ0 · min(warm-up, schedule), with t the round, T = rounds_max, w =
// warmup_rounds:
//   warm-up   (t + 1) / w while t < w, then 1
//   constant  1
//   cosine    ½·(1 + cos πp),  p = (t − w)/(T − w) in [0, 1), 0 during the warm-up
//   linear    1 − p
//   wsd       min(1, (T − t)/D),  D = ⌈decay_fraction·T⌉: flat, then linear
// So the last round of a decaying schedule still moves; rounds beyond T keep the last round's γ.
enum class ScheduleKind { kConstant, kCosine, kLinear, kWsd };

struct FixedConfig {
  double gamma0 = 1e-3;  // > 0
  ScheduleKind schedule = ScheduleKind::kConstant;
  uint64_t warmup_rounds = 0;  // γ rises linearly to γ0 over this many rounds
  // wsd: the last part of the run, in which γ falls linearly; in (0, 1]
  double decay_fraction = 0.2;
};

enum class AliasOption { kOptionI, kOptionII };

// ALIAS (arXiv 2506.03725, Algorithm 2). "mean" is RobustMean over the workers of one round, s =
// step_scale_max:
//   γ_0 = 1e-5·max(1, max|x_0|)                    so that the first step is not absorbed in fp32
//   η  += probe_every · mean(probe_l1) / (γ_{t−1}·s)   in the rounds that WantsProbe names: 1, 1 +
//      k, 1 + 2k, …
//   Option I:   a += γ_{t−1}·mean(prev_inner);  num = d = max(d, a), d starts at d0
//   Option II:  num = f(x_0) − f_min,  f(x_0) = mean loss of the first round that has one
//   γ_t = √(num/η), computed in double and rounded once to fp32; γ_{t−1} above is the committed
//   fp32 value.
// γ is kept, and the reason says so, while η = 0, while f(x_0) is unknown, when num ≤ 0, and when
// √(num/η) is not a positive finite fp32 number.
struct AliasConfig {
  AliasOption option = AliasOption::kOptionII;
  double d0 = 1e-6;          // Option I: the small starting value of d, > 0
  double f_min = 0.0;        // Option II: f̃, a lower bound of the loss
  uint64_t probe_every = 1;  // a probe in every k-th round; its increment counts k times
};

// REQUIRES: values in the ranges above.
std::unique_ptr<StepsizeRule> MakeFixedRule(const FixedConfig& config);
std::unique_ptr<StepsizeRule> MakeAliasRule(const AliasConfig& config);

// The rule as flags name it: "fixed" or "alias". INVALID_ARGUMENT names the culprit and the
// accepted range.
struct RuleFlags {
  std::string rule = "alias";
  double stepsize = 1e-3;
  std::string schedule = "constant";  // constant | cosine | linear | wsd
  uint64_t warmup_rounds = 0;
  std::string alias_option = "II";  // I | II
  double alias_f_min = 0;
  double alias_d0 = 1e-6;
  uint64_t alias_probe_every = 1;
};
absl::StatusOr<std::unique_ptr<StepsizeRule>> MakeRule(const RuleFlags& flags);

}  // namespace signvote
