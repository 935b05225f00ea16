#include "server/vote/tally_sink.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <utility>

#include "common/checksum.h"
#include "tests/unit/server/vote/ballots.h"

namespace signvote {
namespace {

using std::chrono::seconds;
using testing::FillRandom;
using testing::Verdict;

constexpr uint64_t kSeed = 77;
constexpr size_t kVoters = 4;

std::shared_ptr<uint8_t> Buffer(size_t bytes) {
  return {new uint8_t[bytes](), std::default_delete<uint8_t[]>()};
}

// Ballots of a whole model, and the jobs that count them.
class TallySinkTest : public ::testing::Test {
 protected:
  TallySinkTest() {
    Rng rng(3, 0);
    std::vector<std::shared_ptr<const uint8_t>> shared;
    for (size_t j = 0; j < kVoters; ++j) {
      buffers_.push_back(Buffer(plan_.TotalBytes()));
      FillRandom({buffers_[j].get(), plan_.TotalBytes()}, plan_.coordinates(), &rng);
      shared.push_back(buffers_[j]);
    }
    share_ = std::make_shared<TallyShare>(shared, verdict_);
  }

  TallyJob Job(uint32_t k, std::vector<uint32_t> places = {0, 2, 3}) const {
    return {.round = round_,
            .attempt = Attempt(2),
            .chunk = ChunkIndex(k),
            .share = share_,
            .places = std::move(places),
            .plan = plan_,
            .ballot_offset = plan_.ByteOffset(ChunkIndex(k)),
            .payload_offset = plan_.ByteOffset(ChunkIndex(k)),
            .seed = kSeed};
  }
  std::vector<uint8_t> Expected(ChunkIndex k, const std::vector<uint32_t>& places) const {
    std::vector<std::vector<uint8_t>> ballots;
    for (const uint32_t place : places) {
      const uint8_t* from = buffers_[place].get() + plan_.ByteOffset(k);
      ballots.emplace_back(from, from + plan_.Bytes(k));
    }
    return Verdict(ballots, plan_, k, kSeed, round_);
  }
  void ExpectRight(const ChunkTallied& tallied, const std::vector<uint32_t>& places) const {
    const std::vector<uint8_t> expected = Expected(tallied.chunk, places);
    EXPECT_EQ(tallied.round, round_);
    EXPECT_EQ(tallied.attempt, Attempt(2));
    EXPECT_EQ(tallied.counted, places.size());
    EXPECT_EQ(tallied.checksum, Xxh3(expected.data(), expected.size()));
    EXPECT_EQ(tallied.payload.get(), verdict_.get() + plan_.ByteOffset(tallied.chunk));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), tallied.payload.get()));
  }

  const ChunkPlan plan_{20 * 512 - 60, 512};
  const Round round_{5};
  std::vector<std::shared_ptr<uint8_t>> buffers_;
  const std::shared_ptr<uint8_t> verdict_ = Buffer(plan_.TotalBytes());
  std::shared_ptr<TallyShare> share_;
};

TEST_F(TallySinkTest, TheCallersThreadCountsAtOnce) {
  std::vector<ChunkTallied> seen;
  FakeClock clock;
  InlineTallySink sink(&clock, [&](ChunkTallied tallied) {
    EXPECT_FALSE(share_->idle());
    seen.push_back(std::move(tallied));
  });
  for (uint32_t k = 0; k < plan_.chunks(); ++k) {
    sink.Submit(Job(k));
    ASSERT_EQ(seen.size(), k + 1);
    EXPECT_EQ(seen[k].chunk, ChunkIndex(k));
    ExpectRight(seen[k], {0, 2, 3});
    EXPECT_TRUE(share_->idle());
  }
  sink.DropWaiting();
}

TEST_F(TallySinkTest, AChunkWithoutABallotIsCoins) {
  ChunkTallied seen;
  FakeClock clock;
  InlineTallySink sink(&clock, [&](ChunkTallied tallied) { seen = std::move(tallied); });
  sink.Submit(Job(1, {}));
  EXPECT_EQ(seen.counted, 0u);
  ExpectRight(seen, {});
}

TEST_F(TallySinkTest, TheSampleOfTheRoundIsLookedAt) {
  FakeClock clock;
  InlineTallySink sink(&clock, [](const ChunkTallied&) {});
  uint64_t coordinates = 0, ties = 0, agreeing = 0;
  const std::vector<uint32_t> places = {3, 1};
  for (uint32_t i = 0; i < plan_.chunks(); ++i) {
    const ChunkIndex k(i);
    sink.Submit(Job(i, places));
    const SampleRange sample = SampleOf(plan_, round_, k);
    const std::vector<uint8_t> verdict = Expected(k, places);
    for (uint64_t c = sample.first; c < sample.first + sample.count; ++c) {
      const uint8_t* a = buffers_[3].get() + plan_.ByteOffset(k);
      const uint8_t* b = buffers_[1].get() + plan_.ByteOffset(k);
      ++coordinates;
      ties += GetBit(a, c) != GetBit(b, c) ? 1 : 0;
      agreeing += GetBit(a, c) == GetBit(verdict.data(), c) ? 1 : 0;
    }
  }
  const VoteStatistics sampled = share_->sampled();
  EXPECT_GT(coordinates, 0u);
  EXPECT_EQ(sampled.coordinates, coordinates);
  EXPECT_EQ(sampled.ties, ties);
  ASSERT_EQ(sampled.ballots.size(), kVoters);
  EXPECT_EQ(sampled.ballots[3].agreeing, agreeing);
  EXPECT_EQ(sampled.ballots[3].coordinates, coordinates);
  EXPECT_EQ(sampled.ballots[0].coordinates, 0u);
}

