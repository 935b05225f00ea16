#include "server/round/attempt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "common/rng.h"

namespace signvote::round {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Time kNow = Time{} + std::chrono::seconds(3);

// Members 2, 5 and 9 (seats 0, 1, 3) and the observer 7 (seat 2), two chunks, quorum 2.
class OpenAttemptTest : public testing::Test {
 protected:
  OpenAttempt& open() {
    if (open_ == nullptr) {
      AttemptPlan plan{.round = Round(4),
                       .attempt = Attempt(1),
                       .chunks = chunks_,
                       .quorum = 2,
                       .wanted = {ScalarKind::kProbeL1},
                       .seats = {}};
      for (const uint32_t id : {2u, 5u, 7u, 9u}) {
        plan.seats.push_back({.worker = WorkerId(id),
                              .incarnation = Incarnation(id),
                              .role = id == 7 ? Role::kObserver : Role::kMember});
      }
      open_ = std::make_unique<OpenAttempt>(std::move(plan));
    }
    return *open_;
  }
  Took Vote(uint32_t seat, uint32_t chunk) {
    return open().AddChunk(seat, ChunkIndex(chunk), kNow);
  }
  void VoteAll(uint32_t seat) {
    for (uint32_t k = 0; k < chunks_; ++k) Vote(seat, k);
  }
  std::vector<CloseChunk> Close() {
    Actions out;
    open().CloseRipe(kNow, out);
    std::vector<CloseChunk> closed;
    for (const Action& action : out) closed.push_back(std::get<CloseChunk>(action));
    return closed;
  }
  std::vector<uint32_t> Closed() {
    std::vector<uint32_t> chunks;
    for (const CloseChunk& c : Close()) chunks.push_back(c.chunk.value());
    return chunks;
  }
  void TallyAll() {
    for (uint32_t k = 0; k < chunks_; ++k) {
      EXPECT_TRUE(open().AddTally({Round(4), Attempt(1), ChunkIndex(k), 3, 9}));
    }
  }
  static WorkerScalars Scalars(double loss, double l1 = 1, double l2_squared = 1) {
    return {.loss = loss, .g_l1 = l1, .g_l2_squared = l2_squared, .wanted = {1}};
  }

  uint32_t chunks_ = 2;
  std::unique_ptr<OpenAttempt> open_;
};

TEST_F(OpenAttemptTest, FindsSeatsByWorkerAndIncarnation) {
  EXPECT_EQ(open().members(), 3u);
  EXPECT_EQ(open().Find(WorkerId(9), Incarnation(9)), 3u);
  EXPECT_EQ(open().Find(WorkerId(2), Incarnation(2)), 0u);
  EXPECT_FALSE(open().Find(WorkerId(9), Incarnation(8)).has_value());
  EXPECT_FALSE(open().Find(WorkerId(6), Incarnation(6)).has_value());
}

TEST_F(OpenAttemptTest, AChunkIsRipeOnceEveryMemberVotedOnItAndCountsNoObserver) {
  Vote(3, 1);
  Vote(0, 1);
  Vote(2, 1);
  Vote(1, 0);
  EXPECT_THAT(Close(), IsEmpty());
  Vote(1, 1);
  const std::vector<CloseChunk> closed = Close();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].round, Round(4));
  EXPECT_EQ(closed[0].attempt, Attempt(1));
  EXPECT_EQ(closed[0].chunk, ChunkIndex(1));
  EXPECT_THAT(closed[0].voters, ElementsAre(WorkerId(2), WorkerId(5), WorkerId(9)));
  EXPECT_EQ(open().last_closed(), kNow);
  EXPECT_EQ(open().standing(), Standing::kCounting);
  EXPECT_THAT(Close(), IsEmpty());
}

TEST_F(OpenAttemptTest, SaysWhatBecameOfAChunk) {
  EXPECT_EQ(Vote(0, 0), Took::kTaken);
  EXPECT_EQ(Vote(0, 0), Took::kDuplicate);
  EXPECT_EQ(Vote(0, 2), Took::kStale);
  open().PassDeadline();
  Vote(1, 0);
  EXPECT_THAT(Closed(), ElementsAre(0));
  EXPECT_EQ(Vote(3, 0), Took::kLate);
  EXPECT_EQ(Vote(3, 0), Took::kDuplicate);
  EXPECT_EQ(open().record(3).in, 1u);
  EXPECT_EQ(open().record(3).in_time, 0u);
  open().AddAbstention(1, AbstainReason::kOther);
  EXPECT_EQ(Vote(1, 1), Took::kStale);
  open().SetPresence(3, Presence::kGone);
  EXPECT_EQ(Vote(3, 1), Took::kStale);
}

