// Muon and error feedback: what is signed, what is kept, against the pages in docs/algorithms.

#include "worker/models/update_source.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/coin.h"
#include "common/rng.h"
#include "common/status.h"
#include "worker/direction/direction.h"

namespace signvote {
namespace {

constexpr DirectionConfig kMuon{.kind = DirectionKind::kMuon, .beta = 0.9};
constexpr DirectionConfig kFeedback{.kind = DirectionKind::kSignSgd, .error_feedback = true};

std::vector<float> Gradient(uint64_t count, uint64_t stream) {
  Rng rng(0xE5, stream);
  std::vector<float> g(count);
  for (float& v : g) v = static_cast<float>(rng.Uniform() - 0.5);
  return g;
}

// A source and the ballots that it makes, whole at a time.
class Made {
 public:
  Made(Layout layout, const DirectionConfig& config, uint64_t seed = 1)
      : layout_(std::move(layout)), seed_(seed) {
    auto source = MakeUpdateSource(&layout_, config, seed, c10::Device(c10::kCPU));
    EXPECT_TRUE(source.ok() && *source != nullptr) << Describe(source.status());
    source_ = *std::move(source);
  }
  BallotSource& operator*() { return *source_; }
  BallotSource* operator->() { return source_.get(); }

  // u of one ballot, which ends as it is said.
  std::vector<float> Make(const std::vector<const float*>& g, float stepsize = 0.1f,
                          float clip = 1.0f, BallotFate fate = BallotFate::kApplied) {
    EXPECT_TRUE(source_->Begin({.round = Round(round_)}).ok());
    source_->SetStepsize(stepsize);
    source_->SetClip(clip);
    // In chunks, the last first, as the voter asks.
    const uint64_t d = layout_.coordinates(), half = d / 2;
    EXPECT_TRUE(source_->MakeChunk(half, d - half, g).ok());
    EXPECT_TRUE(half == 0 || source_->MakeChunk(0, half, g).ok());
    ++round_;
    std::vector<float> u(d);
    for (size_t k = 0; k < layout_.tensors().size(); ++k) {
      const TensorSpec& t = layout_.tensors()[k];
      std::copy_n(source_->u()[k], t.count, u.begin() + static_cast<ptrdiff_t>(t.first));
    }
    EXPECT_TRUE(source_->Settle(fate).ok());
    return u;
  }
  std::vector<float> Make(const std::vector<float>& g, float stepsize = 0.1f, float clip = 1.0f,
                          BallotFate fate = BallotFate::kApplied) {
    return Make(PointersInto<const float>(layout_, g.data()), stepsize, clip, fate);
  }
  // ±1 as the packer signs u of the ballot made last.
  std::vector<double> Signs(const std::vector<float>& u) const {
    std::vector<double> signs(u.size());
    for (size_t i = 0; i < u.size(); ++i) {
      const bool coin =
          (OwnCoinWord(seed_, Round(round_ - 1), Share(0), i / 64) >> (i % 64) & 1u) != 0;
      signs[i] = BallotBit(u[i], coin) ? 1.0 : -1.0;
    }
    return signs;
  }
  std::vector<float> State() {
    std::vector<float> state(layout_.coordinates());
    EXPECT_TRUE(source_->SaveState(0, 0, std::as_writable_bytes(std::span(state))).ok());
    return state;
  }
  const Layout& layout() const { return layout_; }

