#include "tests/golden/whole_run.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <gtest/gtest.h>

#include "absl/status/statusor.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/rng.h"
#include "lab/cell.h"
#include "lab/local/local_server.h"
#include "lab/local/virtual_workers.h"
#include "worker/data/dataset.h"
#include "worker/models/model.h"

namespace signvote {
namespace {

class SeparableQuadratic final : public Function {
 public:
  std::string name() const override { return "quadratic"; }
  std::vector<double> Start() const override { return std::vector<double>(kD, 1.0); }
  double Value(const std::vector<double>& x, std::vector<double>* g) const override {
    g->resize(kD);
    double sum = 0;
    for (size_t i = 0; i < kD; ++i) {
      const double h = std::pow(100.0, static_cast<double>(i) / (kD - 1));
      const double away = x[i] - std::sin(static_cast<double>(3 * i + 1));
      sum += 0.5 * h * away * away;
      (*g)[i] = h * away;
    }
    return sum;
  }

 private:
  static constexpr size_t kD = 24;
};

// The mean over rows of something of ⟨a, x⟩.
class Rows : public Function {
 public:
  std::vector<double> Start() const override { return std::vector<double>(d_, 0.0); }
  double Value(const std::vector<double>& x, std::vector<double>* g) const override {
    g->assign(d_, 0.0);
    double sum = 0;
    for (size_t r = 0; r < rows_; ++r) {
      const double* const a = &a_[r * d_];
      double inner = 0, slope = 0;
      for (size_t i = 0; i < d_; ++i) inner += a[i] * x[i];
      sum += OfRow(inner, y_[r], &slope);
      for (size_t i = 0; i < d_; ++i) (*g)[i] += slope * a[i] / static_cast<double>(rows_);
    }
    double squares = 0;
    for (size_t i = 0; i < d_; ++i) {
      squares += x[i] * x[i];
      (*g)[i] += ridge_ * x[i];
    }
    return sum / static_cast<double>(rows_) + 0.5 * ridge_ * squares;
  }

 protected:
  // The truth is in [−1, 1]; y is what it says of a row, with an error of the given length.
  Rows(size_t rows, size_t d, double error, double ridge, uint64_t stream)
      : rows_(rows), d_(d), ridge_(ridge) {
    Rng rng(0x9A9E, stream);
    std::vector<double> truth(d);
    for (double& w : truth) w = 2 * rng.Uniform() - 1;
    for (size_t r = 0; r < rows; ++r) {
      double y = error * (2 * rng.Uniform() - 1);
      for (size_t i = 0; i < d; ++i) {
        a_.push_back(2 * rng.Uniform() - 1);
        y += truth[i] * a_.back();
      }
      y_.push_back(y);
    }
  }
  // The row's term and its derivative by ⟨a, x⟩.
  virtual double OfRow(double inner, double y, double* slope) const = 0;

 private:
  size_t rows_, d_;
  double ridge_;
  std::vector<double> a_, y_;
};

class LeastSquares final : public Rows {
 public:
  LeastSquares() : Rows(60, 20, /*error=*/1.0, /*ridge=*/0.0, 1) {}
  std::string name() const override { return "least_squares"; }

 private:
  double OfRow(double inner, double y, double* slope) const override {
    *slope = inner - y;
    return 0.5 * (inner - y) * (inner - y);
  }
};

class LogisticLoss final : public Rows {
 public:
  LogisticLoss() : Rows(200, 40, /*error=*/2.0, /*ridge=*/1e-2, 2) {}
  std::string name() const override { return "logistic"; }

 private:
  double OfRow(double inner, double y, double* slope) const override {
    const double sign = y > 0 ? 1.0 : -1.0, margin = sign * inner;
    *slope = -sign / (1.0 + std::exp(margin));
    return margin > 0 ? std::log1p(std::exp(-margin)) : std::log1p(std::exp(margin)) - margin;
  }
};

// The function at fp32 parameters; its gradient rounded to fp32.
class FunctionModel final : public Model {
 public:
  explicit FunctionModel(const Function* f) : f_(f) {
    config_.kind = ModelKind::kMlp;
    config_.name = f->name();
    const std::vector<double> start = f->Start();
    std::vector<TensorSpec> tensors(1);
    tensors[0].name = "x";
    tensors[0].shape = {start.size()};
    layout_ = *Layout::Make(std::move(tensors));
    for (const double v : start) current_.x.push_back(static_cast<float>(v));
    current_.g.resize(start.size());
    current_.Point();
  }

  const Layout& layout() const override { return layout_; }
  const ModelConfig& config() const override { return config_; }
  std::string device() const override { return "cpu"; }
  void* current_stream() const override { return nullptr; }
  TensorPointers parameters() override { return current_.x_of; }
  ConstTensorPointers gradient() const override { return current_.g_of; }
  ConstTensorPointers previous_parameters() const override { return previous_.const_x_of; }
  ConstTensorPointers previous_gradient() const override { return previous_.g_of; }
  ConstTensorPointers kept_gradient() const override { return kept_.g_of; }

