// Goal:   the classifiers of pictures compute what their config says, and train.
// Method: the convolutional network a second time in plain double loops; the transformer's gradient by
//         central differences, as it is smooth.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/rng.h"
#include "worker/models/model.h"

namespace signvote {
namespace {

constexpr size_t kSide = 8, kClasses = 3;

struct Pictures {
  explicit Pictures(uint64_t count) : values(count * kSide * kSide), targets(count) {
    Rng rng(7, 1);
    for (float& value : values) value = static_cast<float>(rng.Bell());
    for (int64_t& target : targets) target = static_cast<int64_t>(rng.Below(kClasses));
    view.rows = count;
    view.values = values;
    view.targets = targets;
  }
  std::vector<float> values;
  std::vector<int64_t> targets;
  BatchView view;
};

ModelConfig Config(ModelKind kind) {
  ModelConfig config;
  config.kind = kind;
  config.side = kSide;
  config.classes = kClasses;
  config.hidden = kind == ModelKind::kCnn ? 3 : 8;
  config.layers = 2;
  config.heads = 2;
  config.intermediate = 12;
  config.patch = 4;
  config.init_std = 0.3;
  return config;
}

std::unique_ptr<Model> Make(const ModelConfig& config) {
  auto model = MakeTorchModel(config, {});
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

const float* Tensor(Model* model, const std::string& name) {
  for (size_t k = 0; k < model->layout().tensors().size(); ++k)
    if (model->layout().tensors()[k].name == name) return model->parameters()[k];
  ADD_FAILURE() << "no tensor " << name;
  return nullptr;
}

// [channels, side, side], with ReLU and the largest of every 2 × 2.
std::vector<double> Convolved(const std::vector<double>& in, size_t channels, size_t side,
                              const float* weight, const float* bias, size_t out_channels) {
  const auto at = [&](size_t c, size_t row, size_t column, size_t down, size_t right) {
    // One pixel of zeros around the picture.
    const size_t r = row + down - 1, k = column + right - 1;
    return r < side && k < side ? in[(c * side + r) * side + k] : 0.0;
  };
  const size_t half = side / 2;
  std::vector<double> out(out_channels * half * half, 0.0);
  for (size_t o = 0; o < out_channels; ++o)
    for (size_t row = 0; row < side; ++row)
      for (size_t column = 0; column < side; ++column) {
        double sum = static_cast<double>(bias[o]);
        for (size_t c = 0; c < channels; ++c)
          for (size_t down = 0; down < 3; ++down)
            for (size_t right = 0; right < 3; ++right)
              sum += static_cast<double>(weight[((o * channels + c) * 3 + down) * 3 + right]) *
                     at(c, row, column, down, right);
        double& pooled = out[(o * half + row / 2) * half + column / 2];
        pooled = std::max(pooled, sum);  // and so never below 0
      }
  return out;
}

double ReferenceCnnLoss(Model* model, const Pictures& pictures, size_t row) {
  const size_t hidden = model->config().hidden;
  std::vector<double> x(pictures.values.begin() + static_cast<int64_t>(row * kSide * kSide),
                        pictures.values.begin() + static_cast<int64_t>((row + 1) * kSide * kSide));
  x = Convolved(x, 1, kSide, Tensor(model, "conv.0.weight"), Tensor(model, "conv.0.bias"), hidden);
  x = Convolved(x, hidden, kSide / 2, Tensor(model, "conv.1.weight"), Tensor(model, "conv.1.bias"),
                2 * hidden);
  const float* const weight = Tensor(model, "head.weight");
  std::vector<double> logits;
  double sum = 0;
  for (size_t c = 0; c < kClasses; ++c) {
    logits.push_back(static_cast<double>(Tensor(model, "head.bias")[c]));
    for (size_t i = 0; i < x.size(); ++i)
      logits[c] += static_cast<double>(weight[c * x.size() + i]) * x[i];
    sum += std::exp(logits[c]);
  }
  return std::log(sum) - logits[static_cast<size_t>(pictures.targets[row])];
}

TEST(ImageModelTest, TheConvolutionalNetworkComputesItsFormula) {
  const auto model = Make(Config(ModelKind::kCnn));
  const Pictures pictures(5);
  const auto losses = model->Evaluate(ReplicaSlot::kCurrent, pictures.view);
  ASSERT_TRUE(losses.ok()) << losses.status();
  for (size_t row = 0; row < 5; ++row) {
    const double expected = ReferenceCnnLoss(model.get(), pictures, row);
    EXPECT_NEAR((*losses)[row], expected, 1e-5 * std::max(1.0, expected)) << row;
  }
}

TEST(ImageModelTest, TheTransformersGradientIsTheDerivativeOfItsLoss) {
  const auto model = Make(Config(ModelKind::kVit));
  const Pictures pictures(6);
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, pictures.view).ok());
  uint64_t ready = 0;
  ASSERT_TRUE(model->Backward(1.0f, [&](uint64_t, uint64_t count) { ready += count; }).ok());
  EXPECT_EQ(ready, model->layout().coordinates());
  const auto loss = [&] { return *model->Forward(ReplicaSlot::kCurrent, pictures.view); };
  for (size_t k = 0; k < model->layout().tensors().size(); ++k) {
    const TensorSpec& tensor = model->layout().tensors()[k];
    const std::vector<float> g(model->gradient()[k], model->gradient()[k] + tensor.count);
    float* const x = model->parameters()[k];
    const std::vector<float> before(x, x + tensor.count);
    double squares = 0;
    for (const float value : g) squares += static_cast<double>(value) * static_cast<double>(value);
    const double norm = std::sqrt(squares), step = 1e-2;
    ASSERT_GT(norm, 0) << tensor.name;
    // Along the gradient the derivative is its length.
    double losses[2];
    for (const int side : {0, 1}) {
      for (size_t i = 0; i < g.size(); ++i)
        x[i] = before[i] +
               static_cast<float>((side == 0 ? step : -step) * static_cast<double>(g[i]) / norm);
      losses[side] = loss();
    }
    std::copy(before.begin(), before.end(), x);
    EXPECT_NEAR((losses[0] - losses[1]) / (2 * step), norm, 0.02 * norm + 5e-4) << tensor.name;
  }
}

// What it has seen it tells apart, whichever of the two it is.
TEST(ImageModelTest, BothLearnAHandfulOfPicturesByHeart) {
  for (const ModelKind kind : {ModelKind::kCnn, ModelKind::kVit}) {
    const auto model = Make(Config(kind));
    const Pictures pictures(6);
    double loss = 0;
    for (int step = 0; step < 300; ++step) {
      ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
      loss = *model->Forward(ReplicaSlot::kCurrent, pictures.view);
      ASSERT_TRUE(model->Backward(1.0f, nullptr).ok());
      for (size_t k = 0; k < model->layout().tensors().size(); ++k)
        for (uint64_t i = 0; i < model->layout().tensors()[k].count; ++i)
          model->parameters()[k][i] -= 0.1f * model->gradient()[k][i];
    }
    EXPECT_LT(loss, 0.1) << model->layout().tensors()[0].name;
  }
}

}  // namespace
}  // namespace signvote
