// What the stepsize rule is given from outside a round, and what people see of it: no socket, no thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kD = 4096;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Parameters with what they say of the run that made them.
class FakeInit final : public InitialParameters {
 public:
  explicit FakeInit(absl::StatusOr<std::optional<float>> stepsize)
      : stepsize_(std::move(stepsize)) {}
  absl::Status CheckFits(const Layout&) const override { return absl::OkStatus(); }
  absl::Status CopyInto(const Layout&, std::span<float> x,
                        const std::function<bool()>&) const override {
    std::fill(x.begin(), x.end(), 0.5f);
    return absl::OkStatus();
  }
  const std::string& config_json() const override { return empty_; }
  absl::StatusOr<std::optional<float>> alias_stepsize() const override { return stepsize_; }
  const std::string& path() const override { return empty_; }

 private:
  const absl::StatusOr<std::optional<float>> stepsize_;
  const std::string empty_;
};

class RunStepsizeTest : public RunTest {
 protected:
  // The start of a run of so many rounds is four of them.
  static RunOptions Alias(uint64_t main_rounds_max = 80) {
    RunOptions options = Options();
    options.main_rounds_max = main_rounds_max;
    options.rule = {.rule = "alias"};
    return options;
  }
  void StartFrom(std::optional<float> stepsize, RunOptions options) {
    init_ = std::make_unique<FakeInit>(stepsize);
    StartRun(std::move(options));
  }
  TestWorker& Member(const std::string& name) {
    TestWorker& worker = NewWorker(kD);
    worker.Join(name);
    worker.BringState();
    return worker;
  }
  // The stepsize of one more round, with this loss and this probe where one is wanted.
  static float Round1(TestWorker& worker, double probe = kNan, double loss = 2) {
    worker.ReadAll();
    const v1::RoundOpen open = *worker.open;
    const std::vector<uint8_t> bits = RandomBits(kD, open.round());
    for (uint32_t k = 0; k < worker.peer->slots->plan().chunks(); ++k) worker.SendChunk(k, bits);
    worker.open = open;
    worker.SendScalars(loss, std::vector<double>(static_cast<size_t>(open.wanted_size()), probe));
    worker.ReadAll();
    return worker.commits.back().stepsize();
  }
  static std::vector<float> Rounds(TestWorker& worker, int rounds, double probe = kNan) {
    std::vector<float> stepsizes;
    for (int r = 0; r < rounds; ++r) stepsizes.push_back(Round1(worker, probe));
    return stepsizes;
  }
  std::string Warning() { return run_->Snapshot(clock_.Now()).stepsize_warning; }
};

TEST_F(RunStepsizeTest, ARunGoesOnFromTheStepsizeThatItsInitialParametersSay) {
  StartFrom(2.5e-4f, Alias());
  EXPECT_EQ(run_->resumed_stepsize(), 2.5e-4f);
  TestWorker& a = Member("a");
  // The fault that this ends: 1e-5, then 1.2e-3 and a spoilt model.
  const std::vector<float> stepsizes = Rounds(a, 20, 15);
  for (int r = 0; r < 4; ++r) EXPECT_EQ(stepsizes[static_cast<size_t>(r)], 1e-5f) << r;
  EXPECT_GT(stepsizes[4], 2e-4f);
  EXPECT_LE(*std::max_element(stepsizes.begin(), stepsizes.end()), 2.5e-4f);
}

TEST_F(RunStepsizeTest, AGivenEtaOverrulesWhatTheParametersSay) {
  RunOptions options = Alias();
  options.rule.alias_eta0 = 2e4;
  StartFrom(2.5e-4f, options);
  EXPECT_FALSE(run_->resumed_stepsize().has_value());
  EXPECT_EQ(Rounds(Member("a"), 5).back(), 0.01f);
  NewTest();
  options.rule.alias_eta0 = 0;
  StartFrom(2.5e-4f, options);
  EXPECT_GT(Rounds(Member("a"), 5, 1e-3).back(), 2.5e-4f);
}

// The commit steps by what was signed: γ is only the decay's, and what workers weigh the next gradient
// with.
TEST_F(RunStepsizeTest, WithErrorFeedbackACommitHasTheLengthsThatWorkersSigned) {
  RunOptions options = Options();
  options.direction = {.kind = DirectionKind::kSignSgd, .error_feedback = true};
  StartRun(std::move(options));
  TestWorker& a = Member("a");
  const size_t tensors = static_cast<size_t>(a.welcome->layout().tensors_size());
  EXPECT_TRUE(a.welcome->direction().error_feedback());
  a.lengths.assign(tensors, 0.5f);
  a.lengths.back() = 0.25f;
  EXPECT_EQ(Round1(a), 1.0f);
  const v1::Commit& commit = a.commits.back();
  EXPECT_EQ(commit.decay_step(), 0.01f);
  EXPECT_EQ(std::vector<float>(commit.scales().begin(), commit.scales().end()), a.lengths);
  // Whose lengths fit no model are nobody's.
  a.lengths.push_back(1.0f);
  Round1(a);
  for (const float scale : a.commits.back().scales()) EXPECT_EQ(scale, 0.0f);
}

TEST_F(RunStepsizeTest, OtherRulesDoNotAskWhatTheParametersSay) {
  init_ = std::make_unique<FakeInit>(absl::InvalidArgumentError("no stepsize"));
  StartRun();
  EXPECT_FALSE(run_->resumed_stepsize().has_value());
  EXPECT_EQ(Rounds(Member("a"), 3), std::vector<float>(3, 0.01f));
}

