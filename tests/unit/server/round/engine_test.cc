// The rules of the round engine, one sentence each. The engine is driven by hand: events go in,
// actions are checked.
#include "server/round/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"

namespace signvote::round {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

template <typename T>
std::vector<T> All(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* a = std::get_if<T>(&action)) found.push_back(*a);
  }
  return found;
}
template <typename T>
bool Has(const Actions& actions) {
  return !All<T>(actions).empty();
}
// The only action of its kind.
template <typename T>
T One(const Actions& actions) {
  const std::vector<T> found = All<T>(actions);
  EXPECT_EQ(found.size(), 1u);
  return found.empty() ? T{} : found.front();
}
std::string Notices(const Actions& actions) {
  std::string text;
  for (const Notice& notice : All<Notice>(actions)) text += notice.text + "\n";
  return text;
}

// A rule that records what it was shown.
class SpyRule final : public StepsizeRule {
 public:
  struct Log {
    std::vector<uint64_t> rounds;
    std::vector<size_t> workers;
  };
  explicit SpyRule(Log* log) : log_(log) {}
  std::string_view name() const override { return "spy"; }
  bool WantsProbe(Round round) const override { return round.value() % 2 == 1; }
  StepsizeDecision Decide(const RuleInput& input) override {
    log_->rounds.push_back(input.round.value());
    log_->workers.push_back(input.workers.size());
    return {.gamma = 0.5f, .rho = 1, .reason = "spy", .state = {}};
  }

 private:
  Log* log_;
};

WorkerScalars SomeScalars() {
  WorkerScalars s;
  s.loss = 2;
  s.g_l1 = 3;
  s.g_l2_squared = 1.5;
  s.samples = 8;
  return s;
}

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    config_.coordinates = 1000;
    config_.chunks = 2;
    config_.rounds_max = 100;
    config_.digest_every = 0;
  }

  Engine& engine() {
    if (engine_ == nullptr) {
      auto made = Engine::Create(config_, std::make_unique<SpyRule>(&rule_), now_);
      EXPECT_TRUE(made.ok()) << made.status();
      engine_ = *std::move(made);
    }
    return *engine_;
  }
  Actions Step(const Event& event) { return engine().Step(now_, event); }
  Actions After(Duration wait, const Event& event) {
    now_ = now_ + wait;
    return Step(event);
  }
  void Take(const Actions& actions) {
    for (const OpenRound& open : All<OpenRound>(actions)) {
      round_ = open.round;
      attempt_ = open.attempt;
      last_open_ = open;
    }
  }
  Actions Do(const Event& event) {
    Actions actions = Step(event);
    Take(actions);
    return actions;
  }
  Actions DoAfter(Duration wait, const Event& event) {
    now_ = now_ + wait;
    return Do(event);
  }

  static WorkerId Id(uint32_t w) { return WorkerId(w); }
  Incarnation Inc(uint32_t w) { return Incarnation(incarnations_[w]); }
  Actions Ready(uint32_t w) {
    ++incarnations_[w];
    return Do(WorkerReady{Id(w), Inc(w), "w" + std::to_string(w)});
  }
  Actions Lost(uint32_t w) { return Do(WorkerLost{Id(w), Inc(w)}); }
  Actions Chunk(uint32_t w, uint32_t k) {
    return Do(BallotChunkIn{Id(w), Inc(w), round_, attempt_, ChunkIndex(k)});
  }
  Actions Scalars(uint32_t w, const WorkerScalars& s = SomeScalars()) {
    return Do(ScalarsIn{Id(w), Inc(w), round_, attempt_, s});
  }
  Actions Abstain(uint32_t w, AbstainReason reason = AbstainReason::kNonFiniteLoss) {
    return Do(AbstainIn{Id(w), Inc(w), round_, attempt_, reason});
  }
  // Every chunk and the scalars of one worker; all actions together.
  Actions Vote(uint32_t w) {
    const Round round = round_;
    const Attempt attempt = attempt_;
    Actions all;
    auto add = [&all](Actions more) { all.insert(all.end(), more.begin(), more.end()); };
    add(Do(ScalarsIn{Id(w), Inc(w), round, attempt, SomeScalars()}));
    for (uint32_t k = 0; k < config_.chunks; ++k)
      add(Do(BallotChunkIn{Id(w), Inc(w), round, attempt, ChunkIndex(k)}));
    return all;
  }
  Actions VoteAll(const std::vector<uint32_t>& workers) {
    Actions all;
    for (const uint32_t w : workers) {
      const Actions more = Vote(w);
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }
  // n workers are ready and round 0 is open.
  void Start(uint32_t n) {
    config_.workers_min = n;
    for (uint32_t w = 0; w < n; ++w) Ready(w);
    ASSERT_EQ(View().phase, Phase::kRoundOpen);
  }
  EngineView View() { return engine().View(now_); }
  MemberView Member(uint32_t w) {
    for (const MemberView& m : View().workers) {
      if (m.worker == Id(w)) return m;
    }
    ADD_FAILURE() << "no worker " << w;
    return {};
  }
  std::vector<uint32_t> Seats(Role role = Role::kMember) const {
    std::vector<uint32_t> ids;
    for (const Seat& seat : last_open_.seats) {
      if (seat.role == role) ids.push_back(seat.worker.value());
    }
    return ids;
  }
  static std::vector<uint32_t> Ids(const std::vector<WorkerId>& workers) {
    std::vector<uint32_t> ids;
    for (const WorkerId w : workers) ids.push_back(w.value());
    return ids;
  }
  Duration ToDeadline() { return *View().deadline_left; }

  EngineConfig config_;
  SpyRule::Log rule_;
  std::unique_ptr<Engine> engine_;
  Time now_{1000};
  Round round_;
  Attempt attempt_;
  OpenRound last_open_;
  std::map<uint32_t, uint64_t> incarnations_;
};

