// What a step moves by beside the majority's signs: averages and dense updates; and whose ballots count.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/unit/server/run/run_fixture.h"
#include "tests/unit/server/run/scripted_rule.h"

namespace signvote::run {
namespace {

using ::testing::HasSubstr;

class RunAggregateTest : public RunTest {};

TEST_F(RunAggregateTest, AnAverageIsTheCountsOfTheBallotsAndMovesEveryReplicaAlike) {
  RunOptions options = Options();
  options.workers_min = 3;
  options.main_rounds_max = 4;
  options.digest_every = 1;
  options.model.sizes.aggregate = Aggregate::kAverage;
  options.model.sizes.workers_max = 5;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  TestWorker& c = Joined("c");
  ReadAll();
  const ChunkPlan plan(kCoordinates, kChunk);
  ASSERT_EQ(a.welcome->payloads_size(), 1);
  EXPECT_EQ(a.welcome->payloads(0).chunks(), plan.chunks());
  EXPECT_EQ(a.welcome->payloads(0).up(), v1::PAYLOAD_SIGNS);
  EXPECT_EQ(a.welcome->payloads(0).down(), v1::PAYLOAD_COUNTS);
  EXPECT_EQ(a.welcome->ballots_max(), 5u);
  const std::vector<std::vector<uint8_t>> bits = {
      RandomBits(kCoordinates, 1), RandomBits(kCoordinates, 2), RandomBits(kCoordinates, 3)};
  a.Vote(bits[0]);
  b.Vote(bits[1]);
  c.Vote(bits[2]);
  std::vector<int> ones(kCoordinates, 0);
  for (const v1::ServerMessage& message : a.peer->messages) {
    if (!message.has_verdict_chunk()) continue;
    const ChunkIndex k(message.verdict_chunk().chunk());
    const std::string& planes = message.verdict_chunk().payload();
    ASSERT_EQ(planes.size(), 2 * plan.Bytes(k)) << "two planes count to three";
    const auto* const bytes = reinterpret_cast<const uint8_t*>(planes.data());
    for (uint64_t i = 0; i < plan.Count(k); ++i) {
      ones[plan.First(k) + i] += GetBit(bytes, i) ? 1 : 0;
      ones[plan.First(k) + i] += GetBit(bytes + plan.Bytes(k), i) ? 2 : 0;
    }
  }
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    int expected = 0;
    for (const auto& ballot : bits) expected += GetBit(ballot.data(), i) ? 1 : 0;
    ASSERT_EQ(ones[i], expected) << i;
  }
  ReadAll();
  EXPECT_EQ(a.commits.back().payload(), v1::PAYLOAD_COUNTS);
  // 0.01 times a third of a step, or a whole one.
  const float third = -(0.01f * (1.0f / 3.0f)), whole = -0.01f;
  for (uint64_t i = 0; i < kCoordinates; i += 997) {
    const float expected = ones[i] == 3   ? whole
                           : ones[i] == 2 ? third
                           : ones[i] == 1 ? -third
                                          : -whole;
    ASSERT_EQ(a.x[i], expected) << i;
  }
  // One leaves: four ballots become two, one plane fewer is not sent, and everybody follows.
  c.Leave("done");
  for (uint64_t round = 1; round < 4; ++round)
    VoteRound(
        {{&a, RandomBits(kCoordinates, 10 + round)}, {&b, RandomBits(kCoordinates, 20 + round)}});
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.master_digest, a.Digest());
  EXPECT_EQ(page.master_digest, b.Digest());
  EXPECT_EQ(page.wire.ballots, 9u);
}