TEST_F(OpenAttemptTest, AMemberThatIsGoneIsNotWaitedForAndWhatItSentCounts) {
  Vote(0, 0);
  Vote(1, 0);
  Vote(3, 1);
  open().SetPresence(3, Presence::kGone);
  EXPECT_THAT(Closed(), ElementsAre(0));
  Vote(0, 1);
  Vote(1, 1);
  const std::vector<CloseChunk> closed = Close();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].voters.size(), 3u);
}

TEST_F(OpenAttemptTest, AMemberThatLeavesMayStillSend) {
  open().SetPresence(3, Presence::kLeaving);
  open().SetPresence(3, Presence::kHere);  // nobody comes back to a seat
  EXPECT_EQ(Vote(3, 0), Took::kTaken);
  VoteAll(0);
  VoteAll(1);
  const std::vector<CloseChunk> closed = Close();
  ASSERT_EQ(closed.size(), 2u);
  EXPECT_EQ(closed[0].voters.size(), 3u);
  EXPECT_EQ(closed[1].voters.size(), 2u);
}

TEST_F(OpenAttemptTest, BeforeTheDeadlineAQuorumIsNotEnough) {
  Vote(0, 0);
  Vote(1, 0);
  EXPECT_THAT(Closed(), IsEmpty());
  open().PassDeadline();
  EXPECT_TRUE(open().deadline_passed());
  EXPECT_THAT(Closed(), ElementsAre(0));
  Vote(0, 1);
  EXPECT_THAT(Closed(), IsEmpty());
  Vote(1, 1);
  EXPECT_THAT(Closed(), ElementsAre(1));
}

TEST_F(OpenAttemptTest, AnAbstentionIsAnAnswerForTheQuorum) {
  open().PassDeadline();
  Vote(0, 0);
  Vote(0, 1);
  EXPECT_THAT(Closed(), IsEmpty());
  EXPECT_EQ(open().AddAbstention(1, AbstainReason::kOther), Took::kTaken);
  EXPECT_THAT(Closed(), ElementsAre(0, 1));
}

TEST_F(OpenAttemptTest, OneWhoVotesAndThenAbstainsAnswersOnce) {
  open().PassDeadline();
  Vote(0, 0);
  open().AddAbstention(0, AbstainReason::kOther);
  EXPECT_THAT(Closed(), IsEmpty());  // one answer, quorum two
  Vote(1, 0);
  EXPECT_THAT(Closed(), ElementsAre(0));
}

TEST_F(OpenAttemptTest, AbstainersWhoVotedMakeTheQuorumOfTheirChunks) {
  open().PassDeadline();
  Vote(0, 0);
  open().AddAbstention(0, AbstainReason::kOther);
  open().AddAbstention(1, AbstainReason::kOther);
  EXPECT_EQ(open().standing(), Standing::kNoBallot);  // chunk 1
  EXPECT_THAT(Closed(), ElementsAre(0));
}

TEST_F(OpenAttemptTest, AnAbstentionAfterACompleteBallotOrASecondOneIsStale) {
  VoteAll(0);
  EXPECT_EQ(open().AddAbstention(0, AbstainReason::kOther), Took::kStale);
  EXPECT_EQ(open().AddAbstention(1, AbstainReason::kOther), Took::kTaken);
  EXPECT_EQ(open().AddAbstention(1, AbstainReason::kOther), Took::kStale);
  open().SetPresence(3, Presence::kGone);
  EXPECT_EQ(open().AddAbstention(3, AbstainReason::kOther), Took::kStale);
  EXPECT_EQ(open().abstained(), 1u);
}

TEST_F(OpenAttemptTest, AnObserversAbstentionCountsForNothing) {
  EXPECT_EQ(open().AddAbstention(2, AbstainReason::kNonFiniteLoss), Took::kTaken);
  EXPECT_EQ(open().abstained(), 0u);
  EXPECT_FALSE(open().OnlyNonFiniteLosses());
}

TEST_F(OpenAttemptTest, IsShortWhenTheLivingAndTheAnsweredCannotMakeAQuorum) {
  open().SetPresence(0, Presence::kGone);
  EXPECT_EQ(open().standing(), Standing::kCounting);
  open().SetPresence(1, Presence::kGone);
  EXPECT_EQ(open().standing(), Standing::kShort);
}

