// The model interface over LibTorch: flat buffers, autograd leaves that are views into them, hooks,
// devices.

#include <dlfcn.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "worker/direction/worker_device.h"
#include "worker/models/torch_guard.h"
#include "worker/models/torch_network.h"
#include "worker/models/update_source.h"

namespace signvote {
namespace {

// Calls back when autograd has added the last contribution to one leaf's gradient.
class LeafHook : public torch::autograd::PostAccumulateGradHook {
 public:
  using Callback = std::function<void(size_t leaf)>;
  LeafHook(const Callback* callback, size_t leaf) : callback_(callback), leaf_(leaf) {}
  void operator()(const torch::autograd::Variable&) override {
    if (*callback_) (*callback_)(leaf_);
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}

 private:
  const Callback* const callback_;
  const size_t leaf_;
};

absl::StatusOr<at::Device> OpenDevice(const std::string& word) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<int> ordinal, ParseDevice(word));
  if (!ordinal.has_value()) return at::Device(at::kCPU);
  const int64_t index = *ordinal;
  const auto none = [index](const std::string& why) { return NoCudaDevice(index, why); };
  // Loading the library registers the back end; it stays loaded for the life of the process.
  if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* why = ::dlerror();
    return none(why == nullptr ? "libtorch_cuda.so could not be loaded" : why);
  }
  const int64_t count =
      c10::impl::hasDeviceGuardImpl(c10::kCUDA)
          ? static_cast<int64_t>(c10::impl::getDeviceGuardImpl(c10::kCUDA)->deviceCount())
          : 0;
  if (index >= count)
    return none(count == 0 ? "no driver or no GPU was found" : absl::StrCat("there are ", count));
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

class TorchModel : public Model {
 public:
  TorchModel(const ModelConfig& config, Layout layout, at::Device device)
      : config_(config), layout_(std::move(layout)), device_(device) {
    network_ = MakeNetwork();
    uint64_t next = 0;
    for (const LeafSpec& leaf : network_->leaves()) {
      SIGNVOTE_CHECK(leaf.first == next);
      next += leaf.count;
    }
    SIGNVOTE_CHECK(next == layout_.coordinates());
  }

  void Allocate(ReplicaSlot which) {
    Slot& slot = SlotOf(which);
    const int64_t d = static_cast<int64_t>(layout_.coordinates());
    const bool differentiated = which != ReplicaSlot::kSnapshot;
    // One buffer each, whose views are the leaves: neighbouring tensors of one leaf are one matrix.
    slot.x = at::zeros({d}, at::TensorOptions().dtype(at::kFloat).device(device_));
    if (differentiated) slot.g = at::zeros_like(slot.x);
    for (size_t k = 0; k < network_->leaves().size(); ++k) {
      const LeafSpec& spec = network_->leaves()[k];
      const auto view = [&](const at::Tensor& flat) {
        return flat.narrow(0, static_cast<int64_t>(spec.first), static_cast<int64_t>(spec.count))
            .view(spec.shape)
            .detach();
      };
      at::Tensor leaf = view(slot.x);
      if (differentiated) {
        leaf.requires_grad_(true);
        leaf.mutable_grad() = view(slot.g);
        torch::autograd::impl::set_post_acc_grad_hooks(
            leaf, std::make_unique<LeafHook>(&slot.on_leaf, k));
      }
      slot.leaves.push_back(std::move(leaf));
    }
    slot.parameters = PointersInto(layout_, slot.x.data_ptr<float>());
    if (differentiated)
      slot.gradient = PointersInto<const float>(layout_, slot.g.data_ptr<float>());
  }

  void Initialize(uint64_t seed) {
    const c10::NoGradGuard no_grad;
    at::Tensor start = at::zeros_like(current_.x, at::TensorOptions().device(at::kCPU));
    InitializeParameters(config_, layout_, seed, SpanOf(start));
    current_.x.copy_(start);
  }

