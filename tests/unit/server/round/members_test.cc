// Goal: what is known of a name is what its header says, at the edges that whole rounds seldom reach.
// Method: calls by hand, beside the engine's tests, which drive the same books through rounds.
#include "server/round/members.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class MembersTest : public testing::Test {
 protected:
  Members& members() {
    if (!members_.has_value()) members_.emplace(config_, EngineState{});
    return *members_;
  }
  static std::string NameOf(uint32_t w) { return "w" + std::to_string(w); }
  Members::Joined Join(uint32_t w, uint64_t incarnation = 1, uint64_t round = 0) {
    return members().Join({WorkerId(w), Incarnation(incarnation), NameOf(w)}, 0, Round(round),
                          out_);
  }
  void Lose(uint32_t w, uint64_t incarnation = 1, uint64_t round = 0) {
    members().Lose(WorkerId(w), Of(w, incarnation), Round(round), out_);
  }
  Worker& Of(uint32_t w, uint64_t incarnation = 1) {
    Worker* const live = members().Live(WorkerId(w), Incarnation(incarnation));
    SIGNVOTE_CHECK(live != nullptr);
    return *live;
  }
  // A member's seat in a round, with so many of its chunks counted and its scalars there.
  Members::SeatReport Report(uint32_t w, uint32_t in_time, std::optional<Duration> arrival = {}) {
    Members::SeatReport report;
    report.seat = {.worker = WorkerId(w), .incarnation = Incarnation(1)};
    report.record = {.member = true, .scalars_came = true, .in = in_time, .in_time = in_time};
    report.given = Given(report.record, config_.chunks);
    report.arrival = arrival;
    return report;
  }
  Actions Said() { return std::exchange(out_, {}); }

  EngineConfig config_{.chunks = 20, .workers_max = 3, .observer_after = 2};
  std::optional<Members> members_;
  Actions out_;
};

TEST_F(MembersTest, ABallotIsGivenWithNineTenthsOfItsChunksAndItsScalars) {
  SeatRecord record{.scalars_came = true, .in_time = 18};
  EXPECT_TRUE(Given(record, 20));
  record.in_time = 17;
  EXPECT_FALSE(Given(record, 20));
  record = {.scalars_came = false, .in_time = 20};
  EXPECT_FALSE(Given(record, 20));
  record = {.scalars_came = true, .in_time = 0};
  EXPECT_FALSE(Given(record, 1));
}

TEST_F(MembersTest, AStaleJoinIsCountedAndChangesNothing) {
  EXPECT_TRUE(Join(0, 2).joined);
  const Members::Joined same = Join(0, 2);
  EXPECT_FALSE(same.joined);
  EXPECT_FALSE(same.replaced.has_value());
  EXPECT_FALSE(Join(0, 1).joined);
  EXPECT_EQ(members().totals().stale_messages, 2u);
  EXPECT_EQ(members().totals().joins, 1u);
  const Members::Joined newer = Join(0, 3);
  EXPECT_TRUE(newer.joined);
  EXPECT_EQ(newer.replaced, Incarnation(2));
  EXPECT_EQ(members().totals().losses, 1u);
  EXPECT_EQ(members().ready(), 1u);
}

TEST_F(MembersTest, OnlyTheConnectedIncarnationIsLive) {
  Join(0);
  EXPECT_EQ(members().Live(WorkerId(0), Incarnation(2)), nullptr);
  EXPECT_EQ(members().Live(WorkerId(1), Incarnation(1)), nullptr);
  EXPECT_EQ(members().totals().stale_messages, 2u);
  EXPECT_NE(members().Live(WorkerId(0), Incarnation(1)), nullptr);
  Lose(0);
  EXPECT_EQ(members().Live(WorkerId(0), Incarnation(1)), nullptr);
  EXPECT_EQ(members().totals().stale_messages, 3u);
}

TEST_F(MembersTest, AFullRunCountsThoseWhoAreConnected) {
  for (const uint32_t w : {0u, 1u, 2u}) EXPECT_TRUE(Join(w).joined);
  Said();
  EXPECT_FALSE(Join(3).joined);
  const Disconnect full = One<Disconnect>(Said());
  EXPECT_EQ(full.worker, WorkerId(3));
  EXPECT_EQ(full.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Describe(full.status), HasSubstr("3 workers are connected"));
  EXPECT_EQ(members().Find(WorkerId(3)), nullptr);
  // A newer process of one that is here takes its own place.
  EXPECT_TRUE(Join(1, 2).joined);
  Lose(0);
  EXPECT_TRUE(Join(3).joined);
  EXPECT_FALSE(Join(0, 2).joined);
}