// ---- opening
// ------------------------------------------------------------------------------------------------------

TEST_F(EngineTest, RoundZeroOpensOnceEnoughWorkersAreReady) {
  config_.workers_min = 2;
  EXPECT_FALSE(Has<OpenRound>(Ready(0)));
  EXPECT_EQ(View().phase, Phase::kWaitingForWorkers);
  const OpenRound open = One<OpenRound>(Ready(1));
  EXPECT_EQ(open.round, Round(0));
  EXPECT_EQ(open.attempt, Attempt(0));
  EXPECT_EQ(open.data_step, DataStep(0));
  EXPECT_FALSE(open.probe);
  EXPECT_EQ(open.quorum, 1u);
  ASSERT_EQ(open.seats.size(), 2u);
  EXPECT_EQ(open.seats[0].share, Share(0));
  EXPECT_EQ(open.seats[1].share, Share(1));
  EXPECT_EQ(*open.deadline, Duration(seconds(60)));
}

TEST_F(EngineTest, OneWorkerIsALegalNumberOfWorkers) {
  Start(1);
  const Actions actions = Vote(0);
  EXPECT_EQ(All<CloseChunk>(actions).size(), 2u);
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(One<OpenRound>(actions).round, Round(1));
}

TEST_F(EngineTest, TheDefaultQuorumIsHalfTheMembersRoundedUp) {
  Start(5);
  EXPECT_EQ(last_open_.quorum, 3u);
}

TEST_F(EngineTest, AConfiguredQuorumIsCappedByTheMembers) {
  config_.quorum = 4;
  Start(2);
  EXPECT_EQ(last_open_.quorum, 2u);
}

TEST_F(EngineTest, TheRuleSaysInWhichRoundsWorkersProbe) {
  Start(1);
  EXPECT_FALSE(last_open_.probe);
  Vote(0);
  EXPECT_TRUE(last_open_.probe);
  Vote(0);
  EXPECT_FALSE(last_open_.probe);
}

TEST_F(EngineTest, ANewcomerIsAdmittedOnlyWhenTheNextRoundOpens) {
  Start(2);
  EXPECT_THAT(All<OpenRound>(Ready(2)), IsEmpty());
  Chunk(2, 0);
  EXPECT_EQ(View().stale_messages, 1u);
  const Actions actions = VoteAll({0, 1});
  EXPECT_THAT(Ids(One<CommitRound>(actions).voters), ElementsAre(0, 1));
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
  EXPECT_THAT(Notices(actions), HasSubstr("w2 joins with share 2 from round 1 on"));
}

TEST_F(EngineTest, TheDataStepGrowsByOnePerCommit) {
  Start(1);
  for (uint64_t t = 0; t < 5; ++t) {
    EXPECT_EQ(last_open_.data_step, DataStep(t));
    EXPECT_EQ(One<CommitRound>(Vote(0)).data_step, DataStep(t));
  }
}

// ---- closing and committing
// ---------------------------------------------------------------------------------------

