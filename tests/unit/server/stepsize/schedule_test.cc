#include "server/stepsize/schedule.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

// The shapes one by one: FixedRuleTest.
TEST(ScheduleTest, ARunOfUnknownLengthHasOnlyTheWarmUp) {
  for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kCosine,
                                  ScheduleKind::kLinear, ScheduleKind::kWsd}) {
    const Schedule schedule{.kind = kind, .warmup_rounds = 4};
    EXPECT_EQ(ScheduleFactor(schedule, 1, 0), 0.5);
    EXPECT_EQ(ScheduleFactor(schedule, 4, 0), 1.0);
    EXPECT_EQ(ScheduleFactor(schedule, 1u << 20, 0), 1.0);
  }
}

TEST(ScheduleTest, NoFactorIsAboveOneOrNotAboveZero) {
  for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kCosine,
                                  ScheduleKind::kLinear, ScheduleKind::kWsd}) {
    for (const uint64_t warmup : {0u, 1u, 7u, 60u}) {
      for (uint64_t t = 0; t < 70; ++t) {
        const double factor = ScheduleFactor({.kind = kind, .warmup_rounds = warmup}, t, 50);
        EXPECT_GT(factor, 0) << t;
        EXPECT_LE(factor, 1) << t;
      }
    }
  }
}

}  // namespace
}  // namespace signvote
