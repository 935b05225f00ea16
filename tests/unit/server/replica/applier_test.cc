#include "server/replica/applier.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/bits.h"
#include "common/checksum.h"
#include "tests/unit/server/commit/records.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Bytes;
using testing::Make;
using testing::StepFields;

Layout Tiny(uint64_t d) { return *Layout::Make({{.name = "w", .shape = {d}}}); }

// All bits 0: every coordinate rises by γ = 1.
std::shared_ptr<const CommitRecord> Up(uint64_t round, uint64_t d, bool digest = false) {
  const PayloadPlan plan(ChunkPlan(d, 512));
  CommitRecord fields = StepFields(round, plan, Bytes(plan.TotalBytes()));
  fields.digest_due = digest;
  return Make(std::move(fields), plan);
}

std::shared_ptr<const CommitRecord> Rewind(uint64_t round) {
  CommitRecord fields;
  fields.round = Round(round);
  fields.kind = CommitKind::kRewind;
  return Make(std::move(fields), PayloadPlan(ChunkPlan(1, 512)));
}

std::unique_ptr<MasterReplica> Replica(uint64_t d, bool needs_x0 = false) {
  return std::move(*MasterReplica::Create(Tiny(d), {.needs_x0 = needs_x0}));
}

TEST(ApplierTest, AppliesOneCommitACallInOrder) {
  const auto replica = Replica(1000);
  FakeClock clock;
  Applier applier(replica.get(), &clock, 8);
  EXPECT_FALSE(applier.ApplyNext().has_value());
  for (uint64_t r = 0; r < 3; ++r) ASSERT_TRUE(applier.TryPush(Up(r, 1000, r == 2)));
  EXPECT_EQ(applier.backlog(), 3u);
  for (uint64_t r = 0; r < 3; ++r) {
    const std::optional<Applied> applied = applier.ApplyNext();
    ASSERT_TRUE(applied.has_value());
    EXPECT_EQ(applied->next_round, Round(r + 1));
    EXPECT_EQ(replica->x()[999], static_cast<float>(r + 1));
    EXPECT_EQ(applier.backlog(), 2 - r);
    EXPECT_EQ(applied->digest.has_value(), r == 2);
    if (applied->digest.has_value()) {
      EXPECT_EQ(*applied->digest, replica->Digest());
    }
  }
  EXPECT_FALSE(applier.ApplyNext().has_value());
}

TEST(ApplierTest, TakesCommitsUntilItsBacklogIsFullAndNoLonger) {
  const auto replica = Replica(10);
  FakeClock clock;
  Applier applier(replica.get(), &clock, 3);
  for (uint64_t r = 0; r < 3; ++r) EXPECT_TRUE(applier.TryPush(Up(r, 10)));
  EXPECT_FALSE(applier.TryPush(Up(3, 10)));
  EXPECT_EQ(applier.backlog(), 3u);
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_TRUE(applier.TryPush(Up(3, 10)));
  EXPECT_FALSE(applier.TryPush(Up(4, 10)));
}

TEST(ApplierTest, WaitsForWorkNoLongerThanItIsTold) {
  const auto replica = Replica(10);
  Applier applier(replica.get(), Clock::System(), 3);
  EXPECT_FALSE(applier.WaitForWork(milliseconds(1)));
  EXPECT_TRUE(applier.WaitUntilIdle(milliseconds(1)));
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  EXPECT_TRUE(applier.WaitForWork(seconds(10)));
  EXPECT_FALSE(applier.WaitUntilIdle(milliseconds(1)));
  applier.Wake();
  EXPECT_FALSE(applier.WaitForWork(seconds(10)));
  EXPECT_TRUE(applier.ApplyNext().has_value());
}