TEST_F(OpenAttemptTest, TheCompleteBallotOfOneWhoIsGoneCountsForTheQuorum) {
  VoteAll(0);
  open().SetPresence(0, Presence::kGone);
  open().SetPresence(1, Presence::kGone);
  EXPECT_EQ(open().standing(), Standing::kCounting);
}

TEST_F(OpenAttemptTest, ThePartialBallotOfOneWhoIsGoneDoesNot) {
  Vote(0, 0);
  open().SetPresence(0, Presence::kGone);
  open().SetPresence(1, Presence::kGone);
  EXPECT_EQ(open().standing(), Standing::kShort);
}

TEST_F(OpenAttemptTest, TheAbstentionOfOneWhoIsGoneCountsForTheQuorum) {
  open().AddAbstention(0, AbstainReason::kOther);
  open().SetPresence(0, Presence::kGone);
  open().SetPresence(1, Presence::kGone);
  EXPECT_EQ(open().standing(), Standing::kCounting);
}

TEST_F(OpenAttemptTest, HasNoBallotOnceAllHaveAnsweredAndSomeChunkIsEmpty) {
  Vote(0, 0);
  open().AddAbstention(0, AbstainReason::kNonFiniteLoss);
  open().AddAbstention(1, AbstainReason::kNonFiniteLoss);
  EXPECT_EQ(open().standing(), Standing::kCounting);
  EXPECT_FALSE(open().OnlyNonFinite()) << "one is silent, and its loss may be finite";
  open().AddAbstention(3, AbstainReason::kNonFiniteGradient);
  EXPECT_EQ(open().standing(), Standing::kNoBallot);
  EXPECT_TRUE(open().OnlyNonFinite());
  EXPECT_FALSE(open().OnlyNonFiniteLosses());
}

TEST_F(OpenAttemptTest, HasNoBallotAtTheDeadlineWhenAQuorumAbstained) {
  open().AddAbstention(0, AbstainReason::kOther);
  open().PassDeadline();
  EXPECT_EQ(open().standing(), Standing::kCounting);
  open().AddAbstention(1, AbstainReason::kOther);
  EXPECT_EQ(open().standing(), Standing::kNoBallot);
}

TEST_F(OpenAttemptTest, AnEmptyChunkIsSeenHoweverManyBallotsTheOthersHave) {
  for (const uint32_t seat : {0u, 1u, 3u}) Vote(seat, 0);
  for (const uint32_t seat : {0u, 1u}) open().AddAbstention(seat, AbstainReason::kOther);
  EXPECT_EQ(open().standing(), Standing::kCounting);
  open().AddAbstention(3, AbstainReason::kOther);
  EXPECT_EQ(open().standing(), Standing::kNoBallot);
}

TEST_F(OpenAttemptTest, ChunksThatAreRipeAndNotClosedYetAreNotWithoutBallot) {
  Vote(0, 0);
  Vote(0, 1);
  for (const uint32_t seat : {1u, 3u}) open().AddAbstention(seat, AbstainReason::kOther);
  open().PassDeadline();
  EXPECT_EQ(open().standing(), Standing::kCounting);
  EXPECT_THAT(Closed(), ElementsAre(0, 1));
}

TEST_F(OpenAttemptTest, EveryChunkIsTalliedOnceAfterItIsClosed) {
  EXPECT_FALSE(open().AddTally({Round(4), Attempt(1), ChunkIndex(0), 3, 9}));
  for (const uint32_t seat : {0u, 1u, 3u}) VoteAll(seat);
  EXPECT_FALSE(open().AddTally({Round(4), Attempt(1), ChunkIndex(0), 3, 9}));  // ripe, not closed
  EXPECT_THAT(Closed(), ElementsAre(0, 1));
  EXPECT_EQ(open().standing(), Standing::kTallying);
  EXPECT_TRUE(open().AddTally({Round(4), Attempt(1), ChunkIndex(0), 3, 9}));
  EXPECT_FALSE(open().AddTally({Round(4), Attempt(1), ChunkIndex(0), 3, 9}));
  EXPECT_FALSE(open().AddTally({Round(4), Attempt(1), ChunkIndex(2), 3, 9}));
  EXPECT_EQ(open().standing(), Standing::kTallying);
  EXPECT_TRUE(open().AddTally({Round(4), Attempt(1), ChunkIndex(1), 3, 9}));
  EXPECT_EQ(open().standing(), Standing::kTallied);
}

