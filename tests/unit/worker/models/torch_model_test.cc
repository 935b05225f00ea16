// Goal:   the networks compute what Hugging Face's LLaMA computes, and the flat buffers are what
//         backward fills.
// Method: a second LLaMA in plain double loops, straight from the formulas; finite differences for
// gradients.
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "common/rng.h"
#include "worker/models/model.h"

namespace signvote {
namespace {

ModelConfig SmallLlama() {
  ModelConfig config;
  config.vocabulary = 37;
  config.hidden = 24;
  config.layers = 2;
  config.heads = 4;
  config.key_value_heads = 4;
  config.head_size = 6;
  config.intermediate = 40;
  config.init_std = 0.3;  // large, so that attention and norms are far from their trivial values
  return config;
}

struct TokenBatch {
  TokenBatch(uint64_t rows, uint64_t length, uint64_t vocabulary, uint64_t seed)
      : inputs(rows * length), targets(inputs) {
    Rng rng(seed, 0);
    for (int64_t& token : inputs) token = static_cast<int64_t>(rng.Below(vocabulary));
    for (int64_t& token : targets) token = static_cast<int64_t>(rng.Below(vocabulary));
    view.rows = rows;
    view.length = length;
    view.inputs = inputs;
    view.targets = targets;
  }
  std::vector<int64_t> inputs, targets;
  BatchView view;
};

double MeanOf(const std::vector<double>& rows) {
  return std::accumulate(rows.begin(), rows.end(), 0.0) / static_cast<double>(rows.size());
}

// y = W x for W [rows, columns].
std::vector<double> Times(const float* w, size_t rows, const std::vector<double>& x) {
  std::vector<double> y(rows, 0.0);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += static_cast<double>(w[r * x.size() + c]) * x[c];
  }
  return y;
}

std::vector<double> RmsNorm(const std::vector<double>& x, const float* w, double epsilon) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * static_cast<double>(w[i]);
  return y;
}

// Hugging Face stores q and k for "rotate half": coordinate i turns with coordinate i + half.
void Rotate(double* head, size_t size, size_t position, double theta) {
  const size_t half = size / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) *
                         std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(size));
    const double low = head[i], high = head[i + half];
    head[i] = low * std::cos(angle) - high * std::sin(angle);
    head[i + half] = high * std::cos(angle) + low * std::sin(angle);
  }
}

