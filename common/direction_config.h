#pragma once
// What a direction is, by name and numbers: the one list that flags, wire, pages and kernels use.
// docs/algorithms.md, "Directions"; a page for each in docs/algorithms/.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/envelope.h"

namespace signvote {

enum class DirectionKind : uint8_t {
  kSignSgd,
  kSignum,
  kNesterovSignum,
  kLion,
  kStoSign,      // Signum's m under noise
  kAdam,         // Adam's update
  kMomentumSgd,  // the sum m ← β·m + g
  kMuon,         // Nesterov-Signum's u, orthogonalised where a tensor is a matrix
};
inline constexpr DirectionKind kDirectionKinds[] = {
    DirectionKind::kSignSgd,     DirectionKind::kSignum,  DirectionKind::kNesterovSignum,
    DirectionKind::kLion,        DirectionKind::kStoSign, DirectionKind::kAdam,
    DirectionKind::kMomentumSgd, DirectionKind::kMuon};

// How m and the envelope are kept. Adam's squares are fp32 always: with β2 = 0.999 a step is a
// third of a bfloat16's last bit, and they would stand still.
enum class StateDtype : uint8_t { kFp32, kBf16 };

struct DirectionConfig {
  DirectionKind kind = DirectionKind::kSignum;
  double beta = 0.9;    // decay of m; Lion: the weight of m in u (β1)
  double beta2 = 0.99;  // Lion: decay of m; Adam: of the squares
  Envelope envelope = Envelope::kNone;
  double envelope_decay = 1.0;  // ρ, (0, 1]; Envelope::kCoordinate only
  // What the sign took off is kept and added to the next gradient; signSGD only.
  bool error_feedback = false;
  double feedback_keep = 1.0;  // [0, 1], of it from round to round
  StateDtype state_dtype = StateDtype::kFp32;

  bool operator==(const DirectionConfig&) const = default;
};

// One buffer of a direction's state.
struct StatePlane {
  enum class Holder : uint8_t {
    kPacker,  // what packs ballots (worker/direction)
    kSource,  // what makes what is signed (worker/vote, BallotSource)
  };
  enum class Kind : uint8_t { kMomentum, kSquares, kEnvelope, kSteps, kResidual, kStepsize };

  Kind kind = Kind::kMomentum;
  size_t element_bytes = 4;  // 4: fp32; 2: bfloat16; 8: uint64
  bool single = false;       // one element for the whole model; else one per coordinate
  Holder holder = Holder::kPacker;

  std::string_view name() const;  // unique within the direction
  uint64_t elements(uint64_t coordinates) const { return single ? 1 : coordinates; }

  bool operator==(const StatePlane&) const = default;
};
inline constexpr size_t kStatePlanesMax = 4;

// A direction as flags say it; "auto" is the direction's own choice.
struct DirectionWords {
  std::string name = "signum";
  double beta = 0.9;
  std::string beta2 = "auto";  // 0.99; adam: 0.999
  std::string momentum = "on";
  std::string noise = "auto";  // coordinate with stosign, adam and sgd; else off
  double noise_decay = 1.0;
  bool error_feedback = false;
  double feedback_keep = 1.0;
  std::string state_dtype = "f32";
};
// INVALID_ARGUMENT: one sentence that names the flag and what it takes, also where a flag has been
// given that this direction does not look at.
absl::StatusOr<DirectionConfig> ParseDirection(const DirectionWords& words);
// INVALID_ARGUMENT: numbers or parts that do not fit together, whoever put them there.
absl::Status CheckDirection(const DirectionConfig& config);
// What is allowed and seldom meant: sentences for the log of whoever chose the direction.
std::vector<std::string> DirectionWarnings(const DirectionConfig& config);
std::string_view DirectionName(DirectionKind kind);
// "signsgd, signum, …": what a name may be.
std::string DirectionNames();
// "off", "coordinate", "tensor", "one".
std::string_view EnvelopeWord(Envelope envelope);

// The state that the direction keeps, in the order in which it is saved: that of the source first.
// Empty for signSGD.
std::vector<StatePlane> PlanesOf(const DirectionConfig& config);
std::vector<StatePlane> PlanesOf(const DirectionConfig& config, StatePlane::Holder holder);
// Bytes of that state per coordinate, the single elements left out.
size_t StateBytesPerCoordinate(const DirectionConfig& config);
// What one chunk's bits are depends on the whole of each tensor that it touches.
bool NeedsWholeTensors(const DirectionConfig& config);

}  // namespace signvote