TEST(ApplierTest, TheStartingPointIsDroppedAtTheRoundThatDoesWithoutIt) {
  const auto replica = Replica(1000, true);
  FakeClock clock;
  Applier applier(replica.get(), &clock, 8);
  ASSERT_TRUE(applier.TryPush(Up(0, 1000)));
  ASSERT_TRUE(applier.TryPush(Rewind(1)));
  ASSERT_TRUE(applier.TryPush(Up(2, 1000)));
  applier.DropX0From(Round(2));
  ASSERT_TRUE(applier.ApplyNext().has_value());
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_TRUE(replica->has_x0());
  EXPECT_EQ(replica->x()[0], 0.0f);
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_FALSE(replica->has_x0());
  EXPECT_EQ(replica->x()[0], 1.0f);
}

TEST(ApplierTest, ACopyHoldsBothPlanesAtOneRound) {
  const auto replica = Replica(1000, true);
  FakeClock clock;
  Applier applier(replica.get(), &clock, 8);
  for (uint64_t r = 0; r < 2; ++r) {
    ASSERT_TRUE(applier.TryPush(Up(r, 1000)));
    ASSERT_TRUE(applier.ApplyNext().has_value());
  }
  const auto both = applier.TakeSnapshot(Applier::WithX0::kYes, seconds(0), nullptr);
  ASSERT_TRUE(both.ok());
  EXPECT_EQ(both->round, Round(2));
  EXPECT_EQ(both->x, std::vector<float>(1000, 2.0f));
  EXPECT_EQ(both->x0, std::vector<float>(1000, 0.0f));
  const auto one = applier.TakeSnapshot(Applier::WithX0::kNo, seconds(0), nullptr);
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->x, both->x);
  EXPECT_TRUE(one->x0.empty());
  replica->DropX0();
  const auto without = applier.TakeSnapshot(Applier::WithX0::kYes, seconds(0), nullptr);
  ASSERT_TRUE(without.ok());
  EXPECT_TRUE(without->x0.empty());
}

TEST(ApplierTest, ACopySaysTheStepsizeOfItsRoundAndNotOfWhatWaits) {
  const auto replica = Replica(1000);
  FakeClock clock;
  Applier applier(replica.get(), &clock, 8);
  const PayloadPlan plan(ChunkPlan(1000, 512));
  for (uint64_t r = 0; r < 4; ++r) {
    CommitRecord fields = StepFields(r, plan, Bytes(plan.TotalBytes()));
    fields.gamma = r < 2 ? 1.0f : 1.0f / static_cast<float>(r);
    ASSERT_TRUE(applier.TryPush(Make(std::move(fields), plan)));
  }
  const std::optional<float> none;
  for (const std::optional<float>& stepsize :
       {none, none, std::optional(0.5f), std::optional(1.0f / 3)}) {
    ASSERT_TRUE(applier.ApplyNext().has_value());
    EXPECT_EQ(applier.stepsize(), stepsize);
    const auto copy = applier.TakeSnapshot(Applier::WithX0::kNo, seconds(0), nullptr);
    ASSERT_TRUE(copy.ok());
    EXPECT_EQ(copy->stepsize, stepsize);
  }
}

// A clock that calls back once: its first reader is in the middle of something.
class InterruptingClock final : public Clock {
 public:
  Time Now() const override {
    if (auto once = std::exchange(once_, nullptr)) once();
    return Clock::System()->Now();
  }
  int64_t UnixMicros() const override { return 0; }
  void SleepFor(Duration) override {}
  void Once(std::function<void()> f) { once_ = std::move(f); }

 private:
  mutable std::function<void()> once_;
};

