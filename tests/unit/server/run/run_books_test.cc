#include "server/run/run_books.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace signvote::run {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Time At(Duration d) { return Time{} + d; }
Moment When(Duration d) { return {.now = At(d), .unix_seconds = 1000 + ToSeconds(d)}; }

class FakeSink final : public LineSink {
 public:
  std::vector<nlohmann::json> lines;
  bool full = false;
  bool Write(std::string line) override {
    if (full) {
      ++dropped_;
      return false;
    }
    lines.push_back(nlohmann::json::parse(line));
    return true;
  }
  uint64_t dropped() const override { return dropped_; }

 private:
  uint64_t dropped_ = 0;
};

class FakeListener final : public CommitListener {
 public:
  std::vector<CommitTimes> commits;
  std::vector<double> applied;
  void OnCommit(const CommitTimes& times) override { commits.push_back(times); }
  void OnApplied(double took) override { applied.push_back(took); }
};

class RunBooksTest : public ::testing::Test {
 protected:
  RunBooksTest()
      : books_({.run_id = "r",
                .rule = "alias",
                .direction = "signum",
                .epoch = Epoch(2),
                .main_rounds = 100,
                .workers_min = 3,
                .round = Round(7),
                .round_log = &rounds_,
                .event_log = &events_,
                .listener = &listener_},
               When(seconds(0))),
        roster_({}, {}, Time{}) {}

  WorkerId Join(uint64_t peer, const std::string& name) {
    roster_.Open(PeerId(peer), Time{});
    const auto accepted = std::get<Roster::Accepted>(roster_.Join(PeerId(peer), name, Time{}));
    books_.OnJoined(accepted.worker, name, accepted.incarnation, "addr", "metrics");
    seats_.push_back({.worker = accepted.worker,
                      .incarnation = accepted.incarnation,
                      .share = Share(static_cast<uint32_t>(peer))});
    return accepted.worker;
  }
  round::CommitRound Commit(uint64_t round, std::vector<WorkerId> voters) {
    round::CommitRound commit;
    commit.round = Round(round);
    commit.main_rounds = round + 1;
    commit.gamma = 0.5f;
    commit.loss = 2.0;
    commit.voters = std::move(voters);
    commit.opened_for = seconds(4);
    commit.wait = seconds(1);
    return commit;
  }
  CommitNotes Notes() {
    return {.seats = seats_, .times = times_, .tally_seconds = 0.25, .commit_seconds = 0.125};
  }

  FakeSink rounds_, events_;
  FakeListener listener_;
  RunBooks books_;
  Roster roster_;
  std::vector<round::Seat> seats_;
  std::vector<std::pair<WorkerId, VoterTimes>> times_;
};

TEST_F(RunBooksTest, AnImpossibleTimeIsClampedAndCountedAndLeavesTheMeansUsable) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  times_ = {{a, {.compute_us = 2'000'000, .apply_us = 1'000'000}},
            {b, {.compute_us = UINT64_MAX, .apply_us = UINT64_MAX}}};
  books_.OnCommit(When(seconds(1)), Commit(7, {a, b}), Notes());
  ASSERT_EQ(listener_.commits.size(), 1u);
  EXPECT_TRUE(listener_.commits[0].has_voter_times);
  EXPECT_DOUBLE_EQ(listener_.commits[0].compute, (2.0 + 4.0) / 2);
  EXPECT_DOUBLE_EQ(listener_.commits[0].worker_apply, (1.0 + 4.0) / 2) << "of the time so far";
  const StatusPage page = books_.Snapshot(When(seconds(2)), roster_, {});
  EXPECT_EQ(page.implausible_times, 2u);
  EXPECT_DOUBLE_EQ(page.split.compute, 3.0);
}