TEST_F(OpenAttemptTest, ScalarsAreSettledOnceThoseWhoWereCountedSentThem) {
  for (const uint32_t seat : {0u, 1u, 3u}) VoteAll(seat);
  Close();
  EXPECT_FALSE(open().ScalarsSettled(true));
  EXPECT_EQ(open().AddScalars(0, Scalars(1)), Took::kTaken);
  EXPECT_EQ(open().AddScalars(0, Scalars(2)), Took::kStale);
  WorkerScalars bad = Scalars(1);
  bad.wanted = {-1};                                     // no norm
  EXPECT_EQ(open().AddScalars(1, bad), Took::kRefused);  // it answered
  EXPECT_FALSE(open().ScalarsSettled(false));
  open().SetPresence(3, Presence::kGone);
  EXPECT_TRUE(open().ScalarsSettled(false));
  EXPECT_EQ(open().AddScalars(3, Scalars(1)), Took::kStale);
}

TEST_F(OpenAttemptTest, AfterAnOverrunOnlyCompleteBallotsAreWaitedForWithTheirScalars) {
  open().PassDeadline();
  VoteAll(0);
  Vote(1, 0);
  open().AddScalars(0, Scalars(1));
  EXPECT_THAT(Closed(), ElementsAre(0));
  Vote(3, 1);
  EXPECT_THAT(Closed(), ElementsAre(1));
  EXPECT_FALSE(open().ScalarsSettled(false));
  EXPECT_TRUE(open().ScalarsSettled(true));
  Vote(1, 1);  // late, and now complete
  EXPECT_FALSE(open().ScalarsSettled(true));
  open().AddScalars(1, Scalars(1));
  EXPECT_TRUE(open().ScalarsSettled(true));
  EXPECT_FALSE(open().ScalarsSettled(false));
  open().AddAbstention(3, AbstainReason::kOther);
  EXPECT_TRUE(open().ScalarsSettled(false));
}

TEST_F(OpenAttemptTest, TheSummaryNamesVotersAndTheMeansOfWhatTheVotersSaid) {
  open().PassDeadline();
  Vote(0, 0);
  Vote(1, 1);
  open().AddAbstention(3, AbstainReason::kOther);
  open().AddScalars(0, Scalars(1.0, 10, 50));
  open().AddScalars(1, Scalars(3.0, 30, 0));     // no gradient at all: it has no density
  open().AddScalars(3, Scalars(100, 100, 100));  // counted in no chunk
  open().AddScalars(2, Scalars(100, 100, 100));  // an observer
  EXPECT_THAT(Closed(), ElementsAre(0, 1));
  TallyAll();
  CommitRound commit;
  open().Summarise(OpenAttempt::Verdict::kTaken, 20, commit);
  EXPECT_EQ(commit.round, Round(4));
  EXPECT_EQ(commit.attempt, Attempt(1));
  EXPECT_EQ(commit.members, 3u);
  EXPECT_THAT(commit.asked, ElementsAre(ScalarKind::kProbeL1));
  EXPECT_THAT(commit.voters, ElementsAre(WorkerId(2), WorkerId(5)));
  EXPECT_EQ(commit.chunks, (std::vector<ChunkCount>{{3, 9}, {3, 9}}));
  ASSERT_EQ(commit.scalars_from.size(), 2u);
  EXPECT_EQ(commit.scalars_from[0].worker, WorkerId(2));
  EXPECT_EQ(commit.scalars_from[1].worker, WorkerId(5));
  ASSERT_EQ(commit.scalars.size(), 2u);
  EXPECT_EQ(commit.scalars[1].loss, 3.0);
  EXPECT_EQ(commit.loss, 2.0);
  EXPECT_EQ(commit.gradient.l1, 20.0);
  EXPECT_EQ(commit.gradient.density, 10.0 * 10.0 / (20 * 50.0));
}

TEST_F(OpenAttemptTest, WithoutAVerdictThereAreNeitherCountsNorVotersNorScalars) {
  Vote(0, 0);
  open().AddScalars(0, Scalars(1));
  CommitRound commit;
  open().Summarise(OpenAttempt::Verdict::kDropped, 20, commit);
  EXPECT_EQ(commit.round, Round(4));
  EXPECT_EQ(commit.members, 3u);
  EXPECT_THAT(commit.chunks, IsEmpty());
  EXPECT_THAT(commit.voters, IsEmpty());
  EXPECT_THAT(commit.scalars, IsEmpty());
  EXPECT_FALSE(commit.loss.has_value());
}

