#include "worker/models/update_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "common/bits.h"
#include "common/coin.h"
#include "common/status.h"
#include "worker/direction/checks.h"
#include "worker/models/torch_guard.h"

namespace signvote {
namespace {

// Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": the quintic that
// takes singular values to between 0.7 and 1.2 in five steps.
constexpr int kSteps = 5;
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
constexpr double kNormFloor = 1e-7;
constexpr double kLargestBf16 = 0x1.FEp127;
constexpr double kLargestFloat = std::numeric_limits<float>::max();

at::Tensor Orthogonalised(const at::Tensor& matrix) {
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;
  // Of a length that fp32 cannot have the squares would be infinite, or nothing.
  const at::Tensor largest = x.abs().max();
  x = x / at::where(largest.eq(0), at::ones_like(largest), largest);
  x = x / (x.norm() + kNormFloor);
  for (int step = 0; step < kSteps; ++step) {
    const at::Tensor square = at::mm(x, x.t());
    x = at::addmm(kA * x, kB * square + kC * at::mm(square, square), x);
  }
  return tall ? x.t() : x;
}

// One plane of state and u, tensor by tensor; what they become is the derived class's.
class UpdateSource : public BallotSource {
 public:
  UpdateSource(const Layout* layout, const DirectionConfig& config, c10::Device device)
      : layout_(layout),
        config_(config),
        planes_(PlanesOf(config, StatePlane::Holder::kSource)),
        device_(device) {
    const auto d = static_cast<int64_t>(layout->coordinates());
    const at::TensorOptions fp32 = at::TensorOptions().dtype(at::kFloat).device(device);
    state_ = at::zeros({d}, planes_[0].element_bytes == 2 ? fp32.dtype(at::kBFloat16) : fp32);
    u_ = at::zeros({d}, fp32);
    pointers_ = PointersInto<const float>(*layout, u_.data_ptr<float>());
    made_.assign(layout->tensors().size(), false);
  }

  uint32_t Gradients(const RoundTicket&) const override { return 1; }
  absl::Status Begin(const RoundTicket& ticket) override {
    SIGNVOTE_RETURN_IF_ERROR(GradientSource().Begin(ticket));
    std::fill(made_.begin(), made_.end(), false);
    clip_ = 1.0f;
    return absl::OkStatus();
  }
  absl::Status MakeChunk(uint64_t first, uint64_t count, ConstTensorPointers g) override {
    return Guarded("what is signed", [&] {
      const c10::NoGradGuard no_grad;
      ForEachTensorRange(*layout_, first, count, [&](const TensorRange& range) {
        if (made_[range.tensor]) return;
        made_[range.tensor] = true;
        MakeTensor(range.tensor, g[range.tensor]);
      });
      if (std::find(made_.begin(), made_.end(), false) == made_.end()) AllAreMade();
    });
  }
  ConstTensorPointers u() const override { return pointers_; }
  absl::Status Reset() override {
    return Guarded("the direction's state", [&] { state_.zero_(); });
  }
  bool needs_whole_tensors() const override { return true; }
  bool clips() const override { return true; }
  void SetClip(float factor) override { clip_ = factor; }

