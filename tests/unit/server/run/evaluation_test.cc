#include "server/run/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using Verdict = Evaluation::Verdict;

constexpr uint64_t kEvery = 10;
constexpr uint64_t kWindows = 0xabc, kOthers = 0xdef;

class EvaluationTest : public testing::Test {
 protected:
  // One that has a seat, and can measure unless `windows` is nullopt.
  void Join(uint32_t id, std::optional<uint64_t> windows = kWindows,
            std::optional<Duration> arrival = milliseconds(100)) {
    const WorkerId worker(id);
    evaluation_.OnJoined(worker, Incarnation(1), windows);
    seats_.push_back({.worker = worker, .incarnation = Incarnation(1)});
    members_.push_back({.worker = worker, .median_arrival = arrival});
  }
  void Go(uint32_t id) {
    evaluation_.OnGone(WorkerId(id));
    std::erase_if(seats_, [&](const round::Seat& seat) { return seat.worker == WorkerId(id); });
  }
  round::Seat& SeatOf(uint32_t id) {
    return *std::find_if(seats_.begin(), seats_.end(),
                         [&](const round::Seat& seat) { return seat.worker == WorkerId(id); });
  }
  // The round opens: who is asked.
  std::optional<uint32_t> Open(uint64_t round) {
    if (!evaluation_.Due(Round(round), seats_)) return std::nullopt;
    return evaluation_.Ask(Round(round), seats_, members_).value();
  }
  // Rounds [first, last): those in which somebody is asked.
  std::vector<uint64_t> AskedIn(uint64_t first, uint64_t last) {
    std::vector<uint64_t> rounds;
    for (uint64_t round = first; round < last; ++round) {
      if (Open(round).has_value()) rounds.push_back(round);
    }
    return rounds;
  }
  Verdict Measured(uint32_t id, uint64_t round, uint64_t windows = kWindows) {
    return evaluation_.OnMeasured(
        WorkerId(id), {.loss = 2, .error = 0.1, .round = Round(round), .windows = windows},
        /*committed=*/Round(1000));
  }

  Evaluation evaluation_{kEvery};
  std::vector<round::Seat> seats_;
  std::vector<round::MemberView> members_;
};

TEST_F(EvaluationTest, OneIsAskedInTheFirstRoundAndInTheFirstOfEachPeriod) {
  Join(1);
  Join(2);
  for (const uint64_t begin : {7u, 10u, 20u}) {  // the run goes on at round 7
    EXPECT_EQ(Open(begin), 1u);
    EXPECT_EQ(Measured(1, begin), Verdict::kRuns);
    EXPECT_THAT(AskedIn(begin + 1, begin / kEvery * kEvery + kEvery), ElementsAre());
  }
}

TEST_F(EvaluationTest, NobodyIsAskedWhoCannotOrHasNoSeat) {
  EXPECT_EQ(Open(0), std::nullopt);
  Join(1, std::nullopt);
  EXPECT_EQ(Open(0), std::nullopt);
  Join(2);
  SeatOf(2).incarnation = Incarnation(2);  // of a stream that is gone
  EXPECT_EQ(Open(1), std::nullopt);
  SeatOf(2).incarnation = Incarnation(1);
  EXPECT_EQ(Open(2), 2u);
}

TEST_F(EvaluationTest, WithoutAPeriodNobodyIsAsked) {
  Join(1);
  Evaluation never(0);
  never.OnJoined(WorkerId(1), Incarnation(1), kWindows);
  EXPECT_FALSE(never.Due(Round(0), seats_));
  EXPECT_TRUE(evaluation_.Due(Round(0), seats_));
}

TEST_F(EvaluationTest, TheQuickestIsAskedAndMembersBeforeObservers) {
  Join(1, kWindows, milliseconds(300));
  Join(2, kWindows, std::nullopt);  // nothing is known of it yet
  Join(3, kWindows, milliseconds(200));
  Join(4, kWindows, milliseconds(100));
  SeatOf(4).role = round::Role::kObserver;
  EXPECT_EQ(Open(0), 3u);
  Go(3);
  EXPECT_EQ(Open(1), 1u);
  Go(1);
  EXPECT_EQ(Open(2), 2u);
  Go(2);
  EXPECT_EQ(Open(3), 4u);
}

TEST_F(EvaluationTest, OneThatIsALittleSlowerIsAskedAgainAndOneThatIsMuchSlowerIsNot) {
  Join(1, kWindows, milliseconds(100));
  Join(2, kWindows, milliseconds(100));
  EXPECT_EQ(Open(0), 1u);
  Measured(1, 0);
  members_[0].median_arrival = milliseconds(120);
  EXPECT_EQ(Open(10), 1u);
  Measured(1, 10);
  members_[0].median_arrival = milliseconds(130);
  EXPECT_EQ(Open(20), 2u);
}

TEST_F(EvaluationTest, WhenTheOneThatMeasuresIsGoneAnotherIsAskedInTheNextRound) {
  Join(1);
  Join(2);
  EXPECT_EQ(Open(0), 1u);
  EXPECT_EQ(evaluation_.evaluator(), WorkerId(1));
  Go(1);
  EXPECT_EQ(evaluation_.evaluator(), std::nullopt);
  EXPECT_EQ(Open(4), 2u);
  EXPECT_EQ(evaluation_.evaluator(), WorkerId(2));
}

