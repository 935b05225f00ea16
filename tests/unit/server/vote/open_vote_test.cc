// Goal: a vote is counted from the ballots that its voters sent in its attempt and from nothing
// else, whatever older attempts are still doing. Method: a sink that holds jobs until the test runs
// them, ballots of random bits, and the definition of the tally beside.
#include "server/vote/open_vote.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "common/checksum.h"
#include "tests/unit/server/vote/ballots.h"

namespace signvote {
namespace {

using round::WorkerId;
using testing::Send;
using testing::Verdict;

constexpr uint64_t kSeed = 99;

// Keeps what is submitted; a job is run by the test, through the sink that counts at once.
class HeldSink final : public TallySink {
 public:
  void Submit(TallyJob job) override {
    job.share->Enter();
    jobs.push_back(std::move(job));
  }
  void DropWaiting() override {
    ++drops;
    for (TallyJob& job : jobs) job.share->Leave();
    jobs.clear();
  }
  // Takes the oldest job out: a thread has begun with it.
  TallyJob Begin() {
    TallyJob job = std::move(jobs.front());
    jobs.erase(jobs.begin());
    return job;
  }
  ChunkTallied Run(TallyJob job) {
    ChunkTallied out;
    InlineTallySink sink(&clock, [&](ChunkTallied tallied) { out = std::move(tallied); });
    const std::shared_ptr<TallyShare> share = job.share;
    sink.Submit(std::move(job));
    share->Leave();  // of Submit() above
    out.took = std::chrono::microseconds(5);
    return out;
  }
  ChunkTallied RunOldest() { return Run(Begin()); }

  FakeClock clock;
  std::vector<TallyJob> jobs;
  int drops = 0;
};

class OpenVoteTest : public ::testing::Test {
 protected:
  OpenVoteTest() {
    for (uint32_t j = 0; j < 3; ++j)
      slots_.push_back(std::make_shared<BallotSlots>(PayloadPlan(cut_), ballots_.Acquire()));
  }
  static WorkerId Worker(size_t j) { return WorkerId(static_cast<uint32_t>(100 + j)); }
  void Open(uint64_t round, uint32_t attempt) {
    std::vector<OpenVote::Voter> voters;
    for (size_t j = 0; j < slots_.size(); ++j)
      voters.push_back({.worker = Worker(j), .slots = slots_[j]});
    vote_.Open(Round(round), Attempt(attempt), std::move(voters));
  }
  // Worker j sends chunk k of the open attempt.
  void SendChunk(size_t j, uint32_t k) {
    sent_[k].push_back(Send(slots_[j].get(), vote_.round(), vote_.attempt(), ChunkIndex(k), &rng_));
  }
  void Close(uint32_t k, const std::vector<size_t>& voters) {
    std::vector<WorkerId> ids;
    for (const size_t j : voters) ids.push_back(Worker(j));
    vote_.Close(ChunkIndex(k), ids);
  }
  // Everybody's whole ballot, all chunks closed.
  void VoteAll() {
    sent_.clear();
    for (uint32_t k = 0; k < cut_.chunks(); ++k) {
      for (size_t j = 0; j < slots_.size(); ++j) SendChunk(j, k);
      Close(k, {0, 1, 2});
    }
  }