double ReferenceLlamaLoss(const ModelConfig& c, const Layout& layout, std::span<const float> x,
                          const TokenBatch& batch) {
  const auto tensor = [&](const std::string& name) {
    for (const TensorSpec& spec : layout.tensors()) {
      if (spec.name == name) return x.data() + spec.first;
    }
    ADD_FAILURE() << "no tensor " << name;
    return x.data();
  };
  const size_t length = batch.view.length, size = c.head_size;
  double total = 0;
  for (size_t row = 0; row < batch.view.rows; ++row) {
    std::vector<std::vector<double>> h(length);
    for (size_t t = 0; t < length; ++t) {
      const float* e = tensor("model.embed_tokens.weight") +
                       static_cast<size_t>(batch.inputs[row * length + t]) * c.hidden;
      h[t].assign(e, e + c.hidden);
    }
    for (uint32_t n = 0; n < c.layers; ++n) {
      const std::string layer = "model.layers." + std::to_string(n) + ".";
      std::vector<std::vector<double>> q(length), k(length), v(length);
      for (size_t t = 0; t < length; ++t) {
        const auto y = RmsNorm(h[t], tensor(layer + "input_layernorm.weight"), c.norm_epsilon);
        q[t] = Times(tensor(layer + "self_attn.q_proj.weight"), c.heads * size, y);
        k[t] = Times(tensor(layer + "self_attn.k_proj.weight"), c.key_value_heads * size, y);
        v[t] = Times(tensor(layer + "self_attn.v_proj.weight"), c.key_value_heads * size, y);
        for (size_t a = 0; a < c.heads; ++a) Rotate(&q[t][a * size], size, t, c.rope_theta);
        for (size_t a = 0; a < c.key_value_heads; ++a)
          Rotate(&k[t][a * size], size, t, c.rope_theta);
      }
      for (size_t t = 0; t < length; ++t) {
        std::vector<double> mixed(c.heads * size, 0.0);
        for (size_t a = 0; a < c.heads; ++a) {
          const size_t group = a / (c.heads / c.key_value_heads);
          std::vector<double> weights(t + 1);
          double sum = 0;
          for (size_t s = 0; s <= t; ++s) {
            double dot = 0;
            for (size_t i = 0; i < size; ++i) dot += q[t][a * size + i] * k[s][group * size + i];
            weights[s] = std::exp(dot / std::sqrt(static_cast<double>(size)));
            sum += weights[s];
          }
          for (size_t s = 0; s <= t; ++s) {
            for (size_t i = 0; i < size; ++i)
              mixed[a * size + i] += weights[s] / sum * v[s][group * size + i];
          }
        }
        const auto o = Times(tensor(layer + "self_attn.o_proj.weight"), c.hidden, mixed);
        for (size_t i = 0; i < c.hidden; ++i) h[t][i] += o[i];
        const auto y =
            RmsNorm(h[t], tensor(layer + "post_attention_layernorm.weight"), c.norm_epsilon);
        auto gate = Times(tensor(layer + "mlp.gate_proj.weight"), c.intermediate, y);
        const auto up = Times(tensor(layer + "mlp.up_proj.weight"), c.intermediate, y);
        for (size_t i = 0; i < gate.size(); ++i)
          gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
        const auto down = Times(tensor(layer + "mlp.down_proj.weight"), c.hidden, gate);
        for (size_t i = 0; i < c.hidden; ++i) h[t][i] += down[i];
      }
    }
    const float* head = tensor(c.tied ? "model.embed_tokens.weight" : "lm_head.weight");
    for (size_t t = 0; t < length; ++t) {
      const auto logits =
          Times(head, c.vocabulary, RmsNorm(h[t], tensor("model.norm.weight"), c.norm_epsilon));
      double sum = 0;
      for (double logit : logits) sum += std::exp(logit);
      total += std::log(sum) - logits[static_cast<size_t>(batch.targets[row * length + t])];
    }
  }
  return total / static_cast<double>(batch.view.rows * length);
}

std::unique_ptr<Model> Make(const ModelConfig& config) {
  auto model = MakeTorchModel(config, {});
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// The values of all tensors behind each other, in layout order.
std::vector<float> Copy(const Model& model, ConstTensorPointers pointers) {
  std::vector<float> all;
  for (size_t k = 0; k < pointers.size(); ++k)
    all.insert(all.end(), pointers[k], pointers[k] + model.layout().tensors()[k].count);
  return all;
}
std::vector<float> Copy(const Model& model, TensorPointers pointers) {
  return Copy(model, std::vector<const float*>(pointers.begin(), pointers.end()));
}
// Where the model keeps its parameters; this one has them behind each other.
std::span<float> Flat(Model* model) {
  return {model->parameters()[0], model->layout().coordinates()};
}

// Compares directional derivatives along random directions with central differences.
void ExpectGradientMatchesDifferences(Model* model, const BatchView& batch) {
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, batch).ok());
  ASSERT_TRUE(model->Backward(1.0f, nullptr).ok());
  const std::vector<float> g = Copy(*model, model->gradient());
  const std::vector<float> x = Copy(*model, model->parameters());
  for (const TensorSpec& tensor : model->layout().tensors()) {
    // Along the gradient of this tensor alone: the derivative is the norm, the best conditioned
    // choice.
    double squares = 0;
    for (uint64_t i = tensor.first; i < tensor.first + tensor.count; ++i)
      squares += double{g[i]} * g[i];
    const double norm = std::sqrt(squares);
    ASSERT_GT(norm, 0) << tensor.name;
    const double step = 2e-2;
    double losses[2];
    for (const int side : {0, 1}) {
      for (uint64_t i = tensor.first; i < tensor.first + tensor.count; ++i) {
        Flat(model)[i] = x[i] + static_cast<float>((side == 0 ? step : -step) * g[i] / norm);
      }
      losses[side] = MeanOf(*model->Evaluate(ReplicaSlot::kCurrent, batch));
    }
    std::copy(x.begin(), x.end(), Flat(model).begin());
    // Truncation is O(step²), cancellation 1e-6/step.
    EXPECT_NEAR((losses[0] - losses[1]) / (2 * step), norm, 0.02 * norm + 5e-4) << tensor.name;
  }
}

