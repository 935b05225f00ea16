#pragma once
// The numbers by which what is signed is formed from a gradient. Plain, so that device code uses
// this very text; worker/codec/pack.h has the formulas.

#include <cstdint>

#include "common/envelope.h"

namespace signvote {

struct Formation {
  enum class Update : uint8_t {
    kMean,  // m ← c·m + (1−c)·g
    kSum,   // m ← c·m + g
    kAdam,  // the mean over the root of the squares' mean
  };
  Update update = Update::kMean;
  Envelope envelope = Envelope::kNone;
  bool bf16 = false;            // m and r are bfloat16
  float envelope_decay = 1.0f;  // ρ
  // Adam's alone.
  float c2 = 0.0f;                 // decay of the squares
  float mean_correction = 1.0f;    // 1/(1 − c^t)
  float square_correction = 1.0f;  // 1/(1 − c2^t)
  float epsilon = 1e-8f;

  // What a local step goes along: the sign of u, or u itself where u has a length that means something.
  constexpr bool StepsByUpdate() const { return update != Update::kMean; }
  // How g counts in u = fma(a, m, w·g), and so with c.
  constexpr float WeightOfGradient(float a) const {
    return update == Update::kSum ? 1.0f : 1.0f - a;
  }

  bool operator==(const Formation&) const = default;
};

}  // namespace signvote
