// A plain multilayer perceptron with ReLU and a cross-entropy head: small enough for seconds-long
// experiments.

#include <ATen/ATen.h>

#include "common/check.h"
#include "worker/models/torch_network.h"

namespace signvote {
namespace {

class MlpNetwork : public TorchNetwork {
 public:
  MlpNetwork(const ModelConfig& config, const Layout& layout) : config_(config) {
    for (const TensorSpec& tensor : layout.tensors()) {
      leaves_.push_back({tensor.first, tensor.count, {tensor.shape.begin(), tensor.shape.end()}});
    }
  }

  const std::vector<LeafSpec>& leaves() const override { return leaves_; }

  at::Tensor Loss(const std::vector<at::Tensor>& leaves, const BatchView& batch, at::Device device,
                  Of of) override {
    SIGNVOTE_CHECK(batch.values.size() == batch.rows * config_.features &&
                   batch.targets.size() == batch.rows);
    const int64_t rows = static_cast<int64_t>(batch.rows);
    // from_blob wants mutable pointers; nothing writes through them.
    at::Tensor x =
        at::from_blob(const_cast<float*>(batch.values.data()), {rows, int64_t{config_.features}},
                      at::TensorOptions().dtype(at::kFloat))
            .to(device);
    const at::Tensor targets = at::from_blob(const_cast<int64_t*>(batch.targets.data()), {rows},
                                             at::TensorOptions().dtype(at::kLong))
                                   .to(device);
    for (uint32_t k = 0; k <= config_.layers; ++k) {
      x = at::linear(x, Scaled(leaves[2 * k]), Scaled(leaves[2 * k + 1]));
      if (k < config_.layers) x = at::relu(x);
    }
    return at::cross_entropy_loss(x, targets, {},
                                  of == Of::kBatch ? at::Reduction::Mean : at::Reduction::None);
  }

 private:
  at::Tensor Scaled(const at::Tensor& leaf) const {
    return config_.parameter_divisor == 1.0f ? leaf : leaf * (1.0f / config_.parameter_divisor);
  }

  const ModelConfig config_;
  std::vector<LeafSpec> leaves_;
};

}  // namespace

std::unique_ptr<TorchNetwork> MakeMlpNetwork(const ModelConfig& config, const Layout& layout) {
  return std::make_unique<MlpNetwork>(config, layout);
}

}  // namespace signvote