TEST(TorchModelTest, LlamaComputesTheFormulasOfHuggingFace) {
  for (const bool grouped : {false, true}) {
    for (const bool tied : {false, true}) {
      ModelConfig config = SmallLlama();
      config.key_value_heads = grouped ? 2 : 4;
      config.tied = tied;
      const auto model = Make(config);
      const TokenBatch batch(2, 9, config.vocabulary, 1);
      const double expected = ReferenceLlamaLoss(config, model->layout(), Flat(model.get()), batch);
      const auto loss = model->Evaluate(ReplicaSlot::kCurrent, batch.view);
      ASSERT_TRUE(loss.ok()) << loss.status();
      EXPECT_NEAR(MeanOf(*loss), expected, 1e-5 * expected)
          << "grouped " << grouped << " tied " << tied;
    }
  }
}

TEST(TorchModelTest, TheFlatGradientIsTheDerivativeOfTheLoss) {
  for (const bool tied : {false, true}) {
    ModelConfig config = SmallLlama();
    config.key_value_heads = 2;
    config.tied = tied;
    const auto model = Make(config);
    ExpectGradientMatchesDifferences(model.get(), TokenBatch(2, 9, config.vocabulary, 2).view);
  }
  ModelConfig config;
  config.kind = ModelKind::kMlp;
  config.features = 8;
  config.hidden = 16;
  config.layers = 2;
  config.classes = 5;
  const auto model = Make(config);
  Rng rng(1, 1);
  std::vector<float> values(32 * 8);
  std::vector<int64_t> targets(32);
  for (float& value : values) value = static_cast<float>(rng.Bell());
  for (int64_t& target : targets) target = static_cast<int64_t>(rng.Below(5));
  BatchView batch;
  batch.rows = 32;
  batch.values = values;
  batch.targets = targets;
  ExpectGradientMatchesDifferences(model.get(), batch);
}

TEST(TorchModelTest, ReadyRangesCoverTheModelOnceFromTheHighEndAndAreFinal) {
  const auto model = Make(SmallLlama());
  const TokenBatch batch(2, 9, 37, 3);
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, batch.view).ok());
  std::vector<float> when_ready(model->layout().coordinates(), NAN);
  std::vector<uint64_t> firsts;
  uint64_t covered = 0;
  const std::span<const float> g(model->gradient()[0], model->layout().coordinates());
  ASSERT_TRUE(model
                  ->Backward(1.0f,
                             [&](uint64_t first, uint64_t count) {
                               firsts.push_back(first);
                               covered += count;
                               std::copy(g.begin() + static_cast<int64_t>(first),
                                         g.begin() + static_cast<int64_t>(first + count),
                                         when_ready.begin() + static_cast<int64_t>(first));
                             })
                  .ok());
  EXPECT_EQ(covered, model->layout().coordinates());
  EXPECT_TRUE(
      std::equal(g.begin(), g.end(), when_ready.begin()));  // nothing changed after its callback
  EXPECT_EQ(firsts.front(), model->layout().tensors().back().first);
  EXPECT_EQ(firsts.back(), 0u);
  // The second layer is done before the first.
  const uint64_t second_layer = model->layout().tensors()[10].first;
  bool left = false;
  for (uint64_t first : firsts) {
    if (first < second_layer) left = true;
    EXPECT_FALSE(left && first >= second_layer);
  }
}

