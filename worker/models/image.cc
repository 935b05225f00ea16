// Two small classifiers of grey pictures: a convolutional network and a vision transformer. For
// experiments that take seconds (docs/lab.md).

#include <optional>

#include <ATen/ATen.h>

#include "common/check.h"
#include "worker/models/torch_network.h"

namespace signvote {
namespace {

// What both have in common: a leaf per tensor, pictures in, logits into a cross-entropy.
class PictureNetwork : public TorchNetwork {
 public:
  PictureNetwork(const ModelConfig& config, const Layout& layout) : config_(config) {
    for (const TensorSpec& tensor : layout.tensors()) {
      leaves_.push_back({tensor.first, tensor.count, {tensor.shape.begin(), tensor.shape.end()}});
    }
  }

  const std::vector<LeafSpec>& leaves() const override { return leaves_; }

  at::Tensor Loss(const std::vector<at::Tensor>& leaves, const BatchView& batch, at::Device device,
                  Of of) override {
    const int64_t rows = static_cast<int64_t>(batch.rows), side = int64_t{config_.side};
    SIGNVOTE_CHECK(batch.values.size() == batch.rows * config_.side * config_.side &&
                   batch.targets.size() == batch.rows);
    // from_blob wants mutable pointers; nothing writes through them.
    const at::Tensor pictures =
        at::from_blob(const_cast<float*>(batch.values.data()), {rows, 1, side, side},
                      at::TensorOptions().dtype(at::kFloat))
            .to(device);
    const at::Tensor targets = at::from_blob(const_cast<int64_t*>(batch.targets.data()), {rows},
                                             at::TensorOptions().dtype(at::kLong))
                                   .to(device);
    next_ = 0;
    const at::Tensor logits = Logits(leaves, pictures);
    SIGNVOTE_CHECK(next_ == leaves.size());
    return at::cross_entropy_loss(logits, targets, {},
                                  of == Of::kBatch ? at::Reduction::Mean : at::Reduction::None);
  }

 protected:
  virtual at::Tensor Logits(const std::vector<at::Tensor>& leaves, const at::Tensor& pictures) = 0;
  // The layout's tensors, one after the other.
  at::Tensor Next(const std::vector<at::Tensor>& leaves) {
    const at::Tensor& leaf = leaves[next_++];
    return config_.parameter_divisor == 1.0f ? leaf : leaf * (1.0f / config_.parameter_divisor);
  }

  const ModelConfig config_;

 private:
  std::vector<LeafSpec> leaves_;
  size_t next_ = 0;
};

// Two convolutions of 3 × 3 with ReLU, each followed by the largest of every 2 × 2; then a linear layer.
class CnnNetwork final : public PictureNetwork {
 public:
  using PictureNetwork::PictureNetwork;

 private:
  at::Tensor Logits(const std::vector<at::Tensor>& leaves, const at::Tensor& pictures) override {
    at::Tensor x = pictures;
    for (int k = 0; k < 2; ++k) {
      const at::Tensor weight = Next(leaves), bias = Next(leaves);
      x = at::max_pool2d(at::relu(at::conv2d(x, weight, bias, /*stride=*/1, /*padding=*/1)), 2);
    }
    const at::Tensor weight = Next(leaves), bias = Next(leaves);
    return at::linear(x.flatten(1), weight, bias);
  }
};

// Patches, each a token with a learnt place; blocks with the norm before attention and perceptron; the
// mean of the tokens.
class VitNetwork final : public PictureNetwork {
 public:
  using PictureNetwork::PictureNetwork;

 private:
  at::Tensor Logits(const std::vector<at::Tensor>& leaves, const at::Tensor& pictures) override {
    const int64_t hidden = int64_t{config_.hidden}, heads = int64_t{config_.heads};
    const int64_t rows = pictures.size(0);
    const at::Tensor patches = Next(leaves), patch_bias = Next(leaves), places = Next(leaves);
    const int64_t tokens = places.size(0);
    // [rows, patch², tokens] → [rows, tokens, patch²]
    const int64_t patch = int64_t{config_.patch};
    at::Tensor x = at::im2col(pictures, {patch, patch}, {1, 1}, {0, 0}, {patch, patch});
    x = at::linear(x.transpose(1, 2), patches, patch_bias) + places;
    const auto norm = [&](const at::Tensor& input) {
      return at::layer_norm(input, {hidden}, Next(leaves), std::nullopt, config_.norm_epsilon);
    };
    for (uint32_t k = 0; k < config_.layers; ++k) {
      const at::Tensor in = norm(x);
      const at::Tensor qkv = Next(leaves), out = Next(leaves);
      const at::Tensor split = at::linear(in, qkv)
                                   .view({rows, tokens, 3, heads, hidden / heads})
                                   .permute({2, 0, 3, 1, 4});
      const at::Tensor mixed = at::scaled_dot_product_attention(
                                   split.select(0, 0), split.select(0, 1), split.select(0, 2))
                                   .transpose(1, 2)
                                   .reshape({rows, tokens, hidden});
      x = x + at::linear(mixed, out);
      const at::Tensor inner = norm(x);
      const at::Tensor up = Next(leaves), down = Next(leaves);
      x = x + at::linear(at::gelu(at::linear(inner, up)), down);
    }
    const at::Tensor mean = norm(x).mean(1);
    const at::Tensor weight = Next(leaves), bias = Next(leaves);
    return at::linear(mean, weight, bias);
  }
};

}  // namespace

std::unique_ptr<TorchNetwork> MakeCnnNetwork(const ModelConfig& config, const Layout& layout) {
  return std::make_unique<CnnNetwork>(config, layout);
}

std::unique_ptr<TorchNetwork> MakeVitNetwork(const ModelConfig& config, const Layout& layout) {
  return std::make_unique<VitNetwork>(config, layout);
}

}  // namespace signvote
