#include "server/run/run_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "common/may_wait.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kLong = seconds(60);  // longer than a busy machine takes

TEST(InboxTest, APushWakesWhoeverWaits) {
  Inbox<int> inbox;
  std::vector<int> taken;
  std::jthread producer([&] { EXPECT_TRUE(inbox.Push(7)); });
  const Time begin = Clock::System()->Now();
  while (taken.empty()) EXPECT_TRUE(inbox.TakeAll(kLong, &taken));
  EXPECT_EQ(taken, std::vector<int>{7});
  EXPECT_LT(Clock::System()->Now() - begin, kLong / 2) << "it waited for its time to pass";
}

TEST(InboxTest, ManyProducersAreTakenAtOnceAndInTheirOrder) {
  Inbox<std::pair<int, int>> inbox;
  {
    std::vector<std::jthread> producers;
    for (int p = 0; p < 4; ++p) {
      producers.emplace_back([&inbox, p] {
        for (int i = 0; i < 1000; ++i) EXPECT_TRUE(inbox.Push({p, i}));
      });
    }
  }
  std::vector<std::pair<int, int>> taken;
  EXPECT_TRUE(inbox.TakeAll(Duration::zero(), &taken));
  ASSERT_EQ(taken.size(), 4000u);
  std::map<int, int> next;
  for (const auto& [producer, i] : taken) EXPECT_EQ(i, next[producer]++);
}

TEST(InboxTest, AClosedInboxGivesWhatItHasAndTakesNothing) {
  Inbox<int> inbox;
  EXPECT_TRUE(inbox.Push(1));
  inbox.Close();
  EXPECT_FALSE(inbox.Push(2));
  std::vector<int> taken;
  EXPECT_FALSE(inbox.TakeAll(kLong, &taken));
  EXPECT_EQ(taken, std::vector<int>{1});
  EXPECT_FALSE(inbox.TakeAll(kLong, &taken)) << "and nobody waits any more";
}

TEST(OutboundTest, NothingOnItsWayIsQuietAtOnce) {
  Outbound outbound(Clock::System());
  EXPECT_TRUE(outbound.WaitUntilQuiet(seconds(1), Duration::zero()));
}

TEST(OutboundTest, AsLongAsOneByteIsOnItsWayItIsNotQuiet) {
  Outbound outbound(Clock::System());
  outbound.Add(3);
  outbound.Add(1);
  outbound.Remove(3);
  const Time begin = Clock::System()->Now();
  EXPECT_FALSE(outbound.WaitUntilQuiet(Duration::zero(), milliseconds(20)));
  EXPECT_GE(Clock::System()->Now() - begin, milliseconds(20));
}

TEST(OutboundTest, TheLastByteWakesWhoeverWaitsAndAMomentLaterItIsQuiet) {
  Outbound outbound(Clock::System());
  outbound.Add(1);
  Time removed{};
  std::jthread sender([&] {
    removed = Clock::System()->Now();
    outbound.Remove(1);
  });
  EXPECT_TRUE(outbound.WaitUntilQuiet(milliseconds(30), kLong));
  const Time quiet = Clock::System()->Now();
  sender.join();
  EXPECT_GE(quiet - removed, milliseconds(30));
  EXPECT_LT(quiet - removed, kLong / 2) << "it waited for its time to pass";
}

class RunThreadTest : public ::testing::Test {
 protected:
  void Start(RunOptions options = RunTest::Options(), Duration applier_delay = {}) {
    auto thread = RunThread::Create({.run = std::move(options),
                                     .state = {.run_id = RunId::FromRandom(1, 2)},
                                     .tally_threads = 2,
                                     .test_applier_delay = applier_delay},
                                    {.memory = [] { return std::nullopt; }}, Clock::System());
    ASSERT_TRUE(thread.ok()) << Describe(thread.status());
    thread_ = std::move(*thread);
    thread_->Start();
  }
  std::unique_ptr<RunThread> thread_;
};