TEST(TorchModelTest, MicroBatchesAddUpToTheirWeightedGradient) {
  const auto model = Make(SmallLlama());
  const TokenBatch whole(4, 9, 37, 4);
  const auto half = [&](uint64_t k) {
    BatchView view;
    view.rows = 2;
    view.length = 9;
    view.inputs = std::span(whole.inputs).subspan(18 * k, 18);
    view.targets = std::span(whole.targets).subspan(18 * k, 18);
    return view;
  };
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, whole.view).ok());
  ASSERT_TRUE(model->Backward(1.0f, nullptr).ok());
  const std::vector<float> expected = Copy(*model, model->gradient());
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  for (uint64_t k = 0; k < 2; ++k) {
    ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, half(k)).ok());
    ASSERT_TRUE(model->Backward(0.5f, nullptr).ok());
  }
  const std::vector<float> sum = Copy(*model, model->gradient());
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(sum[i], expected[i], 1e-5) << i;
}

TEST(TorchModelTest, ThePreviousSlotIsAnIndependentReplicaOfTheSameFunction) {
  const auto model = Make(SmallLlama());
  EXPECT_TRUE(model->previous_parameters().empty());
  ASSERT_TRUE(model->Keep(ReplicaSlot::kPrevious).ok());
  const TokenBatch batch(2, 9, 37, 5);
  EXPECT_EQ(Copy(*model, model->parameters()), Copy(*model, model->previous_parameters()));
  for (const ReplicaSlot slot : {ReplicaSlot::kPrevious, ReplicaSlot::kCurrent}) {
    ASSERT_TRUE(model->BeginStep(slot).ok());
    ASSERT_TRUE(model->Forward(slot, batch.view).ok());
    ASSERT_TRUE(model->Backward(1.0f, nullptr).ok());
  }
  // Same parameters, same batch: the same bits, run after run.
  ASSERT_EQ(Copy(*model, model->gradient()), Copy(*model, model->previous_gradient()));
  for (float& value : Flat(model.get())) value *= 1.01f;
  ASSERT_TRUE(model->BeginStep(ReplicaSlot::kCurrent).ok());
  ASSERT_TRUE(model->Forward(ReplicaSlot::kCurrent, batch.view).ok());
  ASSERT_TRUE(model->Backward(1.0f, nullptr).ok());
  EXPECT_NE(Copy(*model, model->gradient()), Copy(*model, model->previous_gradient()));
}

TEST(TorchModelTest, ASnapshotIsEvaluatedAsItWasWhileTheReplicaMovesOn) {
  const auto model = Make(SmallLlama());
  const TokenBatch batch(4, 9, 37, 5);
  const auto evaluate = [&](ReplicaSlot slot, const BatchView& view) {
    const auto losses = model->Evaluate(slot, view);
    EXPECT_TRUE(losses.ok()) << losses.status();
    return losses.ok() ? *losses : std::vector<double>(view.rows, NAN);
  };
  const std::vector<double> before = evaluate(ReplicaSlot::kCurrent, batch.view);
  ASSERT_EQ(before.size(), 4u);
  ASSERT_TRUE(model->Keep(ReplicaSlot::kSnapshot).ok());
  for (float& value : Flat(model.get())) value *= 1.01f;
  EXPECT_NE(evaluate(ReplicaSlot::kCurrent, batch.view), before);
  EXPECT_EQ(evaluate(ReplicaSlot::kSnapshot, batch.view), before);
  // Rows alone, as a slice of an evaluation asks for them.
  for (uint64_t row = 0; row < 4; ++row) {
    BatchView view;
    view.rows = 1;
    view.length = 9;
    view.inputs = std::span(batch.inputs).subspan(9 * row, 9);
    view.targets = std::span(batch.targets).subspan(9 * row, 9);
    EXPECT_NEAR(evaluate(ReplicaSlot::kSnapshot, view).front(), before[row], 1e-6 * before[row]);
  }
}