  const Layout& layout() const override { return layout_; }
  const ModelConfig& config() const override { return config_; }
  std::string device() const override { return device_.str(); }
  void* current_stream() const override {
    if (device_.is_cpu()) return nullptr;
    return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_).native_handle();
  }
  TensorPointers parameters() override { return current_.parameters; }
  ConstTensorPointers gradient() const override { return current_.gradient; }
  ConstTensorPointers previous_parameters() const override { return previous_.parameters; }
  ConstTensorPointers previous_gradient() const override { return previous_.gradient; }

  absl::Status Keep(ReplicaSlot which) override {
    SIGNVOTE_CHECK(which != ReplicaSlot::kCurrent);
    return Guarded("copy of the replica", [&] {
      Slot& slot = SlotOf(which);
      if (!slot.x.defined()) Allocate(which);
      const c10::NoGradGuard no_grad;
      slot.x.copy_(current_.x, /*non_blocking=*/true);
    });
  }

  absl::Status KeepGradient() override {
    return Guarded("copy of the gradient", [&] {
      const c10::NoGradGuard no_grad;
      if (!kept_g_.defined()) {
        kept_g_ = at::empty_like(current_.g);
        kept_gradient_ = PointersInto<const float>(
            layout_, static_cast<const float*>(kept_g_.data_ptr<float>()));
      }
      kept_g_.copy_(current_.g, /*non_blocking=*/true);
    });
  }
  ConstTensorPointers kept_gradient() const override { return kept_gradient_; }

  absl::Status PutBack(Kept what, std::span<const float> values) override {
    const bool gradient = what == Kept::kGradient;
    at::Tensor& into = gradient ? kept_g_ : previous_.x;
    SIGNVOTE_CHECK(into.defined() && values.size() == layout_.coordinates());
    return Guarded("a copy that comes back", [&] {
      const c10::NoGradGuard no_grad;
      // from_blob takes no memory that is constant; it is read.
      into.copy_(at::from_blob(const_cast<float*>(values.data()), {into.numel()},
                               at::TensorOptions().dtype(at::kFloat)));
    });
  }

  absl::Status BeginStep(ReplicaSlot which) override {
    Slot& slot = SlotOf(which);
    SIGNVOTE_CHECK(slot.g.defined());
    return Guarded("begin step", [&] {
      const c10::NoGradGuard no_grad;
      slot.g.zero_();
    });
  }

  absl::StatusOr<double> Forward(ReplicaSlot which, const BatchView& batch) override {
    Slot& slot = SlotOf(which);
    SIGNVOTE_CHECK(slot.g.defined());
    double value = 0;
    const absl::Status status = Guarded("forward pass", [&] {
      loss_ = network_->Loss(slot.leaves, batch, device_, TorchNetwork::Of::kBatch);
      loss_slot_ = which;
      value = loss_.item<double>();
    });
    if (!status.ok()) return status;
    return value;
  }

  absl::Status Backward(float weight, const GradientReady& ready) override {
    SIGNVOTE_CHECK(loss_.defined());
    Slot& slot = SlotOf(loss_slot_);
    if (ready) {
      slot.on_leaf = [&](size_t k) {
        const LeafSpec& leaf = network_->leaves()[k];
        ready(leaf.first, leaf.count);
      };
    }
    const absl::Status status = Guarded("backward pass", [&] {
      torch::autograd::backward({loss_}, {at::full_like(loss_, weight)});
      if (device_.is_cpu()) return;
      if (!backward_end_) backward_end_.emplace(device_.type());
      backward_end_->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
    });
    slot.on_leaf = nullptr;
    loss_ = at::Tensor();  // frees the graph
    return status;
  }

  absl::StatusOr<bool> BackwardRunning() override {
    bool running = false;
    const absl::Status status = Guarded(
        "backward pass", [&] { running = backward_end_.has_value() && !backward_end_->query(); });
    if (!status.ok()) return status;
    return running;
  }

  absl::StatusOr<std::unique_ptr<BallotSource>> MakeSource(const Layout* layout,
                                                           const DirectionConfig& config,
                                                           uint64_t seed) override {
    return MakeUpdateSource(layout, config, seed, device_);
  }

  absl::StatusOr<std::vector<double>> Evaluate(ReplicaSlot which, const BatchView& batch) override {
    const Slot& slot = SlotOf(which);
    SIGNVOTE_CHECK(slot.x.defined());
    std::vector<double> losses;
    const absl::Status status = Guarded("evaluation", [&] {
      const c10::NoGradGuard no_grad;
      const at::Tensor rows = network_->Loss(slot.leaves, batch, device_, TorchNetwork::Of::kRows)
                                  .to(at::kCPU, at::kDouble)
                                  .contiguous();
      const double* const first = rows.data_ptr<double>();
      losses.assign(first, first + rows.numel());
    });
    if (!status.ok()) return status;
    return losses;
  }

 private:
  struct Slot {
    at::Tensor x, g;                     // [d] on the device; the snapshot has no g
    std::vector<at::Tensor> leaves;      // views into x, their .grad views into g
    std::vector<float*> parameters;      // by tensor, into x
    std::vector<const float*> gradient;  // likewise, into g
    LeafHook::Callback on_leaf;          // what the leaves' hooks call; its address is constant
  };

  std::unique_ptr<TorchNetwork> MakeNetwork() const {
    switch (config_.kind) {
      case ModelKind::kLlama:
        return MakeLlamaNetwork(config_, layout_);
      case ModelKind::kMlp:
        return MakeMlpNetwork(config_, layout_);
      case ModelKind::kCnn:
        return MakeCnnNetwork(config_, layout_);
      case ModelKind::kVit:
        return MakeVitNetwork(config_, layout_);
    }
    SIGNVOTE_CHECK(false);
  }

  Slot& SlotOf(ReplicaSlot slot) {
    switch (slot) {
      case ReplicaSlot::kCurrent:
        return current_;
      case ReplicaSlot::kPrevious:
        return previous_;
      case ReplicaSlot::kSnapshot:
        break;
    }
    return snapshot_;
  }

  static std::span<float> SpanOf(const at::Tensor& flat) {
    if (!flat.defined()) return {};
    return {flat.data_ptr<float>(), static_cast<size_t>(flat.numel())};
  }

  const ModelConfig config_;
  const Layout layout_;
  const at::Device device_;
  std::unique_ptr<TorchNetwork> network_;
  Slot current_, previous_, snapshot_;
  at::Tensor kept_g_;  // [d], undefined before KeepGradient()
  std::vector<const float*> kept_gradient_;
  at::Tensor loss_;  // with its graph, between Forward and Backward
  ReplicaSlot loss_slot_ = ReplicaSlot::kCurrent;
  std::optional<c10::Event> backward_end_;  // CUDA: behind the last Backward
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeTorchModel(const ModelConfig& config,
                                                      const ModelOptions& options) {
  SIGNVOTE_CHECK(options.threads > 0);
  absl::StatusOr<Layout> layout = MakeLayout(config);
  if (!layout.ok()) return layout.status();
  const absl::StatusOr<at::Device> device = OpenDevice(options.device);
  if (!device.ok()) return device.status();
  std::unique_ptr<TorchModel> model;
  const absl::Status status = Guarded("model", [&] {
    at::set_num_threads(static_cast<int>(options.threads));
    model = std::make_unique<TorchModel>(config, *std::move(layout), *device);
    model->Allocate(ReplicaSlot::kCurrent);
    model->Initialize(options.init_seed);
  });
  if (!status.ok()) return status;
  return std::unique_ptr<Model>(std::move(model));
}

absl::StatusOr<std::unique_ptr<BallotSource>> MakeTorchSource(const Layout* layout,
                                                              const DirectionConfig& config,
                                                              uint64_t seed) {
  const absl::Status status = Guarded("threads", [] { at::set_num_threads(1); });
  if (!status.ok()) return status;
  return MakeUpdateSource(layout, config, seed, at::Device(at::kCPU));
}

}  // namespace signvote
