#include "common/every.h"

#include <gtest/gtest.h>

#include <string>

namespace signvote {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

Time At(Duration since_start) { return Time{} + since_start; }

TEST(EveryTest, ANumberIsRoundsAndAUnitMakesItTime) {
  EXPECT_EQ(ParseEvery("--x", "200")->rounds, 200u);
  EXPECT_FALSE(ParseEvery("--x", "200")->time.has_value());
  EXPECT_EQ(ParseEvery("--x", "90s")->time, Duration(seconds(90)));
  EXPECT_EQ(ParseEvery("--x", "10m")->time, Duration(minutes(10)));
  EXPECT_EQ(ParseEvery("--x", "2h")->time, Duration(hours(2)));
  EXPECT_FALSE(ParseEvery("--x", "2h")->rounds.has_value());
  for (const char* const never : {"0", "0s", "0h"}) EXPECT_TRUE(ParseEvery("--x", never)->never());
}

TEST(EveryTest, WhatIsNeitherIsRefusedWithFlagAndRemedy) {
  for (const std::string text : {"", "m", "10 m", "-1", "1.5h", "10d", "9999h",
                                 "99999999999999999999", "2000000000000", "1e3", "ten"}) {
    const auto every = ParseEvery("--save-every", text);
    ASSERT_EQ(every.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_TRUE(std::string(every.status().message())
                    .starts_with("--save-every '" + text + "' is neither a number of rounds"));
  }
}

TEST(EveryTest, RoundsAreDueAtMultiplesAlsoWhenSeveralPassAtOnce) {
  EverySchedule schedule({.rounds = 10}, Round(3), At(seconds(0)));
  EXPECT_FALSE(schedule.Due(Round(3), At(seconds(1))));
  EXPECT_FALSE(schedule.Due(Round(9), At(hours(9))));
  EXPECT_TRUE(schedule.Due(Round(10), At(hours(9))));
  EXPECT_FALSE(schedule.Due(Round(10), At(hours(9))));
  EXPECT_FALSE(schedule.Due(Round(19), At(hours(9))));
  EXPECT_TRUE(schedule.Due(Round(41), At(hours(9))));
  EXPECT_FALSE(schedule.Due(Round(49), At(hours(9))));
}

TEST(EveryTest, TimeIsDueOnceItHasPassedAndARoundHasToo) {
  EverySchedule schedule({.time = minutes(10)}, Round(3), At(minutes(1)));
  EXPECT_FALSE(schedule.Due(Round(5), At(minutes(10))));
  EXPECT_FALSE(schedule.Due(Round(3), At(minutes(12))));
  EXPECT_TRUE(schedule.Due(Round(5), At(minutes(12))));
  EXPECT_FALSE(schedule.Due(Round(9), At(minutes(21))));
  EXPECT_FALSE(schedule.Due(Round(5), At(minutes(30))));
  EXPECT_TRUE(schedule.Due(Round(6), At(minutes(30))));
}

TEST(EveryTest, NeverIsNeverDue) {
  EverySchedule schedule({}, Round(0), At(seconds(0)));
  EXPECT_FALSE(schedule.Due(Round(1000), At(hours(1000))));
}

}  // namespace
}  // namespace signvote