TEST(TorchModelTest, TheMeanOfTheRowsIsTheLossThatIsTrainedOn) {
  for (const ModelConfig& config : {SmallLlama(), *LoadModelConfig(FileSystem::Posix(), "mlp")}) {
    const auto model = Make(config);
    const TokenBatch tokens(4, 9, 37, 5);
    std::vector<float> values(4 * config.features);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 13) * 0.1f;
    const std::vector<int64_t> classes = {3, 1, 4, 1};
    const BatchView view = config.kind == ModelKind::kMlp
                               ? BatchView{.rows = 4, .values = values, .targets = classes}
                               : tokens.view;
    const auto rows = model->Evaluate(ReplicaSlot::kCurrent, view);
    ASSERT_TRUE(rows.ok()) << rows.status();
    ASSERT_EQ(rows->size(), 4u);
    EXPECT_NE((*rows)[0], (*rows)[1]);
    const auto loss = model->Forward(ReplicaSlot::kCurrent, view);
    ASSERT_TRUE(loss.ok()) << loss.status();
    EXPECT_NEAR(MeanOf(*rows), *loss, 1e-6 * *loss);
  }
}

// What a window says does not depend on the length of those before it.
TEST(TorchModelTest, LengthsMayAlternate) {
  const auto model = Make(SmallLlama());
  const TokenBatch shorter(2, 5, 37, 1), longer(2, 9, 37, 2);
  const auto first = *model->Evaluate(ReplicaSlot::kCurrent, shorter.view);
  ASSERT_TRUE(model->Evaluate(ReplicaSlot::kCurrent, longer.view).ok());
  EXPECT_EQ(*model->Evaluate(ReplicaSlot::kCurrent, shorter.view), first);
}

TEST(TorchModelTest, ADivisorThatIsAPowerOfTwoScalesGradientsExactly) {
  ModelConfig config = SmallLlama();
  const auto plain = Make(config);
  config.parameter_divisor = 128.0f;
  const auto scaled = Make(config);
  const TokenBatch batch(2, 9, 37, 6);
  double losses[2];
  Model* const models[] = {plain.get(), scaled.get()};
  for (const int k : {0, 1}) {
    ASSERT_TRUE(models[k]->BeginStep(ReplicaSlot::kCurrent).ok());
    losses[k] = *models[k]->Forward(ReplicaSlot::kCurrent, batch.view);
    ASSERT_TRUE(models[k]->Backward(1.0f, nullptr).ok());
  }
  EXPECT_EQ(losses[0], losses[1]);
  const std::vector<float> of_plain = Copy(*plain, plain->gradient());
  const std::vector<float> of_scaled = Copy(*scaled, scaled->gradient());
  for (size_t i = 0; i < of_plain.size(); ++i) {
    ASSERT_EQ(of_plain[i], 128.0f * of_scaled[i]) << i;
  }
}

TEST(TorchModelTest, NanoStartsNearTheUniformGuess) {
  const auto config = LoadModelConfig(FileSystem::Posix(), "nano");
  const auto model = Make(*config);
  const TokenBatch batch(2, 64, 256, 7);
  EXPECT_NEAR(MeanOf(*model->Evaluate(ReplicaSlot::kCurrent, batch.view)), std::log(256.0), 0.1);
}

TEST(TorchModelTest, ADeviceThatIsNotThereIsNamedWithItsOwnExitCode) {
  const auto unknown = MakeTorchModel(SmallLlama(), {.device = "tpu"});
  EXPECT_EQ(ExitCodeFor(unknown.status()), ExitCode::kUsage);
  for (const char* word : {"cuda:", "cuda:x", "cuda:1234"}) {
    EXPECT_EQ(ExitCodeFor(MakeTorchModel(SmallLlama(), {.device = word}).status()),
              ExitCode::kUsage)
        << word;
  }
  // No machine has that many.
  const auto missing = MakeTorchModel(SmallLlama(), {.device = "cuda:99"});
  EXPECT_EQ(ExitCodeFor(missing.status()), ExitCode::kNoDevice) << missing.status();
  EXPECT_EQ(missing.status().message().find("no CUDA device 99: "), 0u) << missing.status();
  EXPECT_EQ(missing.status().message().find('\n'), absl::string_view::npos) << missing.status();
}

}  // namespace
}  // namespace signvote