TEST_F(TallySinkTest, ThreadsCountEveryChunkOnce) {
  for (const size_t threads : {1u, 2u, 5u}) {
    Mutex mu;
    CondVar came;
    std::map<uint32_t, ChunkTallied> seen;
    TallyThreads sink(threads, Clock::System(), [&](ChunkTallied tallied) {
      MutexLock lock(&mu);
      EXPECT_TRUE(seen.emplace(tallied.chunk.value(), tallied).second);
      came.NotifyAll();
    });
    EXPECT_EQ(sink.threads(), threads);
    for (uint32_t k = 0; k < plan_.chunks(); ++k) sink.Submit(Job(k));
    {
      MutexLock lock(&mu);
      const Time until = Clock::System()->Now() + seconds(20);
      while (seen.size() < plan_.chunks() && Clock::System()->Now() < until)
        (void)came.WaitFor(&mu, seconds(1));
      ASSERT_EQ(seen.size(), plan_.chunks());
      for (const auto& [k, tallied] : seen) ExpectRight(tallied, {0, 2, 3});
    }
    sink.Stop();
    EXPECT_TRUE(share_->idle());
    EXPECT_EQ(sink.waiting(), 0u);
  }
}

// Holds every tally in its callback until it is opened.
class Gate {
 public:
  void Pass() {
    MutexLock lock(&mu_);
    ++inside_;
    changed_.NotifyAll();
    while (!open_) (void)changed_.WaitFor(&mu_, seconds(1));
  }
  bool WaitUntilInside(int n) {
    MutexLock lock(&mu_);
    const Time until = Clock::System()->Now() + seconds(20);
    while (inside_ < n && Clock::System()->Now() < until) (void)changed_.WaitFor(&mu_, seconds(1));
    return inside_ == n;
  }
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    changed_.NotifyAll();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int inside_ ABSL_GUARDED_BY(mu_) = 0;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

TEST_F(TallySinkTest, WhatWaitsCanBeDroppedAndWhatIsCountedComes) {
  Gate gate;
  std::atomic<int> seen = 0;
  TallyThreads sink(2, Clock::System(), [&](const ChunkTallied&) {
    ++seen;
    gate.Pass();
  });
  for (uint32_t k = 0; k < 10; ++k) sink.Submit(Job(k));
  ASSERT_TRUE(gate.WaitUntilInside(2));
  EXPECT_EQ(sink.waiting(), 8u);
  sink.DropWaiting();
  EXPECT_EQ(sink.waiting(), 0u);
  EXPECT_FALSE(share_->idle());
  gate.Open();
  sink.Stop();
  EXPECT_EQ(seen, 2);
  EXPECT_TRUE(share_->idle());
}

TEST_F(TallySinkTest, StopDropsWhatWaitsAndWhatComesLater) {
  Gate gate;
  std::atomic<int> seen = 0;
  TallyThreads sink(1, Clock::System(), [&](const ChunkTallied&) {
    ++seen;
    gate.Pass();
  });
  for (uint32_t k = 0; k < 5; ++k) sink.Submit(Job(k));
  ASSERT_TRUE(gate.WaitUntilInside(1));
  std::thread stopper([&] { sink.Stop(); });
  const Time until = Clock::System()->Now() + seconds(20);
  while (sink.waiting() != 0 && Clock::System()->Now() < until) std::this_thread::yield();
  EXPECT_EQ(sink.waiting(), 0u);
  gate.Open();
  stopper.join();
  sink.Submit(Job(7));
  sink.Stop();
  EXPECT_EQ(seen, 1);
  EXPECT_TRUE(share_->idle());
}

TEST(TallyThreadsTest, ByDefaultThereIsOneForEachOfAFewCores) {
  EXPECT_EQ(TallyThreads::DefaultThreads(0), 1u);
  EXPECT_EQ(TallyThreads::DefaultThreads(1), 1u);
  EXPECT_EQ(TallyThreads::DefaultThreads(2), 2u);
  EXPECT_EQ(TallyThreads::DefaultThreads(4), 4u);
  EXPECT_EQ(TallyThreads::DefaultThreads(64), 4u);
}

TEST(TallyShareTest, KnowsWhatItHolds) {
  const auto a = Buffer(8), b = Buffer(8), verdict = Buffer(8);
  const TallyShare share({a}, verdict);
  EXPECT_TRUE(share.Holds(a.get()));
  EXPECT_FALSE(share.Holds(b.get()));
  EXPECT_FALSE(share.Holds(verdict.get()));
  EXPECT_EQ(share.ballots(), 1u);
}

TEST(TallyShareDeathTest, LeavingWithoutEnteringIsABug) {
  TallyShare share({}, nullptr);
  EXPECT_DEATH(share.Leave(), "check failed");
  EXPECT_DEATH(TallyThreads(0, Clock::System(), [](const ChunkTallied&) {}), "check failed");
}

}  // namespace
}  // namespace signvote
