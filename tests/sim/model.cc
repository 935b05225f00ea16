#include "tests/sim/model.h"

#include <utility>

#include "common/check.h"
#include "common/rng.h"

namespace signvote::sim {
namespace {

constexpr uint64_t kModelSeed = 7;
constexpr float kNoise = 0.5f;
constexpr uint64_t kColumns = 8;

}  // namespace

Model::Model(uint64_t coordinates, uint64_t chunk_coordinates, float weight_decay, bool dense)
    : tensors_(3), plan_(coordinates, chunk_coordinates) {
  // Three tensors whose bounds lie inside chunks, and one that has decay because it is a matrix.
  const uint64_t matrix = coordinates / 2 / kColumns;
  const uint64_t first = coordinates / 3 / kColumns * kColumns + 1;
  tensors_[0] = {.name = "a", .shape = {first}};
  tensors_[1] = {.name = "b", .shape = {matrix, kColumns}};
  tensors_[2] = {.name = "c", .shape = {coordinates - first - matrix * kColumns}};
  std::vector<TensorSpec> decayed = tensors_;
  decayed[1].weight_decay = weight_decay;
  decayed[2].dense = dense;
  auto layout = Layout::Make(std::move(decayed));
  SIGNVOTE_CHECK(layout.ok() && layout->coordinates() == coordinates && coordinates % 8 == 0);
  run_layout_ = *std::move(layout);
  Rng rng(kModelSeed, 0);
  for (uint64_t i = 0; i < coordinates; ++i) {
    curvature_.push_back(static_cast<float>(0.5 + rng.Uniform()));
    target_.push_back(static_cast<float>(2 * rng.Uniform() - 1));
  }
}

double Model::Gradient(const std::vector<float>& x, uint64_t seed, Share share, DataStep step,
                       std::vector<float>* g) const {
  const uint64_t d = plan_.coordinates();
  g->resize(d);
  const float scale = 1.0f / static_cast<float>(d);
  const uint64_t stream = Mix(seed, share.value(), step.value());
  double loss = 0;
  for (uint64_t i = 0; i < d; i += 8) {
    uint64_t noise = Fin(stream ^ i);
    for (uint64_t k = i; k < i + 8; ++k, noise >>= 8) {
      const float error = x[k] - target_[k];
      const float centred = static_cast<float>(static_cast<int>(noise & 0xFF) - 128) / 128;
      (*g)[k] = scale * (curvature_[k] * error + kNoise * centred);
      loss += 0.5 * static_cast<double>(curvature_[k] * error * error);
    }
  }
  return loss / static_cast<double>(d);
}

double Model::HeldOutLoss(uint64_t digest, uint64_t windows) {
  return Rng(digest, windows).Uniform();
}

}  // namespace signvote::sim