TEST_F(RunStepsizeTest, ParametersThatSayNonsenseEndTheRunBeforeItBegins) {
  const auto create = [this](RunOptions options) {
    RunParts parts{.clock = &clock_, .host = this, .memory = [] { return std::nullopt; }};
    parts.init = std::make_unique<FakeInit>(absl::InvalidArgumentError("no stepsize"));
    return run::Run::Create(std::move(options), std::move(parts),
                            {.run_id = RunId::FromRandom(1, 2)}, clock_.Now())
        .status();
  };
  EXPECT_EQ(create(Alias()), absl::InvalidArgumentError("no stepsize"));
  RunOptions given = Alias();
  given.rule.alias_eta0 = 1;
  EXPECT_TRUE(create(given).ok());
}

TEST_F(RunStepsizeTest, ParametersThatSayNothingBeginAnew) {
  StartFrom(std::nullopt, Alias());
  const std::vector<float> stepsizes = Rounds(Member("a"), 5, 15);
  EXPECT_EQ(stepsizes[3], 1e-5f);
  EXPECT_GT(stepsizes[4], 5e-4f);
}

TEST_F(RunStepsizeTest, ThatNothingSaysWhereToGoOnFromShowsInTheStatusFromTheFirstRoundOn) {
  StartFrom(std::nullopt, Alias());
  TestWorker& a = Member("a");
  for (const int rounds : {1, 5}) {
    Rounds(a, rounds, 15);
    EXPECT_THAT(Warning(), HasSubstr("may spoil a trained one: give --alias-eta0"));
  }
  // What stops the rule altogether comes first.
  Rounds(a, 8);
  EXPECT_THAT(Warning(), HasSubstr("no worker's probe"));
}

TEST_F(RunStepsizeTest, WhoeverSaysWhereToBeginIsNotWarned) {
  RunOptions meant = Alias();
  meant.rule.alias_eta0 = 0;
  StartFrom(std::nullopt, meant);
  Rounds(Member("a"), 5, 15);
  EXPECT_EQ(Warning(), "");
  NewTest();
  StartFrom(2.5e-4f, Alias());  // the file does
  Rounds(Member("a"), 5, 15);
  EXPECT_EQ(Warning(), "");
  NewTest();
  StartRun(Alias());  // from parameters that a worker brings
  Rounds(Member("a"), 5, 15);
  EXPECT_EQ(Warning(), "");
}

TEST_F(RunStepsizeTest, ARunThatIsTakenUpWithinItsStartGoesOnAsIfItHadNeverStopped) {
  const auto votes = [](TestWorker& worker, uint64_t from, uint64_t to) {
    std::vector<float> stepsizes;
    for (uint64_t r = from; r < to; ++r) {
      const double probe = r % 3 == 0 ? kNan : 1.0 + static_cast<double>(r);
      stepsizes.push_back(Round1(worker, probe, 3 - 0.1 * static_cast<double>(r)));
    }
    return stepsizes;
  };
  StartFrom(2.5e-4f, Alias());
  const std::vector<float> once = votes(Member("a"), 0, 12);
  for (const uint64_t stopped : {1u, 2u, 4u, 6u}) {
    NewTest();
    StartFrom(2.5e-4f, Alias());
    TestWorker& a = Member("a");
    std::vector<float> often = votes(a, 0, stopped - 1);
    EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
    for (const float gamma : votes(a, stopped - 1, stopped)) often.push_back(gamma);
    auto state = run_->State();
    ASSERT_TRUE(state.ok()) << Describe(state.status());
    // Without the file that it began with.
    StartRun(Alias(), nullptr, *state);
    TestWorker& again = Member("a");
    EXPECT_TRUE(run_->Resume(clock_.Now()).ok());
    for (const float gamma : votes(again, stopped, 12)) often.push_back(gamma);
    EXPECT_EQ(often, once) << stopped;
  }
}

TEST_F(RunStepsizeTest, ThatNobodyProbesShowsInTheStatusUntilSomebodyDoes) {
  StartRun(Alias());
  TestWorker& a = Member("a");
  Rounds(a, 8);
  EXPECT_EQ(Warning(), "");
  EXPECT_EQ(Rounds(a, 1).back(), 1e-5f);
  EXPECT_THAT(Warning(), HasSubstr("no worker's probe has come for 8 rounds"));
  // A round that moves nothing changes nothing of it.
  for (int attempt = 0; attempt < 2; ++attempt) {
    a.ReadAll();
    a.Abstain(AbstainReason::kNonFiniteLoss);
  }
  a.ReadAll();
  EXPECT_EQ(a.commits.back().kind(), v1::Commit::KIND_NONE);
  EXPECT_THAT(Warning(), HasSubstr("no worker's probe"));
  EXPECT_GT(Rounds(a, 1, 1e-3).back(), 1e-5f);
  EXPECT_EQ(Warning(), "");
}

TEST_F(RunStepsizeTest, AWorkerThatSendsFewerScalarsThanWantedIsHeardAllTheSame) {
  StartRun(Alias());
  TestWorker& a = Member("a");
  Rounds(a, 1);
  a.ReadAll();
  const v1::RoundOpen open = *a.open;
  ASSERT_EQ(open.wanted_size(), 1);
  const std::vector<uint8_t> bits = RandomBits(kD, 1);
  for (uint32_t k = 0; k < a.peer->slots->plan().chunks(); ++k) a.SendChunk(k, bits);
  ScalarsIn in{.round = Round(open.round())};
  in.scalars = {.loss = 7, .g_l1 = 1, .g_l2_squared = 1};
  Give({.peer = a.peer->id(), .what = std::move(in)});
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.loss, 7);
  EXPECT_EQ(page.scalars_refused, 0u);
}

}  // namespace
}  // namespace signvote::run