// A ballot as it lies on the wire: bits of what is voted on, then values.
std::vector<uint8_t> DenseBallot(const PayloadPlan& plan, uint64_t seed, std::vector<float>* values,
                                 double range = 1) {
  std::vector<uint8_t> ballot(plan.TotalBytes());
  Rng rng(seed, 9);
  values->clear();
  for (uint32_t i = 0; i < plan.chunks(); ++i) {
    const ChunkIndex k(i);
    const uint64_t count = plan.chunk_plan().Count(k);
    for (uint64_t c = 0; c < count; ++c) {
      const auto value = static_cast<float>(range * (rng.Uniform() - 0.5));
      values->push_back(value);
      if (plan.kind(k) == PayloadKind::kSigns) {
        SetBit(ballot.data() + plan.Offset(k), c, value > 0);
      } else {
        std::memcpy(ballot.data() + plan.Offset(k) + 4 * c, &value, sizeof(value));
      }
    }
  }
  return ballot;
}

TEST_F(RunAggregateTest, DenseTensorsMoveByTheOptimizersUpdateAndTheRestByTheVote) {
  RunOptions options = Options();
  options.workers_min = 2;
  options.main_rounds_max = 5;
  options.digest_every = 1;
  // The layout is w of all but one coordinate, and b of the last: all of the last chunk is dense.
  options.model.tensor_rules = *ParseDense("b");
  options.model.tensor_rules.push_back(ParseTensorScales("b=0.5")->front());
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  ASSERT_EQ(a.welcome->payloads_size(), 2);
  EXPECT_EQ(a.welcome->payloads(0).chunks(), 2u);
  EXPECT_EQ(a.welcome->payloads(1).up(), v1::PAYLOAD_FP32);
  EXPECT_EQ(a.welcome->payloads(1).down(), v1::PAYLOAD_FP32);
  EXPECT_TRUE(a.welcome->layout().tensors(1).dense());
  double m = 0, v = 0, x = 0;
  for (uint64_t round = 0; round < 5; ++round) {
    const PayloadPlan plan = a.peer->slots->payload();
    std::vector<float> of_a, of_b;
    const std::vector<uint8_t> bits_a = DenseBallot(plan, 2 * round, &of_a);
    const std::vector<uint8_t> bits_b = DenseBallot(plan, 2 * round + 1, &of_b);
    const float before = a.x[2 * kChunk + 5];
    VoteRound({{&a, bits_a}, {&b, bits_b}});
    const double g = (static_cast<double>(of_a.back()) + static_cast<double>(of_b.back())) / 2;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const auto t = static_cast<double>(round + 1);
    x -= 0.01 * 0.5 * (m / (1 - std::pow(0.9, t))) /
         (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
    EXPECT_NEAR(static_cast<double>(a.x.back()), x, 1e-6) << round;
    // In the dense chunk w is still voted on, with coins for ties.
    const float moved = a.x[2 * kChunk + 5] - before;
    EXPECT_NEAR(static_cast<double>(std::fabs(moved)), 0.01, 1e-7);
    if ((of_a[2 * kChunk + 5] > 0) == (of_b[2 * kChunk + 5] > 0)) {
      EXPECT_EQ(moved<0, of_a[2 * kChunk + 5]> 0);
    }
  }
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.master_digest, a.Digest());
  EXPECT_EQ(page.master_digest, b.Digest());
}

