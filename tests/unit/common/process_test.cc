#include "common/process.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace signvote {
namespace {

constexpr Duration kLong = std::chrono::seconds(30);

// Runs `f` in a child of its own, because signals and the stop flag belong to the whole process.
// Returns wait's status.
template <typename F>
int InChild(F f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(Process, VersionHasThreeNumbers) {
  const std::string version = SoftwareVersion();
  EXPECT_EQ(std::count(version.begin(), version.end(), '.'), 2) << version;
}

TEST(Process, AThreadThatYieldsChangesNoOtherThread) {
  const auto niceness = [] { return ::getpriority(PRIO_PROCESS, 0); };
  const int before = niceness();
  int yielding = before;
  std::thread([&] {
    YieldToOtherThreads();
    yielding = niceness();
  }).join();
  EXPECT_EQ(yielding, std::min(before + 10, 19));
  EXPECT_EQ(niceness(), before);
}

TEST(Process, TheFirstSignalAsksToStop) {
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGXCPU}) {
    const int status = InChild([signal] {
      InstallStopSignals();
      if (StopRequested()) ::_exit(10);
      (void)std::raise(signal);
      if (!StopRequested()) ::_exit(11);
      if (!WaitForStop(kLong)) ::_exit(12);
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

TEST(Process, TheSecondSignalEndsTheProcessWhicheverItIs) {
  const int status = InChild([] {
    InstallStopSignals();
    (void)std::raise(SIGTERM);
    // ThreadSanitizer may deliver a signal only when the thread waits.
    if (!WaitForStop(kLong)) ::_exit(9);
    (void)std::raise(SIGINT);
    Clock::System()->SleepFor(kLong);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGINT);
}

TEST(Process, AnInternalStopStillAllowsOneSignal) {
  const int status = InChild([] {
    InstallStopSignals();
    RequestStop();
    (void)std::raise(SIGTERM);
    ::_exit(StopRequested() ? 7 : 8);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Process, ASignalWakesAWait) {
  const int status = InChild([] {
    InstallStopSignals();
    ::alarm(20);  // ends the test if the wait does not
    const pid_t parent = ::getpid();
    // Not while the process is forked: ThreadSanitizer may lose a signal that comes then.
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(8);
    char word = 'x';
    const pid_t sender = ::fork();
    if (sender == 0) {
      const ssize_t got = ::read(ends[0], &word, 1);
      ::_exit(got == 1 && ::kill(parent, SIGTERM) == 0 ? 0 : 1);
    }
    if (::write(ends[1], &word, 1) != 1) ::_exit(8);
    const bool stopped = WaitForStop(kLong);
    ::waitpid(sender, nullptr, 0);
    ::_exit(stopped ? 0 : 9);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// A terminal and its shell both send SIGHUP, the kernel sends SIGXCPU once a second.
TEST(Process, HangUpsAndProcessorTimeNeverEndTheProcessAtOnce) {
  const int status = InChild([] {
    InstallStopSignals();
    for (const int signal : {SIGHUP, SIGHUP, SIGXCPU, SIGXCPU, SIGTERM, SIGHUP}) {
      (void)std::raise(signal);
      if (!WaitForStop(kLong)) ::_exit(9);
    }
    ::_exit(7);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Process, UnderNohupAHangUpEndsNothing) {
  const int status = InChild([] {
    (void)std::signal(SIGHUP, SIG_IGN);
    InstallStopSignals();
    (void)std::raise(SIGHUP);
    if (StopRequested()) ::_exit(9);
    InstallReloadSignal();
    (void)std::raise(SIGHUP);
    ::_exit(TakeReloadRequest() && !StopRequested() ? 7 : 8);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Process, UserSignalsAskOnceForACopyAndForLogsToBeReopened) {
  const int status = InChild([] {
    InstallStopSignals();
    if (TakeSaveRequest() || TakeReopenRequest()) ::_exit(10);
    (void)std::raise(SIGUSR1);
    if (!TakeSaveRequest() || TakeSaveRequest() || TakeReopenRequest()) ::_exit(11);
    (void)std::raise(SIGUSR2);
    if (!TakeReopenRequest() || TakeReopenRequest() || TakeSaveRequest()) ::_exit(12);
    if (StopRequested()) ::_exit(13);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, AWriteBeyondTheFileSizeLimitIsAnErrorNotTheEnd) {
  const int status = InChild([] {
    IgnoreFileSizeSignal();
    const rlimit limit{.rlim_cur = 0, .rlim_max = RLIM_INFINITY};
    std::FILE* const file = std::tmpfile();
    if (file == nullptr || ::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(1);
    ::_exit(::write(::fileno(file), "x", 1) == -1 && errno == EFBIG ? 0 : 2);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, StandardDescriptorsThatAreClosedAreOpenedAndOthersLeftAlone) {
  const int status = InChild([] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    ::close(0);
    ::close(2);
    ::dup2(ends[1], 1);
    OpenStandardDescriptors();
    std::FILE* const later = std::tmpfile();
    if (later == nullptr || ::fileno(later) <= 2) ::_exit(2);
    char text[4] = "";
    if (::write(1, "out", 3) != 3 || ::read(ends[0], text, 3) != 3) ::_exit(3);
    if (::write(2, "err", 3) != 3 || ::read(0, text, 1) != 0) ::_exit(4);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, EachHangUpAsksForOneReload) {
  const int status = InChild([] {
    InstallStopSignals();
    InstallReloadSignal();
    if (TakeReloadRequest()) ::_exit(10);
    for (int i = 0; i < 2; ++i) {
      (void)std::raise(SIGHUP);
      if (!TakeReloadRequest() || TakeReloadRequest()) ::_exit(11);
    }
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, WithoutASignalTheWaitTimesOut) {
  const int status = InChild([] { ::_exit(WaitForStop(std::chrono::microseconds(300)) ? 1 : 0); });
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, ABrokenPipeIsAnErrorNotTheEnd) {
  const int status = InChild([] {
    InstallStopSignals();
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    ::close(ends[0]);
    ::_exit(::write(ends[1], "x", 1) == -1 && errno == EPIPE ? 0 : 2);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, ResidentBytesGrowWithTouchedMemory) {
  TuneMalloc();
  const uint64_t before = ResidentBytes();
  EXPECT_GT(before, uint64_t{1} << 20);
  std::vector<char> block(64 << 20, 1);
  EXPECT_GT(ResidentBytes(), before + (uint64_t{48} << 20));
  EXPECT_EQ(block.back(), 1);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose malloc is their own
TEST(ProcessDeathTest, WhatIsFreedIsKeptUnlessTheEnvironmentTunesMalloc) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process whose malloc nobody has tuned yet
  const auto kept = [] {
    TuneMalloc();
    const uint64_t before = ResidentBytes();
    { const std::vector<char> block(16 << 20, 1); }
    return ResidentBytes() > before + (uint64_t{8} << 20);
  };
  EXPECT_EXIT(::_exit(kept() ? 0 : 1), ::testing::ExitedWithCode(0), "");
  for (const char* const name : {"MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}) {
    EXPECT_EXIT(::setenv(name, "1", 1); ::_exit(kept() ? 1 : 0), ::testing::ExitedWithCode(0), "")
        << name;
  }
}
#endif

TEST(Process, CpuSecondsGrowWithWork) {
  const double before = ProcessCpuSeconds();
  volatile uint64_t sink = 0;
  while (ProcessCpuSeconds() < before + 0.01) {
    for (uint64_t i = 0; i < 100'000; ++i) sink = sink + i;
  }
  EXPECT_GT(ProcessCpuSeconds(), before);
}

TEST(ProcessTest, TheSoftLimitOfDescriptorsBecomesTheHardOne) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low{std::min<rlim_t>(before.rlim_max, 100), before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(DescriptorLimit(), low.rlim_cur);
  EXPECT_EQ(RaiseDescriptorLimit(), before.rlim_max);
  EXPECT_EQ(DescriptorLimit(), before.rlim_max);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(ProcessTest, OpenDescriptorsAreCounted) {
  const uint64_t before = OpenDescriptors();
  ASSERT_GE(before, 1u);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(OpenDescriptors(), before + 2);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_EQ(OpenDescriptors(), before);
}

}  // namespace
}  // namespace signvote
