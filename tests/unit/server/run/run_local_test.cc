// A run with local steps: what workers are told, what commits say, and how a race of silent rounds ends.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;

class RunLocalTest : public RunTest {
 protected:
  static RunOptions Local(const char* steps, uint64_t rounds, const char* rule = "fixed") {
    RunOptions options = Options();
    options.workers_min = 3;
    options.main_rounds_max = rounds;
    options.digest_every = 1;
    options.rule.rule = rule;
    options.model.sizes.aggregate = Aggregate::kAverage;
    options.model.sizes.workers_max = 5;
    options.model.weight_decay = 0.1f;
    options.local_steps = *LocalSchedule::Parse(steps, rounds);
    return options;
  }
};

TEST_F(RunLocalTest, ARoundTellsItsStepsAndItsCommitTheLengthsAndEveryReplicaIsOne) {
  RunOptions options = Local("16,32@50", 6);
  options.rule.schedule = "linear";
  options.model.tensor_rules = *ParseTensorScales("b=0.5");
  StartRun(std::move(options));
  std::vector<TestWorker*> workers = {&Joined("a"), &Joined("b"), &Joined("c")};
  ReadAll();
  TestWorker& a = *workers[0];
  EXPECT_EQ(a.welcome->local_steps_max(), 32u);
  // 4 rounds of 16 and 2 of 32: 128 minibatches.
  const std::vector<uint64_t> first = {0, 16, 32, 48, 64, 96};
  for (uint64_t round = 0; round < 6; ++round) {
    const uint32_t steps = round < 4 ? 16 : 32;
    ASSERT_TRUE(a.open.has_value());
    EXPECT_EQ(a.open->local_steps(), steps);
    EXPECT_EQ(a.open->data_step(), first[round]);
    EXPECT_EQ(a.open->start(), v1::RoundOpen::START_REPLICA);
    EXPECT_EQ(a.open->steps_until_ms(), 0u) << "without deadlines: all of them";
    const auto eta = [&](uint64_t t) {
      return static_cast<float>(0.01 * (1 - static_cast<double>(t) / 128));
    };
    EXPECT_FLOAT_EQ(a.open->eta_first(), eta(first[round]));
    EXPECT_FLOAT_EQ(a.open->eta_last(), eta(first[round] + steps - 1));
    const LocalSteps local{
        .steps = steps, .eta_first = a.open->eta_first(), .eta_last = a.open->eta_last()};
    std::vector<std::pair<TestWorker*, std::vector<uint8_t>>> votes;
    for (size_t i = 0; i < workers.size(); ++i) {
      workers[i]->lengths = {0.01f * static_cast<float>(i + 1), 1e6f};
      votes.emplace_back(workers[i], RandomBits(kCoordinates, 10 * round + i));
    }
    VoteRound(votes);
    const v1::Commit& commit = a.commits.back();
    EXPECT_EQ(commit.kind(), v1::Commit::KIND_STEP);
    EXPECT_EQ(commit.stepsize(), 1.0f);
    EXPECT_EQ(commit.payload(), v1::PAYLOAD_COUNTS);
    const double sum = InnerStepsizeSum(local);
    EXPECT_EQ(commit.decay_step(), static_cast<float>(sum));
    EXPECT_THAT(std::vector<float>(commit.scales().begin(), commit.scales().end()),
                ElementsAre(FloatNear(0.02f, 1e-8f), FloatNear(static_cast<float>(sum), 1e-7f)))
        << "in units of the step scales, of which the second is 0.5";
    EXPECT_EQ(commit.next_data_step(), first[round] + steps);
  }
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  const StatusPage page = run_->Snapshot(clock_.Now());
  for (const TestWorker* worker : workers) EXPECT_EQ(page.master_digest, worker->Digest());
  EXPECT_EQ(page.minibatches, 128u);
  EXPECT_EQ(page.minibatches_planned, 128u);
  EXPECT_EQ(page.wire.minibatches, 3 * 128u);
}

TEST_F(RunLocalTest, AVerdictMayMoveByTheLengthsToo) {
  RunOptions options = Local("16", 3);
  options.workers_min = 1;
  options.model.sizes.aggregate = Aggregate::kVote;
  options.model.weight_decay = 0;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  ReadAll();
  a.lengths = {0.02f, 0.04f};
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 5);
  a.Vote(bits);
  ReadAll();
  const v1::Commit& commit = a.commits.back();
  EXPECT_EQ(commit.payload(), v1::PAYLOAD_UNSPECIFIED) << "signs";
  EXPECT_THAT(std::vector<float>(commit.scales().begin(), commit.scales().end()),
              ElementsAre(0.02f, 0.04f));
  ASSERT_NE(replica_, nullptr);
  for (uint64_t i = 0; i < kCoordinates; i += 1009) {
    const float length = i + 1 == kCoordinates ? 0.04f : 0.02f;
    ASSERT_EQ(replica_->x()[i], GetBit(bits.data(), i) ? -length : length) << i;
  }
}