  const ChunkPlan cut_{3 * 512 - 20, 512};
  BufferPool verdicts_{cut_.TotalBytes(), 8};
  BufferPool ballots_{cut_.TotalBytes(), 8};
  HeldSink sink_;
  OpenVote vote_{{.plan = PayloadPlan(cut_), .seed = kSeed}, &sink_, &verdicts_, &ballots_};
  Rng rng_{1, 0};
  std::vector<std::shared_ptr<BallotSlots>> slots_;
  std::map<uint32_t, std::vector<std::vector<uint8_t>>> sent_;  // by chunk
};

TEST_F(OpenVoteTest, AVoteIsCompleteWhenEveryChunkIsTallied) {
  EXPECT_FALSE(vote_.open());
  Open(4, 1);
  EXPECT_TRUE(vote_.open());
  EXPECT_EQ(vote_.round(), Round(4));
  EXPECT_EQ(vote_.attempt(), Attempt(1));
  VoteAll();
  EXPECT_EQ(vote_.closed_chunks(), 3u);
  EXPECT_EQ(vote_.tallied_chunks(), 0u);
  ASSERT_EQ(sink_.jobs.size(), 3u);
  // In another order than they were closed.
  std::swap(sink_.jobs[0], sink_.jobs[2]);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(vote_.complete());
    const ChunkTallied tallied = sink_.RunOldest();
    EXPECT_FALSE(vote_.tallied(tallied.chunk));
    EXPECT_TRUE(vote_.Take(tallied));
    EXPECT_TRUE(vote_.tallied(tallied.chunk));
  }
  ASSERT_TRUE(vote_.complete());
  const OpenVote::Result result = vote_.Finish();
  EXPECT_FALSE(vote_.open());
  EXPECT_FALSE(vote_.complete());
  EXPECT_EQ(result.round, Round(4));
  EXPECT_EQ(result.attempt, Attempt(1));
  EXPECT_EQ(result.tally_time, Duration(std::chrono::microseconds(15)));
  ASSERT_EQ(result.chunks.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) {
    const ChunkIndex k(i);
    const std::vector<uint8_t> expected = Verdict(sent_[i], cut_, k, kSeed, Round(4));
    EXPECT_TRUE(
        std::equal(expected.begin(), expected.end(), result.payload.get() + cut_.ByteOffset(k)));
    EXPECT_EQ(result.chunks[i].counted, 3u);
    EXPECT_EQ(result.chunks[i].checksum, Xxh3(expected.data(), expected.size()));
  }
}

TEST_F(OpenVoteTest, CountsLieInTheRoomOfTheMostBallots) {
  const PayloadPlan plan =
      *PayloadPlan::Make(cut_,
                         {{.first = ChunkIndex(0), .chunks = 1},
                          {.first = ChunkIndex(1), .chunks = 2, .kind = PayloadKind::kCounts}},
                         9);
  BufferPool verdicts(plan.TotalBytes(), 2);
  OpenVote vote({.plan = plan, .seed = kSeed}, &sink_, &verdicts, &ballots_);
  std::vector<OpenVote::Voter> voters;
  for (size_t j = 0; j < 3; ++j) voters.push_back({.worker = Worker(j), .slots = slots_[j]});
  vote.Open(Round(1), Attempt(0), std::move(voters));
  std::vector<std::vector<uint8_t>> sent;
  for (const uint32_t k : {0u, 1u, 2u}) {
    sent.clear();
    for (size_t j = 0; j < 3; ++j)
      sent.push_back(Send(slots_[j].get(), Round(1), Attempt(0), ChunkIndex(k), &rng_));
    vote.Close(ChunkIndex(k), std::vector<WorkerId>{Worker(0), Worker(1), Worker(2)});
    const ChunkTallied tallied = sink_.RunOldest();
    ASSERT_TRUE(vote.Take(tallied));
    std::vector<const uint8_t*> rows;
    for (const auto& ballot : sent) rows.push_back(ballot.data());
    std::vector<uint8_t> expected(2 * cut_.Bytes(ChunkIndex(k)));
    TallyCountsReference({.ballots = rows, .coordinates = cut_.Count(ChunkIndex(k))},
                         expected.data());
    if (k == 0) expected = Verdict(sent, cut_, ChunkIndex(0), kSeed, Round(1));
    EXPECT_EQ(tallied.checksum, Xxh3(expected.data(), expected.size()));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), tallied.payload.get())) << k;
  }
  const OpenVote::Statistics statistics = vote.statistics();
  EXPECT_GT(statistics.coordinates, 0u);
  for (const auto& worker : statistics.workers) {
    EXPECT_GT(worker.agreeing, worker.coordinates / 2) << "with what the vote would have been";
    EXPECT_LT(worker.agreeing, worker.coordinates);
  }
  const OpenVote::Result result = vote.Finish();
  std::vector<const uint8_t*> rows;
  for (const auto& ballot : sent) rows.push_back(ballot.data());
  std::vector<uint8_t> last(2 * cut_.Bytes(ChunkIndex(2)));
  TallyCountsReference({.ballots = rows, .coordinates = cut_.Count(ChunkIndex(2))}, last.data());
  EXPECT_EQ(plan.Offset(ChunkIndex(2)), 64u + 4 * 64) << "behind a verdict and four planes";
  EXPECT_TRUE(
      std::equal(last.begin(), last.end(), result.payload.get() + plan.Offset(ChunkIndex(2))));
}

TEST_F(OpenVoteTest, OnlyTheNamedVotersAreCountedAndLateOnesFindTheirSlotClosed) {
  Open(0, 0);
  SendChunk(0, 1);
  SendChunk(2, 1);
  EXPECT_FALSE(vote_.closed(ChunkIndex(1)));
  Close(1, {0, 2});
  EXPECT_TRUE(vote_.closed(ChunkIndex(1)));
  EXPECT_EQ(vote_.closed_chunks(), 1u);
  std::span<uint8_t> place;
  EXPECT_EQ(slots_[1]->Begin(Round(0), Attempt(0), ChunkIndex(1), &place),
            BallotSlots::Place::kNotNeeded);
  EXPECT_EQ(slots_[1]->Begin(Round(0), Attempt(0), ChunkIndex(0), &place),
            BallotSlots::Place::kWrite);
  const ChunkTallied tallied = sink_.RunOldest();
  EXPECT_EQ(tallied.counted, 2u);
  const std::vector<uint8_t> expected = Verdict(sent_[1], cut_, ChunkIndex(1), kSeed, Round(0));
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), tallied.payload.get()));
}

