#include "server/stepsize/local_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/status.h"

namespace signvote {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

LocalSchedule Schedule(std::string_view text, uint64_t rounds) {
  auto schedule = LocalSchedule::Parse(text, rounds);
  EXPECT_TRUE(schedule.ok()) << Describe(schedule.status());
  return schedule.value_or(LocalSchedule());
}

TEST(LocalScheduleTest, OneMinibatchARoundIsAnOrdinaryRun) {
  const LocalSchedule schedule = Schedule("1", 0);
  EXPECT_FALSE(schedule.on());
  EXPECT_EQ(schedule.StepsAt(7), 1u);
  EXPECT_EQ(schedule.largest(), 1u);
  EXPECT_EQ(schedule.Before(7), 7u);
  EXPECT_EQ(schedule.minibatches(), 0u) << "of unknown length";
  EXPECT_EQ(LocalSchedule().Before(3), 3u);
}

TEST(LocalScheduleTest, AConstantNumberHoldsForTheWholeRunAndBeyond) {
  const LocalSchedule schedule = Schedule("16", 200);
  EXPECT_TRUE(schedule.on());
  EXPECT_EQ(schedule.StepsAt(0), 16u);
  EXPECT_EQ(schedule.StepsAt(1000), 16u);
  EXPECT_EQ(schedule.Before(3), 48u);
  EXPECT_EQ(schedule.minibatches(), 3200u);
  EXPECT_EQ(schedule.text(), "16");
}

TEST(LocalScheduleTest, APercentageIsOfTheMinibatchesAndNotOfTheRounds) {
  // The schedule that the study found best: 30 rounds, a quarter of the data by 16, the rest by 96.
  const LocalSchedule schedule = Schedule("16,96@25", 30);
  EXPECT_EQ(schedule.StepsAt(19), 16u);
  EXPECT_EQ(schedule.StepsAt(20), 96u);
  EXPECT_EQ(schedule.Before(20), 320u);
  EXPECT_EQ(schedule.minibatches(), 1280u);
  EXPECT_EQ(schedule.Before(20) * 4, schedule.minibatches());
  EXPECT_EQ(schedule.largest(), 96u);
}

TEST(LocalScheduleTest, EveryPartHasItsShareOfTheMinibatchesUpToARound) {
  const LocalSchedule schedule = Schedule("8,32@10,16@60.5,64@90", 333);
  const double all = static_cast<double>(schedule.minibatches());
  const struct {
    uint32_t steps;
    double from, to;
  } parts[] = {{8, 0, .1}, {32, .1, .605}, {16, .605, .9}, {64, .9, 1}};
  uint64_t round = 0;
  for (const auto& part : parts) {
    const uint64_t first = round;
    while (round < 333 && schedule.StepsAt(round) == part.steps) ++round;
    EXPECT_NEAR(static_cast<double>(schedule.Before(first)) / all, part.from, 64 / all * 2);
    EXPECT_NEAR(static_cast<double>(schedule.Before(round)) / all, part.to, 64 / all * 2);
  }
  EXPECT_EQ(round, 333u);
  uint64_t sum = 0;
  for (uint64_t r = 0; r < 333; ++r) {
    EXPECT_EQ(schedule.Before(r), sum);
    sum += schedule.StepsAt(r);
  }
}

TEST(LocalScheduleTest, TheRoundsOfSoManyMinibatchesTakeThem) {
  EXPECT_EQ(*LocalSchedule::RoundsOf("1", 3200), 3200u);
  EXPECT_EQ(*LocalSchedule::RoundsOf("16", 3200), 200u);
  EXPECT_EQ(*LocalSchedule::RoundsOf("4096", 10), 1u);
  for (const char* text : {"16,96@25", "8,16@10,64@50", "2,3@99"}) {
    const uint64_t rounds = *LocalSchedule::RoundsOf(text, 10'000);
    const double taken = static_cast<double>(LocalSchedule::Parse(text, rounds)->minibatches());
    EXPECT_NEAR(taken, 10'000, 100) << text;
  }
  EXPECT_FALSE(LocalSchedule::RoundsOf("x", 10).ok());
}

TEST(LocalScheduleTest, WhatCannotBeReadIsNamedWithWhatIsAccepted) {
  const std::pair<const char*, const char*> cases[] = {
      {"0", "'0' is no number from 1 to 4096"},
      {"x", "'x' is no number"},
      {"4097", "'4097' is no number from 1 to 4096"},
      {"", "'' is no number"},
      {"16@5", "the first part begins with the run"},
      {"16,32", "'32' does not say from when on"},
      {"16,32@0", "'0' is no percentage"},
      {"16,32@100", "'100' is no percentage"},
      {"16,32@50,64@50", "'50' is no percentage above the one before"},
      {"16,32@nan", "'nan' is no percentage"},
      {"1,16@50", "a vote on every minibatch goes with no other part"},
      {"16,1@50", "a vote on every minibatch goes with no other part"},
      {"16,96@99.99", "no round of 100 is left for 96 minibatches a round"},
  };
  for (const auto& [text, words] : cases) {
    const absl::Status status = LocalSchedule::Parse(text, 100).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(words), HasSubstr("--local-steps"), HasSubstr("16,96@25")))
        << text;
  }
}

}  // namespace
}  // namespace signvote