TEST_F(EngineTest, AChunkClosesAsSoonAsEveryMemberVotedOnIt) {
  Start(3);
  Chunk(0, 1);
  Chunk(2, 1);
  EXPECT_FALSE(Has<CloseChunk>(Chunk(1, 0)));
  const CloseChunk close = One<CloseChunk>(Chunk(1, 1));
  EXPECT_EQ(close.chunk, ChunkIndex(1));
  EXPECT_THAT(Ids(close.voters), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, ACommitWaitsForTheScalarsOfCountedWorkers) {
  Start(2);
  Scalars(0);
  for (const uint32_t w : {0u, 1u}) {
    for (const uint32_t k : {0u, 1u}) EXPECT_FALSE(Has<CommitRound>(Chunk(w, k)));
  }
  const CommitRound commit = One<CommitRound>(Scalars(1));
  EXPECT_EQ(commit.scalars.size(), 2u);
  EXPECT_EQ(commit.stepsize.gamma, 0.5f);
  EXPECT_EQ(*commit.loss, 2.0);
  EXPECT_EQ(*commit.g_l1, 3.0);
  EXPECT_DOUBLE_EQ(*commit.density, 9.0 / (1000 * 1.5));
  EXPECT_THAT(rule_.workers, ElementsAre(2));
}

TEST_F(EngineTest, MissingScalarsCostTheRuleNotTheVote) {
  Start(2);
  Vote(0);
  Chunk(1, 0);
  Chunk(1, 1);
  const Actions actions = DoAfter(ToDeadline(), Tick{});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_THAT(Ids(commit.voters), ElementsAre(0, 1));
  EXPECT_THAT(rule_.workers, ElementsAre(1));
}

TEST_F(EngineTest, ScalarsThatAreNotFiniteAreRefusedAndTheVoteStands) {
  Start(2);
  Vote(0);
  Chunk(1, 0);
  Chunk(1, 1);
  WorkerScalars bad = SomeScalars();
  bad.probe_l1 = std::numeric_limits<double>::quiet_NaN();
  const CommitRound commit = One<CommitRound>(Scalars(1, bad));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(commit.scalars.size(), 1u);
  EXPECT_EQ(View().scalars_refused, 1u);
  EXPECT_THAT(rule_.workers, ElementsAre(1));
}

TEST_F(EngineTest, EveryScalarIsCheckedAndANormIsNeverNegative) {
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<WorkerScalars> bad(6, SomeScalars());
  bad[0].loss = inf;
  bad[1].g_l1 = -1;
  bad[2].g_l2_squared = inf;
  bad[3].probe_l1 = -1;
  bad[4].prev_inner = -inf;
  bad[5].g_l1 = std::nan("");
  Start(1);
  for (size_t i = 0; i < bad.size(); ++i) {
    Scalars(0, bad[i]);
    EXPECT_EQ(View().scalars_refused, i + 1);
    Chunk(0, 0);
    Chunk(0, 1);
  }
  EXPECT_THAT(rule_.workers, ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST_F(EngineTest, ARepeatedChunkIsCountedOnceAndIgnored) {
  Start(2);
  Chunk(0, 0);
  EXPECT_FALSE(Has<CloseChunk>(Chunk(0, 0)));
  EXPECT_EQ(View().duplicate_chunks, 1u);
  EXPECT_EQ(Member(0).duplicate_chunks, 1u);
  EXPECT_THAT(Ids(One<CloseChunk>(Chunk(1, 0)).voters), ElementsAre(0, 1));
}

TEST_F(EngineTest, MessagesOfOtherRoundsAttemptsAndUnknownChunksChangeNothing) {
  Start(2);
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(1), Attempt(0), ChunkIndex(0)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(1), ChunkIndex(0)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(2)}), IsEmpty());
  EXPECT_THAT(Do(BallotChunkIn{Id(9), Incarnation(1), Round(0), Attempt(0), ChunkIndex(0)}),
              IsEmpty());
  EXPECT_THAT(Do(ScalarsIn{Id(0), Inc(0), Round(3), Attempt(0), SomeScalars()}), IsEmpty());
  EXPECT_EQ(View().stale_messages, 5u);
  EXPECT_EQ(One<CommitRound>(VoteAll({0, 1})).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, AChunkOfACommittedRoundIsLate) {
  Start(1);
  Vote(0);
  Do(BallotChunkIn{Id(0), Inc(0), Round(0), Attempt(0), ChunkIndex(0)});
  EXPECT_EQ(View().late_chunks, 1u);
  EXPECT_EQ(Member(0).late_chunks, 1u);
}

TEST_F(EngineTest, CommitsAreGapFreeAndSayHowLongTheyTook) {
  Start(2);
  now_ = now_ + Duration(seconds(2));
  Vote(0);
  now_ = now_ + Duration(seconds(1));
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.opened_for, Duration(seconds(3)));
  EXPECT_EQ(commit.wait, Duration(seconds(1)));
  for (uint64_t t = 1; t < 5; ++t) EXPECT_EQ(One<CommitRound>(VoteAll({0, 1})).round, Round(t));
  EXPECT_THAT(rule_.rounds, ElementsAre(0, 1, 2, 3, 4));
}

// ---- deadlines
// ----------------------------------------------------------------------------------------------------

