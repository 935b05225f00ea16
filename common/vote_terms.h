#pragma once
// The vocabulary of a round that server, worker and wire share: why a worker abstains, what a
// commit does, what its payload is, and which scalars a stepsize rule may ask for. Plain enums and
// their names; the wire's numbers are those of proto/signvote/v1/training.proto.

#include <cstdint>
#include <string_view>

namespace signvote {

// Why a worker sends no (further) chunk of a ballot.
enum class AbstainReason : uint8_t { kNonFiniteLoss, kNonFiniteGradient, kOther };

// What a commit does to every replica (docs/algorithms.md, "One round").
enum class CommitKind : uint8_t {
  kStep,    // x ← apply(x, payload)
  kRewind,  // x ← x0, and every direction's state ← zero
  kNone,    // nothing moves; the round number and the minibatch go on
};

// What of the ballots a step moves by (docs/algorithms.md, "Aggregation").
enum class Aggregate : uint8_t {
  kVote,     // the majority's sign
  kAverage,  // the mean of the signs
};

// What a commit's payload, or a ballot's, is for one range of chunks.
enum class PayloadKind : uint8_t {
  kSigns,   // one bit per coordinate
  kCounts,  // ⌈log2(n + 1)⌉ bit planes: how many of the n ballots have bit 1; commits only
  kFp32,    // one little-endian fp32 per coordinate
  kBf16,    // one little-endian bfloat16 per coordinate
};

// A scalar that a round may want beside those that every ballot has. Sums run over the whole model;
// g is the raw gradient of the mean loss, x the replica, x0 the run's starting point.
enum class ScalarKind : uint8_t {
  kProbeL1,       // ‖g − h‖₁, h the gradient of the same minibatch at the previous replica
  kPrevInner,     // Σ_k scale_k⟨g_k, b_k⟩, b the previous verdict
  kX0Inner,       // ⟨g, x0 − x⟩
  kX0Distance,    // ‖x − x0‖₂
  kLocalInner,    // local steps: Σ_h⟨g_h, x0 − y_h⟩
  kLocalProduct,  // local steps: Σ_h‖g_h‖₂‖x0 − y_h‖₂
  kProbeInner,    // Σ_k scale_k⟨h_k, b_k⟩, h as in kProbeL1, b the previous verdict
  kChangeL1,      // ‖g − g₋₁‖₁, g₋₁ this worker's gradient in the round before
  kGradientMax,   // max_i g_i
  kGradientMin,   // min_i g_i
};

// A few words each, for logs and pages.
std::string_view Words(AbstainReason reason);
std::string_view Words(CommitKind kind);
std::string_view Words(Aggregate aggregate);  // as --aggregate names it
std::string_view Words(PayloadKind kind);
std::string_view Words(ScalarKind kind);

}  // namespace signvote
