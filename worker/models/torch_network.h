#pragma once
// Internal to worker/models: the seam between the flat buffers (torch_model.cc) and the networks
// (llama.cc, mlp.cc, image.cc). The only header of this project that names LibTorch types.

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>  // tidy: allow(torch) only the .cc files beside it include this header

#include "common/layout.h"
#include "worker/models/config.h"
#include "worker/models/model.h"

namespace signvote {

// One autograd leaf: a contiguous run of coordinates seen as a matrix or vector. Neighbouring
// tensors that read the same input (q, k, v; gate, up) form one leaf, so that they are one matrix
// product.
struct LeafSpec {
  uint64_t first = 0;
  uint64_t count = 0;
  std::vector<int64_t> shape;
};

// A pure function of leaves and batch. Threads: thread-compatible.
class TorchNetwork {
 public:
  virtual ~TorchNetwork() = default;
  // In layout order, without gaps, together the whole layout.
  virtual const std::vector<LeafSpec>& leaves() const = 0;
  // The mean loss, a scalar, or that of each row; with a graph when gradients are on. `leaves` are in
  // the order of leaves().
  enum class Of { kBatch, kRows };
  virtual at::Tensor Loss(const std::vector<at::Tensor>& leaves, const BatchView& batch,
                          at::Device device, Of of) = 0;
};

std::unique_ptr<TorchNetwork> MakeLlamaNetwork(const ModelConfig& config, const Layout& layout);
std::unique_ptr<TorchNetwork> MakeMlpNetwork(const ModelConfig& config, const Layout& layout);
std::unique_ptr<TorchNetwork> MakeCnnNetwork(const ModelConfig& config, const Layout& layout);
std::unique_ptr<TorchNetwork> MakeVitNetwork(const ModelConfig& config, const Layout& layout);

}  // namespace signvote