TEST_F(OpenVoteTest, AResultNamesThoseWhoseBallotsWereCounted) {
  const auto names = [](const std::vector<size_t>& voters) {
    std::vector<WorkerId> ids;
    for (const size_t j : voters) ids.push_back(Worker(j));
    return ids;
  };
  for (uint64_t round = 0; round < 2; ++round) {
    Open(round, 0);
    for (uint32_t k = 0; k < 3; ++k)
      for (size_t j = 0; j < 3; ++j) SendChunk(j, k);
    // The last chunk first, as backward passes finish them.
    Close(2, {0, 2});
    Close(1, {0, 2});
    Close(0, round == 0 ? std::vector<size_t>{2, 0} : std::vector<size_t>{0, 2});
    while (!sink_.jobs.empty()) EXPECT_TRUE(vote_.Take(sink_.RunOldest()));
    const OpenVote::Result result = vote_.Finish();
    if (round == 0) {
      ASSERT_EQ(result.counted.size(), 2u)
          << "the order is told too: dense ballots are added up in it";
      EXPECT_EQ(result.counted[0].chunks, 1u);
      EXPECT_EQ(result.counted[0].voters, names({2, 0}));
      EXPECT_EQ(result.counted[1].chunks, 2u);
      EXPECT_EQ(result.counted[1].voters, names({0, 2}));
    } else {
      ASSERT_EQ(result.counted.size(), 1u);
      EXPECT_EQ(result.counted[0].chunks, 3u);
    }
  }
}

TEST_F(OpenVoteTest, AResultCountsOnce) {
  Open(0, 0);
  SendChunk(0, 0);
  Close(0, {0});
  ChunkTallied tallied = sink_.RunOldest();
  EXPECT_TRUE(vote_.Take(tallied));
  EXPECT_FALSE(vote_.Take(tallied));
  EXPECT_EQ(vote_.tallied_chunks(), 1u);
  tallied.chunk = ChunkIndex(1);  // never closed
  EXPECT_FALSE(vote_.Take(tallied));
  EXPECT_EQ(vote_.tallied_chunks(), 1u);
}

TEST_F(OpenVoteTest, ResultsOfAnOlderAttemptAreDropped) {
  Open(2, 0);
  SendChunk(0, 0);
  Close(0, {0});
  const ChunkTallied old = sink_.RunOldest();
  Open(2, 1);
  SendChunk(0, 0);
  Close(0, {0});
  EXPECT_FALSE(vote_.Take(old));
  EXPECT_EQ(vote_.tallied_chunks(), 0u);
  Open(3, 0);
  SendChunk(0, 0);
  Close(0, {0});
  EXPECT_FALSE(vote_.Take(old));
  EXPECT_TRUE(vote_.Take(sink_.RunOldest()));
}

TEST_F(OpenVoteTest, AnAttemptThatIsAbandonedDropsWhatWaits) {
  Open(0, 0);
  SendChunk(0, 0);
  Close(0, {0});
  Open(0, 1);
  EXPECT_EQ(sink_.drops, 1);
  EXPECT_TRUE(sink_.jobs.empty());
  vote_.Abandon();
  EXPECT_EQ(sink_.drops, 2);
  EXPECT_FALSE(vote_.open());
  vote_.Abandon();
  EXPECT_EQ(sink_.drops, 2);
  Open(0, 2);
  EXPECT_EQ(sink_.drops, 2);
}

TEST_F(OpenVoteTest, ABallotThatATallyReadsIsNotWrittenByTheNextAttempt) {
  Open(0, 0);
  SendChunk(0, 0);
  Close(0, {0});
  TallyJob busy = sink_.Begin();
  const uint8_t* const read = slots_[0]->buffer().get();
  const std::vector<uint8_t> expected = Verdict(sent_[0], cut_, ChunkIndex(0), kSeed, Round(0));
  Open(0, 1);
  EXPECT_NE(slots_[0]->buffer().get(), read);
  SendChunk(0, 0);
  // The next attempt has buffers of its own for the verdict too.
  Close(0, {0});
  const ChunkTallied newer = sink_.RunOldest();
  const ChunkTallied older = sink_.Run(std::move(busy));
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), older.payload.get()));
  EXPECT_NE(newer.payload, older.payload);
  EXPECT_FALSE(vote_.Take(older));
  EXPECT_TRUE(vote_.Take(newer));
}

TEST_F(OpenVoteTest, AVoterThatWasNotInTheBusyAttemptKeepsItsBuffer) {
  Open(0, 0);
  SendChunk(0, 0);
  Close(0, {0});
  TallyJob busy = sink_.Begin();
  slots_.push_back(std::make_shared<BallotSlots>(PayloadPlan(cut_), ballots_.Acquire()));
  const auto before = slots_[3]->buffer();
  Open(0, 1);
  EXPECT_EQ(slots_[3]->buffer(), before);
  (void)sink_.Run(std::move(busy));
}