TEST_F(EngineTest, AtTheDeadlineAChunkClosesWithTheQuorumAndTheRestAbstained) {
  Start(3);
  VoteAll({0, 1});
  Chunk(2, 0);
  const Actions actions = DoAfter(ToDeadline(), Tick{});
  const CommitRound commit = One<CommitRound>(actions);
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{3, 2}));
  EXPECT_EQ(commit.abstentions, 0u);
  EXPECT_THAT(Ids(commit.voters), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, ALateBallotIsAnAbstentionNeverAnError) {
  Start(3);
  VoteAll({0, 1});
  const CommitRound commit = One<CommitRound>(DoAfter(ToDeadline(), Tick{}));
  EXPECT_EQ(commit.abstentions, 1u);
  EXPECT_EQ(Member(2).abstentions, 1u);
  EXPECT_EQ(Member(2).role, Role::kMember);
  EXPECT_TRUE(Member(2).connected);
}

TEST_F(EngineTest, BallotsQueuedBeforeTheTickAreInTime) {
  Start(2);
  Vote(0);
  now_ = now_ + ToDeadline() + Duration(seconds(5));
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.abstentions, 0u);
}

TEST_F(EngineTest, TheDeadlineFollowsTheSlowestRegularMember) {
  Start(3);
  for (int t = 0; t < 4; ++t) {
    now_ = now_ + Duration(seconds(1));
    VoteAll({0, 1});
    now_ = now_ + Duration(seconds(1));
    Vote(2);
  }
  // Medians 1 s, 1 s, 2 s; overall 1 s; grace = clamp(1 s, 0.5 s, 1.5 s).
  EXPECT_EQ(*last_open_.deadline, Duration(seconds(3)));
}

TEST_F(EngineTest, ARoundWithoutQuorumWaitsPastItsDeadlineAndNamesTheSilentOnce) {
  Start(3);
  Vote(0);
  const Actions first = DoAfter(ToDeadline(), Tick{});
  EXPECT_FALSE(Has<CommitRound>(first));
  EXPECT_THAT(Notices(first), HasSubstr("silent: w1, w2"));
  EXPECT_THAT(DoAfter(Duration(seconds(1)), Tick{}), IsEmpty());
  // A ballot is late only once its chunk is closed.
  const Actions actions = Vote(1);
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, AfterAnOverrunDeadlineScalarsStillGetTheShortestGrace) {
  Start(3);
  Vote(0);
  DoAfter(ToDeadline(), Tick{});
  Chunk(1, 0);
  EXPECT_FALSE(Has<CommitRound>(Chunk(1, 1)));
  EXPECT_EQ(*engine().NextTick(), now_ + config_.deadline.grace_floor);
  EXPECT_TRUE(Has<CommitRound>(Scalars(1)));
  EXPECT_THAT(rule_.workers, ElementsAre(2));
}

TEST_F(EngineTest, SilenceLongerThanTheWaitTimeoutEndsTheRun) {
  Start(3);
  Vote(0);
  DoAfter(ToDeadline(), Tick{});
  EXPECT_EQ(*engine().NextTick(), Time{1000} + config_.wait_timeout);
  const EndRun end = One<EndRun>(DoAfter(config_.wait_timeout, Tick{}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Describe(end.status), HasSubstr("silent: w1, w2"));
  EXPECT_EQ(View().phase, Phase::kEnded);
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_THAT(Vote(1), IsEmpty());
}

TEST_F(EngineTest, WithDeadlinesOffARoundWaitsForEveryLiveMember) {
  config_.deadline.enabled = false;
  Start(2);
  EXPECT_FALSE(last_open_.deadline.has_value());
  Vote(0);
  EXPECT_THAT(DoAfter(Duration(std::chrono::minutes(59)), Tick{}), IsEmpty());
  EXPECT_TRUE(Has<CommitRound>(Vote(1)));
}

TEST_F(EngineTest, WithDeadlinesOffMissingScalarsHoldTheCommitNoLongerThanTheWaitTimeout) {
  config_.deadline.enabled = false;
  Start(1);
  Chunk(0, 0);
  Chunk(0, 1);
  EXPECT_TRUE(Has<CommitRound>(DoAfter(config_.wait_timeout, Tick{})));
}

TEST_F(EngineTest, WaitingForWorkersEndsAfterTheWaitTimeout) {
  config_.workers_min = 2;
  Ready(0);
  EXPECT_EQ(*engine().NextTick(), now_ + config_.wait_timeout);
  const EndRun end = One<EndRun>(DoAfter(config_.wait_timeout, Tick{}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
}

// ---- abstentions and observers
// ------------------------------------------------------------------------------------

TEST_F(EngineTest, AnExplicitAbstentionCountsAsAnAnswer) {
  Start(4);  // quorum 2
  Abstain(0);
  Abstain(1);
  Abstain(2);
  const CommitRound commit = One<CommitRound>(Vote(3));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(commit.abstentions, 3u);
}

TEST_F(EngineTest, ChunksSentBeforeAnAbstentionStand) {
  Start(2);
  Chunk(0, 0);
  Abstain(0, AbstainReason::kNonFiniteGradient);
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{2, 1}));
}

TEST_F(EngineTest, ARoundThatEveryLiveWorkerAbstainsFromEndsTheRunAsDiverged) {
  Start(3);
  Lost(2);
  Abstain(0, AbstainReason::kNonFiniteLoss);
  const Actions actions = Abstain(1, AbstainReason::kNonFiniteGradient);
  EXPECT_FALSE(Has<CommitRound>(actions));
  const EndRun end = One<EndRun>(actions);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Describe(end.status), HasSubstr("diverged in round 0"));
  EXPECT_THAT(Describe(end.status), HasSubstr("w0 (non-finite loss), w1 (non-finite gradient)"));
}