TEST(ApplierTest, AHungCommitHoldsUpNoCallerAndACopyOnlyForItsTime) {
  const auto replica = Replica(10);
  InterruptingClock clock;
  Applier applier(replica.get(), &clock, 2);
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  bool hung = false;
  clock.Once([&] {
    // ApplyNext() is at work now.
    hung = true;
    EXPECT_EQ(applier.backlog(), 1u);
    EXPECT_TRUE(applier.TryPush(Up(1, 10)));
    EXPECT_FALSE(applier.TryPush(Up(2, 10)));
    EXPECT_FALSE(applier.ApplyNext().has_value());
    EXPECT_FALSE(applier.WaitForWork(milliseconds(5)));
    const auto copy = applier.TakeSnapshot(Applier::WithX0::kNo, milliseconds(5), nullptr);
    EXPECT_EQ(copy.status().code(), absl::StatusCode::kDeadlineExceeded);
  });
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_TRUE(hung);
  EXPECT_TRUE(applier.ApplyNext().has_value());
  EXPECT_TRUE(applier.TakeSnapshot(Applier::WithX0::kNo, seconds(0), nullptr).ok());
}

TEST(ApplierTest, WhoWaitsForWhatWasPushedWaitsForNothingBehindIt) {
  const auto replica = Replica(10);
  Applier applier(replica.get(), Clock::System(), 2);
  EXPECT_TRUE(applier.WaitUntilApplied(applier.pushed(), seconds(0), nullptr));
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  const uint64_t pushed = applier.pushed();
  ASSERT_TRUE(applier.TryPush(Up(1, 10)));
  EXPECT_FALSE(applier.WaitUntilApplied(pushed, milliseconds(1), nullptr));
  EXPECT_FALSE(applier.WaitUntilApplied(pushed, std::chrono::hours(1), [] { return true; }));
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_TRUE(applier.WaitUntilApplied(pushed, seconds(0), nullptr));
  EXPECT_FALSE(applier.WaitUntilApplied(applier.pushed(), milliseconds(1), nullptr));
}

TEST(ApplierTest, WhoWaitsForACopyBehindAHungCommitCanBeToldNotTo) {
  const auto replica = Replica(10);
  InterruptingClock clock;
  Applier applier(replica.get(), &clock, 2);
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  std::atomic<bool> unwanted = false;
  std::atomic<int> asked = 0;
  absl::Status told;
  clock.Once([&] {
    // ApplyNext() is at work until the copy is given up.
    std::thread waiting([&] {
      told = applier
                 .TakeSnapshot(Applier::WithX0::kNo, std::chrono::hours(1),
                               [&] {
                                 ++asked;
                                 return unwanted.load();
                               })
                 .status();
    });
    while (asked.load() == 0) std::this_thread::yield();
    unwanted = true;
    applier.AskAgain();
    waiting.join();
  });
  ASSERT_TRUE(applier.ApplyNext().has_value());
  EXPECT_EQ(told.code(), absl::StatusCode::kCancelled);
}

TEST(ApplierThreadTest, AppliesWhatComesAndReportsRoundAndDigest) {
  const auto replica = Replica(1000);
  Applier applier(replica.get(), Clock::System(), 8);
  Mutex mu;
  std::vector<Applied> seen;
  ApplierThread thread(&applier, Clock::System(), {.on_applied = [&](const Applied& applied) {
    MutexLock lock(&mu);
    seen.push_back(applied);
  }});
  for (uint64_t r = 0; r < 8; ++r) ASSERT_TRUE(applier.TryPush(Up(r, 1000, r == 7)));
  ASSERT_TRUE(applier.WaitUntilIdle(seconds(20)));
  thread.Stop();
  MutexLock lock(&mu);
  ASSERT_EQ(seen.size(), 8u);
  for (uint64_t r = 0; r < 8; ++r) EXPECT_EQ(seen[r].next_round, Round(r + 1));
  EXPECT_FALSE(seen[6].digest.has_value());
  EXPECT_EQ(seen[7].digest, replica->Digest());
  EXPECT_EQ(replica->x()[999], 8.0f);
}

