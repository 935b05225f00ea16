#include "common/clock.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(Clock, SystemTimeNeverGoesBackAndSleepLastsAtLeastItsDuration) {
  Clock* clock = Clock::System();
  const Time before = clock->Now();
  clock->SleepFor(std::chrono::milliseconds(2));
  EXPECT_GE((clock->Now() - before).count(), 2'000'000);
  clock->SleepFor(Duration(-1));
}

TEST(Clock, UnixTimeIsInMicroseconds) {
  constexpr int64_t kYear2020Micros = 1'577'836'800'000'000;
  constexpr int64_t kYear2200Micros = 7'258'118'400'000'000;
  EXPECT_GT(Clock::System()->UnixMicros(), kYear2020Micros);
  EXPECT_LT(Clock::System()->UnixMicros(), kYear2200Micros);
}

TEST(FakeClock, MovesOnlyWhenTold) {
  FakeClock clock;
  const Time start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.SleepFor(std::chrono::seconds(3));
  EXPECT_EQ(clock.Now() - start, std::chrono::seconds(3));
  EXPECT_EQ(clock.UnixMicros(), 3'000'000);
}

TEST(Time, ArithmeticAndSecondsAgree) {
  EXPECT_EQ((Time{5} + Duration(7)).ns, 12);
  EXPECT_EQ((Time{5} - Duration(7)).ns, -2);
  EXPECT_EQ(FromSeconds(1.5), Duration(1'500'000'000));
  EXPECT_DOUBLE_EQ(ToSeconds(FromSeconds(0.25)), 0.25);
}

}  // namespace
}  // namespace signvote