  std::span<const StatePlane> planes() const override { return planes_; }
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
    return Guarded("the direction's state",
                   [&] { HostView(bytes.data(), bytes.size()).copy_(Part(first, bytes.size())); });
  }
  absl::Status RestoreState(size_t plane, uint64_t first,
                            std::span<const std::byte> bytes) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes_, plane, first, bytes.size()));
    return Guarded("the direction's state", [&] {
      // from_blob takes no memory that is constant; it is read.
      Part(first, bytes.size()).copy_(HostView(const_cast<std::byte*>(bytes.data()), bytes.size()));
    });
  }

 protected:
  // What becomes of tensor k's state and u; x is its clipped gradient in fp32.
  virtual void Update(size_t k, const at::Tensor& x, const at::Tensor& moves, at::Tensor state,
                      at::Tensor u) = 0;

  virtual void AllAreMade() {}

  // Tensor k's part of a plane.
  at::Tensor TensorOf(const at::Tensor& plane, size_t k) const {
    const TensorSpec& tensor = layout_->tensors()[k];
    return plane.narrow(0, static_cast<int64_t>(tensor.first), static_cast<int64_t>(tensor.count));
  }
  at::Tensor StateOf(size_t k) const { return TensorOf(state_, k); }
  at::Tensor SignedOf(size_t k) const { return TensorOf(u_, k); }

  const Layout* const layout_;
  const DirectionConfig config_;

 private:
  void MakeTensor(size_t k, const float* g) {
    const TensorSpec& tensor = layout_->tensors()[k];
    const auto count = static_cast<int64_t>(tensor.count);
    at::Tensor u = SignedOf(k);
    if (g == nullptr) {
      u.zero_();
      return;
    }
    const at::Tensor raw = at::from_blob(const_cast<float*>(g), {count}, u.options());
    at::Tensor moves = raw.isfinite();
    // A coin of error feedback moves the replica too, and is made good like every bit.
    if (tensor.treatment == TensorTreatment::kSparse && !config_.error_feedback)
      moves = moves.logical_and(raw.ne(0));
    const at::Tensor x = at::where(moves, raw * clip_, at::zeros_like(raw));
    Update(k, x, moves, StateOf(k), u);
    u.masked_fill_(moves.logical_not(), 0);
  }
  at::Tensor Part(uint64_t first, size_t bytes) const {
    return state_.narrow(0, static_cast<int64_t>(first),
                         static_cast<int64_t>(bytes / planes_[0].element_bytes));
  }
  at::Tensor HostView(std::byte* memory, size_t bytes) const {
    return at::from_blob(memory, {static_cast<int64_t>(bytes / planes_[0].element_bytes)},
                         state_.options().device(at::kCPU));
  }

  const std::vector<StatePlane> planes_;
  const c10::Device device_;
  at::Tensor state_, u_;  // [d]
  std::vector<const float*> pointers_;
  std::vector<bool> made_;  // by tensor, in this ballot
  float clip_ = 1.0f;
};

class MuonSource : public UpdateSource {
 public:
  using UpdateSource::UpdateSource;

 private:
  void Update(size_t k, const at::Tensor& x, const at::Tensor& moves, at::Tensor state,
              at::Tensor u) override {
    const double beta = config_.beta;
    const at::Tensor m = state.to(at::kFloat);
    // u first: an m that is fp32 already is the state itself.
    u.copy_(beta * beta * m + (1 - beta * beta) * x);
    // Rounded to bfloat16 what is near the end of fp32 would be infinite.
    const double largest = state.scalar_type() == at::kBFloat16 ? kLargestBf16 : kLargestFloat;
    state.copy_(at::where(moves, beta * m + (1 - beta) * x, m).clamp(-largest, largest));
    const TensorSpec& tensor = layout_->tensors()[k];
    if (tensor.shape.size() < 2 || tensor.treatment != TensorTreatment::kUsual || tensor.dense)
      return;
    const at::Tensor matrix = u.view({static_cast<int64_t>(tensor.shape[0]), -1});
    matrix.copy_(Orthogonalised(matrix));
  }
};

class FeedbackSource : public UpdateSource {
 public:
  FeedbackSource(const Layout* layout, const DirectionConfig& config, uint64_t seed,
                 c10::Device device)
      : UpdateSource(layout, config, device),
        seed_(seed),
        scales_on_device_(at::zeros({static_cast<int64_t>(layout->tensors().size())},
                                    at::TensorOptions().dtype(at::kFloat).device(device))) {}