  absl::Status Keep(ReplicaSlot which) override {
    SIGNVOTE_CHECK(which != ReplicaSlot::kCurrent);
    Slot& slot = At(which);
    slot.x = current_.x;
    slot.g.resize(slot.x.size());
    slot.Point();
    return absl::OkStatus();
  }
  absl::Status KeepGradient() override {
    kept_.g = current_.g;
    kept_.Point();
    return absl::OkStatus();
  }
  absl::Status BeginStep(ReplicaSlot which) override {
    std::fill(At(which).g.begin(), At(which).g.end(), 0.0f);
    return absl::OkStatus();
  }
  absl::StatusOr<double> Forward(ReplicaSlot which, const BatchView&) override {
    forward_ = which;
    return f_->Value({At(which).x.begin(), At(which).x.end()}, &gradient_);
  }
  absl::Status Backward(float weight, const GradientReady& ready) override {
    std::vector<float>& g = At(forward_).g;
    for (size_t i = 0; i < g.size(); ++i) g[i] += weight * static_cast<float>(gradient_[i]);
    if (ready) ready(0, g.size());
    return absl::OkStatus();
  }
  absl::StatusOr<bool> BackwardRunning() override { return false; }
  absl::StatusOr<std::vector<double>> Evaluate(ReplicaSlot which, const BatchView& batch) override {
    std::vector<double> g;
    return std::vector<double>(batch.rows, f_->Value({At(which).x.begin(), At(which).x.end()}, &g));
  }

 private:
  struct Slot {
    std::vector<float> x, g;
    std::vector<float*> x_of;
    std::vector<const float*> const_x_of, g_of;
    void Point() {
      x_of = {x.data()};
      const_x_of = {x.data()};
      g_of = {g.data()};
    }
  };
  Slot& At(ReplicaSlot which) {
    return which == ReplicaSlot::kCurrent    ? current_
           : which == ReplicaSlot::kPrevious ? previous_
                                             : snapshot_;
  }

  const Function* const f_;
  ModelConfig config_;
  Layout layout_;
  Slot current_, previous_, snapshot_, kept_;
  std::vector<double> gradient_;
  ReplicaSlot forward_ = ReplicaSlot::kCurrent;
};

// One row without content: the function is all the data there is.
class NoData final : public Dataset {
 public:
  absl::Status TrainBatch(const BatchKey&, Batch* batch) const override {
    batch->rows = 1;
    batch->targets = {0};
    return absl::OkStatus();
  }
  uint64_t held_out_windows() const override { return 0; }
  absl::Status HeldOut(uint64_t, uint64_t, Batch*) const override {
    return absl::InvalidArgumentError("a function has nothing held out");
  }
  absl::Status CheckAll(const std::stop_token&) const override { return absl::OkStatus(); }
  std::string description() const override { return "a function"; }
  std::string target_unit() const override { return "sample"; }
};

}  // namespace

std::unique_ptr<Function> MakeSeparableQuadratic() {
  return std::make_unique<SeparableQuadratic>();
}
std::unique_ptr<Function> MakeLeastSquares() { return std::make_unique<LeastSquares>(); }
std::unique_ptr<Function> MakeLogisticLoss() { return std::make_unique<LogisticLoss>(); }

std::vector<std::unique_ptr<Function>> ConvexFunctions() {
  std::vector<std::unique_ptr<Function>> all;
  all.push_back(MakeSeparableQuadratic());
  all.push_back(MakeLeastSquares());
  all.push_back(MakeLogisticLoss());
  return all;
}

WholeRun RunWhole(const Function& f, uint32_t workers, std::vector<std::string> flags) {
  // Deadlines would have nothing to do: nobody is late.
  flags.insert(flags.end(), {"--eval-every", "0", "--digest-every", "0", "--deadline", "off"});
  absl::StatusOr<ServerFlags> read = lab::ReadRunFlags(FileSystem::Posix(), flags, workers);
  EXPECT_TRUE(read.ok()) << read.status();
  WholeRun out;
  if (!read.ok()) return out;
  auto server =
      lab::LocalServer::Create({.run = std::move(read->run), .run_id = RunId::FromRandom(3, 4)});
  EXPECT_TRUE(server.ok()) << server.status();
  if (!server.ok()) return out;
  FunctionModel model(&f);
  const NoData data;
  lab::VirtualWorkers all(server->get(), &model, &data, Clock::System(), {.workers = workers});
  const size_t d = model.layout().coordinates();
  const auto note = [&] {
    const float* const x = model.parameters()[0];
    out.x.emplace_back(x, x + d);
  };
  note();
  all.set_on_round([&](const lab::LocalRound& round) {
    EXPECT_EQ(round.kind, CommitKind::kStep);
    out.gammas.push_back(round.stepsize);
    note();
  });
  const absl::Status ended = all.Run({});
  EXPECT_TRUE(ended.ok()) << ended;
  return out;
}

}  // namespace signvote
