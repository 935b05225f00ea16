#pragma once
// Drives the round engine by hand: events go in, actions are checked.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"
#include "server/round/engine.h"

namespace signvote::round {

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
inline std::string Notices(const Actions& actions) {
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

inline WorkerScalars SomeScalars() {
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

}  // namespace signvote::round