TEST_F(RunBooksTest, ACommitIsInTheLogTheSeriesAndThePage) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  round::CommitRound commit = Commit(7, {a});
  commit.scalars_from = {{.worker = a}};
  commit.scalars = {{.loss = 1.5}};
  times_ = {{a, {.compute_us = 3'000'000, .apply_us = 10}}};
  books_.OnCommit(When(seconds(1)), commit, Notes());
  ASSERT_EQ(rounds_.lines.size(), 1u);
  EXPECT_EQ(rounds_.lines[0]["members"], nlohmann::json({"a", "b"}));
  EXPECT_EQ(rounds_.lines[0]["voters"], nlohmann::json::array({"a"}));
  EXPECT_EQ(rounds_.lines[0]["workers"][0]["share"], 1);
  EXPECT_EQ(rounds_.lines[0]["workers"][0]["compute_seconds"], 3.0);
  EXPECT_EQ(rounds_.lines[0]["unix_time"], 1001.0);
  EXPECT_THAT(books_.history().Series().loss, ElementsAre(2.0f));
  EXPECT_EQ(books_.history().Series().first_round, 7u);
  commit = Commit(8, {a, b});
  commit.rule.warning = "no probe";
  books_.OnCommit(When(seconds(3)), commit, Notes());
  const StatusPage page = books_.Snapshot(When(seconds(4)), roster_, {});
  EXPECT_EQ(page.stepsize_warning, "no probe");
  EXPECT_EQ(page.round, Round(9));
  EXPECT_EQ(page.main_round, 9u);
  EXPECT_DOUBLE_EQ(page.round_seconds, 2.0);
  EXPECT_DOUBLE_EQ(page.seconds_left, 2.0 * 91);
  EXPECT_EQ(page.stepsize, 0.5);
  ASSERT_EQ(page.workers.size(), 2u);
  EXPECT_EQ(page.workers[0].loss, 1.5);
  EXPECT_TRUE(page.workers[0].connected);
  EXPECT_EQ(page.workers[0].address, "addr");
  EXPECT_TRUE(std::isnan(page.workers[1].loss));
  EXPECT_EQ(page.workers_min, 3u);
  EXPECT_DOUBLE_EQ(page.split.tally, 0.25);
  EXPECT_DOUBLE_EQ(page.split.commit, 0.125);
  EXPECT_DOUBLE_EQ(page.split.wait, 1.0);
  EXPECT_DOUBLE_EQ(page.split.round, 4.0);
}

TEST_F(RunBooksTest, AHeldOutLossIsOnceInTheLogAndOnThePageAndTheRunsAreASeries) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  EXPECT_FALSE(books_.Snapshot(When(seconds(1)), roster_, {}).held_out.has_value());
  books_.OnHeldOut(a, {.loss = 3, .error = 0.5, .round = Round(5), .windows = 0xab});
  books_.OnHeldOut(b, {.loss = 4, .error = 0.25, .round = Round(6), .windows = 0xcd, .own = true});
  books_.OnHeldOut(WorkerId(99), {.loss = 5});  // forgotten meanwhile
  books_.OnCommit(When(seconds(1)), Commit(7, {a, b}), Notes());
  books_.OnCommit(When(seconds(2)), Commit(8, {a, b}), Notes());
  ASSERT_EQ(rounds_.lines.size(), 2u);
  EXPECT_EQ(rounds_.lines[0]["held_out"],
            nlohmann::json::parse(R"([{"worker": "a", "loss": 3.0, "error": 0.5, "round": 5,
                                       "windows": "00000000000000ab", "own": false},
                                      {"worker": "b", "loss": 4.0, "error": 0.25, "round": 6,
                                       "windows": "00000000000000cd", "own": true}])"));
  EXPECT_EQ(rounds_.lines[1]["held_out"], nlohmann::json::array());
  const StatusPage page = books_.Snapshot(When(seconds(3)), roster_, {.evaluator = b});
  ASSERT_TRUE(page.held_out.has_value());
  EXPECT_EQ(page.held_out->worker, "a") << "what b measured for itself is no loss of the run";
  EXPECT_EQ(page.held_out->loss, 3);
  EXPECT_EQ(page.evaluator, "b");
  ASSERT_TRUE(page.workers[1].held_out.has_value());
  EXPECT_EQ(page.workers[1].held_out->loss, 4);
  EXPECT_TRUE(page.workers[1].held_out->own);
  books_.OnHeldOut(a, {.loss = 2, .round = Round(8), .windows = 0xab});
  const WatchView view = books_.View(0, {});
  ASSERT_EQ(view.held_out.size(), 2u);
  EXPECT_EQ(view.held_out[0].loss, 3);
  EXPECT_EQ(view.held_out[1].loss, 2);
}

