#pragma once
// What η of ALIAS grows by: the change of the gradient that one step made, per unit of stepsize. The
// forms of docs/algorithms/alias.md.

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "server/stepsize/rule_state.h"
#include "server/stepsize/types.h"

namespace signvote {

// ℓ_t, with γ that of the step from x_{t−1} to x_t, s = step_scale_max, and "mean" the robust mean over
// the workers:
//   kSame         mean ‖g − h‖₁/(γ·s)           h: the newest minibatch's gradient at x_{t−1}
//   kPrevious     mean ‖g_t − g_{t−1}‖₁/(γ·s)   one gradient a round, each of its own minibatch
//   kDirectional  max(0, mean ⟨h − g, b⟩)/(γ·s²)
//                                               along the verdict b of that step; never above kSame's,
//                                               and exactly linear over the workers (ours)
//   kExtrema      scale·mean max(|max g_t − min g_{t−1}|, |max g_{t−1} − min g_t|)/(d·γ·s)
//                                               the paper's memory-efficient form; nothing is kept but
//                                               two numbers a worker, here. As published scale is 1
enum class AliasForm : uint8_t { kSame, kPrevious, kDirectional, kExtrema };

struct AliasCurvatureConfig {
  AliasForm form = AliasForm::kSame;
  // k, with h only: in main round t ≥ 1 the workers of the shares j ≡ t − 1 (mod k) compute it, so that
  // each does in every k-th round, and they take turns. The mean is over the last k rounds then, the
  // latest of each share.
  uint64_t probe_every = 1;
  double extrema_scale = 1;  // > 0
};

// Threads: thread-compatible.
class AliasCurvature {
 public:
  // REQUIRES: values in the ranges above; probe_every is 1 without h.
  explicit AliasCurvature(const AliasCurvatureConfig& config);

  bool needs_h() const;
  // What a round wants, h's part last. REQUIRES: t ≥ 1 main rounds lie before it.
  std::vector<ScalarKind> Wanted() const;
  // Whether this share is asked for h's part.
  bool AskedForH(uint64_t t, Share share) const;

  // ℓ of the last step, which was at `gamma`; nullopt: nobody told anything new of it. May be infinite.
  std::optional<double> Measure(const RuleInput& input, float gamma);
  // The round at which the run begins, which is no step's.
  void Begin(const RuleInput& input);

  void Save(RuleStateWriter& writer) const;
  // DATA_LOSS: values that no run can give.
  absl::Status Restore(RuleStateReader& reader);

 private:
  // What is kept of one share.
  struct Seen {
    uint64_t at = 0;  // the round in which it was told; of the turns the main round
    double first = 0, second = 0;
  };

  double Unit(const RuleInput& input, float gamma) const;
  // Of one worker, in those units.
  std::optional<double> OfWorker(const RuleInput& input, size_t i) const;
  std::optional<double> OfExtrema(const RuleInput& input, float gamma);
  std::optional<double> OfTurns(const RuleInput& input, float gamma);
  void KeepExtrema(const RuleInput& input);

  AliasCurvatureConfig config_;  // constant after construction
  // kExtrema: max g and min g of the last round. With turns: ℓ, and 0. Otherwise empty.
  std::map<Share, Seen> seen_;
};

}  // namespace signvote
