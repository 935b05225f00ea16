#include "server/tally/dense_optimizer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace signvote {
namespace {

using Kind = DenseOptimizer::Kind;

double Power(float beta, uint64_t t) {
  return std::pow(static_cast<double>(beta), static_cast<double>(t));
}

// How far behind step t the stepsize of schedule-free's warm-up has risen.
double WarmUp(const DenseOptimizer& optimizer, uint64_t t) {
  if (t >= optimizer.warmup_steps) return 1;
  return static_cast<double>(t) / static_cast<double>(optimizer.warmup_steps);
}

// (w·s)²: how much step t weighs in schedule-free's average.
double Weight(const DenseOptimizer& optimizer, uint64_t t) {
  const double w = WarmUp(optimizer, t);
  return w * w * (1 - Power(optimizer.beta2, t));
}

float Sign(float value) {
  if (value > 0) return 1;
  return value < 0 ? -1.0f : 0.0f;
}

absl::Status OutOfRange(const char* flag, float value, const char* range) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", value, " is out of range; use a number ", range));
}

}  // namespace

std::string_view DenseOptimizerName(Kind kind) {
  switch (kind) {
    case Kind::kSgd:
      return "sgd";
    case Kind::kAdamW:
      return "adamw";
    case Kind::kNadamW:
      return "nadamw";
    case Kind::kScheduleFree:
      return "schedule-free";
    case Kind::kAliasAdam:
      return "alias-adam";
  }
  return "";
}

absl::Status CheckDenseOptimizer(const DenseOptimizer& optimizer) {
  const auto coefficient = [](float beta) { return beta >= 0 && beta < 1; };
  if (!coefficient(optimizer.momentum))
    return OutOfRange("--dense-momentum", optimizer.momentum, "from 0 to below 1");
  if (!coefficient(optimizer.beta1))
    return OutOfRange("--dense-beta1", optimizer.beta1, "from 0 to below 1");
  // Where y lies between z and x tells where x lies only while x has a share in it.
  if (optimizer.kind == Kind::kScheduleFree && optimizer.beta1 == 0)
    return OutOfRange("--dense-beta1", optimizer.beta1, "above 0 and below 1 for schedule-free");
  if (!coefficient(optimizer.beta2))
    return OutOfRange("--dense-beta2", optimizer.beta2, "from 0 to below 1");
  if (!std::isfinite(optimizer.epsilon) || optimizer.epsilon <= 0)
    return OutOfRange("--dense-epsilon", optimizer.epsilon, "above 0");
  if (!std::isfinite(optimizer.d0) || optimizer.d0 <= 0)
    return OutOfRange("--dense-d0", optimizer.d0, "above 0");
  if (optimizer.nesterov && optimizer.momentum == 0) {
    return absl::InvalidArgumentError(
        "--dense-nesterov looks ahead along a momentum, and --dense-momentum is 0; give one above "
        "0, or leave it away");
  }
  return absl::OkStatus();
}

OptimizerScalars FirstScalars(const DenseOptimizer& optimizer) {
  OptimizerScalars first;
  if (optimizer.kind == Kind::kAliasAdam) first.d = static_cast<double>(optimizer.d0);
  return first;
}

OptimizerScalars NextScalars(const DenseOptimizer& optimizer, uint64_t t,
                             const OptimizerScalars& scalars, double q) {
  OptimizerScalars next = scalars;
  if (optimizer.kind == Kind::kScheduleFree) next.weights += Weight(optimizer, t);
  if (optimizer.kind == Kind::kAliasAdam) {
    const double root = std::sqrt(static_cast<double>(optimizer.beta2));
    next.r = root * scalars.r + (1 - root) * scalars.d * q;
    next.d = std::max(scalars.d, next.r);
  }
  return next;
}

bool CanBe(const DenseOptimizer& optimizer, const OptimizerScalars& scalars) {
  if (!std::isfinite(scalars.weights) || scalars.weights < 0) return false;
  if (optimizer.kind != Kind::kScheduleFree && scalars.weights != 0) return false;
  if (optimizer.kind == Kind::kAliasAdam) return scalars.d > 0;
  return scalars.r == 0 && scalars.d == 0;
}