TEST_F(RunBooksTest, AMemberThatIsNotCountedIsToldOnceUntilItIsCountedAgain) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  const auto abstained = [this] {
    std::vector<std::string> reasons;
    for (const Event& event : books_.history().EventsAfter(0)) {
      if (event.kind == EventKind::kAbstained)
        reasons.push_back(event.worker + ": " + event.reason);
    }
    return reasons;
  };
  books_.OnAbstain(b, "the loss is not finite");
  books_.OnCommit(When(seconds(1)), Commit(7, {a}), Notes());
  books_.OnCommit(When(seconds(2)), Commit(8, {a}), Notes());
  EXPECT_THAT(abstained(), ElementsAre("b: the loss is not finite"));
  books_.OnCommit(When(seconds(3)), Commit(9, {a, b}), Notes());
  books_.OnCommit(When(seconds(4)), Commit(10, {a}), Notes());
  EXPECT_THAT(abstained(), ElementsAre("b: the loss is not finite", "b: no ballot in time"));
  // One that is gone has its own event; observers are not waited for.
  books_.OnGone(a);
  seats_[1].role = round::Role::kObserver;
  books_.OnCommit(When(seconds(5)), Commit(11, {b}), Notes());
  books_.OnCommit(When(seconds(6)), Commit(12, {}), Notes());
  EXPECT_EQ(abstained().size(), 2u);
}

TEST_F(RunBooksTest, AFloodOfRefusalsIsHeldBackAndCounted) {
  (void)books_.OnEvent(When(seconds(0)), EventKind::kPaused, {});
  int told = 0;
  for (int i = 0; i < 1'500; ++i) {
    told += books_.OnEvent(When(seconds(1)), EventKind::kRefused,
                           {.worker = "n" + std::to_string(i), .reason = "no", .who = "6.6.6.6"})
                ? 1
                : 0;
  }
  EXPECT_EQ(told, 8);
  EXPECT_EQ(events_.lines.size(), 9u);
  EXPECT_TRUE(books_.OnEvent(When(seconds(11)), EventKind::kRefused,
                             {.worker = "n", .reason = "no", .who = "6.6.6.6"}));
  EXPECT_EQ(events_.lines.back()["reason"], "no (and 1492 more that were not told)");
  EXPECT_EQ(books_.Snapshot(When(seconds(12)), roster_, {}).events_held_back, 1'492u);
  EXPECT_EQ(books_.history().EventsAfter(0)[0].kind, EventKind::kPaused);
  // The run's own events are always told.
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(books_.OnEvent(When(seconds(12)), EventKind::kResumed, {}));
  }
}

TEST_F(RunBooksTest, AnEventHasItsLineWithoutWhatMisleads) {
  EXPECT_TRUE(books_.OnEvent(
      When(seconds(3)), EventKind::kLost,
      {.worker = "a", .reason = "x\xC2\x9By\xE2\x80\xAEz", .incarnation = Incarnation(4)}));
  ASSERT_EQ(events_.lines.size(), 1u);
  EXPECT_EQ(events_.lines[0]["kind"], "lost");
  EXPECT_EQ(events_.lines[0]["round"], 7);
  EXPECT_EQ(events_.lines[0]["worker"], "a");
  EXPECT_EQ(events_.lines[0]["reason"], "x y z");
  EXPECT_EQ(events_.lines[0]["incarnation"], 4);
  EXPECT_EQ(events_.lines[0]["seconds"], 3.0);
  EXPECT_EQ(events_.lines[0]["unix_time"], 1003.0);
}

