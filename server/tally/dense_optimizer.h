#pragma once
// What the server makes of the mean of dense ballots: the update that a commit carries
// (docs/algorithms/dense.md). ḡ is that mean, whatever the ballots hold: gradients of a minibatch.
//
//   sgd            m ← μ·m + ḡ ;  u = m, or ḡ + μ·m with Nesterov's momentum        μ = 0 keeps no m
//   adamw          m ← β1·m + (1−β1)·ḡ ;  v ← β2·v + (1−β2)·ḡ² ;
//                  u = (m/(1−β1^t)) / (√(v/(1−β2^t)) + ε)
//   nadamw         the same m and v ;
//                  u = ((β1·m + (1−β1)·ḡ)/(1−β1^t)) / (√(v/(1−β2^t)) + ε)
//   schedule-free  v as above ;  δ = ḡ/(√v + ε) ;  s = √(1−β2^t) ;  w = min(1, t/warm-up) ;
//                  c = (w·s)²/Σ_{i≤t} (w·s)² ;
//                  u = (c/w)·e + s·(1 − β1·(1−c))·δ ;  e ← (1−c)·(e + β1·w·s·δ)
//   alias-adam     m ← β1·m + (1−β1)·d·ḡ ;  v ← β2·v + (1−β2)·(d·ḡ)² ;  u = d·m/(√v + ε) ;
//                  q = ⟨ḡ, sign of the ḡ before⟩, over all dense coordinates ;
//                  r ← √β2·r + (1−√β2)·d·q ;  d ← max(d, r), which the next step takes
//
// t counts steps, with this one, since the start or the last rewind. Replicas move by −γ·scale·u.
// Planes in fp32, one rounding an operation; what all coordinates share in fp64, rounded once.
//
// schedule-free: a replica is y, where gradients are taken, and e is (y − z)/(γ·scale) for the γ behind
// the warm-up, so that neither x, z nor y is needed: x = y + γ·scale·e·(1−β1)/β1. Step `last_step` moves
// the replica to x, at which the run ends, in place of y.
//
// Threads: pure functions.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

namespace signvote {

struct DenseOptimizer {
  // Their numbers stand in saved states.
  enum class Kind : uint8_t {
    kSgd = 1,
    kAdamW = 2,
    kNadamW = 3,
    kScheduleFree = 4,
    kAliasAdam = 5
  };
  Kind kind = Kind::kAdamW;
  float momentum = 0;                                   // μ of sgd, [0, 1)
  bool nesterov = false;                                // of sgd; with momentum only
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;  // of the others; [0, 1), > 0
  float d0 = 1e-3f;                                     // of alias-adam: its first d, > 0
  // Of schedule-free: steps over which the rule's γ rises linearly, and the last step of the run; 0: none.
  uint64_t warmup_steps = 0, last_step = 0;

  // Floats of state per coordinate: m; m, v; v, e; m, v, sign.
  size_t planes() const {
    switch (kind) {
      case Kind::kSgd:
        return momentum == 0 ? 0 : 1;
      case Kind::kAdamW:
      case Kind::kNadamW:
      case Kind::kScheduleFree:
        return 2;
      case Kind::kAliasAdam:
        return 3;
    }
    return 0;
  }
};
// As --dense-optimizer has it.
std::string_view DenseOptimizerName(DenseOptimizer::Kind kind);
// INVALID_ARGUMENT names the flag and the range.
absl::Status CheckDenseOptimizer(const DenseOptimizer& optimizer);

// What an optimizer keeps beside its planes: one number for all coordinates.
struct OptimizerScalars {
  double weights = 0;   // of schedule-free: Σ (w·s)² of the steps so far
  double r = 0, d = 0;  // of alias-adam

  bool operator==(const OptimizerScalars&) const = default;
};
// Before the first step.
OptimizerScalars FirstScalars(const DenseOptimizer& optimizer);
// Behind step t, of which `q` is the sum over all coordinates.
OptimizerScalars NextScalars(const DenseOptimizer& optimizer, uint64_t t,
                             const OptimizerScalars& scalars, double q);
// Whether a run of this optimizer can have come to them.
bool CanBe(const DenseOptimizer& optimizer, const OptimizerScalars& scalars);

// Planes of a block of coordinates: `stride` floats lie between the beginnings of two.
struct OptimizerPlanes {
  const float* in = nullptr;
  float* out = nullptr;  // may not overlap `in`
  size_t stride = 0;
};

// One step, block of coordinates by block. Threads: const functions from several at a time.
class DenseStep {
 public:
  // Step t ≥ 1, from the scalars before it.
  DenseStep(const DenseOptimizer& optimizer, uint64_t t, const OptimizerScalars& scalars);

  // ḡ in `g` becomes u. Returns the block's part of q, summed in fp64 in order of the coordinates; 0
  // where the optimizer has none.
  double Update(const OptimizerPlanes& planes, size_t count, float* g) const;

 private:
  void Sgd(const OptimizerPlanes& planes, size_t count, float* g) const;
  void Adam(const OptimizerPlanes& planes, size_t count, float* g) const;
  void ScheduleFree(const OptimizerPlanes& planes, size_t count, float* g) const;
  double AliasAdam(const OptimizerPlanes& planes, size_t count, float* g) const;

  const DenseOptimizer optimizer_;
  float correction1_ = 1, correction2_ = 1;  // 1 − β^t
  // u = from_average_·e + to_step_·δ ;  e ← keep_·(e + push_·δ) ; in the last step
  // u ← u − to_x_·e, and then e ← e·at_x_.
  float from_average_ = 0, to_step_ = 0, keep_ = 0, push_ = 0, to_x_ = 0, at_x_ = 1;
  float d_ = 0;
};

}  // namespace signvote
