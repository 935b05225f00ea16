// An engine made from another one's state goes on as that one would after losing everybody.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/rng.h"
#include "server/round/engine.h"
#include "server/stepsize/alias.h"
#include "tests/unit/server/round/engine_fixture.h"

namespace signvote::round {
namespace {

// What an action says, but for times that a restart forgets (opened_for, wait).
std::string Text(const Action& action) {
  std::string text = std::to_string(action.index()) + ":";
  const auto add = [&text](auto... v) { ((text += std::to_string(v) + ","), ...); };
  if (const auto* open = std::get_if<OpenRound>(&action)) {
    add(open->round.value(), open->attempt.value(), open->data_step.value(), open->wanted.size(),
        open->quorum, open->deadline.value_or(Duration{}).count());
    for (const Seat& s : open->seats) {
      add(s.worker.value(), s.incarnation.value(), s.share.value(), static_cast<int>(s.role));
    }
  } else if (const auto* close = std::get_if<CloseChunk>(&action)) {
    add(close->round.value(), close->attempt.value(), close->chunk.value());
    for (const WorkerId w : close->voters) add(w.value());
  } else if (const auto* c = std::get_if<CommitRound>(&action)) {
    add(c->round.value(), static_cast<int>(c->kind), c->gamma, c->data_step.value(),
        c->next_data_step.value(), c->main_rounds, c->run_done, c->abstentions, c->digest_due);
    text += c->reason;
  } else if (const auto* role = std::get_if<RoleChanged>(&action)) {
    add(role->worker.value(), static_cast<int>(role->role));
  } else if (const auto* notice = std::get_if<Notice>(&action)) {
    text += notice->text;
  } else if (const auto* given = std::get_if<ShareGiven>(&action)) {
    add(given->worker.value(), given->share.value());
  } else if (const auto* freed = std::get_if<ShareFreed>(&action)) {
    add(freed->worker.value(), freed->share.value());
  }
  return text;
}

// A run of four workers, drawn from a seed: votes, abstentions, deaths, returns, late ballots.
class Fuzz {
 public:
  static constexpr uint32_t kWorkers = 4, kChunks = 3;

  explicit Fuzz(uint64_t seed) : rng_(seed, 1) { Make(EngineState{}); }

  void Make(const EngineState& state) {
    auto made = Engine::Create({.coordinates = 100,
                                .chunks = kChunks,
                                .main_rounds_max = 500,
                                .observer_after = 2,
                                .share_hold_rounds = 3,
                                .digest_every = 0},
                               MakeAliasRule({}), state, now_);
    ASSERT_TRUE(made.ok()) << made.status();
    engine_ = *std::move(made);
  }
  // Loses everybody.
  void LoseAll() {
    for (uint32_t w = 0; w < kWorkers; ++w) Lose(w);
  }
  void Lose(uint32_t w) {
    if (!here_[w]) return;
    here_[w] = false;
    if (engine_ != nullptr) Do(WorkerLost{WorkerId(w), Incarnation(incarnation_[w])});
  }
  void Join(uint32_t w) {
    if (here_[w]) return;
    here_[w] = true;
    Do(WorkerReady{WorkerId(w), Incarnation(++incarnation_[w]), "w" + std::to_string(w)});
  }
  void JoinAll() {
    for (uint32_t w = 0; w < kWorkers; ++w) Join(w);
  }
  // Some rounds with everything that can happen in them, until the engine has no round open.
  void Rounds(int rounds) {
    for (int r = 0; r < rounds; ++r) {
      for (uint32_t w = 0; w < kWorkers; ++w) {
        const uint64_t what = rng_.Below(12);
        if (what == 0) Lose(w);
        if (what == 1 || what == 2) Join(w);
        now_ = now_ + Duration(std::chrono::milliseconds(rng_.Below(300)));
        if (here_[w]) Ballot(w, what);
      }
      for (int t = 0; t < 3; ++t) Tick1();
    }
  }
  // Holds the run between two rounds.
  void Hold() {
    hold_ = true;
    JoinAll();
    for (int t = 0; t < 20 && !held_; ++t) {
      for (uint32_t w = 0; w < kWorkers; ++w) Ballot(w, 11);
      Tick1();
    }
    ASSERT_TRUE(held_);
  }
  void Release() {
    hold_ = false;
    held_ = false;
    Do(ResumeRequested{});
  }
  Engine& engine() { return *engine_; }
  std::vector<std::string> TakeTexts() { return std::exchange(texts_, {}); }

 private:
  void Tick1() {
    if (const auto next = engine_->NextTick()) {
      now_ = std::max(now_, std::min(*next, now_ + Duration(std::chrono::minutes(2))));
      Do(Tick{});
    }
  }
  void Ballot(uint32_t w, uint64_t what) {
    const Incarnation inc(incarnation_[w]);
    const Round round = open_.round;
    const Attempt attempt = open_.attempt;
    WorkerScalars s{.loss = 2 + rng_.Uniform(), .g_l1 = 1, .g_l2_squared = 1};
    s.wanted.assign(open_.wanted.size(), 0.01 + rng_.Uniform());
    if (what != 3) Do(ScalarsIn{WorkerId(w), inc, round, attempt, s});
    for (uint32_t k = 0; k < (what == 4 ? 1u : kChunks); ++k) {
      Do(BallotChunkIn{WorkerId(w), inc, round, attempt, ChunkIndex(k)});
    }
    if (what == 5) Do(AbstainIn{WorkerId(w), inc, round, attempt, AbstainReason::kOther});
  }
  void Do(const EngineEvent& event) {
    Actions all = engine_->Step(now_, event);
    for (size_t i = 0; i < all.size(); ++i) {
      texts_.push_back(Text(all[i]));
      Actions more;
      if (const auto* open = std::get_if<OpenRound>(&all[i])) {
        open_ = *open;
      } else if (const auto* close = std::get_if<CloseChunk>(&all[i])) {
        more = engine_->Step(now_, ChunkTallied{close->round, close->attempt, close->chunk,
                                                static_cast<uint32_t>(close->voters.size()), 1});
      } else if (const auto* commit = std::get_if<CommitRound>(&all[i])) {
        if (hold_) {
          held_ = true;
          more = engine_->Step(now_, PauseRequested{});
        }
        const Actions next = engine_->Step(now_, CommitDurable{commit->round});
        more.insert(more.end(), next.begin(), next.end());
      }
      all.insert(all.end(), more.begin(), more.end());
    }
  }