TEST_F(OpenVoteTest, BuffersAreUsedAgainFromRoundToRound) {
  std::vector<const uint8_t*> first;
  for (const auto& slots : slots_) first.push_back(slots->buffer().get());
  for (uint64_t r = 0; r < 20; ++r) {
    Open(r, 0);
    for (size_t j = 0; j < slots_.size(); ++j) EXPECT_EQ(slots_[j]->buffer().get(), first[j]);
    VoteAll();
    while (!sink_.jobs.empty()) EXPECT_TRUE(vote_.Take(sink_.RunOldest()));
    (void)vote_.Finish();
  }
  EXPECT_EQ(ballots_.allocated(), 3u);
  EXPECT_LE(verdicts_.allocated(), 2u);
}

TEST_F(OpenVoteTest, OldAttemptsAreLetGoWhenTheirTalliesAreDone) {
  Open(0, 0);
  for (uint32_t a = 1; a < 20; ++a) {
    SendChunk(0, 0);
    Close(0, {0});
    TallyJob busy = sink_.Begin();
    Open(0, a);
    (void)sink_.Run(std::move(busy));
  }
  Open(0, 20);
  Open(0, 21);
  // Those of the slots, and what the pool keeps of the few that were swapped.
  EXPECT_LE(ballots_.allocated(), 8u);
  EXPECT_LE(verdicts_.allocated(), 4u);
}

TEST_F(OpenVoteTest, StatisticsNameTheWorkersThatWereCounted) {
  EXPECT_TRUE(vote_.statistics().workers.empty());
  Open(0, 0);
  sent_.clear();
  for (uint32_t k = 0; k < 3; ++k) {
    SendChunk(0, k);
    if (k == 0) SendChunk(2, k);
    Close(k, k == 0 ? std::vector<size_t>{0, 2} : std::vector<size_t>{0});
  }
  while (!sink_.jobs.empty()) ASSERT_TRUE(vote_.Take(sink_.RunOldest()));
  (void)vote_.Finish();
  const OpenVote::Statistics statistics = vote_.statistics();
  ASSERT_EQ(statistics.workers.size(), 2u);
  // Round 0 of three chunks looks at chunks 0 and 2, whole.
  EXPECT_EQ(statistics.coordinates, 512u + 492);
  EXPECT_EQ(statistics.workers[0].worker, Worker(0));
  EXPECT_EQ(statistics.workers[0].chunks, 3u);
  EXPECT_EQ(statistics.workers[0].coordinates, 512u + 492);
  EXPECT_EQ(statistics.workers[1].worker, Worker(2));
  EXPECT_EQ(statistics.workers[1].chunks, 1u);
  EXPECT_EQ(statistics.workers[1].coordinates, 512u);
  // Of two that differ one agrees; alone one always does.
  const uint64_t ties = statistics.ties;
  EXPECT_GT(ties, 0u);
  EXPECT_EQ(statistics.workers[0].agreeing + statistics.workers[1].agreeing, 2 * 512u + 492 - ties);
  Open(1, 0);
  EXPECT_TRUE(vote_.statistics().workers.empty());
  EXPECT_EQ(vote_.statistics().coordinates, 0u);
}

using OpenVoteDeathTest = OpenVoteTest;

TEST_F(OpenVoteDeathTest, VotersThatCannotBeCountedAreBugs) {
  EXPECT_DEATH(Close(0, {}), "check failed");  // nothing is open
  Open(0, 0);
  EXPECT_DEATH(Close(3, {}), "check failed");
  EXPECT_DEATH(Close(0, {0}), "check failed");  // its chunk is not there
  SendChunk(0, 0);
  EXPECT_DEATH(Close(0, {7}), "check failed");  // a stranger
  Close(0, {0});
  EXPECT_DEATH(Close(0, {}), "check failed");  // twice
  EXPECT_DEATH((void)vote_.Finish(), "check failed");
  slots_.push_back(slots_[0]);
  EXPECT_DEATH(vote_.Open(Round(1), Attempt(0),
                          {{.worker = Worker(0), .slots = slots_[0]},
                           {.worker = Worker(0), .slots = slots_[1]}}),
               "check failed");
  BufferPool small(cut_.TotalBytes() - 1, 1);
  EXPECT_DEATH(OpenVote({.plan = PayloadPlan(cut_)}, &sink_, &small, &ballots_), "check failed");
  EXPECT_DEATH(OpenVote({.plan = PayloadPlan(cut_)}, &sink_, &verdicts_, &small), "check failed");
}

}  // namespace
}  // namespace signvote