TEST(ApplierThreadTest, OtherThreadsGoFirst) {
  const auto replica = Replica(10);
  Applier applier(replica.get(), Clock::System(), 4);
  std::atomic<int> niceness = 0;
  ApplierThread thread(&applier, Clock::System(), {.on_applied = [&](const Applied&) {
    niceness = ::getpriority(PRIO_PROCESS, 0);
  }});
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  ASSERT_TRUE(applier.WaitUntilIdle(seconds(20)));
  thread.Stop();
  EXPECT_EQ(niceness, std::min(::getpriority(PRIO_PROCESS, 0) + 10, 19));
}

TEST(ApplierThreadTest, ItGivesWayBeforeACommitBehindWhichNoOtherWaits) {
  const auto replica = Replica(10);
  Applier applier(replica.get(), Clock::System(), 4);
  for (uint64_t r = 0; r < 3; ++r) ASSERT_TRUE(applier.TryPush(Up(r, 10)));
  std::vector<size_t> waiting;
  ApplierThread thread(&applier, Clock::System(),
                       {.give_way = [&] { waiting.push_back(applier.backlog()); }});
  ASSERT_TRUE(applier.WaitUntilIdle(seconds(20)));
  thread.Stop();
  EXPECT_EQ(waiting, std::vector<size_t>{1}) << "of the three only before the last";
}

TEST(ApplierThreadTest, ADelayedOneStopsAtOnce) {
  const auto replica = Replica(10);
  Applier applier(replica.get(), Clock::System(), 4);
  ApplierThread thread(&applier, Clock::System(), {.delay = seconds(600)});
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  EXPECT_FALSE(applier.WaitUntilIdle(milliseconds(20)));
  const Time begin = Clock::System()->Now();
  thread.Stop();
  thread.Stop();
  EXPECT_LT(Clock::System()->Now() - begin, seconds(60));
  EXPECT_EQ(applier.backlog(), 1u);
}

TEST(ApplierThreadTest, ADelayCanBeForTheFirstCommitsOnly) {
  for (const uint64_t delayed : {0, 2}) {
    const auto replica = Replica(10);
    Applier applier(replica.get(), Clock::System(), 8);
    const Duration delay = delayed == 0 ? Duration(seconds(600)) : Duration(milliseconds(30));
    const Time begin = Clock::System()->Now();
    const ApplierThread thread(&applier, Clock::System(), {.delay = delay, .delayed = delayed});
    for (uint64_t r = 0; r < 8; ++r) ASSERT_TRUE(applier.TryPush(Up(r, 10)));
    ASSERT_TRUE(applier.WaitUntilIdle(seconds(60)));
    EXPECT_GE(Clock::System()->Now() - begin, delay * static_cast<int64_t>(delayed));
  }
}

TEST(ApplierThreadTest, ACopyIsAtOneRoundWhileCommitsGoOn) {
  // Pieces are copied one by one; without holding the applier, early and late ones would stand at
  // different rounds.
  const uint64_t d = 3 * MasterReplica::kPieceCoordinates;
  const auto replica = Replica(d);
  Applier applier(replica.get(), Clock::System(), 4);
  Mutex mu;
  CondVar room;
  ApplierThread thread(&applier, Clock::System(),
                       {.on_applied = [&](const Applied&) { room.NotifyAll(); }});
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> pushed = 0;
  std::thread committer([&] {
    while (!stop) {
      const auto record = Up(pushed, d);
      while (!stop && !applier.TryPush(record)) {
        MutexLock lock(&mu);
        (void)room.WaitFor(&mu, milliseconds(1));
      }
      ++pushed;
    }
  });
  Round last;
  for (int i = 0; i < 20; ++i) {
    const auto copy = applier.TakeSnapshot(Applier::WithX0::kNo, seconds(20), nullptr);
    ASSERT_TRUE(copy.ok());
    ASSERT_EQ(copy->x.size(), d);
    for (uint64_t j = 0; j < d; j += 4099)
      ASSERT_EQ(copy->x[j], static_cast<float>(copy->round.value())) << j;
    EXPECT_GE(copy->round, last);
    last = copy->round;
  }
  stop = true;
  committer.join();
}

}  // namespace
}  // namespace signvote
