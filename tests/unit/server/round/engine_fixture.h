#pragma once
// Drives the round engine by hand: events go in, actions are checked. Tallies and durability are
// answered at once, unless a test holds them back.

#include <gtest/gtest.h>

#include <map>
#include <memory>
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
inline std::vector<uint32_t> Counted(const CommitRound& commit) {
  std::vector<uint32_t> counted;
  for (const ChunkCount& chunk : commit.chunks) counted.push_back(chunk.counted);
  return counted;
}

// A rule that records what it was shown, and proposes what it is told. Its state is one number: how
// often it was asked.
class SpyRule final : public StepsizeRule {
 public:
  struct Log {
    std::vector<RoundAhead> ahead;
    std::vector<size_t> workers;
    std::vector<float> gammas;       // that it was shown as the last ones
    std::vector<uint32_t> shares;    // of the last round's workers
    uint64_t coordinates = 0;        // likewise
    bool nonfinite = false;          // likewise
    bool first_share_alone = false;  // share 0 is asked for everything, others for what comes first
    StepsizeDecision next{.gamma = 0.5f, .reason = "spy"};
    std::optional<StepsizeDecision> without_ballot;
    bool needs_x0 = true;
    bool x0_over = false;
    LocalSteps local;        // of every round from now on
    LocalSteps local_shown;  // of the last round that it decided about
    RaceProgress race;       // as a restored rule says it
    absl::Status failure;    // of the decisions from now on
  };
  explicit SpyRule(Log* log) : log_(log) {}
  std::string_view name() const override { return "spy"; }
  bool probes() const override { return true; }
  bool needs_x0() const override { return log_->needs_x0; }
  bool x0_over(const RoundAhead&) const override { return !log_->needs_x0 || log_->x0_over; }
  std::vector<ScalarKind> Wanted(const RoundAhead& ahead) const override {
    if (ahead.main_rounds % 2 == 0) return {};
    return {ScalarKind::kProbeL1, ScalarKind::kPrevInner};
  }
  size_t WantedOf(const RoundAhead&, Share share, size_t wanted) const override {
    return log_->first_share_alone && share != Share(0) ? std::min<size_t>(wanted, 1) : wanted;
  }
  StepsizeDecision Decide(const RuleInput& input) override {
    Record(input);
    StepsizeDecision decision = log_->next;
    decision.state = {{"asked", static_cast<double>(asked_)}};
    return decision;
  }
  StepsizeDecision DecideWithoutBallot(const RuleInput& input) override {
    Record(input);
    if (log_->without_ballot.has_value()) return *log_->without_ballot;
    return StepsizeRule::DecideWithoutBallot(input);
  }
  LocalSteps Local(const RoundAhead&) const override { return log_->local; }
  absl::Status failure() const override { return log_->failure; }
  RaceProgress race() const override { return log_->race; }
  std::string Save() const override { return "spy" + std::to_string(asked_); }
  absl::Status Restore(std::string_view bytes) override {
    if (!bytes.starts_with("spy")) return absl::InvalidArgumentError("not a spy");
    asked_ = std::stoull(std::string(bytes.substr(3)));
    return absl::OkStatus();
  }

 private:
  void Record(const RuleInput& input) {
    ++asked_;
    log_->ahead.push_back(input.ahead);
    log_->workers.push_back(input.workers.size());
    log_->gammas.push_back(input.gamma);
    log_->shares.clear();
    for (size_t i = 0; i < input.workers.size(); ++i)
      log_->shares.push_back(ShareOf(input, i).value());
    log_->coordinates = input.coordinates;
    log_->nonfinite = input.nonfinite;
    log_->local_shown = input.local;
  }

  Log* log_;
  uint64_t asked_ = 0;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    config_.coordinates = 1000;
    config_.chunks = 2;
    config_.main_rounds_max = 1000;
    config_.digest_every = 0;
  }

  Engine& engine() {
    if (engine_ == nullptr) Make(EngineState{});
    return *engine_;
  }
  void Make(const EngineState& state) {
    auto made = Engine::Create(config_, std::make_unique<SpyRule>(&rule_), state, now_);
    ASSERT_TRUE(made.ok()) << made.status();
    engine_ = *std::move(made);
  }

  // One event, with the tallies and the durability that its actions ask for; all actions together.
  Actions Do(const EngineEvent& event) {
    Actions all = engine().Step(now_, event);
    for (size_t i = 0; i < all.size(); ++i) {
      Actions more;
      if (const auto* open = std::get_if<OpenRound>(&all[i])) {
        round_ = open->round;
        attempt_ = open->attempt;
        last_open_ = *open;
      } else if (const auto* close = std::get_if<CloseChunk>(&all[i])) {
        const ChunkTallied tally{close->round, close->attempt, close->chunk,
                                 static_cast<uint32_t>(close->voters.size()),
                                 100 + close->chunk.value()};
        if (hold_tallies_) {
          held_.push_back(tally);
        } else {
          more = engine().Step(now_, tally);
        }
      } else if (const auto* commit = std::get_if<CommitRound>(&all[i])) {
        if (!hold_durable_) more = engine().Step(now_, CommitDurable{commit->round});
      }
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }
  Actions DoAfter(Duration wait, const EngineEvent& event) {
    now_ = now_ + wait;
    return Do(event);
  }
  // Sleeps until the engine wants to be woken.
  Actions Sleep() {
    const std::optional<Time> next = engine().NextTick();
    if (!next.has_value()) {
      ADD_FAILURE() << "nothing to wait for";
      return {};
    }
    now_ = std::max(now_, *next);
    return Do(Tick{});
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
  WorkerScalars SomeScalars() const {
    WorkerScalars s{.loss = 2, .g_l1 = 3, .g_l2_squared = 1.5, .samples = 8};
    s.wanted.assign(last_open_.wanted.size(), 0.25);
    return s;
  }
  Actions Scalars(uint32_t w, const WorkerScalars& s) {
    return Do(ScalarsIn{Id(w), Inc(w), round_, attempt_, s});
  }
  Actions Scalars(uint32_t w) { return Scalars(w, SomeScalars()); }
  Actions Abstain(uint32_t w, AbstainReason reason = AbstainReason::kNonFiniteLoss) {
    return Do(AbstainIn{Id(w), Inc(w), round_, attempt_, reason});
  }
  // Every chunk and the scalars of one worker; all actions together.
  Actions Vote(uint32_t w) {
    const Round round = round_;
    const Attempt attempt = attempt_;
    Actions all = Do(ScalarsIn{Id(w), Inc(w), round, attempt, SomeScalars()});
    for (uint32_t k = 0; k < config_.chunks; ++k) {
      const Actions more = Do(BallotChunkIn{Id(w), Inc(w), round, attempt, ChunkIndex(k)});
      all.insert(all.end(), more.begin(), more.end());
    }
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
  EngineTotals Totals() { return View().totals; }
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
  bool hold_tallies_ = false;
  bool hold_durable_ = false;
  std::vector<ChunkTallied> held_;
};

}  // namespace signvote::round