TEST_F(MembersTest, WhoComesBackBeginsAnew) {
  Join(0);
  Join(1);
  members().SeatEverybody(Round(0), out_);
  EXPECT_THAT(Notices(Said()), HasSubstr("w0 joins with share 0 from round 0 on"));
  members().Unseat();
  Worker& w = Of(0);
  w.scalars_refused = true;
  w.abstentions_in_a_row = 1;
  w.final_digest = 7;
  w.leaving = true;
  EXPECT_EQ(members().ready(), 1u);
  Lose(0, 1, 4);
  EXPECT_EQ(w.last_seen, Round(4));
  Join(0, 2, 5);
  EXPECT_EQ(Of(0, 2).incarnation, Incarnation(2));
  EXPECT_FALSE(w.scalars_refused);
  EXPECT_EQ(w.abstentions_in_a_row, 0u);
  EXPECT_FALSE(w.final_digest.has_value());
  EXPECT_TRUE(w.ready());
  members().SeatEverybody(Round(6), out_);
  EXPECT_EQ(Notices(Said()), "w0 joins with share 0 from round 6 on\n");
}

TEST_F(MembersTest, AnObserverThatJoinsAnewIsAMember) {
  Join(0);
  members().Account(Report(0, 0), Round(0), out_);
  members().Account(Report(0, 0), Round(1), out_);
  EXPECT_EQ(Of(0).role, Role::kObserver);
  Lose(0);
  Said();
  Join(0, 2);
  EXPECT_EQ(Of(0, 2).role, Role::kMember);
  const RoleChanged changed = One<RoleChanged>(Said());
  EXPECT_EQ(changed.role, Role::kMember);
  EXPECT_EQ(changed.reason, "it joined anew");
  Lose(0, 2);
  Join(0, 3);
  EXPECT_FALSE(Has<RoleChanged>(Said()));
}

TEST_F(MembersTest, OnlyWhoIsStillNeededIsALoss) {
  for (const uint32_t w : {0u, 1u, 2u}) Join(w);
  Of(0).leaving = true;
  Of(1).final_digest = 5;
  Said();
  Lose(0);
  Lose(1);
  EXPECT_THAT(Said(), IsEmpty());
  EXPECT_EQ(members().totals().losses, 0u);
  Lose(2, 1, 9);
  EXPECT_EQ(Notices(Said()), "lost w2 in round 9\n");
  EXPECT_EQ(members().totals().losses, 1u);
}