DenseStep::DenseStep(const DenseOptimizer& optimizer, uint64_t t, const OptimizerScalars& scalars)
    : optimizer_(optimizer), d_(static_cast<float>(scalars.d)) {
  SIGNVOTE_CHECK(t >= 1);
  correction1_ = 1.0f - static_cast<float>(Power(optimizer.beta1, t));
  correction2_ = 1.0f - static_cast<float>(Power(optimizer.beta2, t));
  if (optimizer.kind != Kind::kScheduleFree) return;
  const double beta = static_cast<double>(optimizer.beta1);
  const double w = WarmUp(optimizer, t);
  const double s = std::sqrt(1 - Power(optimizer.beta2, t));
  const double c = w * w * s * s / (scalars.weights + w * w * s * s);
  from_average_ = static_cast<float>(c / w);
  to_step_ = static_cast<float>(s * (1 - beta * (1 - c)));
  keep_ = static_cast<float>(1 - c);
  push_ = static_cast<float>(beta * w * s);
  if (t != optimizer.last_step) return;
  to_x_ = static_cast<float>((1 - beta) / (beta * w));
  at_x_ = static_cast<float>(1 / beta);
}

double DenseStep::Update(const OptimizerPlanes& planes, size_t count, float* g) const {
  switch (optimizer_.kind) {
    case Kind::kSgd:
      if (optimizer_.planes() > 0) Sgd(planes, count, g);
      return 0;
    case Kind::kAdamW:
    case Kind::kNadamW:
      Adam(planes, count, g);
      return 0;
    case Kind::kScheduleFree:
      ScheduleFree(planes, count, g);
      return 0;
    case Kind::kAliasAdam:
      return AliasAdam(planes, count, g);
  }
  return 0;
}

void DenseStep::Sgd(const OptimizerPlanes& planes, size_t count, float* g) const {
  const float mu = optimizer_.momentum;
  for (size_t i = 0; i < count; ++i) {
    const float m = mu * planes.in[i] + g[i];
    planes.out[i] = m;
    g[i] = optimizer_.nesterov ? mu * m + g[i] : m;
  }
}

void DenseStep::Adam(const OptimizerPlanes& planes, size_t count, float* g) const {
  const DenseOptimizer& o = optimizer_;
  const bool ahead = o.kind == Kind::kNadamW;
  const float* const v_in = planes.in + planes.stride;
  float* const v_out = planes.out + planes.stride;
  const float rest1 = 1.0f - o.beta1, rest2 = 1.0f - o.beta2;
  for (size_t i = 0; i < count; ++i) {
    const float m = o.beta1 * planes.in[i] + rest1 * g[i];
    const float v = o.beta2 * v_in[i] + rest2 * (g[i] * g[i]);
    planes.out[i] = m;
    v_out[i] = v;
    const float first = ahead ? o.beta1 * m + rest1 * g[i] : m;
    g[i] = (first / correction1_) / (std::sqrt(v / correction2_) + o.epsilon);
  }
}

void DenseStep::ScheduleFree(const OptimizerPlanes& planes, size_t count, float* g) const {
  const DenseOptimizer& o = optimizer_;
  const float* const e_in = planes.in + planes.stride;
  float* const e_out = planes.out + planes.stride;
  const float rest2 = 1.0f - o.beta2;
  for (size_t i = 0; i < count; ++i) {
    const float v = o.beta2 * planes.in[i] + rest2 * (g[i] * g[i]);
    const float delta = g[i] / (std::sqrt(v) + o.epsilon);
    const float e = keep_ * (e_in[i] + push_ * delta);
    planes.out[i] = v;
    e_out[i] = e * at_x_;
    g[i] = from_average_ * e_in[i] + to_step_ * delta - to_x_ * e;
  }
}

double DenseStep::AliasAdam(const OptimizerPlanes& planes, size_t count, float* g) const {
  const DenseOptimizer& o = optimizer_;
  const float* const v_in = planes.in + planes.stride;
  float* const v_out = planes.out + planes.stride;
  const float* const sign_in = v_in + planes.stride;
  float* const sign_out = v_out + planes.stride;
  const float rest1 = 1.0f - o.beta1, rest2 = 1.0f - o.beta2;
  double q = 0;
  for (size_t i = 0; i < count; ++i) {
    q += static_cast<double>(g[i] * sign_in[i]);
    sign_out[i] = Sign(g[i]);
    const float scaled = d_ * g[i];
    const float m = o.beta1 * planes.in[i] + rest1 * scaled;
    const float v = o.beta2 * v_in[i] + rest2 * (scaled * scaled);
    planes.out[i] = m;
    v_out[i] = v;
    g[i] = d_ * m / (std::sqrt(v) + o.epsilon);
  }
  return q;
}

}  // namespace signvote
