#include "lab/tasks/samples.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/coin_mix.h"

namespace signvote::lab {
namespace {

// Whatever the task's seed, a held-out sample is no training sample.
constexpr uint64_t kHeldOutDomain = 0x31646c656862616cull;  // "labheld1"
constexpr uint64_t kTaskDomain = 0x316b73617462616cull;     // "labtask1": teachers, planes, glyphs

class TeacherSource final : public SampleSource {
 public:
  TeacherSource(uint64_t features, uint64_t classes, uint64_t seed)
      : features_(features), classes_(classes), seed_(seed) {
    Rng rng(DomainSeed(kTaskDomain, seed), /*stream=*/1);
    first_.resize(kHidden * features);
    second_.resize(classes * kHidden);
    const double scale = std::sqrt(2.0 / static_cast<double>(features));
    for (float& value : first_) value = static_cast<float>(rng.Bell() * scale);
    for (float& value : second_)
      value = static_cast<float>(rng.Bell() * kSharpness / std::sqrt(double{kHidden}));
  }
  uint64_t features() const override { return features_; }
  uint64_t classes() const override { return classes_; }
  std::string description() const override {
    return absl::StrFormat("teacher: %d classes of %d features, seed %d", classes_, features_,
                           seed_);
  }
  int64_t Draw(Rng* rng, std::span<float> features) const override {
    for (float& value : features) value = static_cast<float>(rng->Bell());
    float hidden[kHidden];
    for (size_t h = 0; h < kHidden; ++h) {
      float sum = 0;
      for (size_t i = 0; i < features_; ++i) sum += first_[h * features_ + i] * features[i];
      hidden[h] = std::max(sum, 0.0f);
    }
    int64_t best = 0;
    float best_logit = 0;
    for (size_t c = 0; c < classes_; ++c) {
      auto logit = static_cast<float>(rng->Bell());
      for (size_t h = 0; h < kHidden; ++h) logit += second_[c * kHidden + h] * hidden[h];
      if (c > 0 && logit <= best_logit) continue;
      best = static_cast<int64_t>(c);
      best_logit = logit;
    }
    return best;
  }

 private:
  static constexpr size_t kHidden = 24;
  static constexpr double kSharpness = 3;  // of the logits, against a noise of deviation 1

  const uint64_t features_, classes_, seed_;
  std::vector<float> first_, second_;  // [hidden, features], [classes, hidden]
};

class PlaneSource final : public SampleSource {
 public:
  PlaneSource(uint64_t features, double condition, uint64_t seed)
      : condition_(condition), seed_(seed) {
    SIGNVOTE_CHECK(features > 1 && condition >= 1);
    Rng rng(DomainSeed(kTaskDomain, seed), /*stream=*/2);
    for (uint64_t i = 0; i < features; ++i) {
      const double place = static_cast<double>(i) / static_cast<double>(features - 1);
      scales_.push_back(static_cast<float>(std::pow(condition, -0.5 * place)));
      // Every feature says as much, however small it is.
      plane_.push_back(
          static_cast<float>(rng.Bell() * 2 / std::sqrt(static_cast<double>(features))));
    }
  }
  uint64_t features() const override { return scales_.size(); }
  uint64_t classes() const override { return 2; }
  std::string description() const override {
    return absl::StrFormat("plane: %d features, condition %g, seed %d", scales_.size(), condition_,
                           seed_);
  }
  int64_t Draw(Rng* rng, std::span<float> features) const override {
    auto side = static_cast<float>(rng->Bell());
    for (size_t i = 0; i < scales_.size(); ++i) {
      const auto unit = static_cast<float>(rng->Bell());
      side += plane_[i] * unit;
      features[i] = scales_[i] * unit;
    }
    return side > 0 ? 1 : 0;
  }