  Rng rng_;
  Time now_{1};
  std::unique_ptr<Engine> engine_;
  OpenRound open_;
  bool here_[kWorkers] = {};
  uint64_t incarnation_[kWorkers] = {};
  bool hold_ = false;
  bool held_ = false;
  std::vector<std::string> texts_;
};

// Goal: a restart changes nothing but who is connected. Method: the same drawn run twice; one loses
// every worker between two rounds, the other is made anew from the state; afterwards both say the
// same.
TEST(EngineStateTest, ARestartedEngineGoesOnAsTheOldOneWouldAfterLosingEverybody) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Fuzz old(seed), fresh(seed);
    for (Fuzz* run : {&old, &fresh}) {
      run->JoinAll();
      run->Rounds(static_cast<int>(3 + seed));
      run->Hold();
      (void)run->TakeTexts();
    }
    const EngineState state = fresh.engine().State();
    ASSERT_EQ(state, old.engine().State());
    old.LoseAll();
    fresh.LoseAll();
    fresh.Make(state);
    ASSERT_EQ(fresh.engine().State(), state);
    (void)old.TakeTexts();
    (void)fresh.TakeTexts();
    for (Fuzz* run : {&old, &fresh}) {
      run->Release();
      run->JoinAll();
      run->Rounds(20);
    }
    ASSERT_EQ(old.TakeTexts(), fresh.TakeTexts()) << "seed " << seed;
  }
}

TEST_F(EngineTest, AStateHoldsEverythingThatOutlivesAConnection) {
  config_.digest_every = 2;
  Start(3);
  Lost(2);
  VoteAll({0, 1});
  Do(EvictRequested{Id(1)});
  Do(PauseRequested{});
  now_ = now_ + Duration(std::chrono::seconds(2));
  Vote(0);
  const EngineState state = engine().State();
  EXPECT_EQ(state.round, Round(2));
  EXPECT_EQ(state.course.data_step, DataStep(2));
  EXPECT_EQ(state.course.main_rounds, 2u);
  EXPECT_EQ(state.course.gamma, 0.5f);
  EXPECT_EQ(state.course.rule, "spy2");
  EXPECT_TRUE(state.paused);
  ASSERT_EQ(state.workers.size(), 3u);
  EXPECT_EQ(state.workers[0].name, "w0");
  EXPECT_EQ(state.workers[0].ballots, 2u);
  EXPECT_EQ(state.workers[0].last_seen, Round(2));
  EXPECT_TRUE(state.workers[1].evicted);
  EXPECT_EQ(state.workers[2].last_seen, Round(0));
  ASSERT_EQ(state.shares.size(), 2u);  // the evicted one has none
  EXPECT_EQ(state.shares[0], (ShareState{Share(0), Id(0), Round(102)}));
  EXPECT_EQ(state.shares[1], (ShareState{Share(2), Id(2), Round(100)}));
  EXPECT_EQ(state.totals.joins, 3u);

  Make(state);
  EXPECT_EQ(View().phase, Phase::kPaused);
  EXPECT_TRUE(Has<Disconnect>(Ready(1)));
  const Actions stale = Do(WorkerReady{Id(0), Inc(0), "w0"});
  EXPECT_TRUE(stale.empty());
  Ready(0);
  const OpenRound open = One<OpenRound>(Do(ResumeRequested{}));
  EXPECT_EQ(open.round, Round(2));
  EXPECT_EQ(open.data_step, DataStep(2));
  EXPECT_EQ(rule_.gammas.back(), 0.5f);
}

TEST_F(EngineTest, AStateOfAnotherRuleIsRefused) {
  EngineState state;
  state.course.rule = "other";
  EXPECT_EQ(Engine::Create(config_, std::make_unique<SpyRule>(&rule_), state, now_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, ARunThatWasDoneOnlyFinishes) {
  config_.main_rounds_max = 1;
  Start(1);
  Vote(0);
  const EngineState state = engine().State();
  EXPECT_TRUE(state.course.run_done);
  Make(state);
  EXPECT_EQ(*engine().NextTick(), now_);
  EXPECT_EQ(One<FinishRun>(Sleep()).rounds, Round(1));
  EXPECT_TRUE(Has<EndRun>(Do(MasterDigestIn{Round(1), 5})));
}

TEST_F(EngineTest, AStateIsNotTakenFromAnOpenRound) {
  Start(1);
  EXPECT_DEATH((void)engine().State(), "kRoundOpen");
}

}  // namespace
}  // namespace signvote::round
