#include "common/direction_config.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"

namespace signvote {
namespace {

using Holder = StatePlane::Holder;
using Kind = StatePlane::Kind;

constexpr struct {
  DirectionKind kind;
  const char* name;
} kNames[] = {{DirectionKind::kSignSgd, "signsgd"},         {DirectionKind::kSignum, "signum"},
              {DirectionKind::kNesterovSignum, "nesterov"}, {DirectionKind::kLion, "lion"},
              {DirectionKind::kStoSign, "stosign"},         {DirectionKind::kAdam, "adam"},
              {DirectionKind::kMomentumSgd, "sgd"},         {DirectionKind::kMuon, "muon"}};

constexpr struct {
  Envelope envelope;
  const char* word;
} kEnvelopes[] = {{Envelope::kNone, "off"},
                  {Envelope::kCoordinate, "coordinate"},
                  {Envelope::kTensor, "tensor"},
                  {Envelope::kOne, "one"}};

constexpr double kLionBeta2 = 0.99;
constexpr double kAdamBeta2 = 0.999;
// Above it a momentum in bfloat16 ends below four fifths of what it averages.
constexpr double kBf16DecayMax = 0.99;

// As fp32, which the kernels compute with; false for NaN.
bool IsDecay(double beta) { return beta >= 0.0 && static_cast<float>(beta) < 1.0f; }
bool IsShare(double value) { return value >= 0.0 && value <= 1.0; }

absl::Status CheckBeta(const char* which, double beta) {
  if (IsDecay(beta)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %.17g; it must be at least 0 and less than 1 in fp32", which, beta));
}

bool KeepsMomentum(const DirectionConfig& config) {
  return config.kind != DirectionKind::kSignSgd &&
         !(config.kind == DirectionKind::kStoSign && config.beta == 0);
}

bool IsConversion(DirectionKind kind) {
  return kind == DirectionKind::kStoSign || kind == DirectionKind::kAdam ||
         kind == DirectionKind::kMomentumSgd;
}

absl::StatusOr<Envelope> ParseNoise(const std::string& word, DirectionKind kind) {
  if (word == "auto") return IsConversion(kind) ? Envelope::kCoordinate : Envelope::kNone;
  for (const auto& entry : kEnvelopes) {
    if (word == entry.word) return entry.envelope;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--noise ", word, ": choose auto, off, coordinate, tensor or one"));
}

}  // namespace

std::string_view StatePlane::name() const {
  switch (kind) {
    case Kind::kMomentum:
      return "m";
    case Kind::kSquares:
      return "v";
    case Kind::kEnvelope:
      return "r";
    case Kind::kSteps:
      return "t";
    case Kind::kStepsize:
      return "gamma";
    case Kind::kResidual:
      break;
  }
  return "e";
}

absl::StatusOr<DirectionConfig> ParseDirection(const DirectionWords& words) {
  const auto* const entry = std::find_if(std::begin(kNames), std::end(kNames),
                                         [&words](const auto& e) { return words.name == e.name; });
  if (entry == std::end(kNames)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown direction \"", words.name, "\"; use one of ", DirectionNames()));
  }
  DirectionConfig config{.kind = entry->kind, .beta = words.beta};
  config.beta2 = config.kind == DirectionKind::kAdam ? kAdamBeta2 : kLionBeta2;
  if (words.beta2 != "auto") {
    if (!absl::SimpleAtod(words.beta2, &config.beta2)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--beta2 ", words.beta2, " is no number; give one in [0, 1), or auto"));
    }
    if (config.kind != DirectionKind::kLion && config.kind != DirectionKind::kAdam) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--beta2 ", words.beta2, " belongs to --direction lion and adam, and the direction is ",
          words.name, "; leave it away"));
    }
  }
  if (words.momentum != "on" && words.momentum != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("--momentum ", words.momentum, ": choose on or off"));
  }
  if (words.momentum == "off") {
    if (config.kind != DirectionKind::kStoSign) {
      return absl::InvalidArgumentError(
          absl::StrCat("--momentum off belongs to --direction stosign, and the direction is ",
                       words.name, "; without momentum signum is signsgd"));
    }
    config.beta = 0;
  }
  const bool no_momentum = words.momentum == "off" || config.kind == DirectionKind::kSignSgd;
  if (no_momentum && words.beta != DirectionWords().beta) {
    return absl::InvalidArgumentError(
        absl::StrCat("--beta ", words.beta, " is a momentum's, and --direction ", words.name,
                     words.momentum == "off" ? " --momentum off" : "", " has none; leave it away"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(config.envelope, ParseNoise(words.noise, config.kind));
  config.envelope_decay = words.noise_decay;
  if (words.noise_decay != 1.0 && config.envelope != Envelope::kCoordinate) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--noise-decay ", words.noise_decay, " belongs to --noise coordinate, and the noise is ",
        std::string(EnvelopeWord(config.envelope)), "; leave it away"));
  }
  config.error_feedback = words.error_feedback;
  config.feedback_keep = words.feedback_keep;
  if (words.feedback_keep != 1.0 && !words.error_feedback) {
    return absl::InvalidArgumentError(
        absl::StrCat("--feedback-keep ", words.feedback_keep,
                     " belongs to --error-feedback, which is not given; leave it away"));
  }
  if (words.state_dtype != "f32" && words.state_dtype != "bf16") {
    return absl::InvalidArgumentError(
        absl::StrCat("--state-dtype ", words.state_dtype, ": choose f32 or bf16"));
  }
  if (words.state_dtype == "bf16") config.state_dtype = StateDtype::kBf16;
  SIGNVOTE_RETURN_IF_ERROR(CheckDirection(config));
  return config;
}