TEST_F(EngineTest, AfterFiveAbstentionsInARowAMemberIsAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    ASSERT_THAT(Seats(), ElementsAre(0, 1, 2));
    VoteAll({0, 1});
    const Actions actions = DoAfter(ToDeadline(), Tick{});
    ASSERT_TRUE(Has<CommitRound>(actions));
    EXPECT_EQ(Has<ChangeRole>(actions), t == 4);
  }
  EXPECT_THAT(Seats(), ElementsAre(0, 1));
  EXPECT_THAT(Seats(Role::kObserver), ElementsAre(2));
  EXPECT_TRUE(Has<CommitRound>(VoteAll({0, 1})));  // nobody waits for it
}

TEST_F(EngineTest, ACountedBallotEndsARowOfAbstentions) {
  Start(3);
  for (int t = 0; t < 4; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  VoteAll({0, 1, 2});
  VoteAll({0, 1});
  EXPECT_FALSE(Has<ChangeRole>(DoAfter(ToDeadline(), Tick{})));
}

TEST_F(EngineTest, AnObserversBallotInTimeMakesItAMemberAndIsNotCounted) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Vote(2);
  const Actions actions = VoteAll({0, 1});
  EXPECT_THAT(Ids(One<CommitRound>(actions).voters), ElementsAre(0, 1));
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(One<ChangeRole>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, AnObserverWithAPartialBallotStaysAnObserver) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Chunk(2, 0);
  VoteAll({0, 1});
  EXPECT_THAT(Seats(Role::kObserver), ElementsAre(2));
}

TEST_F(EngineTest, WhenOnlyObserversAreLeftTheyAreMembersAgain) {
  Start(3);
  for (int t = 0; t < 5; ++t) {
    VoteAll({0, 1});
    DoAfter(ToDeadline(), Tick{});
  }
  Lost(0);
  const Actions actions = Lost(1);
  EXPECT_EQ(One<ChangeRole>(actions).role, Role::kMember);
  EXPECT_THAT(Seats(), ElementsAre(2));
}

// ---- deaths, attempts, incarnations
// -------------------------------------------------------------------------------

TEST_F(EngineTest, ALostMemberStopsBeingWaitedForAtOnce) {
  Start(3);
  VoteAll({0, 1});
  const Actions actions = Lost(2);
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{2, 2}));
  EXPECT_EQ(View().losses, 1u);
}

TEST_F(EngineTest, ADeadMembersChunksThatAreInStillCount) {
  Start(3);
  Chunk(2, 0);
  Lost(2);
  const Actions actions = VoteAll({0, 1});
  EXPECT_EQ(One<CommitRound>(actions).counted, (std::vector<uint32_t>{3, 2}));
}