// DiLoCo (arXiv 2311.08105): the ballot is where local steps led, and Nesterov's momentum is outside.
TEST_F(RunAggregateTest, WithLocalStepsDenseTensorsMoveByTheMeanDisplacement) {
  RunOptions options = Options();
  options.workers_min = 2;
  options.main_rounds_max = 5;
  options.digest_every = 1;
  options.local_steps = *LocalSchedule::Parse("16", 5);
  options.rule.rule = "fixed";
  options.model.tensor_rules = *ParseDense("b");
  options.model.tensor_rules.push_back(ParseTensorScales("b=0.5")->front());
  options.model.sizes.dense.optimizer = {
      .kind = DenseOptimizer::Kind::kSgd, .momentum = 0.5f, .nesterov = true};
  options.model.sizes.dense.stepsize = 0.7f;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  ReadAll();
  a.lengths = b.lengths = {0.01f, 1e6f};
  double m = 0, x = 0;
  for (uint64_t round = 0; round < 5; ++round) {
    ASSERT_TRUE(a.open.has_value());
    EXPECT_EQ(a.open->local_steps(), 16u);
    const PayloadPlan plan = a.peer->slots->payload();
    std::vector<float> of_a, of_b;
    const std::vector<uint8_t> bits_a = DenseBallot(plan, 2 * round, &of_a);
    const std::vector<uint8_t> bits_b = DenseBallot(plan, 2 * round + 1, &of_b);
    const float before = a.x[2 * kChunk + 5];
    VoteRound({{&a, bits_a}, {&b, bits_b}});
    const double d = (static_cast<double>(of_a.back()) + static_cast<double>(of_b.back())) / 2;
    m = 0.5 * m + d;
    x -= 0.7 * (d + 0.5 * m);
    EXPECT_NEAR(static_cast<double>(a.x.back()), x, 1e-5) << round;
    const v1::Commit& commit = a.commits.back();
    EXPECT_EQ(commit.scales(1), 1.4f) << "in units of the step scale, 0.5";
    // In the dense chunk w moves by its voted length.
    EXPECT_NEAR(static_cast<double>(std::fabs(a.x[2 * kChunk + 5] - before)), 0.01, 1e-7);
  }
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  const StatusPage page = run_->Snapshot(clock_.Now());
  EXPECT_EQ(page.master_digest, a.Digest());
  EXPECT_EQ(page.master_digest, b.Digest());
}

TEST_F(RunAggregateTest, AScheduleFreeRunGoesAlongItsGradientsPointsAndEndsAtTheirAverage) {
  RunOptions options = Options();
  options.main_rounds_max = 5;
  options.digest_every = 1;
  options.model.tensor_rules = *ParseDense("b");
  options.model.sizes.dense.optimizer = {.kind = DenseOptimizer::Kind::kScheduleFree,
                                         .last_step = 5};
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  ReadAll();
  double x = 0, z = 0, y = 0, v = 0, weights = 0;
  for (uint64_t round = 0; round < 5; ++round) {
    std::vector<float> values;
    VoteRound({{&a, DenseBallot(a.peer->slots->payload(), round, &values)}});
    const auto g = static_cast<double>(values.back());
    const double gamma = 0.01 * std::sqrt(1 - std::pow(0.999, static_cast<double>(round + 1)));
    v = 0.999 * v + 0.001 * g * g;
    z -= gamma * g / (std::sqrt(v) + 1e-8);
    weights += gamma * gamma;
    x += gamma * gamma / weights * (z - x);
    y = 0.1 * z + 0.9 * x;
    EXPECT_NEAR(static_cast<double>(a.x.back()), round < 4 ? y : x, 1e-6) << round;
  }
  EXPECT_GT(std::fabs(y - x), 1e-4);
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(run_->Snapshot(clock_.Now()).master_digest, a.Digest());
}

// Six rounds of one worker, dense in its last coordinate, once as a whole and once taken up in the middle.
class DenseRestartTest : public RunTest, public ::testing::WithParamInterface<DenseOptimizer> {
 protected:
  void Vote(TestWorker& w, uint64_t round) {
    ReadAll();
    ASSERT_TRUE(w.open.has_value());
    ASSERT_EQ(w.open->round(), round);
    std::vector<float> values;
    w.Vote(DenseBallot(w.peer->slots->payload(), round, &values, /*range=*/20));
    ReadAll();
  }
};

