#pragma once
// Phase B of Lever: the scale s of all steps so far, moved by what says whether they were too short.
//
//   z = Σp_j / (Σq_j·r)      p_j = ⟨g_j, x_0 − x_t⟩, q_j = ‖g_j‖₂, r = ‖x_t − x_0‖₂
//   v = .97 v + .03 z² ;     L += (G/(t+1))·clip(z/√(v/(1−.97^k)), ±2) ;     s = e^L
//
// k counts the updates, with this one; G = min(gain, workers that z is made of), of which only the part
// `up` counts where z > 0.

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/types.h"

namespace signvote {

// What one round says of all steps before it.
struct Lean {
  double z = 0;          // in [−1, 1]; > 0: they were too short
  uint32_t workers = 0;  // that it is made of
};

// The robust form of z (robust_mean.h) over the workers whose reports fit together (x0_reports.h).
// nullopt: nobody can tell, or nothing has moved.
std::optional<Lean> MeasureLean(const RuleInput& input);

// The same of a round with local steps, over the workers whose numbers fit together:
//   z = ΣP_j / ΣQ_j,  P_j = Σ_h⟨g_h, x_0 − y_h⟩, Q_j = Σ_h‖g_h‖₂‖x_0 − y_h‖₂, |P_j| ≤ Q_j up to rounding
std::optional<Lean> MeasureLocalLean(const RuleInput& input);

// Threads: thread-compatible.
class LeverScale {
 public:
  // s = scale at first, within [1e-30, 1e30], where it stays. REQUIRES: scale > 0, finite.
  explicit LeverScale(double scale);

  double s() const;
  double v() const { return v_; }
  // t: main rounds before the one that leans so. REQUIRES: 0 ≤ up ≤ 1.
  void Move(const Lean& lean, uint64_t t, double gain_max, double up = 1);
  // Of a round with local steps, which takes the minibatches from t on, before t_end:
  //   L += clip(gain·ln((t_end + 1)/(t + 1))·clip(z/√(v/(1−.97^k)), ±2), ±.3)
  // A round may be half of a run so far: without the limit one of 64 minibatches tore the scale away.
  void MoveOver(const Lean& lean, uint64_t t, uint64_t t_end, double gain);

  void Save(RuleStateWriter& writer) const;
  // DATA_LOSS: values that no scale can have.
  absl::Status Restore(RuleStateReader& reader);

 private:
  // Takes the lean into v; how far L goes for it, per unit of gain.
  double Take(const Lean& lean);
  void Add(double way);

  double log_scale_;
  double v_ = 0;
  uint64_t updates_ = 0;
};

}  // namespace signvote