TEST_F(RunBooksTest, LinesThatALogCannotTakeAreCountedAndNothingWaits) {
  rounds_.full = events_.full = true;
  const WorkerId a = Join(1, "a");
  books_.OnCommit(When(seconds(1)), Commit(7, {a}), Notes());
  (void)books_.OnEvent(When(seconds(1)), EventKind::kPaused, {});
  EXPECT_EQ(books_.Snapshot(When(seconds(1)), roster_, {}).log_lines_dropped, 2u);
  EXPECT_EQ(books_.history().EventsAfter(0).size(), 1u);
}

TEST_F(RunBooksTest, BytesOfEndedAndForgottenSessionsStayInTheTotal) {
  const WorkerId a = Join(1, "a");
  books_.SetSessionBytes(a, 100, 10);
  books_.SetSessionBytes(a, 150, 30);
  books_.SetSessionBytes(a, 120, 20);  // unreadable: the last figures stay
  EXPECT_EQ(books_.BytesOf(a).up_rounds_bytes, 150u);
  books_.AddSetupBytes(a, 7, 8);
  books_.OnGone(a);
  books_.OnGone(a);
  books_.SetSessionBytes(a, 999, 999);  // nobody is there
  EXPECT_EQ(books_.BytesOf(a).up_rounds_bytes, 150u);
  books_.OnJoined(a, "a", Incarnation(2), "addr", "");
  books_.SetSessionBytes(a, 5, 6);
  EXPECT_EQ(books_.BytesOf(a), (WireTotals{.up_rounds_bytes = 155,
                                           .down_rounds_bytes = 36,
                                           .up_setup_bytes = 7,
                                           .down_setup_bytes = 8}));
  EXPECT_EQ(books_.total(), books_.BytesOf(a));
  books_.Forget(a);
  EXPECT_EQ(books_.BytesOf(a), WireTotals{});
  EXPECT_EQ(books_.total().up_rounds_bytes, 155u);
}

TEST_F(RunBooksTest, StatisticsGiveAgreementTiesAndWholeBallots) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  const PayloadPlan votes(ChunkPlan(4096, 1024));
  const RunPayloads payloads{.ballots = votes, .commits = votes};
  OpenVote::Statistics statistics{
      .coordinates = 100,
      .ties = 25,
      .workers = {{.worker = a, .coordinates = 100, .agreeing = 75, .chunks = 4},
                  {.worker = b, .coordinates = 0, .agreeing = 0, .chunks = 3}}};
  books_.OnStatistics(statistics, payloads);
  const StatusPage page = books_.Snapshot(When(seconds(1)), roster_, {});
  EXPECT_EQ(page.ties, 1024u);
  EXPECT_EQ(page.tie_ratio, 0.25);
  EXPECT_EQ(page.workers[0].agreement, 0.75);
  EXPECT_TRUE(std::isnan(page.workers[1].agreement));
  EXPECT_EQ(page.workers[0].wire.ballots, 1u);
  EXPECT_EQ(page.workers[1].wire.ballots, 0u);
  EXPECT_EQ(page.wire.fp32_equivalent_bytes, 4u * 4096);
  books_.OnStatistics({}, payloads);
  EXPECT_EQ(books_.Snapshot(When(seconds(1)), roster_, {}).tie_ratio, 0.25);
}

// Of dense chunks no sample is taken, and none of their coordinates is voted on.
TEST_F(RunBooksTest, OfDenseTensorsNoCoordinateIsTied) {
  const Layout layout = *Layout::Make(
      {{.name = "body", .shape = {1024}}, {.name = "head", .shape = {3072}, .dense = true}});
  const RunPayloads payloads = *PlanPayloads(layout, ChunkPlan(4096, 1024), Aggregate::kVote,
                                             PayloadKind::kFp32, /*ballots_max=*/4);
  const OpenVote::Statistics statistics{.coordinates = 100, .ties = 25, .workers = {}};
  books_.OnStatistics(statistics, payloads);
  EXPECT_EQ(books_.Snapshot(When(seconds(1)), roster_, {}).ties, 256u);
}

