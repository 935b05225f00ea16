// LLaMA (Touvron et al. 2023): RMSNorm, rotary positions (rotate-half, as Hugging Face stores q and
// k), causal attention, SwiGLU. Written with operators only, so that the order of the backward pass
// is the reverse of the layout.

#include <cmath>
#include <optional>

#include <ATen/ATen.h>

#include "common/check.h"
#include "worker/models/torch_network.h"

namespace signvote {
namespace {

class LlamaNetwork : public TorchNetwork {
 public:
  LlamaNetwork(const ModelConfig& config, const Layout& layout) : config_(config) {
    const auto rows = [&](size_t k) { return static_cast<int64_t>(layout.tensors()[k].shape[0]); };
    const auto add = [&](size_t k, size_t tensors) {
      LeafSpec leaf;
      leaf.first = layout.tensors()[k].first;
      int64_t total_rows = 0;
      for (size_t j = k; j < k + tensors; ++j) {
        leaf.count += layout.tensors()[j].count;
        total_rows += rows(j);
      }
      leaf.shape.push_back(total_rows);
      if (layout.tensors()[k].shape.size() == 2) {
        leaf.shape.push_back(static_cast<int64_t>(layout.tensors()[k].shape[1]));
      }
      leaves_.push_back(std::move(leaf));
    };
    size_t k = 0;
    add(k++, 1);  // embedding
    for (uint32_t n = 0; n < config.layers; ++n) {
      add(k, 1);      // input norm
      add(k + 1, 3);  // q, k, v
      add(k + 4, 1);  // o
      add(k + 5, 1);  // norm
      add(k + 6, 2);  // gate, up
      add(k + 8, 1);  // down
      k += 9;
    }
    add(k++, 1);  // norm
    if (!config.tied) add(k++, 1);
    SIGNVOTE_CHECK(k == layout.tensors().size());
  }

  const std::vector<LeafSpec>& leaves() const override { return leaves_; }

  at::Tensor Loss(const std::vector<at::Tensor>& leaves, const BatchView& batch, at::Device device,
                  Of of) override {
    const int64_t rows = static_cast<int64_t>(batch.rows);
    const int64_t length = static_cast<int64_t>(batch.length);
    SIGNVOTE_CHECK(batch.inputs.size() == batch.rows * batch.length &&
                   batch.targets.size() == batch.inputs.size());
    const int64_t tokens = rows * length;
    PrepareRotary(length, device);
    const at::Tensor ids = TokenTensor(batch.inputs, device);
    const int64_t heads = config_.heads;
    const int64_t kv_heads = config_.key_value_heads;
    const int64_t head_size = config_.head_size;

    size_t k = 0;
    const at::Tensor embedding = Scaled(leaves[k++]);
    at::Tensor x = at::embedding(embedding, ids);  // [tokens, hidden]
    for (uint32_t n = 0; n < config_.layers; ++n) {
      const at::Tensor input_norm = Scaled(leaves[k]), qkv_weight = Scaled(leaves[k + 1]);
      const at::Tensor o_weight = Scaled(leaves[k + 2]), norm = Scaled(leaves[k + 3]);
      const at::Tensor gate_up_weight = Scaled(leaves[k + 4]), down_weight = Scaled(leaves[k + 5]);
      k += 6;
      const at::Tensor qkv = at::linear(Normalized(x, input_norm), qkv_weight);
      const int64_t rotated = (heads + kv_heads) * head_size;
      // Splits, not narrows: their backward is one concatenation instead of zeros and sums.
      const std::vector<at::Tensor> parts =
          qkv.split_with_sizes({rotated, kv_heads * head_size}, 1);
      const std::vector<at::Tensor> qk =
          Rotated(parts[0].reshape({rows, length, heads + kv_heads, head_size}))
              .split_with_sizes({heads, kv_heads}, 2);
      const at::Tensor q = qk[0].transpose(1, 2), key = qk[1].transpose(1, 2);
      const at::Tensor value =
          parts[1].reshape({rows, length, kv_heads, head_size}).transpose(1, 2);
      const at::Tensor attended =
          at::scaled_dot_product_attention(q, key, value, std::nullopt, 0.0,
                                           /*is_causal=*/true, std::nullopt,
                                           /*enable_gqa=*/heads != kv_heads);
      x = x + at::linear(attended.transpose(1, 2).reshape({tokens, heads * head_size}), o_weight);
      const at::Tensor gate_up = at::linear(Normalized(x, norm), gate_up_weight);
      const std::vector<at::Tensor> wide =
          gate_up.split_with_sizes({config_.intermediate, config_.intermediate}, 1);
      x = x + at::linear(at::silu(wide[0]) * wide[1], down_weight);
    }
    x = Normalized(x, Scaled(leaves[k++]));
    const at::Tensor logits = at::linear(x, config_.tied ? embedding : Scaled(leaves[k++]));
    const at::Tensor targets = TokenTensor(batch.targets, device);
    if (of == Of::kBatch) return at::cross_entropy_loss(logits, targets);
    return at::cross_entropy_loss(logits, targets, {}, at::Reduction::None)
        .view({rows, length})
        .mean(1);
  }