 private:
  const double condition_;
  const uint64_t seed_;
  std::vector<float> scales_, plane_;
};

class GlyphSource final : public SampleSource {
 public:
  GlyphSource(uint64_t side, uint64_t classes, uint64_t seed)
      : side_(side), classes_(classes), seed_(seed) {
    Rng rng(DomainSeed(kTaskDomain, seed), /*stream=*/3);
    for (uint64_t k = 0; k < classes * kStrokes; ++k) {
      Stroke stroke;
      do {
        stroke = {Place(&rng), Place(&rng), Place(&rng), Place(&rng)};
      } while (Square(stroke.x1 - stroke.x0) + Square(stroke.y1 - stroke.y0) < 0.16f);
      strokes_.push_back(stroke);
    }
  }
  uint64_t features() const override { return side_ * side_; }
  uint64_t classes() const override { return classes_; }
  std::string description() const override {
    return absl::StrFormat("glyphs: %d of %d x %d, seed %d", classes_, side_, side_, seed_);
  }
  int64_t Draw(Rng* rng, std::span<float> features) const override {
    const uint64_t label = rng->Below(classes_);
    const float wide = Between(rng, 0.75f, 1.1f), high = Between(rng, 0.75f, 1.1f);
    const float slant = Between(rng, -0.25f, 0.25f);
    const float right = Between(rng, -0.12f, 0.12f), down = Between(rng, -0.12f, 0.12f);
    const float ink = Between(rng, 0.7f, 1.0f);
    Stroke drawn[kStrokes];
    for (size_t k = 0; k < kStrokes; ++k) {
      const Stroke& s = strokes_[label * kStrokes + k];
      const auto move = [&](float x, float y, float* to_x, float* to_y) {
        *to_x = 0.5f + wide * (x - 0.5f) + slant * (y - 0.5f) + right;
        *to_y = 0.5f + high * (y - 0.5f) + down;
      };
      move(s.x0, s.y0, &drawn[k].x0, &drawn[k].y0);
      move(s.x1, s.y1, &drawn[k].x1, &drawn[k].y1);
    }
    const float pen = 1.1f / static_cast<float>(side_);
    for (uint64_t row = 0; row < side_; ++row) {
      for (uint64_t column = 0; column < side_; ++column) {
        const float x = (static_cast<float>(column) + 0.5f) / static_cast<float>(side_);
        const float y = (static_cast<float>(row) + 0.5f) / static_cast<float>(side_);
        float nearest = 1;
        for (const Stroke& stroke : drawn)
          nearest = std::min(nearest, DistanceSquared(stroke, x, y));
        const float grey = std::max(0.0f, 1.0f - nearest / (pen * pen * 2));
        features[row * side_ + column] =
            2 * ink * grey - 0.4f + kNoise * static_cast<float>(rng->Bell());
      }
    }
    // Some are called by another's name, so that no loss reaches zero: where it nearly does, methods
    // differ by their last lucky step.
    const bool mislabelled = rng->Uniform() < kMislabelled;
    return static_cast<int64_t>(mislabelled ? rng->Below(classes_) : label);
  }

 private:
  static constexpr size_t kStrokes = 4;
  static constexpr float kNoise = 0.7f;
  static constexpr double kMislabelled = 0.05;
  // In a square of side 1.
  struct Stroke {
    float x0, y0, x1, y1;
  };

  static float Square(float v) { return v * v; }
  static float Place(Rng* rng) { return 0.15f + 0.7f * static_cast<float>(rng->Uniform()); }
  static float Between(Rng* rng, float low, float high) {
    return low + (high - low) * static_cast<float>(rng->Uniform());
  }
  static float DistanceSquared(const Stroke& s, float x, float y) {
    const float dx = s.x1 - s.x0, dy = s.y1 - s.y0;
    const float along = ((x - s.x0) * dx + (y - s.y0) * dy) / (dx * dx + dy * dy + 1e-9f);
    const float t = std::clamp(along, 0.0f, 1.0f);
    return Square(x - s.x0 - t * dx) + Square(y - s.y0 - t * dy);
  }

  const uint64_t side_, classes_, seed_;
  std::vector<Stroke> strokes_;  // [classes, kStrokes]
};

class SampleDataset final : public Dataset {
 public:
  SampleDataset(std::unique_ptr<SampleSource> source, const SamplesOptions& options)
      : source_(std::move(source)), options_(options) {}

  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    Resize(options_.rows, batch);
    Rng rng(DomainSeed(kDataDomain, key.seed),
            Mix(uint64_t{key.share.value()} + 1, key.data_step.value(), key.micro));
    for (uint64_t row = 0; row < options_.rows; ++row) Draw(&rng, row, batch);
    return absl::OkStatus();
  }
  uint64_t held_out_windows() const override { return options_.held_out; }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    Resize(count, batch);
    for (uint64_t row = 0; row < count; ++row) {
      Rng rng(kHeldOutDomain, first + row);
      Draw(&rng, row, batch);
    }
    return absl::OkStatus();
  }
  absl::Status CheckAll(const std::stop_token&) const override { return absl::OkStatus(); }
  std::string description() const override { return source_->description(); }
  std::string target_unit() const override { return "sample"; }

 private:
  void Resize(uint64_t rows, Batch* batch) const {
    batch->rows = rows;
    batch->length = 0;
    batch->values.resize(rows * source_->features());
    batch->targets.resize(rows);
  }
  void Draw(Rng* rng, uint64_t row, Batch* batch) const {
    const uint64_t features = source_->features();
    batch->targets[row] =
        source_->Draw(rng, std::span(batch->values).subspan(row * features, features));
  }

  const std::unique_ptr<SampleSource> source_;
  const SamplesOptions options_;
};

}  // namespace

std::unique_ptr<SampleSource> MakeTeacherSource(uint64_t features, uint64_t classes,
                                                uint64_t seed) {
  return std::make_unique<TeacherSource>(features, classes, seed);
}

std::unique_ptr<SampleSource> MakePlaneSource(uint64_t features, double condition, uint64_t seed) {
  return std::make_unique<PlaneSource>(features, condition, seed);
}

std::unique_ptr<SampleSource> MakeGlyphSource(uint64_t side, uint64_t classes, uint64_t seed) {
  return std::make_unique<GlyphSource>(side, classes, seed);
}

std::unique_ptr<Dataset> MakeSampleDataset(std::unique_ptr<SampleSource> source,
                                           const SamplesOptions& options) {
  return std::make_unique<SampleDataset>(std::move(source), options);
}

}  // namespace signvote::lab