TEST_F(RunBooksTest, DigestsAreInTheEventLogAndTheMastersOnThePage) {
  const WorkerId a = Join(1, "a");
  books_.OnApplied(When(seconds(1)),
                   {.next_round = Round(8), .digest = std::nullopt, .seconds = 0.5});
  EXPECT_TRUE(events_.lines.empty());
  books_.OnApplied(When(seconds(1)), {.next_round = Round(9), .digest = 0xab, .seconds = 1.5});
  books_.OnDigest(When(seconds(1)), a, Round(9), 0xcd);
  ASSERT_EQ(events_.lines.size(), 2u);
  EXPECT_EQ(events_.lines[0]["digest"], "00000000000000ab");
  EXPECT_EQ(events_.lines[0]["digest_round"], 9);
  EXPECT_EQ(events_.lines[1]["worker"], "a");
  EXPECT_EQ(events_.lines[1]["digest_round"], 9);
  EXPECT_THAT(listener_.applied, ElementsAre(0.5, 1.5));
  const StatusPage page = books_.Snapshot(When(seconds(2)), roster_, {});
  EXPECT_EQ(page.master_digest, 0xabu);
  EXPECT_EQ(page.master_digest_round, Round(9));
  EXPECT_DOUBLE_EQ(page.split.apply, 1.0);
}