TEST_F(EngineTest, DeathsBelowTheQuorumOpenTheNextAttemptWithEverybodyReady) {
  Start(4);  // quorum 2
  Ready(4);
  Chunk(0, 0);
  Lost(1);
  Lost(2);
  const Actions actions = Lost(3);
  const OpenRound open = One<OpenRound>(actions);
  EXPECT_EQ(open.round, Round(0));
  EXPECT_EQ(open.attempt, Attempt(1));
  EXPECT_EQ(open.quorum, 1u);
  EXPECT_THAT(Seats(), ElementsAre(0, 4));
  EXPECT_EQ(View().attempts_reopened, 1u);
  // Survivors resend; what was sent to the earlier attempt counts no more.
  EXPECT_EQ(One<CommitRound>(VoteAll({0, 4})).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, ADeadMembersCompleteBallotCountsForTheQuorum) {
  Start(4);  // quorum 2
  Vote(1);
  Lost(1);
  Lost(2);
  EXPECT_FALSE(Has<OpenRound>(Lost(3)));
  EXPECT_EQ(One<CommitRound>(Vote(0)).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, WithNobodyLeftOneNewcomerSufficesForTheNextAttempt) {
  Start(2);
  Vote(0);
  Lost(1);  // commits round 0
  ASSERT_EQ(round_, Round(1));
  Lost(0);
  EXPECT_EQ(View().phase, Phase::kWaitingForWorkers);
  const OpenRound open = One<OpenRound>(Ready(1));
  EXPECT_EQ(open.round, Round(1));
  EXPECT_EQ(open.attempt, Attempt(1));
}

TEST_F(EngineTest, AnIncarnationNeverAddsAVote) {
  Start(2);
  Chunk(0, 0);
  Lost(0);
  Ready(0);
  EXPECT_THAT(Chunk(0, 0), IsEmpty());
  EXPECT_THAT(Chunk(0, 1), IsEmpty());
  const CommitRound commit = One<CommitRound>(Vote(1));
  EXPECT_EQ(commit.counted, (std::vector<uint32_t>{2, 1}));
  EXPECT_THAT(Seats(), ElementsAre(0, 1));
}

TEST_F(EngineTest, AHigherIncarnationReplacesALiveOne) {
  Start(2);
  Vote(1);
  EXPECT_TRUE(Has<CommitRound>(Ready(0)));  // the older session was the last one waited for
  EXPECT_EQ(View().losses, 1u);
  EXPECT_EQ(View().joins, 3u);
  EXPECT_EQ(last_open_.seats[0].incarnation, Incarnation(2));
  EXPECT_THAT(Do(WorkerLost{Id(0), Incarnation(1)}), IsEmpty());
  EXPECT_THAT(Do(WorkerReady{Id(0), Incarnation(2), "w0"}), IsEmpty());
  EXPECT_EQ(View().losses, 1u);
  EXPECT_EQ(View().stale_messages, 2u);
}

// ---- shares
// -------------------------------------------------------------------------------------------------------

TEST_F(EngineTest, AReturningWorkerGetsItsOwnShareBack) {
  Start(3);
  Lost(1);
  Ready(3);
  VoteAll({0, 2});
  EXPECT_EQ(last_open_.seats.back().share, Share(3));  // share 1 is reserved
  Ready(1);
  VoteAll({0, 2, 3});
  EXPECT_EQ(Member(1).share, Share(1));
}

TEST_F(EngineTest, AReservedShareIsFreeAfterTheHoldTime) {
  config_.share_hold_rounds = 2;
  Start(3);
  Lost(1);
  VoteAll({0, 2});
  VoteAll({0, 2});
  Ready(3);
  VoteAll({0, 2});
  EXPECT_EQ(Member(3).share, Share(1));
  Ready(1);
  VoteAll({0, 2, 3});
  EXPECT_EQ(Member(1).share, Share(3));
}

// ---- the operator
// -------------------------------------------------------------------------------------------------

TEST_F(EngineTest, ADrainedWorkerIsAskedLeavesAndIsNoLoss) {
  Start(2);
  EXPECT_EQ(One<AskToDrain>(Do(DrainRequested{Id(1)})).incarnation, Inc(1));
  Vote(0);
  const Actions actions = Do(WorkerLeaves{Id(1), Inc(1)});
  EXPECT_TRUE(Has<CommitRound>(actions));  // nobody waits for it
  EXPECT_THAT(Seats(), ElementsAre(0));
  Lost(1);
  EXPECT_EQ(View().losses, 0u);
}

TEST_F(EngineTest, WhatALeavingWorkerHasSentStillCounts) {
  Start(2);
  Vote(1);
  Do(WorkerLeaves{Id(1), Inc(1)});
  EXPECT_EQ(One<CommitRound>(Vote(0)).counted, (std::vector<uint32_t>{2, 2}));
}

TEST_F(EngineTest, DrainingOrEvictingAStrangerIsANotice) {
  Start(1);
  EXPECT_THAT(Notices(Do(DrainRequested{Id(7)})), HasSubstr("cannot drain"));
  EXPECT_THAT(Notices(Do(EvictRequested{Id(7)})), HasSubstr("cannot evict"));
}

TEST_F(EngineTest, AnEvictedWorkerIsDisconnectedAndStaysOut) {
  Start(2);
  Vote(0);
  const Actions actions = Do(EvictRequested{Id(1)});
  EXPECT_EQ(One<Disconnect>(actions).status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(Has<CommitRound>(actions));
  const Actions again = Ready(1);
  EXPECT_EQ(One<Disconnect>(again).status.code(), absl::StatusCode::kPermissionDenied);
  Vote(0);
  EXPECT_THAT(Seats(), ElementsAre(0));
}

TEST_F(EngineTest, APauseLetsTheOpenRoundCompleteAndOpensNoOther) {
  Start(1);
  Do(PauseRequested{});
  EXPECT_EQ(View().phase, Phase::kRoundOpen);
  const Actions actions = Vote(0);
  EXPECT_TRUE(Has<CommitRound>(actions));
  EXPECT_FALSE(Has<OpenRound>(actions));
  EXPECT_EQ(View().phase, Phase::kPaused);
  EXPECT_FALSE(engine().NextTick().has_value());
  EXPECT_EQ(One<OpenRound>(Do(ResumeRequested{})).round, Round(1));
}

TEST_F(EngineTest, APausedRoundStillOpensItsNextAttempt) {
  Start(3);
  Do(PauseRequested{});
  Lost(1);
  EXPECT_EQ(One<OpenRound>(Lost(2)).attempt, Attempt(1));
  EXPECT_FALSE(Has<OpenRound>(Vote(0)));
  EXPECT_EQ(View().phase, Phase::kPaused);
}

TEST_F(EngineTest, APauseBeforeTheFirstRoundHoldsItBack) {
  config_.workers_min = 1;
  Do(PauseRequested{});
  EXPECT_FALSE(Has<OpenRound>(Ready(0)));
  EXPECT_TRUE(Has<OpenRound>(Do(ResumeRequested{})));
}

TEST_F(EngineTest, AStopLetsTheOpenRoundCompleteAndThenEndsTheRun) {
  Start(2);
  Vote(0);
  EXPECT_FALSE(Has<EndRun>(Do(StopRequestedEvent{})));
  const Actions actions = Vote(1);
  EXPECT_TRUE(Has<CommitRound>(actions));
  const EndRun end = One<EndRun>(actions);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Describe(end.status), HasSubstr("stopped by the operator after 1 rounds"));
}

TEST_F(EngineTest, AStopEndsTheRunAtTheDeadlineAtTheLatest) {
  Start(3);
  Do(StopRequestedEvent{});
  EXPECT_EQ(One<EndRun>(DoAfter(ToDeadline(), Tick{})).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, AStopWithDeadlinesOffIsBoundedToo) {
  config_.deadline.enabled = false;
  Start(1);
  Do(StopRequestedEvent{});
  EXPECT_EQ(*engine().NextTick(), now_ + config_.deadline.initial);
  EXPECT_EQ(One<EndRun>(DoAfter(config_.deadline.initial, Tick{})).status.code(),
            absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, AStopWhileWaitingEndsTheRunAtOnce) {
  config_.workers_min = 2;
  Ready(0);
  EXPECT_EQ(One<EndRun>(Do(StopRequestedEvent{})).status.code(), absl::StatusCode::kCancelled);
}

// ---- digests and the end
// ------------------------------------------------------------------------------------------

TEST_F(EngineTest, TheRunEndsOnceEveryFinalDigestIsIn) {
  config_.rounds_max = 2;
  Start(2);
  EXPECT_FALSE(One<CommitRound>(VoteAll({0, 1})).digest_due);
  const Actions last = VoteAll({0, 1});
  EXPECT_TRUE(One<CommitRound>(last).digest_due);
  EXPECT_EQ(One<FinishRun>(last).rounds, Round(2));
  EXPECT_FALSE(Has<OpenRound>(last));
  EXPECT_EQ(View().phase, Phase::kFinishing);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(2), 77});
  Do(MasterDigestIn{Round(2), 77});
  const Actions actions = Do(WorkerDigestIn{Id(1), Inc(1), Round(2), 77});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_EQ(*Member(1).final_digest, 77u);
  EXPECT_EQ(View().digest_mismatches, 0u);
}

TEST_F(EngineTest, TheServerLingersForSilentWorkersButNotForever) {
  config_.rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  EXPECT_EQ(*engine().NextTick(), now_ + config_.linger);
  EXPECT_FALSE(Has<EndRun>(DoAfter(config_.linger / 2, Tick{})));
  const Actions actions = DoAfter(config_.linger / 2, Tick{});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_THAT(Notices(actions), HasSubstr("w1"));
}

TEST_F(EngineTest, AWorkerThatLeavesAfterItsFinalDigestIsNoLoss) {
  config_.rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  Lost(0);
  EXPECT_EQ(View().losses, 0u);
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_TRUE(Has<EndRun>(Lost(1)));
  EXPECT_EQ(View().losses, 1u);
}

TEST_F(EngineTest, AWorkerThatConnectsAfterTheLastRoundAnswersToo) {
  config_.rounds_max = 1;
  Start(1);
  Vote(0);
  Ready(5);
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_FALSE(Has<EndRun>(Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77})));
  EXPECT_TRUE(Has<EndRun>(Do(WorkerDigestIn{Id(5), Inc(5), Round(1), 77})));
}

