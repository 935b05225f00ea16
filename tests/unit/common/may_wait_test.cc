#include "common/may_wait.h"

#include <gtest/gtest.h>

#include "common/clock.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/mutex.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

#if defined(SIGNVOTE_CHECK_WAITS)

constexpr Duration kShort = std::chrono::milliseconds(1);

TEST(MayWaitDeathTest, WhateverWaitsIsFoundOnAThreadThatMayNot) {
  const TempDir dir;
  auto log = FileSystem::Posix()->OpenLog(dir / "log", 0600);
  ASSERT_TRUE(log.ok());
  const NoWaitScope scope;
  Mutex mu;
  CondVar cv;
  EXPECT_DEATH(
      {
        MutexLock lock(&mu);
        (void)cv.WaitFor(&mu, kShort);
      },
      "a wait for a condition on a thread that may wait for nothing");
  EXPECT_DEATH(Clock::System()->SleepFor(kShort), "a sleep");
  EXPECT_DEATH((void)(*log)->Append("x\n"), "a write to a log");
  EXPECT_DEATH((void)WriteFileAtomically(FileSystem::Posix(), dir / "file", "x", 0600),
               "a new file");
}

TEST(MayWaitTest, SuchAThreadMayLogAndLookAtTheKernelsFiles) {
  const NoWaitScope scope;
  LogInfo("a line");
  EXPECT_TRUE(FileSystem::Posix()->ReadFile("/proc/self/status", 1 << 16).ok());
}

TEST(MayWaitTest, TheRuleEndsWithItsScopes) {
  {
    const NoWaitScope outer;
    const NoWaitScope inner;
  }
  Clock::System()->SleepFor(kShort);
}

#else

TEST(MayWaitTest, OtherBuildsCheckNothing) {
  const NoWaitScope scope;
  Clock::System()->SleepFor(std::chrono::milliseconds(1));
}

#endif

}  // namespace
}  // namespace signvote
