#include "server/stepsize/local_lengths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace signvote {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;

constexpr LocalSteps kLocal{.steps = 16, .eta_first = 0.01f, .eta_last = 0.01f};

WorkerScalars Says(std::vector<float> lengths, uint32_t steps = 0) {
  return {.loss = 1, .displacement_mean = std::move(lengths), .local_steps = steps};
}

TEST(LocalLengthsTest, GoldenMeansOfThreeWorkers) {
  const std::vector<float> scales = {1, 1};
  const std::vector<WorkerScalars> workers = {Says({.015f, .035f}), Says({.02f, .04f}),
                                              Says({.0175f, .02f})};
  const auto lengths = MeanLengths(kLocal, scales, {}, workers);
  ASSERT_TRUE(lengths.has_value());
  EXPECT_THAT(lengths->scales, ElementsAre(FloatNear(.0175f, 1e-9f), FloatNear(.03166667f, 1e-8f)));
  EXPECT_EQ(lengths->decay_step, static_cast<float>(InnerStepsizeSum(kLocal)));
}

TEST(LocalLengthsTest, NobodyGoesFartherThanTheInnerStepsLead) {
  // E = .16 and .08: what is above counts as that.
  const std::vector<float> scales = {1, .5f};
  const std::vector<WorkerScalars> workers = {Says({100, .01f}), Says({.1f, 1e30f})};
  const auto lengths = MeanLengths(kLocal, scales, {}, workers);
  ASSERT_TRUE(lengths.has_value());
  // S = .13 and .045; of the second tensor apply takes half of what the commit says.
  EXPECT_THAT(lengths->scales, ElementsAre(FloatNear(.13f, 1e-7f), FloatNear(.09f, 1e-7f)));
}

TEST(LocalLengthsTest, ALiarAmongManyIsClippedToWhatTheOthersSay) {
  const std::vector<float> scales = {1};
  std::vector<WorkerScalars> workers = {Says({.050f}), Says({.051f}), Says({.052f}), Says({.049f}),
                                        Says({.16f})};
  const auto lengths = MeanLengths(kLocal, scales, {}, workers);
  ASSERT_TRUE(lengths.has_value());
  EXPECT_LT(lengths->scales[0], .053f);
}

TEST(LocalLengthsTest, ADenseTensorMovesByItsOwnStepsizeWhateverWorkersSayOfIt) {
  const std::vector<float> scales = {1, .5f}, dense_steps = {0, .7f};
  const std::vector<WorkerScalars> workers = {Says({.1f, 1e30f}), Says({.06f, .01f})};
  const auto lengths = MeanLengths(kLocal, scales, dense_steps, workers);
  ASSERT_TRUE(lengths.has_value());
  // Apply takes half of the second.
  EXPECT_THAT(lengths->scales, ElementsAre(FloatNear(.08f, 1e-7f), FloatNear(1.4f, 1e-7f)));
}

TEST(LocalLengthsTest, ASlowWorkersFewerStepsCountAsTheyAre) {
  const std::vector<float> scales = {1};
  const auto lengths = MeanLengths(kLocal, scales, {},
                                   std::vector<WorkerScalars>{Says({.08f}, 16), Says({.02f}, 4)});
  ASSERT_TRUE(lengths.has_value());
  EXPECT_NEAR(lengths->scales[0], .05f, 1e-8f) << "not normalised";
}

TEST(LocalLengthsTest, WhoHasNotOneLengthForEachTensorOrNoNumberIsLeftOut) {
  const std::vector<float> scales = {1, 1};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<WorkerScalars> bad = {Says({}), Says({.1f}), Says({.1f, nan}),
                                          Says({-.1f, .1f}), Says({.1f, .1f, .1f})};
  EXPECT_FALSE(MeanLengths(kLocal, scales, {}, bad).has_value());
  EXPECT_FALSE(MeanLengths(kLocal, scales, {}, {}).has_value());
  std::vector<WorkerScalars> one = bad;
  one.push_back(Says({.03f, 0}));
  const auto lengths = MeanLengths(kLocal, scales, {}, one);
  ASSERT_TRUE(lengths.has_value());
  EXPECT_THAT(lengths->scales, ElementsAre(.03f, 0.0f));
}

}  // namespace
}  // namespace signvote