// One that says the worst each round must not make the figure useless.
TEST_F(RunBooksTest, OneLiarsTimesMoveTheMeanOfSeveralButALittle) {
  std::vector<WorkerId> all;
  for (uint64_t w = 1; w <= 5; ++w) all.push_back(Join(w, "w" + std::to_string(w)));
  for (size_t i = 0; i < all.size(); ++i) {
    const uint64_t seconds_each = 1 + i % 2;
    times_.push_back({all[i], {.compute_us = seconds_each * 1'000'000, .apply_us = 10'000}});
  }
  times_[4].second = {.compute_us = UINT64_MAX, .apply_us = UINT64_MAX};
  books_.OnCommit(When(seconds(1)), Commit(7, all), Notes());
  books_.OnCommit(When(seconds(500)), Commit(8, all), Notes());
  EXPECT_DOUBLE_EQ(listener_.commits[1].worker_apply, 0.01);
  EXPECT_LE(listener_.commits[1].compute, 2.0);
}

TEST_F(RunBooksTest, AMemberThatAbstainsEveryOtherRoundPushesNobodysEventsOut) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b"), c = Join(3, "c");
  for (uint64_t i = 0; i < 1'000; ++i) {
    books_.OnCommit(When(std::chrono::milliseconds(10 * i)),
                    Commit(7 + i, i % 2 == 0 ? std::vector{a, c} : std::vector{a, b, c}), Notes());
  }
  EXPECT_EQ(events_.lines.size(), 8u);
  books_.OnCommit(When(seconds(11)), Commit(1'007, {b}), Notes());
  ASSERT_EQ(events_.lines.size(), 10u) << "b's neighbours have budgets of their own";
  books_.OnCommit(When(seconds(12)), Commit(1'008, {a, b, c}), Notes());
  books_.OnCommit(When(seconds(13)), Commit(1'009, {a, c}), Notes());
  EXPECT_EQ(events_.lines.back()["reason"], "no ballot in time (and 492 more that were not told)");
}

TEST_F(RunBooksTest, HealthSaysWhatIsWaitedFor) {
  const auto because = [this](const LiveFacts& facts) {
    return books_.HealthNow(facts).not_ready_because;
  };
  EXPECT_EQ(because({}), "waiting for the first worker");
  EXPECT_EQ(because({.layout_known = true}), "waiting for the initial parameters");
  EXPECT_EQ(because({.layout_known = true, .complete = true, .waits_for = "the applier"}),
            "the applier");
  EXPECT_EQ(because({.ended = true, .complete = true}), "the run has ended");
  const Health health = books_.HealthNow({.complete = true, .applier_lag = 5});
  EXPECT_TRUE(health.ready);
  EXPECT_EQ(health.applier_lag, 5u);
  EXPECT_EQ(health.round, Round(7));
  EXPECT_EQ(health.last_commit_unix_seconds, 1000);
}

TEST_F(RunBooksTest, WhatTheRaceMayStillTakeIsInTheTimeLeftAndTheRulesNumbersStay) {
  const WorkerId a = Join(1, "a");
  round::CommitRound commit = Commit(0, {a});
  commit.main_rounds = 0;
  commit.rho = 1.5f;
  commit.rule.state = {{"z", 0.25}};
  commit.rule.race = {.trials = 2, .rounds = 15, .rounds_max = 25};
  books_.OnCommit(When(seconds(1)), commit, Notes());
  commit.round = Round(1);
  commit.rule.state.clear();  // closed without a verdict
  books_.OnCommit(When(seconds(3)), commit, Notes());
  StatusPage page = books_.Snapshot(When(seconds(4)), roster_, {});
  EXPECT_DOUBLE_EQ(page.seconds_left, 2.0 * (100 + 10));
  EXPECT_EQ(page.race.trials, 2u);
  EXPECT_EQ(page.rho, 1.5);
  ASSERT_EQ(page.rule_numbers.size(), 1u);
  EXPECT_EQ(page.rule_numbers[0].second, 0.25);
  EXPECT_EQ(
      rounds_.lines[0]["race"],
      nlohmann::json::parse(R"({"trials": 2, "rounds": 15, "rounds_max": 25, "over": false})"));
  commit.round = Round(2);
  commit.rule.race.over = true;
  books_.OnCommit(When(seconds(5)), commit, Notes());
  page = books_.Snapshot(When(seconds(6)), roster_, {});
  EXPECT_DOUBLE_EQ(page.seconds_left, 2.0 * 100);
}

TEST_F(RunBooksTest, AfterARestartThePageShowsTheRaceBeforeItsFirstRound) {
  round::EngineView view;
  view.race = {.trials = 2, .rounds = 15, .rounds_max = 25};
  EXPECT_EQ(books_.Snapshot(When(seconds(1)), roster_, {.engine = &view}).race, view.race);
}

TEST_F(RunBooksTest, APageShowsTheEnginesViewAndForgetsWhoIsForgottenThere) {
  const WorkerId a = Join(1, "a"), b = Join(2, "b");
  books_.OnSeated(a, seconds(9));
  books_.OnSeated(a, seconds(99));  // the first time counts
  (void)roster_.Close(PeerId(2), Time{});
  books_.OnGone(b);
  round::EngineView view;
  view.phase = round::Phase::kWaitingForRoom;
  view.attempt = Attempt(2);
  view.main_rounds = 6;
  view.totals.joins = 11;
  view.totals.digest_mismatches = 12;
  round::MemberView member;
  member.worker = a;
  member.incarnation = Incarnation(1);
  member.connected = true;
  member.share = Share(3);
  member.ballots = 21;
  member.median_arrival = seconds(2);
  member.final_digest = 5;
  view.workers = {member};
  StatusPage page = books_.Snapshot(When(seconds(10)), roster_,
                                    {.engine = &view, .coordinates = 9, .layout_digest = 8});
  EXPECT_EQ(page.phase, PagePhase::kWaitingForApplier);
  EXPECT_EQ(page.attempt, Attempt(2));
  EXPECT_EQ(page.main_round, 6u);
  EXPECT_EQ(page.joins, 11u);
  EXPECT_EQ(page.digest_mismatches, 12u);
  EXPECT_EQ(page.coordinates, 9u);
  EXPECT_EQ(page.layout_digest, 8u);
  ASSERT_EQ(page.workers.size(), 1u);
  EXPECT_TRUE(page.workers[0].member);
  EXPECT_EQ(page.workers[0].share, Share(3));
  EXPECT_EQ(page.workers[0].ballots, 21u);
  EXPECT_EQ(page.workers[0].arrival_seconds, 2.0);
  EXPECT_EQ(page.workers[0].final_digest, 5u);
  EXPECT_EQ(page.workers[0].joined_seconds, 9.0);
  view.phase = round::Phase::kCommitting;
  EXPECT_EQ(books_.Snapshot(When(seconds(10)), roster_, {.engine = &view}).phase,
            PagePhase::kRoundOpen);
  EXPECT_EQ(books_.Snapshot(When(seconds(10)), roster_, {.engine = &view, .ended = true}).phase,
            PagePhase::kEnded);
  EXPECT_EQ(books_.Snapshot(When(seconds(10)), roster_, {.paused = true}).phase,
            PagePhase::kPaused);
}

TEST_F(RunBooksTest, WhoComesBackIsShownAsAMemberOnlyWhenRoundsWaitForItAgain) {
  const WorkerId a = Join(1, "a");
  round::EngineView view;
  view.workers = {{.worker = a, .name = "a", .incarnation = Incarnation(1), .connected = true}};
  const auto is_member = [&] {
    return books_.Snapshot(When(seconds(1)), roster_, {.engine = &view}).workers[0].member;
  };
  EXPECT_TRUE(is_member());
  (void)roster_.Close(PeerId(1), Time{});
  view.workers[0].connected = false;
  EXPECT_TRUE(is_member()) << "as long as its name is kept so is its role";
  (void)Join(2, "a");
  EXPECT_FALSE(is_member()) << "it has joined and holds no parameters yet";
  view.workers[0].connected = true;
  EXPECT_FALSE(is_member()) << "that is its last incarnation";
  view.workers[0].incarnation = Incarnation(2);
  EXPECT_TRUE(is_member());
}

TEST_F(RunBooksTest, WatchersAreAnsweredWhenTheirTimeComesAndAreBounded) {
  std::vector<int> answered;
  const auto watch = [&](int id, Duration wait) {
    return books_.Watch(0, wait, Time{}, [&answered, id](absl::StatusOr<WatchView> view) {
      answered.push_back(view.ok() ? id : -id);
    });
  };
  EXPECT_FALSE(watch(1, Duration::zero()));
  EXPECT_FALSE(books_.NextWatcher().has_value());
  EXPECT_TRUE(watch(2, seconds(5)));
  EXPECT_TRUE(watch(3, seconds(3)));
  EXPECT_TRUE(watch(4, std::chrono::hours(1)));
  EXPECT_EQ(books_.NextWatcher(), At(seconds(3)));
  int pages = 0;
  const auto status = [&pages] {
    ++pages;
    return StatusPage{};
  };
  books_.AnswerWatchers(At(seconds(2)), status);
  EXPECT_EQ(pages, 0);
  books_.AnswerWatchers(At(seconds(5)), status);
  EXPECT_THAT(answered, ElementsAre(2, 3));
  EXPECT_EQ(pages, 1);
  // An hour is too long.
  EXPECT_EQ(books_.NextWatcher(), At(RunBooks::kWatchMax));
  for (size_t i = 1; i < RunBooks::kWatchersMax; ++i) EXPECT_TRUE(watch(5, seconds(9)));
  EXPECT_FALSE(watch(6, seconds(9)));
  books_.RefuseWatchers(absl::UnavailableError("the server stops"));
  EXPECT_EQ(answered.size(), 2 + RunBooks::kWatchersMax);
  EXPECT_EQ(answered.back(), -5);
  EXPECT_TRUE(watch(7, seconds(1)));
}

TEST_F(RunBooksTest, AViewHoldsEventsAfterANumberAndTheSeriesOnceThereIsOne) {
  (void)books_.OnEvent(When(seconds(0)), EventKind::kPaused, {});
  (void)books_.OnEvent(When(seconds(0)), EventKind::kResumed, {});
  WatchView view = books_.View(1, {});
  ASSERT_EQ(view.events.size(), 1u);
  EXPECT_EQ(view.events[0].kind, EventKind::kResumed);
  EXPECT_FALSE(view.series.has_value());
  books_.OnCommit(When(seconds(1)), Commit(7, {}), Notes());
  EXPECT_TRUE(books_.View(1, {}).series.has_value());
}

}  // namespace
}  // namespace signvote::run
