#include "server/replica/applier.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/bits.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Layout Tiny(uint64_t d) { return *Layout::Make({{.name = "w", .shape = {d}}}); }

std::shared_ptr<const CommitRecord> Up(uint64_t round, uint64_t d, bool digest = false) {
  auto record = std::make_shared<CommitRecord>();
  record->round = Round(round);
  record->gamma = 1.0f;
  record->digest_due = digest;
  // All bits 0: every coordinate rises by γ.
  record->verdict =
      std::shared_ptr<uint8_t>(new uint8_t[BytesForBits(d)](), std::default_delete<uint8_t[]>());
  return record;
}

TEST(ApplierTest, AppliesInOrderAndReportsRoundAndDigest) {
  const std::unique_ptr<MasterReplica> owner = std::move(*MasterReplica::Create(Tiny(1000)));
  MasterReplica& replica = *owner;
  Mutex mu;
  std::vector<Applier::Applied> seen;
  Applier applier(owner.get(), Clock::System(),
                  {.backlog_max = 8, .on_applied = [&](const Applier::Applied& applied) {
                     MutexLock lock(&mu);
                     seen.push_back(applied);
                   }});
  for (uint64_t r = 0; r < 8; ++r) {
    ASSERT_TRUE(applier.WaitForRoom(seconds(10)));
    ASSERT_TRUE(applier.TryPush(Up(r, 1000, r == 7)));
  }
  ASSERT_TRUE(applier.WaitUntilIdle(seconds(10)));
  applier.Stop();
  MutexLock lock(&mu);
  ASSERT_EQ(seen.size(), 8u);
  for (uint64_t r = 0; r < 8; ++r) EXPECT_EQ(seen[r].next_round, Round(r + 1));
  EXPECT_FALSE(seen[6].digest.has_value());
  ASSERT_TRUE(seen[7].digest.has_value());
  EXPECT_EQ(*seen[7].digest, replica.Digest());
  EXPECT_EQ(replica.x()[999], 8.0f);
}

TEST(ApplierTest, OtherThreadsGoFirst) {
  const std::unique_ptr<MasterReplica> owner = std::move(*MasterReplica::Create(Tiny(10)));
  std::atomic<int> niceness = 0;
  Applier applier(owner.get(), Clock::System(), {.on_applied = [&](const Applier::Applied&) {
                    niceness = ::getpriority(PRIO_PROCESS, 0);
                  }});
  ASSERT_TRUE(applier.TryPush(Up(0, 10)));
  ASSERT_TRUE(applier.WaitUntilIdle(seconds(10)));
  applier.Stop();
  EXPECT_EQ(niceness, std::min(::getpriority(PRIO_PROCESS, 0) + 10, 19));
}

TEST(ApplierTest, ASlowApplierTakesCommitsUntilItsBacklogIsFullAndNoLonger) {
  const std::unique_ptr<MasterReplica> owner = std::move(*MasterReplica::Create(Tiny(10)));
  Applier applier(owner.get(), Clock::System(), {.backlog_max = 3, .delay = seconds(60)});
  for (uint64_t r = 0; r < 3; ++r) EXPECT_TRUE(applier.TryPush(Up(r, 10)));
  EXPECT_FALSE(applier.TryPush(Up(3, 10)));
  EXPECT_EQ(applier.backlog(), 3u);
  EXPECT_FALSE(applier.WaitForRoom(milliseconds(20)));
  EXPECT_FALSE(applier.WaitUntilIdle(milliseconds(20)));
  applier.Stop();  // at once, in spite of the delay
}

TEST(ApplierTest, ASnapshotStandsAtOneRound) {
  // Pieces are copied one by one; without holding the applier, early and late ones would stand at
  // different rounds.
  const uint64_t d = 3 * MasterReplica::kPieceCoordinates;
  const std::unique_ptr<MasterReplica> owner = std::move(*MasterReplica::Create(Tiny(d)));
  std::atomic<bool> stop = false;
  Applier applier(owner.get(), Clock::System(), {.backlog_max = 4});
  std::thread committer([&] {
    for (uint64_t r = 0; !stop; ++r) {
      const auto record = Up(r, d);
      while (!applier.TryPush(record)) {
        if (!applier.WaitForRoom(seconds(10))) return;
      }
    }
  });
  for (int i = 0; i < 20; ++i) {
    std::vector<float> copy;
    const Round round = applier.Snapshot(&copy);
    ASSERT_EQ(copy.size(), d);
    for (uint64_t j = 0; j < d; j += 4099)
      ASSERT_EQ(copy[j], static_cast<float>(round.value())) << j;
  }
  stop = true;
  committer.join();
}

}  // namespace
}  // namespace signvote