TEST_F(OpenAttemptTest, TheFirstCompleteBallotOfAMemberIsRemembered) {
  chunks_ = 1;
  open().AddChunk(2, ChunkIndex(0), Time{1});  // an observer
  EXPECT_FALSE(open().first_complete().has_value());
  open().AddChunk(0, ChunkIndex(0), Time{2});
  open().AddChunk(1, ChunkIndex(0), Time{3});
  EXPECT_EQ(open().first_complete(), Time{2});
  EXPECT_EQ(open().record(1).last_chunk, Time{3});
}

// Goal: the counters never disagree with the definition. Method: random events beside a plain
// recount of all seats and chunks after each of them; more chunks than one word of bits.
TEST_F(OpenAttemptTest, AgreesWithAPlainRecountWhateverComes) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed, 5);
    const uint32_t chunks = seed % 3 == 0 ? 70 : 3;
    const auto seats = static_cast<uint32_t>(1 + rng.Below(6));
    AttemptPlan plan{.chunks = chunks, .seats = {}};
    uint32_t members = 0;
    for (uint32_t s = 0; s < seats; ++s) {
      const bool observer = s > 0 && rng.Below(5) == 0;
      members += observer ? 0 : 1;
      plan.seats.push_back(
          {.worker = WorkerId(s), .role = observer ? Role::kObserver : Role::kMember});
    }
    plan.quorum = (members + 1) / 2;
    OpenAttempt open(plan);
    std::vector<std::vector<bool>> in(seats, std::vector<bool>(chunks, false));
    std::vector<bool> closed(chunks, false);
    for (int step = 0; step < 150; ++step) {
      const auto s = static_cast<uint32_t>(rng.Below(seats));
      const auto k = static_cast<uint32_t>(rng.Below(chunks));
      switch (rng.Below(30)) {
        case 0:
          open.AddAbstention(s, AbstainReason::kOther);
          break;
        case 1:
          open.SetPresence(s, rng.Below(2) == 0 ? Presence::kGone : Presence::kLeaving);
          break;
        case 2:
          if (rng.Below(4) == 0) open.PassDeadline();
          break;
        default:
          if (open.AddChunk(s, ChunkIndex(k), Time{}) <= Took::kLate) in[s][k] = true;
          break;
      }
      uint32_t can_answer = 0, waited = 0, abstained = 0, empty = 0;
      for (uint32_t i = 0; i < seats; ++i) {
        const SeatRecord& r = open.record(i);
        if (!r.member) continue;
        const bool here = r.presence == Presence::kHere;
        can_answer += here || r.abstained || open.Complete(i) ? 1 : 0;
        waited += here && !r.abstained ? 1 : 0;
        abstained += r.abstained ? 1 : 0;
      }
      std::vector<uint32_t> ripe;
      bool all_closed = true;
      for (uint32_t c = 0; c < chunks; ++c) {
        if (closed[c]) continue;
        uint32_t ballots = 0, answered = 0;
        bool all = true;
        for (uint32_t i = 0; i < seats; ++i) {
          const SeatRecord& r = open.record(i);
          if (!r.member) continue;
          ballots += in[i][c] ? 1 : 0;
          answered += in[i][c] || r.abstained ? 1 : 0;
          if (r.presence == Presence::kHere && !r.abstained && !in[i][c]) all = false;
        }
        empty += ballots == 0 ? 1 : 0;
        if (ballots > 0 && (all || (open.deadline_passed() && answered >= plan.quorum))) {
          ripe.push_back(c);
          closed[c] = true;
        } else {
          all_closed = false;
        }
      }
      const bool shorts = can_answer < plan.quorum;
      const bool none =
          empty > 0 && (waited == 0 || (open.deadline_passed() && abstained >= plan.quorum));
      if (!all_closed) {
        ASSERT_EQ(open.standing() == Standing::kShort, shorts) << "seed " << seed;
        ASSERT_EQ(open.standing() == Standing::kNoBallot, !shorts && none) << "seed " << seed;
      }
      Actions out;
      open.CloseRipe(kNow, out);
      std::vector<uint32_t> got;
      for (const Action& action : out) got.push_back(std::get<CloseChunk>(action).chunk.value());
      ASSERT_EQ(got, ripe) << "seed " << seed << " step " << step;
    }
  }
}

}  // namespace
}  // namespace signvote::round
