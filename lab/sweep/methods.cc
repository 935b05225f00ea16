#include "lab/sweep/methods.h"

#include <algorithm>

namespace signvote::lab {
namespace {

// What each name stands for. Flags that are as the server has them are left away, so that a method is
// what a user gets who says as much.
using Flag = MethodFlag;

constexpr Flag kSignSgd[] = {{"direction", "signsgd"}};
constexpr Flag kSignSgdFeedback[] = {{"direction", "signsgd"}, {"error-feedback", "true"}};
constexpr Flag kSignum[] = {{"direction", "signum"}};
constexpr Flag kSignumNoise[] = {{"direction", "signum"}, {"noise", "coordinate"}};
constexpr Flag kNesterov[] = {{"direction", "nesterov"}};
constexpr Flag kLion[] = {{"direction", "lion"}};
constexpr Flag kStoSign[] = {{"direction", "stosign"}};
constexpr Flag kStoSignNoNoise[] = {{"direction", "stosign"}, {"noise", "off"}};
constexpr Flag kStoSignNoEnvelope[] = {{"direction", "stosign"}, {"noise", "one"}};
constexpr Flag kStoSignNoMomentum[] = {{"direction", "stosign"}, {"momentum", "off"}};
constexpr Flag kAdam[] = {{"direction", "adam"}};
constexpr Flag kAdamNoNoise[] = {{"direction", "adam"}, {"noise", "off"}};
constexpr Flag kSgd[] = {{"direction", "sgd"}};
constexpr Flag kSgdNoNoise[] = {{"direction", "sgd"}, {"noise", "off"}};
constexpr Flag kMuon[] = {{"direction", "muon"}};
constexpr Flag kMuonNoise[] = {{"direction", "muon"}, {"noise", "tensor"}};
// Dense baselines: what workers would sign nothing reads, so that it is what keeps no state.
constexpr Flag kAdamW[] = {{"direction", "signsgd"}, {"dense", "*"}};
constexpr Flag kNadamW[] = {
    {"direction", "signsgd"}, {"dense", "*"}, {"dense-optimizer", "nadamw"}};
constexpr Flag kScheduleFree[] = {
    {"direction", "signsgd"}, {"dense", "*"}, {"dense-optimizer", "schedule-free"}};
constexpr Flag kAliasAdam[] = {
    {"direction", "signsgd"}, {"dense", "*"}, {"dense-optimizer", "alias-adam"}};
constexpr Flag kPlainSgd[] = {{"direction", "signsgd"}, {"dense", "*"}, {"dense-optimizer", "sgd"}};
constexpr Flag kMomentumSgd[] = {{"direction", "signsgd"},
                                 {"dense", "*"},
                                 {"dense-optimizer", "sgd"},
                                 {"dense-momentum", "0.9"}};
constexpr Flag kNesterovSgd[] = {{"direction", "signsgd"},
                                 {"dense", "*"},
                                 {"dense-optimizer", "sgd"},
                                 {"dense-momentum", "0.9"},
                                 {"dense-nesterov", "true"}};

// DiLoCo (arXiv 2311.08105) with its outer optimizer as published, and AdamW or Lion inside.
constexpr Flag kDiLoCo[] = {
    {"direction", "adam"},      {"noise", "off"},          {"dense", "*"},
    {"dense-optimizer", "sgd"}, {"dense-momentum", "0.9"}, {"dense-nesterov", "true"},
    {"dense-stepsize", "0.7"}};
constexpr Flag kDiLoCoLion[] = {{"direction", "lion"},      {"dense", "*"},
                                {"dense-optimizer", "sgd"}, {"dense-momentum", "0.9"},
                                {"dense-nesterov", "true"}, {"dense-stepsize", "0.7"}};

constexpr Method kDirections[] = {
    {"signsgd", kSignSgd},
    {"signsgd-feedback", kSignSgdFeedback},
    {"signum", kSignum},
    {"signum-noise", kSignumNoise},
    {"nesterov", kNesterov},
    {"lion", kLion},
    {"stosign", kStoSign},
    {"stosign-no-noise", kStoSignNoNoise},
    {"stosign-no-envelope", kStoSignNoEnvelope},
    {"stosign-no-momentum", kStoSignNoMomentum},
    {"adam", kAdam},
    {"adam-no-noise", kAdamNoNoise},
    {"sgd", kSgd},
    {"sgd-no-noise", kSgdNoNoise},
    {"muon", kMuon},
    {"muon-noise", kMuonNoise},
    {"adamw", kAdamW},
    {"nadamw", kNadamW},
    {"schedule-free", kScheduleFree},
    {"alias-adam", kAliasAdam},
    {"plain-sgd", kPlainSgd},
    {"momentum-sgd", kMomentumSgd},
    {"nesterov-sgd", kNesterovSgd},
    {"diloco", kDiLoCo},
    {"diloco-lion", kDiLoCoLion},
};

constexpr Flag kFixed[] = {{"rule", "fixed"}};
constexpr Flag kFixedCosine[] = {{"rule", "fixed"}, {"schedule", "cosine"}};
constexpr Flag kFixedLinear[] = {{"rule", "fixed"}, {"schedule", "linear"}};
constexpr Flag kFixedWsd[] = {{"rule", "fixed"}, {"schedule", "wsd"}};
constexpr Flag kAlias1[] = {{"rule", "alias"}, {"alias-option", "I"}};
constexpr Flag kAlias1Previous[] = {
    {"rule", "alias"}, {"alias-option", "I"}, {"alias-probe", "previous"}};
constexpr Flag kAlias1Directional[] = {
    {"rule", "alias"}, {"alias-option", "I"}, {"alias-probe", "directional"}};
constexpr Flag kAlias1Extrema[] = {
    {"rule", "alias"}, {"alias-option", "I"}, {"alias-probe", "extrema"}};
constexpr Flag kAlias2[] = {{"rule", "alias"}, {"alias-option", "II"}};
constexpr Flag kAlias2Previous[] = {
    {"rule", "alias"}, {"alias-option", "II"}, {"alias-probe", "previous"}};
constexpr Flag kAlias2Directional[] = {
    {"rule", "alias"}, {"alias-option", "II"}, {"alias-probe", "directional"}};
constexpr Flag kAlias2Extrema[] = {
    {"rule", "alias"}, {"alias-option", "II"}, {"alias-probe", "extrema"}};
constexpr Flag kLever[] = {{"rule", "lever"}};
constexpr Flag kLeverLite[] = {{"rule", "lever"}, {"lever-form", "lite"}};
constexpr Flag kLeverNoRace[] = {{"rule", "lever"}, {"lever-race", "off"}};
constexpr Flag kLeverLegs[] = {{"rule", "lever"}, {"length-unknown", "true"}};
constexpr Flag kProdigy[] = {{"rule", "prodigy"}};
constexpr Flag kProdigyCosine[] = {{"rule", "prodigy"}, {"schedule", "cosine"}};
constexpr Flag kMechanic[] = {{"rule", "mechanic"}};
constexpr Flag kMechanicCosine[] = {{"rule", "mechanic"}, {"schedule", "cosine"}};
constexpr Flag kSos[] = {{"rule", "sos"}};

constexpr Method kRules[] = {
    {"fixed", kFixed},
    {"fixed-cosine", kFixedCosine},
    {"fixed-linear", kFixedLinear},
    {"fixed-wsd", kFixedWsd},
    {"alias1", kAlias1},
    {"alias1-previous", kAlias1Previous},
    {"alias1-directional", kAlias1Directional},
    {"alias1-extrema", kAlias1Extrema},
    {"alias2", kAlias2},
    {"alias2-previous", kAlias2Previous},
    {"alias2-directional", kAlias2Directional},
    {"alias2-extrema", kAlias2Extrema},
    {"lever", kLever},
    {"lever-lite", kLeverLite},
    {"lever-no-race", kLeverNoRace},
    {"lever-legs", kLeverLegs},
    {"prodigy", kProdigy},
    {"prodigy-cosine", kProdigyCosine},
    {"mechanic", kMechanic},
    {"mechanic-cosine", kMechanicCosine},
    {"sos", kSos},
};

}  // namespace

std::span<const Method> NamedDirections() { return kDirections; }
std::span<const Method> NamedRules() { return kRules; }

const Method* FindMethod(std::span<const Method> methods, std::string_view name) {
  const auto found = std::find_if(methods.begin(), methods.end(),
                                  [name](const Method& method) { return method.name == name; });
  return found == methods.end() ? nullptr : &*found;
}

}  // namespace signvote::lab