 private:
  const Layout layout_;
  const uint64_t seed_;
  uint64_t round_ = 0;
  std::unique_ptr<BallotSource> source_;
};

Layout OneVector(uint64_t d) { return *Layout::Make({{.name = "x", .shape = {d}}}); }

TEST(UpdateSourceTest, OtherDirectionsNeedNone) {
  const Layout layout = OneVector(4);
  for (const DirectionKind kind : kDirectionKinds) {
    if (kind == DirectionKind::kMuon) continue;
    const auto source = MakeUpdateSource(&layout, {.kind = kind}, 1, c10::Device(c10::kCPU));
    ASSERT_TRUE(source.ok());
    EXPECT_EQ(*source, nullptr) << DirectionName(kind);
  }
}

// The singular vectors stay and the singular values come near 1: Newton-Schulz steps of these
// coefficients take what is above 0.05 of the largest to between 0.6 and 1.3.
TEST(UpdateSourceTest, MuonOrthogonalisesMatricesWideAndTall) {
  for (const auto& [rows, columns] : {std::pair(8, 24), std::pair(24, 8), std::pair(10, 10)}) {
    const auto count = static_cast<uint64_t>(rows * columns);
    Made muon(
        *Layout::Make({{.name = "w",
                        .shape = {static_cast<uint64_t>(rows), static_cast<uint64_t>(columns)}}}),
        kMuon);
    std::vector<float> g = Gradient(count, count);
    std::vector<float> u = muon.Make(g);
    const auto matrix = [rows, columns](std::vector<float>& values) {
      return at::from_blob(values.data(), {rows, columns}).to(at::kDouble);
    };
    // From zero the momentum is a multiple of the gradient.
    const auto [left, values, right] = at::linalg_svd(matrix(g), /*full_matrices=*/false);
    const at::Tensor inside = left.t().mm(matrix(u)).mm(right.t());
    const at::Tensor diagonal = inside.diagonal();
    const at::Tensor kept = values.gt(0.05 * values.max().item<double>());
    EXPECT_LT((inside - at::diag(diagonal)).abs().max().item<double>(), 1e-4);
    EXPECT_GT(diagonal.masked_select(kept).min().item<double>(), 0.6);
    EXPECT_LT(diagonal.max().item<double>(), 1.3);
  }
}

TEST(UpdateSourceTest, MuonSignsTheMomentumOfWhatIsNoMatrix) {
  Made muon(*Layout::Make({{.name = "b", .shape = {64}},
                           {.name = "e", .shape = {8, 8}, .treatment = TensorTreatment::kPlain}}),
            kMuon);
  std::vector<double> m(128, 0.0);
  for (uint64_t t = 0; t < 5; ++t) {
    const std::vector<float> g = Gradient(128, t);
    const std::vector<float> u = muon.Make(g, 0.1f, 0.5f);
    for (size_t i = 0; i < 128; ++i) {
      const double x = 0.5 * static_cast<double>(g[i]);
      EXPECT_NEAR(static_cast<double>(u[i]), 0.81 * m[i] + 0.19 * x, 1e-6) << t << ", " << i;
      m[i] = 0.9 * m[i] + 0.1 * x;
    }
  }
  const std::vector<float> state = muon.State();
  for (size_t i = 0; i < 128; ++i) EXPECT_NEAR(static_cast<double>(state[i]), m[i], 1e-6);
}

TEST(UpdateSourceTest, WhatHasNoFiniteGradientLeavesItsStateAlone) {
  for (const DirectionConfig& config : {kMuon, kFeedback}) {
    Made made(*Layout::Make({{.name = "a", .shape = {4, 4}},
                             {.name = "s", .shape = {16}, .treatment = TensorTreatment::kSparse},
                             {.name = "n", .shape = {16}}}),
              config);
    (void)made.Make(Gradient(48, 1));
    const std::vector<float> before = made.State();
    std::vector<float> g = Gradient(48, 2);
    // Error feedback's ballot with such a coordinate is withdrawn, and it has no sparse tensors.
    const bool muon = config.kind == DirectionKind::kMuon;
    if (muon) g[3] = std::numeric_limits<float>::quiet_NaN();
    g[20] = 0.0f;
    std::vector<const float*> pointers = PointersInto<const float>(made.layout(), g.data());
    pointers[2] = nullptr;
    const std::vector<float> u = made.Make(pointers);
    const std::vector<float> after = made.State();
    for (size_t i = 0; i < 48; ++i) {
      const bool stays = (muon && (i == 3 || i == 20)) || i >= 32;
      EXPECT_EQ(after[i] == before[i], stays) << i;
      EXPECT_TRUE(!stays || u[i] == 0.0f) << i;
    }
  }
}

TEST(UpdateSourceTest, WhatIsSavedAndRestoredGoesOnAsIfNothingHadHappened) {
  DirectionConfig half = kMuon;
  half.state_dtype = StateDtype::kBf16;
  for (const DirectionConfig& config : {kMuon, half, kFeedback}) {
    const Layout layout =
        *Layout::Make({{.name = "w", .shape = {6, 5}}, {.name = "b", .shape = {7}}});
    Made before(layout, config), after(layout, config);
    ASSERT_EQ(before->planes().size(), config.error_feedback ? 2u : 1u);
    const size_t bytes = before->planes()[0].element_bytes;
    EXPECT_EQ(bytes, config.state_dtype == StateDtype::kBf16 ? 2u : 4u);
    for (uint64_t t = 0; t < 3; ++t) {
      (void)before.Make(Gradient(37, t));
      (void)after.Make(Gradient(37, 100));
    }
    for (const auto& [first, count] : {std::pair(0u, 11u), std::pair(11u, 26u)}) {
      std::vector<std::byte> part(count * bytes);
      ASSERT_TRUE(before->SaveState(0, first, part).ok());
      ASSERT_TRUE(after->RestoreState(0, first, part).ok());
    }
    EXPECT_EQ(before.Make(Gradient(37, 3)), after.Make(Gradient(37, 3)));
    std::vector<std::byte> part(bytes);
    EXPECT_EQ(before->SaveState(2, 0, part).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(before->RestoreState(0, 37, part).code(), absl::StatusCode::kInvalidArgument);
    Made fresh(layout, config);
    ASSERT_TRUE(before->Reset().ok());
    EXPECT_EQ(before.Make(Gradient(37, 4)), fresh.Make(Gradient(37, 4)));
  }
}

// A length beyond fp32 is none beyond its products: the matrix is scaled before it is measured.
TEST(UpdateSourceTest, MuonOrthogonalisesMomentaAsLongAsTheyAreFiniteAndKeepsThemFinite) {
  const Layout layout = *Layout::Make({{.name = "w", .shape = {6, 5}}});
  std::vector<float> g = Gradient(30, 1);
  Made usual(layout, kMuon);
  const std::vector<float> want = usual.Make(g);
  for (const float scale : {0x1p-90f, 0x1p70f, 0x1p126f}) {
    std::vector<float> scaled = g;
    for (float& v : scaled) v *= scale;
    Made muon(layout, kMuon);
    const std::vector<float> u = muon.Make(scaled);
    for (size_t i = 0; i < u.size(); ++i) EXPECT_NEAR(u[i], want[i], 1e-4f) << scale << ", " << i;
  }
  Made none(layout, kMuon);
  EXPECT_EQ(none.Make(std::vector<float>(30, 0.0f)), std::vector<float>(30, 0.0f));
  DirectionConfig half = kMuon;
  half.state_dtype = StateDtype::kBf16;
  half.beta = 0;
  Made kept(layout, half);
  (void)kept.Make(std::vector<float>(30, -std::numeric_limits<float>::max()));
  std::vector<uint16_t> m(30);
  ASSERT_TRUE(kept->SaveState(0, 0, std::as_writable_bytes(std::span(m))).ok());
  EXPECT_EQ(m, std::vector<uint16_t>(30, 0xFF7F)) << "the largest of bfloat16, not infinity";
}

// x_0 − x_T + e_T = Σ γ·g for one worker, whatever γ does: nothing is lost.
TEST(UpdateSourceTest, ErrorFeedbackTelescopes) {
  constexpr uint64_t kD = 200;
  Made source(*Layout::Make({{.name = "a", .shape = {150}}, {.name = "b", .shape = {50}}}),
              kFeedback);
  std::vector<double> moved(kD, 0.0), asked(kD, 0.0);
  for (uint64_t t = 0; t < 300; ++t) {
    const float gamma = 0.1f / std::sqrt(static_cast<float>(t + 1));
    std::vector<float> g = Gradient(kD, t);
    if (t < 3) g[7] = 0.0f;  // coins are made good too
    const std::vector<float> u = source.Make(g, gamma);
    const std::vector<double> signs = source.Signs(u);
    ASSERT_EQ(source->displacement_mean().size(), 2u);
    for (size_t i = 0; i < kD; ++i) {
      moved[i] += static_cast<double>(source->displacement_mean()[i < 150 ? 0 : 1]) * signs[i];
      asked[i] += static_cast<double>(gamma) * static_cast<double>(g[i]);
    }
  }
  const std::vector<float> e = source.State();
  // A few fp32 roundings a round of numbers below 1.
  for (size_t i = 0; i < kD; ++i)
    EXPECT_NEAR(moved[i] + static_cast<double>(e[i]), asked[i], 300 * 4 * 6e-8) << i;
}

// What comes of a ballot decides what is carried on: a sign that nothing was moved by takes nothing
// off, and a gradient that is not to be used leaves nothing behind.
TEST(UpdateSourceTest, OnlyWhatWasAppliedIsTakenOffTheError) {
  DirectionConfig most = kFeedback;
  most.feedback_keep = 0.5;
  Made source(OneVector(8), most);
  (void)source.Make(Gradient(8, 1));
  const std::vector<float> e = source.State();
  const std::vector<float> p = source.Make(Gradient(8, 2), 0.1f, 1.0f, BallotFate::kNotApplied);
  const std::vector<float> kept = source.State();
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(kept[i], 0.5f * p[i]) << i;
  EXPECT_NE(kept, e);
  std::vector<float> g(8, 1e30f);
  g[3] = std::numeric_limits<float>::infinity();
  (void)source.Make(g, 0.1f, 1.0f, BallotFate::kWithdrawn);
  EXPECT_EQ(source.State(), kept);
}

// With a step of none in between nothing is lost either, nor by coins where sparse tensors have no
// gradient.
TEST(UpdateSourceTest, ErrorFeedbackTelescopesOverRoundsThatMovedNothingAndOnSparseTensors) {
  constexpr uint64_t kD = 64;
  Made source(*Layout::Make({{.name = "s", .shape = {kD}, .treatment = TensorTreatment::kSparse}}),
              kFeedback);
  std::vector<double> moved(kD, 0.0), asked(kD, 0.0);
  for (uint64_t t = 0; t < 100; ++t) {
    const bool applied = t % 3 != 1;
    std::vector<float> g = Gradient(kD, t);
    for (size_t i = 0; i < kD; ++i)
      if ((i + t) % 4 != 0) g[i] = 0.0f;
    const std::vector<float> u =
        source.Make(g, 0.1f, 1.0f, applied ? BallotFate::kApplied : BallotFate::kNotApplied);
    const std::vector<double> signs = source.Signs(u);
    for (size_t i = 0; i < kD; ++i) {
      if (applied) moved[i] += static_cast<double>(source->displacement_mean()[0]) * signs[i];
      asked[i] += 0.1 * static_cast<double>(g[i]);
    }
  }
  const std::vector<float> e = source.State();
  for (size_t i = 0; i < kD; ++i)
    EXPECT_NEAR(moved[i] + static_cast<double>(e[i]), asked[i], 100 * 4 * 6e-8) << i;
}

// γ is 0 before the first round, is told by commits, and is state like e: a ballot of a worker that
// does not know it would be coins with the weight of a vote.
TEST(UpdateSourceTest, ErrorFeedbackMakesNoBallotUntilItKnowsTheLastStepsize) {
  Made source(OneVector(8), kFeedback), restored(OneVector(8), kFeedback);
  ASSERT_TRUE(source->Begin({.round = Round(0)}).ok());
  EXPECT_TRUE(source->CanVote());
  ASSERT_TRUE(source->Missed().ok());
  ASSERT_TRUE(source->Begin({.round = Round(5)}).ok());
  EXPECT_FALSE(source->CanVote());
  const std::vector<float> g = Gradient(8, 1);
  ASSERT_TRUE(source->MakeChunk(0, 8, PointersInto<const float>(source.layout(), g.data())).ok());
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(source->u()[0][i], 0.0f);
  source->SetStepsize(0.25f);
  ASSERT_TRUE(source->Begin({.round = Round(6)}).ok());
  EXPECT_TRUE(source->CanVote());
  std::vector<std::byte> gamma(sizeof(float));
  ASSERT_TRUE(source->planes()[1].single);
  ASSERT_TRUE(source->SaveState(1, 0, gamma).ok());
  ASSERT_TRUE(restored->RestoreState(1, 0, gamma).ok());
  ASSERT_TRUE(restored->Begin({.round = Round(6)}).ok());
  EXPECT_TRUE(restored->CanVote());
  for (Made* const made : {&source, &restored}) {
    ASSERT_TRUE((*made)->MakeChunk(0, 8, PointersInto<const float>(made->layout(), g.data())).ok());
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ((*made)->u()[0][i], 0.25f * g[i]);
  }
  EXPECT_EQ(source->SaveState(1, 1, gamma).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(source->RestoreState(1, 0, std::vector<std::byte>(8)).code(),
            absl::StatusCode::kInvalidArgument);
}

// d = 4, n = 3, x0 = [1, −1, .5, 0], γ = .1, one scale over d, the mean of the scaled signs applied.
TEST(UpdateSourceTest, ErrorFeedbackFollowsTheGoldenVector) {
  const std::vector<float> first[] = {
      {1.0f, 1.0f, -0.3f, 0.0f}, {1.0f, 0.8f, 0.2f, 0.5f}, {1.0f, 1.2f, -0.1f, -0.25f}};
  const std::vector<float> later[] = {
      {-0.5f, -0.05f, 0.4f, 0.0f}, {-0.5f, -0.05f, -0.6f, 0.5f}, {-0.5f, -0.05f, 0.1f, -0.25f}};
  const double want_x[3][4] = {{.93875, -1.06125, .5195833333, -.01875},
                               {.9785416667, -1.101041667, .5072916667, -.0302083333},
                               {1.016145833, -1.0840625, .5067708333, -.0296875}};
  const double want_scales[3][3] = {
      {.0575, .0625, .06375}, {.0425, .04125, .035625}, {.02625, .055625, .0309375}};
  // The vector counts zero as positive: a seed whose coin for the only zero, of the first round, is.
  uint64_t seed = 1;
  while ((OwnCoinWord(seed, Round(0), Share(0), 0) >> 3 & 1u) == 0) ++seed;
  std::vector<std::unique_ptr<Made>> workers;
  for (int j = 0; j < 3; ++j)
    workers.push_back(std::make_unique<Made>(OneVector(4), kFeedback, seed));
  double x[4] = {1, -1, .5, 0};
  for (size_t t = 0; t < 3; ++t) {
    for (size_t j = 0; j < 3; ++j) {
      Made& worker = *workers[j];
      const std::vector<double> signs = worker.Signs(worker.Make(t == 0 ? first[j] : later[j]));
      const auto scale = static_cast<double>(worker->displacement_mean()[0]);
      EXPECT_NEAR(scale, want_scales[t][j], 1e-8) << t << ", " << j;
      for (size_t i = 0; i < 4; ++i) x[i] -= scale * signs[i] / 3;
    }
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(x[i], want_x[t][i], 1e-7) << t << ", " << i;
    if (t > 0) continue;
    const std::vector<float> e = workers[0]->State();
    const double want[] = {.0425, .0425, .0275, -.0575};
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(static_cast<double>(e[i]), want[i], 1e-8) << i;
  }
}

// Karimireddy et al. 2019, the example on which raw signs stay at f = 1.
TEST(UpdateSourceTest, ErrorFeedbackLeavesTheLineOfKarimireddysCounterExample) {
  constexpr int kRounds = 20000;
  const auto sign = [](double v) { return v >= 0 ? 1.0 : -1.0; };
  Made source(OneVector(2), kFeedback);
  double x[2] = {1, 1}, mean[2] = {0, 0};
  for (int t = 1; t <= kRounds; ++t) {
    const double sum = 0.5 * sign(x[0] + x[1]), difference = sign(x[0] - x[1]);
    const std::vector<double> signs = source.Signs(
        source.Make({static_cast<float>(sum + difference), static_cast<float>(sum - difference)},
                    static_cast<float>(0.5 / std::sqrt(static_cast<double>(t)))));
    for (size_t i = 0; i < 2; ++i) {
      x[i] -= static_cast<double>(source->displacement_mean()[0]) * signs[i];
      mean[i] += x[i] / kRounds;
    }
  }
  EXPECT_LE(0.5 * std::fabs(mean[0] + mean[1]) + std::fabs(mean[0] - mean[1]), 0.01);
}

TEST(UpdateSourceTest, AnErrorIsForgottenWhenRoundsWentOnWithoutTheWorkerAndKeptInPartWhereAsked) {
  Made source(OneVector(8), kFeedback);
  (void)source.Make(Gradient(8, 1));
  EXPECT_NE(source.State(), std::vector<float>(8, 0.0f));
  ASSERT_TRUE(source->Missed().ok());
  EXPECT_EQ(source.State(), std::vector<float>(8, 0.0f));
  DirectionConfig most = kFeedback;
  most.feedback_keep = 0.5;
  Made whole(OneVector(8), kFeedback), part(OneVector(8), most);
  (void)whole.Make(Gradient(8, 1));
  (void)part.Make(Gradient(8, 1));
  const std::vector<float> e = whole.State(), kept = part.State();
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(kept[i], 0.5f * e[i]);
}

}  // namespace
}  // namespace signvote
