#include "tests/sim/model.h"

#include <utility>

#include "common/check.h"
#include "common/rng.h"
#include "tests/sim/options.h"

namespace signvote::sim {
namespace {

constexpr uint64_t kModelSeed = 7;
constexpr float kNoise = 0.5f;

Layout MakeLayout() {
  std::vector<TensorSpec> tensors(3);
  tensors[0] = {.name = "a", .shape = {1000}, .step_scale = 1.0f};
  tensors[1] = {.name = "b", .shape = {24, 40}, .step_scale = 0.5f, .weight_decay = 0.01f};
  tensors[2] = {.name = "c", .shape = {88}, .step_scale = 2.0f};
  auto layout = Layout::Make(std::move(tensors));
  SIGNVOTE_CHECK(layout.ok() && layout->coordinates() == kCoordinates);
  return *std::move(layout);
}

}  // namespace

Model::Model() : layout_(MakeLayout()), plan_(kCoordinates, kChunkCoordinates) {
  SIGNVOTE_CHECK(plan_.chunks() == kChunks);
  Rng rng(kModelSeed, 0);
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    curvature_.push_back(static_cast<float>(0.5 + rng.Uniform()));
    target_.push_back(static_cast<float>(2 * rng.Uniform() - 1));
  }
}

std::vector<float> Model::Start() const { return std::vector<float>(kCoordinates, 0.25f); }

double Model::Gradient(const std::vector<float>& x, uint64_t seed, Share share, DataStep step,
                       std::vector<float>* g) const {
  g->resize(kCoordinates);
  const float scale = 1.0f / static_cast<float>(kCoordinates);
  const uint64_t stream = Mix(seed, share.value(), step.value());
  double loss = 0;
  for (uint64_t i = 0; i < kCoordinates; i += 8) {
    uint64_t noise = Fin(stream ^ i);
    for (uint64_t k = i; k < i + 8; ++k, noise >>= 8) {
      const float error = x[k] - target_[k];
      const float centred = static_cast<float>(static_cast<int>(noise & 0xFF) - 128) / 128;
      (*g)[k] = scale * (curvature_[k] * error + kNoise * centred);
      loss += 0.5 * static_cast<double>(curvature_[k] * error * error);
    }
  }
  return loss / static_cast<double>(kCoordinates);
}

}  // namespace signvote::sim