TEST_F(EvaluationTest, OneThatComesBackIsAskedAnew) {
  Join(1);
  EXPECT_EQ(Open(0), 1u);
  evaluation_.OnJoined(WorkerId(1), Incarnation(2), kWindows);
  SeatOf(1).incarnation = Incarnation(2);
  EXPECT_EQ(evaluation_.evaluator(), std::nullopt) << "it has forgotten what it was asked";
  EXPECT_EQ(Open(3), 1u);
  // A worker that has lost its windows meanwhile cannot.
  evaluation_.OnJoined(WorkerId(1), Incarnation(3), std::nullopt);
  SeatOf(1).incarnation = Incarnation(3);
  EXPECT_EQ(Open(4), std::nullopt);
  EXPECT_EQ(Measured(1, 3), Verdict::kRefused);
}

TEST_F(EvaluationTest, OneThatDoesNotHearOfRoundsInTimeIsNotWaitedFor) {
  Join(1);
  Join(2);
  EXPECT_EQ(Open(0), 1u);
  seats_.erase(seats_.begin());  // its queue is full
  EXPECT_EQ(Open(1), 2u);
}

TEST_F(EvaluationTest, OneThatSaysNothingForMoreThanAPeriodIsPassedOver) {
  Join(1);
  Join(2);
  EXPECT_EQ(Open(0), 1u);
  EXPECT_THAT(AskedIn(1, 11), ElementsAre()) << "its answer comes with the ballot of round 10";
  EXPECT_EQ(Open(11), 2u);
  Go(2);
  EXPECT_EQ(Open(12), 1u) << "nobody else can";
  EXPECT_THAT(AskedIn(13, 40), ElementsAre(23, 34));
}

TEST_F(EvaluationTest, AnAnswerInTheLastRoundIsInTime) {
  Join(1);
  Join(2);
  EXPECT_EQ(Open(0), 1u);
  EXPECT_EQ(Open(10), std::nullopt);
  EXPECT_EQ(Measured(1, 0), Verdict::kRuns);
  EXPECT_EQ(Open(11), 1u);
}

TEST_F(EvaluationTest, WindowsOfTheLastLossGoBeforeTheQuickest) {
  Join(1, kOthers, milliseconds(100));
  Join(2, kWindows, milliseconds(300));
  Join(3, kWindows, milliseconds(400));
  EXPECT_EQ(Open(0), 2u) << "most have these windows";
  Measured(2, 0);
  Go(2);
  EXPECT_EQ(Open(10), 3u) << "one still has them";
  Go(3);
  EXPECT_EQ(Open(11), 1u);
  Measured(1, 11, kOthers);
  Join(4, kWindows, milliseconds(50));
  Join(5, kWindows, milliseconds(50));
  EXPECT_EQ(Open(20), 1u) << "the series goes on while anybody can go on with it";
}

TEST_F(EvaluationTest, OnlyWhatWasAskedForIsTheRuns) {
  Join(1);
  Join(2);
  EXPECT_EQ(Measured(1, 0), Verdict::kItsOwn);
  EXPECT_EQ(Open(0), 1u);
  EXPECT_EQ(Measured(2, 0), Verdict::kItsOwn);
  EXPECT_EQ(Measured(1, 1), Verdict::kItsOwn);
  EXPECT_EQ(Measured(1, 0), Verdict::kRuns);
  EXPECT_EQ(Measured(1, 0), Verdict::kKnown) << "the same ballot again";
}

TEST_F(EvaluationTest, WhatIsNoLossOfAReplicaOnItsWindowsIsRefused) {
  Join(1);
  Join(2, std::nullopt);
  EXPECT_EQ(Open(0), 1u);
  EXPECT_EQ(Measured(1, 0, kOthers), Verdict::kRefused);
  EXPECT_EQ(Measured(2, 0), Verdict::kRefused);
  EXPECT_EQ(Measured(3, 0), Verdict::kRefused);
  EXPECT_EQ(Measured(1, 1001), Verdict::kRefused);
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const auto& [loss, error] :
       {std::pair(nan, 0.0), {infinity, 0.0}, {1.0, nan}, {1.0, -0.5}}) {
    EXPECT_EQ(evaluation_.OnMeasured(
                  WorkerId(1), {.loss = loss, .error = error, .windows = kWindows}, Round(1000)),
              Verdict::kRefused);
  }
  EXPECT_EQ(Measured(1, 0), Verdict::kRuns) << "nothing of this was an answer";
}

TEST_F(EvaluationTest, OnlyTheSeatThatIsAskedIsTold) {
  Join(1);
  Join(2);
  EXPECT_EQ(Open(3), 1u);
  EXPECT_TRUE(evaluation_.Asks(Round(3), SeatOf(1)));
  EXPECT_FALSE(evaluation_.Asks(Round(3), SeatOf(2)));
  EXPECT_FALSE(evaluation_.Asks(Round(4), SeatOf(1)));
  SeatOf(1).incarnation = Incarnation(2);
  EXPECT_FALSE(evaluation_.Asks(Round(3), SeatOf(1)));
}

}  // namespace
}  // namespace signvote::run