TEST_F(RunLocalTest, ARaceAsksForLossesAloneAndTheRunBeginsAtX0WithItsMinibatches) {
  RunOptions options = Local("16", 60, "lever");
  options.workers_min = 1;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  a.KeepX0(std::vector<float>(kCoordinates, 0.0f));
  ReadAll();
  EXPECT_TRUE(a.welcome->needs_x0());
  EXPECT_EQ(a.welcome->local_steps_max(), 16u)
      << "h = 60: four rounds of 15, and a main round has 16";
  uint64_t rounds = 0, taken = 0;
  while (a.open.has_value() && a.open->start() != v1::RoundOpen::START_REPLICA) {
    ASSERT_LT(++rounds, 200u);
    EXPECT_EQ(a.open->start(),
              rounds % 4 == 1 ? v1::RoundOpen::START_X0 : v1::RoundOpen::START_CONTINUE);
    taken += a.open->local_steps();
    const double off = std::log10(static_cast<double>(a.open->eta_first()) / 3e-3);
    a.SendScalars(2 + off * off);
    ReadAll();
    EXPECT_EQ(a.commits.back().kind(),
              rounds % 4 == 0 ? v1::Commit::KIND_REWIND : v1::Commit::KIND_NONE);
    EXPECT_EQ(a.commits.back().counted_size(), 0);
  }
  EXPECT_GT(rounds, 4u);
  EXPECT_LE(taken, 960u / 4);
  ASSERT_TRUE(a.open.has_value());
  EXPECT_EQ(a.open->data_step(), 0u) << "the trials' minibatches";
  EXPECT_EQ(a.open->local_steps(), 16u);
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_TRUE(page.race.over);
  EXPECT_EQ(page.race.rounds, rounds);
  EXPECT_EQ(page.main_round, 0u);
  EXPECT_EQ(page.minibatches, taken);
  EXPECT_EQ(page.wire.ballots, 0u) << "nobody voted";
  EXPECT_EQ(page.wire.minibatches, taken);
  a.lengths = {0.001f, 0.001f};
  a.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  EXPECT_EQ(a.commits.back().kind(), v1::Commit::KIND_STEP);
}

TEST_F(RunLocalTest, ARunThatIsTakenUpInTheMiddleOfATrialGoesOnThere) {
  const auto options = [] {
    RunOptions made = Local("16", 60, "lever");
    made.workers_min = 1;
    made.digest_every = 0;
    return made;
  };
  StartRun(options());
  {
    TestWorker& a = Joined("a");
    a.KeepX0(std::vector<float>(kCoordinates, 0.0f));
    ReadAll();
    for (int i = 0; i < 6; ++i) {
      a.SendScalars(2);
      ReadAll();
    }
    EXPECT_EQ(a.open->start(), v1::RoundOpen::START_CONTINUE);
  }
  // Between two rounds: the pause keeps the next one from opening.
  ASSERT_TRUE(run_->Pause(clock_.Now()).ok());
  TestWorker& a = *workers_[0];
  a.SendScalars(2);
  ReadAll();
  absl::StatusOr<RunState> state = run_->State();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  state->paused = false;
  state->engine.paused = false;
  StartRun(options(), nullptr, *std::move(state));
  TestWorker& b = Joined("a");
  ReadAll();
  ASSERT_TRUE(b.open.has_value());
  EXPECT_EQ(b.open->start(), v1::RoundOpen::START_CONTINUE) << "the fourth round of a trial";
  EXPECT_EQ(b.open->data_step() % b.open->local_steps(), 0u);
  EXPECT_EQ(run_->Snapshot(clock_.Now()).race.trials, 2u);
  // Nobody has what it goes on from: the trial is run once more.
  b.KeepX0(std::vector<float>(kCoordinates, 0.0f));
  b.Abstain(AbstainReason::kOther);
  ReadAll();
  b.Abstain(AbstainReason::kOther);
  ReadAll();
  EXPECT_EQ(b.commits.back().kind(), v1::Commit::KIND_REWIND);
  EXPECT_THAT(b.commits.back().reason(), HasSubstr("once more"));
}

TEST_F(RunLocalTest, BitsPerParameterAndMinibatchAreOfWhatMoved) {
  RunOptions options = Local("16", 5);
  options.workers_min = 1;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  ReadAll();
  EXPECT_TRUE(std::isnan(run_->Snapshot(clock_.Now()).up_bits));
  a.lengths = {0.001f, 0.001f};
  a.steps = 8;
  a.peer->moved.received += kCoordinates;
  a.peer->moved.sent += 2 * kCoordinates;
  a.Vote(RandomBits(kCoordinates, 1));
  ReadAll();
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_DOUBLE_EQ(page.up_bits, 1.0) << "eight bits a parameter over the eight that it took";
  EXPECT_DOUBLE_EQ(page.down_bits, 2.0);
  EXPECT_EQ(page.workers.front().wire.minibatches, 8u);
  EXPECT_EQ(page.minibatches, 16u) << "what was asked for";
}

}  // namespace
}  // namespace signvote::run