TEST_F(MembersTest, AnEvictionIsMadeOnceAndSaysWhichIncarnationGoes) {
  Join(0, 3);
  Join(1);
  Lose(1);
  Said();
  EXPECT_EQ(members().Evict(WorkerId(0), Round(2), out_), Incarnation(3));
  const Actions said = Said();
  EXPECT_EQ(One<Disconnect>(said).incarnation, Incarnation(3));
  EXPECT_EQ(One<Disconnect>(said).status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(members().totals().losses, 1u) << "that of w1";
  EXPECT_EQ(members().Find(WorkerId(0))->last_seen, Round(2));
  EXPECT_FALSE(members().Find(WorkerId(0))->connected);
  EXPECT_EQ(members().Evict(WorkerId(0), Round(2), out_), std::nullopt);
  EXPECT_THAT(Said(), IsEmpty());
  EXPECT_EQ(members().Evict(WorkerId(1), Round(2), out_), std::nullopt);
  EXPECT_FALSE(Has<Disconnect>(Said()));
  EXPECT_EQ(members().Evict(WorkerId(9), Round(2), out_), std::nullopt);
  EXPECT_FALSE(Join(0, 4).joined);
  EXPECT_EQ(One<Disconnect>(Said()).incarnation, Incarnation(4));
}

TEST_F(MembersTest, AReservedShareIsFreedWithAnEviction) {
  Join(0);
  members().SeatEverybody(Round(0), out_);
  Lose(0);
  Said();
  members().Evict(WorkerId(0), Round(0), out_);
  EXPECT_EQ(One<ShareFreed>(Said()).share, Share(0));
}

TEST_F(MembersTest, OfTheNamesThatAreAwayTheOneGoneLongestIsForgotten) {
  for (const uint32_t w : {0u, 1u, 2u}) Join(w);
  members().SeatEverybody(Round(0), out_);
  Lose(1, 1, 5);
  Lose(0, 1, 7);
  Join(3, 1, 8);
  // Those who have a seat stay, so there is one name more than workers_max.
  EXPECT_NE(members().Find(WorkerId(1)), nullptr);
  members().Unseat();
  Said();
  Join(4, 1, 9);
  EXPECT_EQ(members().Find(WorkerId(1)), nullptr);
  EXPECT_EQ(One<ShareFreed>(Said()).share, Share(1));
  EXPECT_NE(members().Find(WorkerId(0)), nullptr);
  EXPECT_EQ(members().Name(WorkerId(1)), "worker number 1");
  EXPECT_EQ(members().Name(WorkerId(0)), "w0");
}

TEST_F(MembersTest, ANewerProcessOfASeatIsReadyWithoutOne) {
  Join(0);
  EXPECT_TRUE(members().AnyReadyWithoutSeat());
  members().SeatEverybody(Round(0), out_);
  EXPECT_FALSE(members().AnyReadyWithoutSeat());
  Lose(0);
  EXPECT_FALSE(members().AnyReadyWithoutSeat());
  Join(0, 2);
  EXPECT_TRUE(members().AnyReadyWithoutSeat());
  Of(0, 2).leaving = true;
  EXPECT_FALSE(members().AnyReadyWithoutSeat());
}

TEST_F(MembersTest, WhoOwesAFinalDigestIsReadyAndHasNotSentIt) {
  for (const uint32_t w : {0u, 1u, 2u}) Join(w);
  Of(0).final_digest = 1;
  Of(2).leaving = true;
  EXPECT_THAT(members().WithoutFinalDigest(), ElementsAre("w1"));
}

TEST_F(MembersTest, AnAbstentionIsThatOfTheProcessThatHadTheSeat) {
  Join(0);
  Lose(0);
  Join(0, 2);
  members().Account(Report(0, 0, Duration(seconds(4))), Round(0), out_);
  EXPECT_EQ(Of(0, 2).abstentions, 1u);
  EXPECT_EQ(Of(0, 2).abstentions_in_a_row, 0u);
  EXPECT_FALSE(Of(0, 2).arrivals.Median().has_value());
  EXPECT_EQ(members().totals().abstentions, 1u);
  Of(0, 2).abstentions_in_a_row = 1;
  members().Account(Report(0, 20), Round(0), out_);
  EXPECT_EQ(Of(0, 2).ballots, 1u);
  EXPECT_EQ(Of(0, 2).abstentions_in_a_row, 1u) << "the new process has given nothing yet";
}

TEST_F(MembersTest, WhoLeavesIsNotDemoted) {
  Join(0);
  Of(0).leaving = true;
  for (uint64_t t = 0; t < 3; ++t) members().Account(Report(0, 0), Round(t), out_);
  EXPECT_EQ(Of(0).abstentions, 3u);
  EXPECT_EQ(Of(0).role, Role::kMember);
}

TEST_F(MembersTest, AnObserversRoundsAreNeitherBallotsNorAbstentions) {
  Join(0);
  Members::SeatReport report = Report(0, 20);
  report.seat.role = Role::kObserver;
  report.given = false;
  members().Account(report, Round(0), out_);
  EXPECT_EQ(Of(0).abstentions, 0u);
  report.given = true;
  report.seat.incarnation = Incarnation(9);
  Said();
  members().Account(report, Round(1), out_);
  EXPECT_THAT(Said(), IsEmpty()) << "that process is gone";
  report.seat.incarnation = Incarnation(1);
  Of(0).abstentions_in_a_row = 7;
  members().Account(report, Round(2), out_);
  EXPECT_EQ(One<RoleChanged>(Said()).reason, "its ballot came in time");
  EXPECT_EQ(Of(0).ballots, 0u);
  EXPECT_EQ(Of(0).abstentions_in_a_row, 0u);
}

TEST_F(MembersTest, APartialBallotIsNamedOncePerRowAndAnEmptyOneNotAtAll) {
  Join(0);
  Join(1);
  Said();
  members().Account(Report(0, 10), Round(3), out_);
  EXPECT_EQ(Notices(Said()),
            "the ballot of w0 counts as an abstention in round 3: 10 of 20 chunks (50 %)\n");
  members().Account(Report(1, 0), Round(3), out_);
  EXPECT_EQ(Notices(Said()), "");
  Join(2);
  Said();
  members().Account(Report(2, 1), Round(3), out_);
  EXPECT_THAT(Notices(Said()), HasSubstr("1 of 20 chunks (5 %)"));
  members().Account(Report(0, 10), Round(4), out_);
  EXPECT_EQ(Notices(Said()),
            "w0 is an observer from round 5 on: 2 rounds in a row without a ballot "
            "in time, last 10 of 20 chunks (50 %)\n");
}

TEST_F(MembersTest, ALateChunkTellsHowLongTheBallotOfItsRoundTook) {
  Join(0);
  members().Account(Report(0, 20, Duration(seconds(2))), Round(3), out_);
  Worker& w = Of(0);
  members().AddLateChunk(w, Round(3), Duration(seconds(5)));  // of the same ballot
  EXPECT_EQ(w.arrivals.State().recent, std::vector<Duration>{seconds(5)});
  members().AddLateChunk(w, Round(2), Duration(seconds(9)));  // of an older one
  members().AddLateChunk(w, Round(4), std::nullopt);
  EXPECT_EQ(w.arrivals.State().recent, std::vector<Duration>{seconds(5)});
  members().AddLateChunk(w, Round(4), Duration(seconds(7)));
  members().AddLateChunk(w, Round(4), Duration(seconds(8)));
  EXPECT_EQ(w.arrivals.State().recent, (std::vector<Duration>{seconds(5), seconds(8)}));
  EXPECT_EQ(w.late_chunks, 5u);
  EXPECT_EQ(members().totals().late_chunks, 5u);
}

TEST_F(MembersTest, TheArrivalOfAnOlderProcessIsNotReplaced) {
  Join(0);
  members().Account(Report(0, 20, Duration(seconds(2))), Round(3), out_);
  Lose(0);
  Join(0, 2);
  members().AddLateChunk(Of(0, 2), Round(3), Duration(seconds(5)));
  EXPECT_EQ(Of(0, 2).arrivals.State().recent, (std::vector<Duration>{seconds(2), seconds(5)}));
}

TEST_F(MembersTest, ARoundTakesTheUpperMedianOfItsMembers) {
  EngineState state;
  members().AddRound({});
  members().AddRound({seconds(5), seconds(1), seconds(9), seconds(3)});
  members().AddRound({seconds(7), seconds(1), seconds(2)});
  members().Save(Round(0), state);
  EXPECT_EQ(state.arrivals.recent, (std::vector<Duration>{seconds(5), seconds(2)}));
}

TEST_F(MembersTest, WhoIsConnectedIsSavedAsLostInThisRound) {
  Join(0);
  Join(1);
  Lose(1, 1, 3);
  EngineState state;
  members().Save(Round(8), state);
  ASSERT_EQ(state.workers.size(), 2u);
  EXPECT_EQ(state.workers[0].last_seen, Round(8));
  EXPECT_EQ(state.workers[1].last_seen, Round(3));
}

TEST_F(MembersTest, TheWaitIsThatOfMembersAlone) {
  Join(0);
  Join(1);
  for (uint64_t t = 0; t < 3; ++t) {
    members().Account(Report(0, 20, Duration(seconds(10))), Round(t), out_);
    members().Account(Report(1, 20, Duration(seconds(20))), Round(t), out_);
    members().AddRound({seconds(10)});
  }
  std::vector<Seat> seats = members().SeatEverybody(Round(3), out_);
  const Duration both = members().Wait({}, seats, out_);
  EXPECT_GT(both, Duration(seconds(20)));
  seats[1].role = Role::kObserver;
  const Duration one = members().Wait({}, seats, out_);
  EXPECT_GT(one, Duration(seconds(10)));
  EXPECT_EQ(both - one, Duration(seconds(10)));
}

}  // namespace
}  // namespace signvote::round