  absl::Status Begin(const RoundTicket& ticket) override {
    scales_.clear();
    round_ = ticket.round;
    share_ = ticket.share;
    if (round_ == Round(0)) stepsize_ = 0.0f;  // no step has been taken
    has_gradient_.assign(layout_->tensors().size(), false);
    SIGNVOTE_RETURN_IF_ERROR(Guarded("error feedback", [&] { scales_on_device_.zero_(); }));
    return UpdateSource::Begin(ticket);
  }
  bool CanVote() const override { return !std::isnan(stepsize_); }
  void SetStepsize(float stepsize) override { stepsize_ = stepsize; }
  absl::Status Missed() override {
    stepsize_ = kUnknown;
    return Reset();
  }
  absl::Status Settle(BallotFate fate) override {
    if (fate == BallotFate::kWithdrawn) return absl::OkStatus();
    return Guarded("error feedback", [&] {
      const c10::NoGradGuard no_grad;
      for (size_t k = 0; k < has_gradient_.size(); ++k) {
        if (!has_gradient_[k]) continue;
        at::Tensor left = SignedOf(k);
        if (fate == BallotFate::kApplied)
          left = left - scales_on_device_[static_cast<int64_t>(k)] * BitsOf(k, left);
        StateOf(k).copy_(config_.feedback_keep * left);
      }
    });
  }
  std::span<const float> displacement_mean() const override { return scales_; }

  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override {
    if (plane != kStepsizePlane) return UpdateSource::SaveState(plane, first, bytes);
    SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes(), plane, first, bytes.size()));
    std::memcpy(bytes.data(), &stepsize_, bytes.size());
    return absl::OkStatus();
  }
  absl::Status RestoreState(size_t plane, uint64_t first,
                            std::span<const std::byte> bytes) override {
    if (plane != kStepsizePlane) return UpdateSource::RestoreState(plane, first, bytes);
    SIGNVOTE_RETURN_IF_ERROR(CheckStateRange(*layout_, planes(), plane, first, bytes.size()));
    std::memcpy(&stepsize_, bytes.data(), bytes.size());
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kStepsizePlane = 1;
  static constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

  void Update(size_t k, const at::Tensor& x, const at::Tensor& moves, at::Tensor state,
              at::Tensor u) override {
    has_gradient_[k] = true;
    u.copy_((CanVote() ? stepsize_ : 0.0f) * x + state);
    u.masked_fill_(moves.logical_not(), 0);
    scales_on_device_[static_cast<int64_t>(k)].copy_(u.abs().sum(at::kDouble) /
                                                     static_cast<double>(u.numel()));
  }
  // ±1 as the ballot has them.
  at::Tensor BitsOf(size_t k, const at::Tensor& u) const {
    at::Tensor bits = u.sign();
    const at::Tensor zeros = u.eq(0);
    if (!zeros.any().item<bool>()) return bits;
    const uint64_t first = layout_->tensors()[k].first;
    std::vector<float> coins(static_cast<size_t>(u.numel()));
    for (size_t i = 0; i < coins.size(); ++i) {
      const uint64_t at = first + i;
      const uint64_t word = OwnCoinWord(seed_, round_, share_, at / kBitsPerWord);
      coins[i] = (word >> (at % kBitsPerWord) & 1u) != 0 ? 1.0f : -1.0f;
    }
    const at::Tensor on_host =
        at::from_blob(coins.data(), {u.numel()}, u.options().device(at::kCPU));
    return at::where(zeros, on_host.to(u.device()), bits);
  }
  void AllAreMade() override {
    const at::Tensor host = scales_on_device_.to(at::kCPU).contiguous();
    scales_.assign(host.data_ptr<float>(), host.data_ptr<float>() + host.numel());
  }

  const uint64_t seed_;
  Round round_;
  Share share_;
  float stepsize_ = kUnknown;
  std::vector<bool> has_gradient_;  // by tensor, in this ballot
  at::Tensor scales_on_device_;     // [tensors]
  std::vector<float> scales_;       // the same, once all of this ballot are known
};

}  // namespace

absl::StatusOr<std::unique_ptr<BallotSource>> MakeUpdateSource(const Layout* layout,
                                                               const DirectionConfig& config,
                                                               uint64_t seed, c10::Device device) {
  std::unique_ptr<BallotSource> source;
  const absl::Status status = Guarded("the direction's state", [&] {
    if (config.error_feedback) {
      source = std::make_unique<FeedbackSource>(layout, config, seed, device);
    } else if (config.kind == DirectionKind::kMuon) {
      source = std::make_unique<MuonSource>(layout, config, device);
    }
  });
  if (!status.ok()) return status;
  return source;
}

}  // namespace signvote