absl::Status CheckDirection(const DirectionConfig& config) {
  SIGNVOTE_RETURN_IF_ERROR(CheckBeta("beta", config.beta));
  SIGNVOTE_RETURN_IF_ERROR(CheckBeta("beta2", config.beta2));
  const float envelope_decay = static_cast<float>(config.envelope_decay);
  if (!IsShare(config.envelope_decay) || envelope_decay == 0.0f) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the noise's decay is %.17g; it must be above 0 in fp32 and at most 1",
                        config.envelope_decay));
  }
  if (config.state_dtype == StateDtype::kBf16 && config.envelope == Envelope::kCoordinate &&
      envelope_decay < 1.0f) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--noise-decay %g needs --state-dtype f32: an envelope in bf16 is rounded upwards, which "
        "takes back what a decay near 1 takes away; leave one of the two away",
        config.envelope_decay));
  }
  if (!IsShare(config.feedback_keep)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "what is kept of the error is %.17g; it must lie between 0 and 1", config.feedback_keep));
  }
  if (!config.error_feedback) return absl::OkStatus();
  if (config.kind != DirectionKind::kSignSgd || config.envelope != Envelope::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("--error-feedback belongs to --direction signsgd without noise, and the "
                     "direction is ",
                     std::string(DirectionName(config.kind)), "; choose one of the two"));
  }
  if (config.state_dtype != StateDtype::kFp32) {
    return absl::InvalidArgumentError(
        "--error-feedback keeps its residual in fp32: what --state-dtype bf16 rounds off would be "
        "lost, and nothing may be; leave --state-dtype away");
  }
  return absl::OkStatus();
}

std::vector<std::string> DirectionWarnings(const DirectionConfig& config) {
  std::vector<std::string> warnings;
  const bool lion = config.kind == DirectionKind::kLion;
  const double decay = lion ? config.beta2 : config.beta;
  if (config.state_dtype == StateDtype::kBf16 && KeepsMomentum(config) && decay > kBf16DecayMax) {
    warnings.push_back(absl::StrFormat(
        "%s %g with --state-dtype bf16: a momentum that is rounded to bf16 in every round stands "
        "still short of the mean that it is to be (docs/algorithms.md says by how much); use "
        "--state-dtype f32, or a decay of at most %g",
        lion ? "--beta2" : "--beta", decay, kBf16DecayMax));
  }
  if (config.error_feedback) {
    warnings.push_back(
        "--error-feedback with more than one worker takes off what each worker asked for, not what "
        "the vote committed: only with one worker is nothing lost "
        "(docs/algorithms/error_feedback.md)");
  }
  return warnings;
}

std::string_view DirectionName(DirectionKind kind) {
  for (const auto& entry : kNames) {
    if (entry.kind == kind) return entry.name;
  }
  return "unknown";
}

std::string DirectionNames() {
  std::string names;
  for (const auto& entry : kNames) absl::StrAppend(&names, names.empty() ? "" : ", ", entry.name);
  return names;
}

std::string_view EnvelopeWord(Envelope envelope) {
  for (const auto& entry : kEnvelopes) {
    if (entry.envelope == envelope) return entry.word;
  }
  return "unknown";
}

std::vector<StatePlane> PlanesOf(const DirectionConfig& config) {
  const size_t bytes = config.state_dtype == StateDtype::kBf16 ? 2 : 4;
  std::vector<StatePlane> planes;
  if (config.error_feedback) {
    planes.push_back({.kind = Kind::kResidual, .holder = Holder::kSource});
    planes.push_back({.kind = Kind::kStepsize, .single = true, .holder = Holder::kSource});
  }
  if (KeepsMomentum(config)) {
    const bool muon = config.kind == DirectionKind::kMuon;
    planes.push_back({.kind = Kind::kMomentum,
                      .element_bytes = bytes,
                      .holder = muon ? Holder::kSource : Holder::kPacker});
  }
  if (config.kind == DirectionKind::kAdam) planes.push_back({.kind = Kind::kSquares});
  if (config.envelope == Envelope::kCoordinate)
    planes.push_back({.kind = Kind::kEnvelope, .element_bytes = bytes});
  if (config.kind == DirectionKind::kAdam)
    planes.push_back({.kind = Kind::kSteps, .element_bytes = 8, .single = true});
  return planes;
}

std::vector<StatePlane> PlanesOf(const DirectionConfig& config, StatePlane::Holder holder) {
  std::vector<StatePlane> planes = PlanesOf(config);
  std::erase_if(planes, [holder](const StatePlane& plane) { return plane.holder != holder; });
  return planes;
}

size_t StateBytesPerCoordinate(const DirectionConfig& config) {
  size_t bytes = 0;
  for (const StatePlane& plane : PlanesOf(config)) bytes += plane.single ? 0 : plane.element_bytes;
  return bytes;
}

bool NeedsWholeTensors(const DirectionConfig& config) {
  return config.envelope == Envelope::kTensor || config.kind == DirectionKind::kMuon ||
         config.error_feedback;
}

}  // namespace signvote