TEST_F(EngineTest, ADifferingFinalDigestIsNamedAndTheRunIsStillDone) {
  config_.rounds_max = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 77});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  const Actions actions = Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77});
  EXPECT_TRUE(One<EndRun>(actions).status.ok());
  EXPECT_THAT(Notices(actions), HasSubstr("the final replica of w1 differs"));
  EXPECT_EQ(View().digest_mismatches, 1u);
}

TEST_F(EngineTest, AMajorityAgainstTheServersFinalReplicaIsDataLoss) {
  config_.rounds_max = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66});
  const EndRun end = One<EndRun>(Do(WorkerDigestIn{Id(2), Inc(2), Round(1), 77}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Describe(end.status), HasSubstr("w0, w1"));
}

TEST_F(EngineTest, TwoThatDifferEachInItsOwnWayAreNoMajority) {
  config_.rounds_max = 1;
  Start(2);
  VoteAll({0, 1});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  EXPECT_TRUE(One<EndRun>(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 55})).status.ok());
  EXPECT_EQ(View().digest_mismatches, 2u);
}

TEST_F(EngineTest, AWorkerThatDiffersMidRunIsResynced) {
  config_.digest_every = 2;
  Start(3);
  VoteAll({0, 1, 2});
  EXPECT_TRUE(One<CommitRound>(VoteAll({0, 1, 2})).digest_due);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(2), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(2), 77});
  Do(WorkerDigestIn{Id(2), Inc(2), Round(2), 77});
  const Resync resync = One<Resync>(Do(MasterDigestIn{Round(2), 77}));
  EXPECT_EQ(resync.worker, Id(0));
  EXPECT_EQ(resync.round, Round(2));
  EXPECT_EQ(View().digest_mismatches, 1u);
  EXPECT_THAT(Do(MasterDigestIn{Round(2), 77}), IsEmpty());
}