TEST_F(RunThreadTest, HealthAndSnapshotsAreAnswered) {
  Start();
  const auto health = thread_->HealthNow(kLong);
  ASSERT_TRUE(health.ok());
  EXPECT_EQ(health->not_ready_because, "waiting for the first worker");
  const auto page = thread_->Snapshot(kLong);
  ASSERT_TRUE(page.ok());
  EXPECT_GT(page->resident_bytes, 0u);
  EXPECT_EQ(thread_->CopyReplica(RunThread::CopyOf::kCommitted, kLong).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(RunThreadTest, AThreadThatIsHeldUpIsToldOfAndDoesNotHoldUpWhoAsks) {
  Start();
  std::atomic<bool> held = true;
  ASSERT_TRUE(thread_->Call([&](run::Run&, Time) {
    while (held.load()) std::this_thread::yield();
  }));
  EXPECT_EQ(thread_->HealthNow(milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  held = false;
  EXPECT_TRUE(thread_->HealthNow(kLong).ok());
}

TEST_F(RunThreadTest, AStopEndsItAndCallsThatAreStillPostedRun) {
  Start();
  thread_->RequestStop();
  ASSERT_TRUE(thread_->WaitUntilEnded(kLong));
  EXPECT_TRUE(thread_->end_status().ok());
  bool ran = false;
  ASSERT_TRUE(thread_->Call([&](run::Run&, Time) { ran = true; }));
  thread_->Stop();
  EXPECT_TRUE(ran);
  EXPECT_FALSE(thread_->Call([](run::Run&, Time) {}));
  EXPECT_FALSE(thread_->Post(TickIn{}));
  EXPECT_EQ(thread_->HealthNow(kLong).status().code(), absl::StatusCode::kUnavailable);
}

// Initial parameters that are read for as long as the test likes.
class SlowInit final : public InitialParameters {
 public:
  struct Seen {
    std::atomic<bool> reading = false, given_up = false, end = false;
    std::thread::id reader;  // while reading
  };
  explicit SlowInit(Seen* seen) : seen_(seen) {}
  absl::Status CheckFits(const Layout&) const override { return absl::OkStatus(); }
  absl::Status CopyInto(const Layout&, std::span<float> x,
                        const std::function<bool()>& give_up) const override {
    seen_->reader = std::this_thread::get_id();
    seen_->reading = true;
    while (!seen_->end.load()) {
      // What page faults and disks do, which no scope can find.
      CheckMayWait("the reading of a file");
      if (give_up()) {
        seen_->given_up = true;
        return absl::CancelledError("given up");
      }
      std::this_thread::yield();
    }
    x[0] = 2;
    return absl::OkStatus();
  }
  const std::string& config_json() const override { return text_; }
  const std::string& path() const override { return text_; }

 private:
  Seen* const seen_;
  const std::string text_;
};

class RunThreadInitTest : public RunThreadTest {
 protected:
  void TearDown() override {
    seen_.end = true;
    thread_.reset();
  }
  void StartWithInit() {
    auto thread = RunThread::Create(
        {.run = RunTest::Options(), .state = {.run_id = RunId::FromRandom(1, 2)}},
        {.memory = [] { return std::nullopt; }, .init = std::make_unique<SlowInit>(&seen_)},
        Clock::System());
    ASSERT_TRUE(thread.ok()) << Describe(thread.status());
    thread_ = std::move(*thread);
    thread_->Start();
    const auto peer = std::make_shared<FakePeer>(PeerId(1), PeerIdentity{.address = "ipv4:1:1"});
    auto join = std::make_shared<v1::Join>();
    join->set_protocol_min(2);
    join->set_protocol_max(2);
    join->set_name("w");
    join->add_tensors()->set_name("w");
    ASSERT_TRUE(thread_->Post(StreamInput{.peer = PeerId(1), .what = StreamOpened{peer}}));
    ASSERT_TRUE(thread_->Post(StreamInput{.peer = PeerId(1), .what = JoinIn{std::move(join)}}));
    const Time until = Clock::System()->Now() + kLong;
    while (!seen_.reading.load() && Clock::System()->Now() < until) std::this_thread::yield();
    ASSERT_TRUE(seen_.reading.load());
  }
  SlowInit::Seen seen_;
};

TEST_F(RunThreadInitTest, AFileIsReadOnAThreadThatNobodyWaitsFor) {
  StartWithInit();
  std::thread::id run_thread;
  ASSERT_TRUE(thread_->Call([&](run::Run&, Time) { run_thread = std::this_thread::get_id(); }));
  const auto health = thread_->HealthNow(kLong);
  ASSERT_TRUE(health.ok());
  EXPECT_EQ(health->not_ready_because, "waiting for the initial parameters");
  EXPECT_NE(seen_.reader, run_thread);
  seen_.end = true;
  const Time until = Clock::System()->Now() + kLong;
  while (!thread_->committed().has_value() && Clock::System()->Now() < until) {
    std::this_thread::yield();
  }
  const auto copy = thread_->CopyReplica(RunThread::CopyOf::kCommitted, kLong);
  ASSERT_TRUE(copy.ok()) << Describe(copy.status());
  EXPECT_EQ(copy->x, std::vector<float>{2});
}

TEST_F(RunThreadInitTest, AStopGivesTheReadingUp) {
  StartWithInit();
  thread_->Stop();
  EXPECT_TRUE(seen_.given_up.load());
}

#if defined(SIGNVOTE_CHECK_WAITS)
TEST(RunThreadDeathTest, WhateverWaitsOnTheRunsThreadIsFound) {
  EXPECT_DEATH(
      {
        auto thread = RunThread::Create(
            {.run = RunTest::Options(), .state = {.run_id = RunId::FromRandom(1, 2)}},
            {.memory = [] { return std::nullopt; }}, Clock::System());
        (*thread)->Start();
        (void)(*thread)->Call([](run::Run&, Time) { Clock::System()->SleepFor(milliseconds(1)); });
        (void)(*thread)->HealthNow(kLong);
      },
      "a sleep on a thread that may wait for nothing");
}
#endif

}  // namespace
}  // namespace signvote::run
