#include "common/crash_point.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace signvote {
namespace {

// Each in a process of its own, which reads the variable once.
class CrashPointTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  [[noreturn]] static void PassTwice(const char* crash_at) {
    ::setenv("SIGNVOTE_CRASH_AT", crash_at, 1);
    for (int i = 0; i < 2; ++i) {
      CrashPoint("a.point");
      CrashPoint("another.point");
    }
    ::_exit(0);
  }
};

#if defined(SIGNVOTE_CRASH_POINTS)
TEST_F(CrashPointTest, TheNamedPassOfTheNamedPointKills) {
  EXPECT_EXIT(PassTwice("a.point:2"), testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(PassTwice("another.point:1"), testing::KilledBySignal(SIGKILL), "");
}

TEST_F(CrashPointTest, WhatCannotBeReadAborts) {
  EXPECT_EXIT(PassTwice("a.point"), testing::KilledBySignal(SIGABRT), "");
  EXPECT_EXIT(PassTwice("a.point:0"), testing::KilledBySignal(SIGABRT), "");
}
#else
TEST_F(CrashPointTest, OtherBuildsDoNotLook) {
  EXPECT_EXIT(PassTwice("a.point:1"), testing::ExitedWithCode(0), "");
}
#endif

TEST_F(CrashPointTest, OtherPointsAndPassesDoNot) {
  EXPECT_EXIT(PassTwice("a.point:3"), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(PassTwice("no.point:1"), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace signvote