TEST_F(EngineTest, NobodyIsResyncedWhileTheMajorityIsUndecided) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  EXPECT_FALSE(Has<Resync>(Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66})));
  const EndRun end = One<EndRun>(Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 66}));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDataLoss);
}

TEST_F(EngineTest, ALostWorkersAnswerIsNotWaitedFor) {
  config_.digest_every = 1;
  Start(3);
  VoteAll({0, 1, 2});
  Do(MasterDigestIn{Round(1), 77});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 66});
  Do(WorkerDigestIn{Id(1), Inc(1), Round(1), 77});
  EXPECT_EQ(One<Resync>(Lost(2)).worker, Id(0));
}

TEST_F(EngineTest, DigestsOfRoundsThatAreNotDueAreStale) {
  config_.digest_every = 2;
  Start(1);
  Vote(0);
  Do(WorkerDigestIn{Id(0), Inc(0), Round(1), 1});
  Do(WorkerDigestIn{Id(0), Inc(0), Round(9), 1});
  EXPECT_EQ(View().stale_messages, 2u);
}

// ---- bounds
// -------------------------------------------------------------------------------------------------------

TEST_F(EngineTest, AFullRunRefusesOneMoreWorkerAndSaysSo) {
  config_.workers_max = 2;
  Start(2);
  EXPECT_EQ(One<Disconnect>(Ready(2)).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(EngineTest, AWorkerThatIsLongGoneMakesRoomForANewOne) {
  config_.workers_max = 2;
  Start(2);
  Lost(1);
  Vote(0);
  EXPECT_FALSE(Has<Disconnect>(Ready(2)));
  EXPECT_EQ(View().workers.size(), 2u);
  Vote(0);
  EXPECT_EQ(Member(2).share, Share(1));
}

TEST_F(EngineTest, ConfigurationOutOfRangeIsRefused) {
  const auto create = [this](auto change) {
    EngineConfig config = config_;
    change(config);
    return Engine::Create(config, std::make_unique<SpyRule>(&rule_), now_).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(create([](EngineConfig&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(create([](EngineConfig& c) { c.chunks = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.coordinates = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.rounds_max = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_min = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_min = c.workers_max + 1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.workers_max = 1025; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.quorum = c.workers_max + 1; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.observer_after = 0; }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.initial = Duration(0); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_multiple = std::nan(""); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.deadline.grace_floor = c.deadline.grace_ceiling * 2; }),
            kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.wait_timeout = Duration(0); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.linger = Duration(-1); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.x0_max_abs = std::nan(""); }), kInvalid);
  EXPECT_EQ(create([](EngineConfig& c) { c.step_scale_max = 0; }), kInvalid);
}

}  // namespace
}  // namespace signvote::round