 private:
  at::Tensor Scaled(const at::Tensor& leaf) const {
    return config_.parameter_divisor == 1.0f ? leaf : leaf * (1.0f / config_.parameter_divisor);
  }

  at::Tensor Normalized(const at::Tensor& x, const at::Tensor& weight) const {
    return at::rms_norm(x, {static_cast<int64_t>(config_.hidden)}, weight, config_.norm_epsilon);
  }

  // q·cos + rotate_half(q)·sin over the last dimension; x is [rows, length, heads, head_size].
  at::Tensor Rotated(const at::Tensor& x) const {
    const int64_t half = config_.head_size / 2;
    const std::vector<at::Tensor> halves = x.split_with_sizes({half, half}, 3);
    const at::Tensor &low = halves[0], &high = halves[1];
    const at::Tensor cos = cos_.narrow(1, 0, x.size(1)), sin = sin_.narrow(1, 0, x.size(1));
    return at::cat({low * cos - high * sin, high * cos + low * sin}, 3);
  }

  void PrepareRotary(int64_t length, at::Device device) {
    if (cos_.defined() && cos_.size(1) >= length && cos_.device() == device) return;
    const int64_t half = config_.head_size / 2;
    at::Tensor cos = at::empty({1, length, 1, half}), sin = at::empty({1, length, 1, half});
    for (int64_t position = 0; position < length; ++position) {
      for (int64_t i = 0; i < half; ++i) {
        const double frequency =
            std::pow(config_.rope_theta, -2.0 * static_cast<double>(i) / config_.head_size);
        const double angle = static_cast<double>(position) * frequency;
        cos.data_ptr<float>()[position * half + i] = static_cast<float>(std::cos(angle));
        sin.data_ptr<float>()[position * half + i] = static_cast<float>(std::sin(angle));
      }
    }
    cos_ = cos.to(device);
    sin_ = sin.to(device);
  }

  static at::Tensor TokenTensor(std::span<const int64_t> tokens, at::Device device) {
    // from_blob wants a mutable pointer; nothing writes through it.
    return at::from_blob(const_cast<int64_t*>(tokens.data()), {static_cast<int64_t>(tokens.size())},
                         at::TensorOptions().dtype(at::kLong))
        .to(device);
  }

  const ModelConfig config_;
  std::vector<LeafSpec> leaves_;
  at::Tensor cos_, sin_;  // [1, length, 1, head_size / 2], of the longest length so far
};

}  // namespace

std::unique_ptr<TorchNetwork> MakeLlamaNetwork(const ModelConfig& config, const Layout& layout) {
  return std::make_unique<LlamaNetwork>(config, layout);
}

}  // namespace signvote