TEST_P(DenseRestartTest, ADenseRunGoesOnFromItsStateAsIfItHadNeverStopped) {
  RunOptions options = Options();
  options.main_rounds_max = 6;
  options.model.tensor_rules = *ParseDense("b");
  options.model.sizes.dense.optimizer = GetParam();
  StartRun(options);
  TestWorker& whole = Joined("a");
  for (uint64_t round = 0; round < 6; ++round) Vote(whole, round);
  const uint64_t digest = whole.Digest();

  StartRun(options);
  TestWorker& first = Joined("a");
  for (uint64_t round = 0; round < 3; ++round) {
    if (round == 2) {
      EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
    }
    Vote(first, round);
  }
  const auto state = run_->State();
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(state->optimizer.kind, GetParam().kind);
  const auto numbers = run_->Snapshot(clock_.Now()).rule_numbers;
  if (GetParam().kind == DenseOptimizer::Kind::kAliasAdam) {
    EXPECT_GT(state->optimizer.scalars.d, 0.5) << "it has grown";
    ASSERT_FALSE(numbers.empty());
    EXPECT_EQ(numbers.back(), std::pair(std::string("dense_d"), state->optimizer.scalars.d));
  }
  EXPECT_EQ(state->optimizer.steps, 3u);
  const StateParts parts = EncodeState(*state);
  std::string bytes;
  for (const auto& part : parts.parts)
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
  run_.reset();
  auto decoded = DecodeState(std::as_bytes(std::span(bytes)));
  ASSERT_TRUE(decoded.ok()) << Describe(decoded.status());
  decoded->epoch = Epoch(2);

  const auto refused = [&](const DenseOptimizer& optimizer, RunState from) {
    RunOptions other = options;
    other.model.sizes.dense.optimizer = optimizer;
    return Run::Create(other, Parts(nullptr), std::move(from), clock_.Now()).status();
  };
  for (const DenseOptimizer& other :
       {DenseOptimizer{.kind = DenseOptimizer::Kind::kSgd}, DenseOptimizer{},
        DenseOptimizer{.kind = DenseOptimizer::Kind::kNadamW}}) {
    if (other.kind == GetParam().kind) continue;
    const absl::Status status = refused(other, *decoded);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Describe(status), HasSubstr("take it up with the flags --dense"));
  }
  if (GetParam().kind == DenseOptimizer::Kind::kSgd) {
    DenseOptimizer without = GetParam();
    without.momentum = 0;
    EXPECT_THAT(Describe(refused(without, *decoded)), HasSubstr("numbers of an optimizer"));
  }
  RunState damaged = *decoded;
  damaged.optimizer.scalars.weights = -1;
  EXPECT_EQ(refused(GetParam(), damaged).code(), absl::StatusCode::kDataLoss);

  RunOptions average = options;
  average.model.sizes.aggregate = Aggregate::kAverage;
  EXPECT_THAT(Describe(Run::Create(average, Parts(nullptr), *decoded, clock_.Now()).status()),
              HasSubstr("a run with --aggregate vote, and this server has average"));

  StartRun(options, nullptr, *decoded);
  TestWorker& again = NewWorker();
  again.Join("a");
  again.BringState();
  EXPECT_TRUE(run_->Resume(clock_.Now()).ok());
  for (uint64_t round = 3; round < 6; ++round) Vote(again, round);
  EXPECT_EQ(again.Digest(), digest);
}

INSTANTIATE_TEST_SUITE_P(
    Optimizers, DenseRestartTest,
    ::testing::Values(
        DenseOptimizer{.kind = DenseOptimizer::Kind::kSgd, .momentum = 0.5f, .nesterov = true},
        DenseOptimizer{}, DenseOptimizer{.kind = DenseOptimizer::Kind::kNadamW},
        DenseOptimizer{
            .kind = DenseOptimizer::Kind::kScheduleFree, .warmup_steps = 4, .last_step = 6},
        DenseOptimizer{.kind = DenseOptimizer::Kind::kAliasAdam, .beta2 = 0.01f, .d0 = 0.5f}),
    [](const auto& tested) {
      std::string name(DenseOptimizerName(tested.param.kind));
      std::erase(name, '-');
      return name;
    });

