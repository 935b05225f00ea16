#include "lab/tasks/plain_mlp.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

// Columns of a product that are summed at a time, in registers.
constexpr size_t kBlock = 16;

constexpr size_t Padded(size_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// Element (row, column) of a matrix lies at values[row·down + column·right].
struct View {
  const float* values;
  size_t down, right;
};

// out[m, n] = Σ_k a[m, k]·b[k, n], k ascending, from `start`[m] where that is given. b's and out's rows
// are `stride` long, a multiple of kBlock, of which all are computed: what lies behind the last column is
// whatever b has there.
void Multiply(size_t rows, size_t inner, size_t stride, const View& a, const float* b,
              const float* start, float* out) {
  for (size_t m = 0; m < rows; ++m) {
    for (size_t n = 0; n < stride; n += kBlock) {
      float sum[kBlock];
      std::fill_n(sum, kBlock, start == nullptr ? 0.0f : start[m]);
      for (size_t k = 0; k < inner; ++k) {
        const float factor = a.values[m * a.down + k * a.right];
        const float* const row = b + k * stride + n;
        for (size_t i = 0; i < kBlock; ++i) sum[i] += factor * row[i];
      }
      std::copy_n(sum, kBlock, out + m * stride + n);
    }
  }
}

// from [rows, columns], its rows `from_stride` apart, into to [columns, rows] likewise.
void Transpose(const float* from, size_t rows, size_t columns, size_t from_stride, float* to,
               size_t to_stride) {
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

class PlainMlp final : public Model {
 public:
  PlainMlp(const ModelConfig& config, Layout layout, uint64_t init_seed, SourceMaker sources)
      : config_(config),
        layout_(std::move(layout)),
        layers_(config.layers + 1),
        sources_(std::move(sources)) {
    Allocate(&current_, /*differentiated=*/true);
    InitializeParameters(config_, layout_, init_seed, current_.x);
  }

  const Layout& layout() const override { return layout_; }
  const ModelConfig& config() const override { return config_; }
  std::string device() const override { return "cpu"; }
  void* current_stream() const override { return nullptr; }
  TensorPointers parameters() override { return current_.parameters; }
  ConstTensorPointers gradient() const override { return current_.gradient; }
  ConstTensorPointers previous_parameters() const override { return previous_.const_parameters; }
  ConstTensorPointers previous_gradient() const override { return previous_.gradient; }

  absl::Status Keep(ReplicaSlot which) override {
    SIGNVOTE_CHECK(which != ReplicaSlot::kCurrent);
    Slot& slot = SlotOf(which);
    if (slot.x.empty()) Allocate(&slot, which == ReplicaSlot::kPrevious);
    slot.x = current_.x;
    return absl::OkStatus();
  }

  absl::Status KeepGradient() override {
    kept_.g = current_.g;
    kept_.gradient = PointersInto(layout_, std::as_const(kept_.g).data());
    return absl::OkStatus();
  }
  ConstTensorPointers kept_gradient() const override { return kept_.gradient; }

  absl::StatusOr<std::unique_ptr<BallotSource>> MakeSource(const Layout* layout,
                                                           const DirectionConfig& config,
                                                           uint64_t seed) override {
    if (!sources_) return nullptr;
    return sources_(layout, config, seed);
  }

  absl::Status BeginStep(ReplicaSlot which) override {
    Slot& slot = SlotOf(which);
    SIGNVOTE_CHECK(!slot.g.empty());
    std::fill(slot.g.begin(), slot.g.end(), 0.0f);
    return absl::OkStatus();
  }

  absl::StatusOr<double> Forward(ReplicaSlot which, const BatchView& batch) override {
    SIGNVOTE_CHECK(!SlotOf(which).g.empty());
    forward_slot_ = which;
    ComputeLogits(SlotOf(which), batch);
    double sum = 0;
    for (uint64_t row = 0; row < batch.rows; ++row) sum += LossOf(row, batch.targets[row]);
    // What flows back is that of the mean over the rows.
    SoftmaxMinusTargets(batch);
    return sum / static_cast<double>(batch.rows);
  }

  absl::Status Backward(float weight, const GradientReady& ready) override {
    Slot& slot = SlotOf(forward_slot_);
    SIGNVOTE_CHECK(rows_ > 0);
    for (size_t k = layers_; k-- > 0;) {
      const TensorSpec& w = layout_.tensors()[2 * k];
      const TensorSpec& b = layout_.tensors()[2 * k + 1];
      const size_t out = w.shape[0], in = w.shape[1], stride = Padded(in);
      // ∂w[o, i] = Σ_r δ[o, r]·a[r, i].
      std::vector<float>& a_rows = by_row_[k];
      product_.resize(out * stride);
      Multiply(out, rows_, stride, {delta_.data(), row_stride_, 1}, a_rows.data(), nullptr,
               product_.data());
      for (size_t o = 0; o < out; ++o) {
        float* const g = slot.g.data() + w.first + o * in;
        for (size_t i = 0; i < in; ++i) g[i] += weight * product_[o * stride + i];
      }
      for (size_t o = 0; o < out; ++o) {
        float sum = 0;
        for (size_t r = 0; r < rows_; ++r) sum += delta_[o * row_stride_ + r];
        slot.g[b.first + o] += weight * sum;
      }
      if (ready) ready(w.first, w.count + b.count);
      if (k == 0) break;
      // δ of the layer before: Σ_o w[o, i]·δ[o, r], where its output was positive.
      next_delta_.resize(in * row_stride_);
      Multiply(in, out, row_stride_, {slot.x.data() + w.first, 1, in}, delta_.data(), nullptr,
               next_delta_.data());
      const std::vector<float>& a = by_feature_[k];
      for (size_t i = 0; i < in * row_stride_; ++i)
        if (!(a[i] > 0.0f)) next_delta_[i] = 0.0f;
      delta_.swap(next_delta_);
    }
    rows_ = 0;
    return absl::OkStatus();
  }

  absl::StatusOr<bool> BackwardRunning() override { return false; }

  absl::StatusOr<std::vector<double>> Evaluate(ReplicaSlot which, const BatchView& batch) override {
    SIGNVOTE_CHECK(!SlotOf(which).x.empty());
    ComputeLogits(SlotOf(which), batch);
    std::vector<double> losses;
    for (uint64_t row = 0; row < batch.rows; ++row)
      losses.push_back(LossOf(row, batch.targets[row]));
    rows_ = 0;
    return losses;
  }

 private:
  struct Slot {
    std::vector<float> x, g;  // [d]; the snapshot has no g
    std::vector<float*> parameters;
    std::vector<const float*> const_parameters, gradient;
  };

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

  void Allocate(Slot* slot, bool differentiated) {
    slot->x.resize(layout_.coordinates());
    slot->parameters = PointersInto(layout_, slot->x.data());
    slot->const_parameters = PointersInto(layout_, std::as_const(slot->x).data());
    if (!differentiated) return;
    slot->g.resize(layout_.coordinates());
    slot->gradient = PointersInto(layout_, std::as_const(slot->g).data());
  }

  // Fills by_row_ and by_feature_, whose last entry are the logits.
  void ComputeLogits(const Slot& slot, const BatchView& batch) {
    SIGNVOTE_CHECK(batch.rows > 0 && batch.values.size() == batch.rows * config_.features &&
                   batch.targets.size() == batch.rows);
    rows_ = batch.rows;
    row_stride_ = Padded(rows_);
    by_row_.resize(layers_);
    by_feature_.resize(layers_ + 1);
    size_t in = config_.features;
    by_row_[0].assign(rows_ * Padded(in), 0.0f);
    for (size_t r = 0; r < rows_; ++r)
      std::copy_n(batch.values.data() + r * in, in, by_row_[0].data() + r * Padded(in));
    by_feature_[0].assign(in * row_stride_, 0.0f);
    Transpose(by_row_[0].data(), rows_, in, Padded(in), by_feature_[0].data(), row_stride_);
    for (size_t k = 0; k < layers_; ++k) {
      const TensorSpec& w = layout_.tensors()[2 * k];
      const TensorSpec& b = layout_.tensors()[2 * k + 1];
      const size_t out = w.shape[0];
      std::vector<float>& y = by_feature_[k + 1];
      y.resize(out * row_stride_);
      Multiply(out, in, row_stride_, {slot.x.data() + w.first, in, 1}, by_feature_[k].data(),
               slot.x.data() + b.first, y.data());
      in = out;
      if (k + 1 == layers_) break;
      for (float& value : y) value = value > 0.0f ? value : 0.0f;
      by_row_[k + 1].assign(rows_ * Padded(in), 0.0f);
      Transpose(y.data(), in, rows_, row_stride_, by_row_[k + 1].data(), Padded(in));
    }
  }

  float Logit(size_t c, size_t row) const { return by_feature_[layers_][c * row_stride_ + row]; }

  float LargestLogit(size_t row) const {
    float largest = Logit(0, row);
    for (size_t c = 1; c < config_.classes; ++c) largest = std::max(largest, Logit(c, row));
    return largest;
  }

  double LossOf(size_t row, int64_t target) const {
    const float largest = LargestLogit(row);
    double sum = 0;
    for (size_t c = 0; c < config_.classes; ++c)
      sum += std::exp(static_cast<double>(Logit(c, row) - largest));
    return std::log(sum) - static_cast<double>(Logit(static_cast<size_t>(target), row) - largest);
  }

  void SoftmaxMinusTargets(const BatchView& batch) {
    delta_.assign(config_.classes * row_stride_, 0.0f);
    for (size_t r = 0; r < rows_; ++r) {
      const float largest = LargestLogit(r);
      double sum = 0;
      for (size_t c = 0; c < config_.classes; ++c)
        sum += std::exp(static_cast<double>(Logit(c, r) - largest));
      for (size_t c = 0; c < config_.classes; ++c) {
        const double p = std::exp(static_cast<double>(Logit(c, r) - largest)) / sum;
        const double target = static_cast<size_t>(batch.targets[r]) == c ? 1.0 : 0.0;
        delta_[c * row_stride_ + r] = static_cast<float>((p - target) / static_cast<double>(rows_));
      }
    }
  }

  const ModelConfig config_;
  const Layout layout_;
  const size_t layers_;  // of weights
  const SourceMaker sources_;
  Slot current_, previous_, snapshot_;
  Slot kept_;  // only a gradient

  // Of the last Forward, until its Backward. A layer's input twice: [rows, features] and transposed.
  ReplicaSlot forward_slot_ = ReplicaSlot::kCurrent;
  size_t rows_ = 0, row_stride_ = 0;
  std::vector<std::vector<float>> by_row_, by_feature_;
  std::vector<float> delta_, next_delta_;  // [features, rows]: what flows back
  std::vector<float> product_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakePlainMlp(const ModelConfig& config, uint64_t init_seed,
                                                    SourceMaker sources) {
  if (config.kind != ModelKind::kMlp || config.parameter_divisor != 1.0f) {
    return absl::InvalidArgumentError(
        absl::StrCat("model ", config.name, " is no plain perceptron; choose another task"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, MakeLayout(config));
  return std::unique_ptr<Model>(
      std::make_unique<PlainMlp>(config, std::move(layout), init_seed, std::move(sources)));
}

}  // namespace signvote::lab