TEST_F(RunAggregateTest, ARewindClearsTheOptimizerAndARoundWithoutAStepLeavesIt) {
  RunOptions options = Options();
  options.model.tensor_rules = *ParseDense("b");
  StartRun(options, std::make_unique<ScriptedRule>(std::vector<StepsizeDecision>{
                        {.gamma = 0.5f},
                        {.kind = CommitKind::kNone, .gamma = 0.5f, .main_round = false},
                        {.gamma = 0.5f},
                        {.kind = CommitKind::kRewind, .main_round = false},
                        {.gamma = 0.5f},
                        {.gamma = 0.5f}}));
  TestWorker& w = NewWorker();
  w.Join("w");
  w.BringState();
  w.KeepX0(w.x);
  std::vector<float> b;  // after each round
  for (uint64_t round = 0; round < 6; ++round) {
    ReadAll();
    ASSERT_TRUE(w.open.has_value()) << round;
    // Of rounds 1 and 3 the gradients are others; nothing of them may stay.
    std::vector<float> values;
    w.Vote(
        DenseBallot(w.peer->slots->payload(), round % 2 == 0 ? round % 4 : 100 + round, &values));
    ReadAll();
    b.push_back(w.x.back());
  }
  EXPECT_NE(b[0], 0.0f);
  EXPECT_EQ(b[1], b[0]);
  EXPECT_NE(b[2], b[0]);
  EXPECT_EQ(b[3], 0.0f);
  EXPECT_EQ(b[4], b[0]) << "as the first step of all";
}

TEST_F(RunAggregateTest, ANewcomersFirstBallotsHaveWeightZero) {
  RunOptions options = Options();
  options.workers_min = 2;
  options.warm_in_rounds = 2;
  options.digest_every = 1;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  VoteRound({{&a, RandomBits(kCoordinates, 1)}, {&b, RandomBits(kCoordinates, 2)}});
  TestWorker& late = Joined("late");
  EXPECT_EQ(a.commits.back().voters(), 2u) << "at the start all are warm";
  const auto round = [&](uint64_t seed) {
    VoteRound({{&a, RandomBits(kCoordinates, seed)}, {&b, RandomBits(kCoordinates, seed + 1)}});
  };
  round(3);  // late has its seat from the next round on
  for (uint64_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(late.open.has_value());
    EXPECT_TRUE(late.open->uncounted());
    EXPECT_FALSE(a.open->uncounted());
    EXPECT_EQ(late.open->members(), 2u);
    late.Vote(RandomBits(kCoordinates, 50));
    round(10 + 2 * i);
    EXPECT_EQ(late.commits.back().voters(), 2u);
    EXPECT_EQ(late.commits.back().counted(0), 2u);
  }
  ReadAll();
  EXPECT_FALSE(late.open->uncounted());
  EXPECT_EQ(late.open->members(), 3u);
  late.Vote(RandomBits(kCoordinates, 51));
  round(20);
  EXPECT_EQ(late.commits.back().voters(), 3u);
  EXPECT_EQ(late.Digest(), a.Digest());
}

TEST_F(RunAggregateTest, WhoComesBackWithItsReplicaIsWarm) {
  RunOptions options = Options();
  options.workers_min = 2;
  options.warm_in_rounds = 100;
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  TestWorker& b = Joined("b");
  VoteRound({{&a, RandomBits(kCoordinates, 1)}, {&b, RandomBits(kCoordinates, 2)}});
  b.Break();
  TestWorker& again = NewWorker();
  v1::Join join = again.MakeJoin("b");
  join.set_run_id(b.welcome->run_id());
  join.set_round(1);
  join.set_epoch(1);
  again.x = b.x;
  again.pieces = b.pieces;
  again.Join(join);
  again.BringState();
  ASSERT_EQ(again.welcome->state(), v1::Welcome::STATE_KEEP);
  VoteRound({{&a, RandomBits(kCoordinates, 3)}});
  ASSERT_TRUE(again.open.has_value());
  EXPECT_FALSE(again.open->uncounted());
}

}  // namespace
}  // namespace signvote::run
