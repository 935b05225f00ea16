// Goal:   what local steps move, sign and tell, against plain double precision and the example of
//         docs/algorithms.md; and that the replica is the replica again whatever happens.
// Method: the source between a packer and a replica, with gradients that the test writes.
#include "worker/vote/local_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/coin.h"
#include "common/rng.h"
#include "common/status.h"
#include "tests/unit/worker/vote/fake_session.h"
#include "worker/direction/worker_device.h"
#include "worker/vote/voter.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::FloatNear;
using testing::HasSubstr;

constexpr uint64_t kSeed = 7;
constexpr uint32_t kStepsMax = 64;

RunInfo RunOf(std::vector<TensorSpec> tensors, DirectionConfig direction = {}) {
  RunInfo run;
  run.seed = kSeed;
  run.layout = *Layout::Make(std::move(tensors));
  run.plan = ChunkPlan(run.layout.coordinates(), 512);
  run.ballot_plan = run.commit_plan = PayloadPlan(run.plan);
  run.direction = direction;
  run.needs_x0 = true;
  run.local_steps_max = kStepsMax;
  return run;
}

// The memory of one model, which several workers may share.
struct Memory {
  Memory(const RunInfo& run, std::vector<float> values)
      : x(std::move(values)),
        pointers(PointersInto(run.layout, x.data())),
        replica(run.layout, pointers) {
    EXPECT_TRUE(replica.KeepX0().ok());
    EXPECT_TRUE(replica.WriteX0(0, x).ok());
  }
  std::vector<float> x;
  std::vector<float*> pointers;
  HostReplicaMemory replica;
};

class Worker {
 public:
  Worker(const RunInfo& run, Memory* memory)
      : run_(run), source(memory->pointers), bits(run.plan.TotalBytes()) {
    packer = *device_.MakePacker(&run_.layout, run_.plan, run_.direction);
    const absl::Status bound = source.Bind(run_, &memory->replica, packer.get());
    EXPECT_TRUE(bound.ok()) << bound;
  }
  absl::Status Take(uint32_t index, const std::vector<float>& g, float clip = 1.0f) {
    double l2_squared = 0;
    for (const float v : g) l2_squared += double{v} * double{v};
    const std::vector<const float*> pointers = PointersInto<const float>(run_.layout, g.data());
    return source.TakeGradient(index, {.g = pointers, .l2_squared = l2_squared, .clip = clip});
  }
  void Pack() {
    for (uint32_t k = 0; k < run_.plan.chunks(); ++k)
      EXPECT_TRUE(
          source.PackChunk(ChunkIndex(k), bits.data() + run_.plan.ByteOffset(ChunkIndex(k))).ok());
  }
  // The whole ballot of these gradients.
  void Vote(const RoundTicket& ticket, const std::vector<std::vector<float>>& gradients) {
    ASSERT_TRUE(source.Begin(ticket).ok());
    for (uint32_t h = 0; h < gradients.size(); ++h) ASSERT_TRUE(Take(h, gradients[h]).ok());
    ASSERT_TRUE(source.EndSteps().ok());
    Pack();
  }
  std::vector<float> State() {
    std::vector<float> m(run_.layout.coordinates());
    EXPECT_TRUE(packer->SaveState(0, 0, std::as_writable_bytes(std::span(m))).ok());
    return m;
  }

 private:
  const RunInfo run_;
  HostDevice device_;

 public:
  std::unique_ptr<BallotPacker> packer;
  LocalStepSource source;
  std::vector<uint8_t> bits;
};

RoundTicket TicketOf(uint64_t round, uint32_t steps, BallotStart start = BallotStart::kReplica) {
  return {.round = Round(round),
          .share = Share(3),
          .local_steps = steps,
          .eta_first = 0.25f,
          .eta_last = 0.25f,
          .start = start};
}

bool OwnCoin(uint64_t round, uint64_t i) {
  return (OwnCoinWord(kSeed, Round(round), Share(3), i / 64) >> (i % 64) & 1u) != 0;
}

// The example of docs/algorithms.md, "Local steps": displacements that are whole multiples of one step,
// as minibatches without a gradient there leave a coordinate alone.
TEST(LocalStepsTest, TheExampleOfThePageComesOutOfSteps) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}}, {.name = "b", .shape = {2}}},
                      {.kind = DirectionKind::kSignSgd});
  constexpr uint32_t kSteps = 12;
  constexpr float kEta = 0.005f;
  const std::vector<int> steps[] = {{4, -2, 8, -6}, {2, 6, -4, -12}, {-3, 4, 6, 2}};
  const std::vector<float> start = {1.0f, -1.0f, 0.5f, 0.0f};
  Memory memory(run, start);
  std::vector<std::vector<float>> means;
  std::vector<uint32_t> counts(4, 0);
  for (const std::vector<int>& of_worker : steps) {
    std::vector<std::vector<float>> gradients(kSteps, std::vector<float>(4, 0.0f));
    for (size_t i = 0; i < 4; ++i) {
      for (int h = 0; h < std::abs(of_worker[i]); ++h)
        gradients[static_cast<size_t>(h)][i] = of_worker[i] > 0 ? 3.0f : -3.0f;
    }
    Worker worker(run, &memory);
    RoundTicket ticket = TicketOf(0, kSteps);
    ticket.eta_first = ticket.eta_last = kEta;
    worker.Vote(ticket, gradients);
    ASSERT_EQ(memory.x, start) << "the next worker's steps begin at x";
    means.emplace_back(worker.source.displacement_mean().begin(),
                       worker.source.displacement_mean().end());
    for (size_t i = 0; i < 4; ++i) counts[i] += GetBit(worker.bits.data(), i) ? 1 : 0;
  }
  constexpr float kNear = 1e-6f;  // a dozen roundings near 1
  EXPECT_THAT(means[0], ElementsAre(FloatNear(0.015f, kNear), FloatNear(0.035f, kNear)));
  EXPECT_THAT(means[1], ElementsAre(FloatNear(0.02f, kNear), FloatNear(0.04f, kNear)));
  EXPECT_THAT(means[2], ElementsAre(FloatNear(0.0175f, kNear), FloatNear(0.02f, kNear)));
  EXPECT_THAT(counts, ElementsAre(2u, 2u, 2u, 1u));

  // What a commit then makes of them, by counts and by the verdict.
  std::vector<float> scales(2, 0.0f);
  for (const std::vector<float>& of_worker : means) {
    for (size_t k = 0; k < 2; ++k) scales[k] += of_worker[k] / 3;
  }
  EXPECT_THAT(scales, ElementsAre(FloatNear(0.0175f, kNear), FloatNear(0.03166667f, kNear)));
  std::vector<uint8_t> planes(2, 0);
  uint8_t verdict = 0;
  for (size_t i = 0; i < 4; ++i) {
    for (size_t plane = 0; plane < 2; ++plane)
      SetBit(&planes[plane], i, (counts[i] >> plane & 1u) != 0);
    SetBit(&verdict, i, counts[i] > 1);
  }
  std::vector<float> average = start, voted = start;
  const StepArguments step{.gamma = 1, .decay_step = kSteps * kEta, .scales = scales};
  ApplyCounts(run.layout, step, 0, 4,
              {.planes = planes.data(), .plane_bytes = 1, .ballots = 3, .first = 0}, nullptr,
              average.data());
  ApplyStep(run.layout, step, 0, 4, &verdict, 0, nullptr, voted.data());
  EXPECT_THAT(average, ElementsAre(FloatNear(0.99416667f, kNear), FloatNear(-1.00583333f, kNear),
                                   FloatNear(0.48944444f, kNear), FloatNear(0.01055556f, kNear)));
  EXPECT_THAT(voted, ElementsAre(FloatNear(0.9825f, kNear), FloatNear(-1.0175f, kNear),
                                 FloatNear(0.46833333f, kNear), FloatNear(0.03166667f, kNear)));
}

TEST(LocalStepsTest, StepsFollowThePlainReferenceOfEveryDirection) {
  constexpr uint64_t kA = 700, kB = 500, kD = kA + kB;
  constexpr uint32_t kSteps = 9;
  const struct {
    DirectionConfig direction;
    double a, c;
  } kCases[] = {{{.kind = DirectionKind::kSignSgd}, 0, 0},
                {{.kind = DirectionKind::kSignum, .beta = 0.9}, 0.9, 0.9},
                {{.kind = DirectionKind::kNesterovSignum, .beta = 0.9}, 0.81, 0.9},
                {{.kind = DirectionKind::kLion, .beta = 0.9, .beta2 = 0.99}, 0.9, 0.99}};
  for (const auto& [direction, a, c] : kCases) {
    SCOPED_TRACE(std::string(DirectionName(direction.kind)));
    RunInfo run =
        RunOf({{.name = "a", .shape = {kA}}, {.name = "b", .shape = {kB}, .step_scale = 0.5f}},
              direction);
    Rng rng(1, 2);
    std::vector<float> start(kD);
    for (float& v : start) v = static_cast<float>(rng.Uniform() - 0.5);
    Memory memory(run, start);
    Worker worker(run, &memory);
    std::vector<double> y(start.begin(), start.end()), m(kD, 0.0);
    RoundTicket ticket = TicketOf(4, kSteps);
    ticket.eta_first = 0.02f;
    ticket.eta_last = 0.01f;
    ASSERT_TRUE(worker.source.Begin(ticket).ok());
    for (uint32_t h = 0; h < kSteps; ++h) {
      std::vector<float> g(kD);
      for (float& v : g) v = static_cast<float>(rng.Uniform() - 0.5);
      for (size_t i = 0; i < kD; i += 10) g[i] = 0.0f;
      ASSERT_TRUE(worker.Take(h, g, 0.5f).ok());
      const double eta = 0.02 - 0.01 * h / (kSteps - 1);
      for (size_t i = 0; i < kD; ++i) {
        const double x = 0.5 * double{g[i]};
        const double u = a * m[i] + (1 - a) * x;
        m[i] = c * m[i] + (1 - c) * x;
        if (u != 0) y[i] -= (i < kA ? eta : 0.5 * eta) * (u > 0 ? 1 : -1);
      }
      for (size_t i = 0; i < kD; ++i) ASSERT_NEAR(memory.x[i], y[i], 1e-6) << h << " " << i;
    }
    ASSERT_TRUE(worker.source.EndSteps().ok());
    EXPECT_EQ(std::memcmp(memory.x.data(), start.data(), kD * sizeof(float)), 0);
    worker.Pack();
    double mean_a = 0, mean_b = 0;
    for (size_t i = 0; i < kD; ++i) {
      const double displacement = double{start[i]} - y[i];
      (i < kA ? mean_a : mean_b) += std::fabs(displacement);
      if (std::fabs(displacement) < 1e-5) continue;
      ASSERT_EQ(GetBit(worker.bits.data(), i), displacement > 0) << i;
    }
    EXPECT_THAT(worker.source.displacement_mean(),
                ElementsAre(FloatNear(static_cast<float>(mean_a / kA), 1e-6f),
                            FloatNear(static_cast<float>(mean_b / kB), 1e-6f)));
    if (direction.kind == DirectionKind::kSignSgd) continue;
    const std::vector<float> state = worker.State();
    for (size_t i = 0; i < kD; ++i) ASSERT_NEAR(state[i], m[i], 1e-6);
  }
}

TEST(LocalStepsTest, WhatHasNotMovedCastsItsOwnCoinAndAZeroGradientMovesNothing) {
  constexpr uint64_t kD = 1500;
  RunInfo run = RunOf({{.name = "a", .shape = {kD}}}, {.kind = DirectionKind::kSignSgd});
  Memory memory(run, std::vector<float>(kD, 1.0f));
  Worker worker(run, &memory);
  // Even ones never move; of the odd ones each goes up and comes back.
  std::vector<float> up(kD, 0.0f), down(kD, 0.0f);
  for (size_t i = 1; i < kD; i += 2) {
    up[i] = 2.0f;
    down[i] = -2.0f;
  }
  worker.Vote(TicketOf(9, 2), {up, down});
  EXPECT_THAT(worker.source.displacement_mean(), ElementsAre(0.0f));
  int ones = 0;
  for (uint64_t i = 0; i < kD; ++i) {
    ASSERT_EQ(GetBit(worker.bits.data(), i), OwnCoin(9, i)) << i;
    ones += OwnCoin(9, i) ? 1 : 0;
  }
  EXPECT_GT(ones, 600);
  EXPECT_LT(ones, 900);
  EXPECT_EQ(worker.bits.back() >> (kD % 8), 0) << "padding";
}

TEST(LocalStepsTest, ATensorWithoutGradientAndASparseZeroStay) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}},
                       {.name = "b", .shape = {2}, .treatment = TensorTreatment::kSparse}},
                      {.kind = DirectionKind::kSignum});
  Memory memory(run, {1, 1, 1, 1});
  Worker worker(run, &memory);
  ASSERT_TRUE(worker.source.Begin(TicketOf(0, 2)).ok());
  const std::vector<float> first = {1, 1, 1, 1}, second = {0, 0, 0, 2};
  const float* const pointers[] = {nullptr, first.data() + 2};
  ASSERT_TRUE(worker.source.TakeGradient(0, {.g = pointers}).ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 1, 0.75f, 0.75f}));
  const float* const zeros[] = {nullptr, second.data() + 2};
  ASSERT_TRUE(worker.source.TakeGradient(1, {.g = zeros}).ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 1, 0.75f, 0.5f})) << "m alone would move it";
  EXPECT_EQ(worker.State()[0], 0.0f);
  ASSERT_TRUE(worker.source.EndSteps().ok());
}

TEST(LocalStepsTest, ContinuingGoesOnFromYWithItsStateAndX0BeginsAnew) {
  RunInfo run = RunOf({{.name = "a", .shape = {3}}}, {.kind = DirectionKind::kSignum});
  Memory memory(run, {1, 2, 3});
  Worker worker(run, &memory);
  const std::vector<float> g = {1, -1, 1};
  worker.Vote(TicketOf(0, 2, BallotStart::kX0), {g, g});
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2, 3}));
  ASSERT_TRUE(worker.source.Settle(BallotFate::kNotApplied).ok());
  const std::vector<float> m = worker.State();

  ASSERT_TRUE(worker.source.Begin(TicketOf(1, 2, BallotStart::kContinue)).ok());
  EXPECT_TRUE(worker.source.CanVote());
  EXPECT_EQ(memory.x, (std::vector<float>{0.5f, 2.5f, 2.5f}));
  EXPECT_EQ(worker.State(), m);
  ASSERT_TRUE(worker.Take(0, g).ok());
  ASSERT_TRUE(worker.Take(1, g).ok());
  ASSERT_TRUE(worker.source.EndSteps().ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2, 3}));
  EXPECT_THAT(worker.source.displacement_mean(), ElementsAre(1.0f))
      << "from x, not from where it began";
  ASSERT_TRUE(worker.source.Settle(BallotFate::kNotApplied).ok());

  memory.x = {5, 5, 5};  // the run has stepped meanwhile
  ASSERT_TRUE(worker.source.Begin(TicketOf(2, 1, BallotStart::kX0)).ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(worker.State(), std::vector<float>(3, 0.0f));
  ASSERT_TRUE(worker.Take(0, g).ok());
  ASSERT_TRUE(worker.source.EndSteps().ok());
  EXPECT_EQ(memory.x, (std::vector<float>{5, 5, 5}));
}

TEST(LocalStepsTest, WhereNothingIsToBeContinuedTheWorkerCannotVoteAndNothingMoves) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}}}, {.kind = DirectionKind::kSignum});
  const std::vector<float> g = {1, -1};
  using Spoil = void (*)(LocalStepSource*, RoundTicket*);
  const std::pair<const char*, Spoil> kSpoils[] = {
      {"nothing", [](LocalStepSource*, RoundTicket*) {}},
      {"applied", [](LocalStepSource* s, RoundTicket*) { (void)s->Settle(BallotFate::kApplied); }},
      {"withdrawn",
       [](LocalStepSource* s, RoundTicket*) { (void)s->Settle(BallotFate::kWithdrawn); }},
      {"missed",
       [](LocalStepSource* s, RoundTicket*) {
         (void)s->Settle(BallotFate::kNotApplied);
         (void)s->Missed();
       }},
      {"rewound",
       [](LocalStepSource* s, RoundTicket*) {
         (void)s->Settle(BallotFate::kNotApplied);
         (void)s->Reset();
       }},
      {"a round between",
       [](LocalStepSource* s, RoundTicket* ticket) {
         (void)s->Settle(BallotFate::kNotApplied);
         ticket->round = Round(2);
       }},
      {"moved", [](LocalStepSource* s, RoundTicket* ticket) {
         (void)s->Settle(BallotFate::kNotApplied);
         ticket->replica_moved = true;
       }}};
  for (const auto& [what, spoil] : kSpoils) {
    SCOPED_TRACE(what);
    Memory memory(run, {1, 2});
    Worker worker(run, &memory);
    RoundTicket ticket = TicketOf(1, 2, BallotStart::kContinue);
    if (std::string(what) != "nothing") worker.Vote(TicketOf(0, 2), {g, g});
    spoil(&worker.source, &ticket);
    ASSERT_TRUE(worker.source.Begin(ticket).ok());
    EXPECT_TRUE(worker.source.takes_steps());
    EXPECT_FALSE(worker.source.CanVote());
    EXPECT_EQ(memory.x, (std::vector<float>{1, 2}));
    ASSERT_TRUE(worker.source.EndSteps().ok());
    EXPECT_EQ(memory.x, (std::vector<float>{1, 2}));
    // The next one begins at the replica as ever.
    ASSERT_TRUE(worker.source.Begin(TicketOf(5, 2)).ok());
    EXPECT_TRUE(worker.source.CanVote());
    ASSERT_TRUE(worker.source.EndSteps().ok());
  }
}

TEST(LocalStepsTest, WorkersOnOneModelContinueEachFromItsOwnPlace) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}}}, {.kind = DirectionKind::kSignSgd});
  Memory memory(run, {1, 2});
  Worker first(run, &memory), second(run, &memory);
  first.Vote(TicketOf(0, 1, BallotStart::kX0), {{1, 1}});
  second.Vote(TicketOf(0, 1, BallotStart::kX0), {{-1, -1}});
  ASSERT_TRUE(first.source.Settle(BallotFate::kNotApplied).ok());
  ASSERT_TRUE(second.source.Settle(BallotFate::kNotApplied).ok());
  ASSERT_TRUE(first.source.Begin(TicketOf(1, 1, BallotStart::kContinue)).ok());
  EXPECT_EQ(memory.x, (std::vector<float>{0.75f, 1.75f}));
  ASSERT_TRUE(first.source.EndSteps().ok());
  ASSERT_TRUE(second.source.Begin(TicketOf(1, 1, BallotStart::kContinue)).ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1.25f, 2.25f}));
  ASSERT_TRUE(second.source.EndSteps().ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2}));
}

TEST(LocalStepsTest, TheSumsAboutX0AreTakenWhereEachGradientWas) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}}}, {.kind = DirectionKind::kSignSgd});
  Memory memory(run, {1, 2});
  memory.x = {1.5f, 2};  // x0 is (1, 2) still
  Worker worker(run, &memory);
  RoundTicket ticket = TicketOf(0, 2);
  ticket.wanted = {ScalarKind::kLocalInner, ScalarKind::kLocalProduct};
  worker.Vote(ticket, {{3, 4}, {-6, 8}});
  // y_0 = (1.5, 2), y_1 = (1.25, 1.75).
  EXPECT_DOUBLE_EQ(worker.source.Scalar(ScalarKind::kLocalInner),
                   3 * -0.5 + (-6 * -0.25 + 8 * 0.25));
  EXPECT_DOUBLE_EQ(worker.source.Scalar(ScalarKind::kLocalProduct),
                   5 * 0.5 + 10 * std::sqrt(0.125));
  EXPECT_TRUE(std::isnan(worker.source.Scalar(ScalarKind::kX0Inner)));
  memory.replica.DropX0();
  worker.Vote(ticket, {{3, 4}});
  EXPECT_TRUE(std::isnan(worker.source.Scalar(ScalarKind::kLocalInner)));
}

TEST(LocalStepsTest, WhatLocalStepsCannotDoIsRefusedByName) {
  const auto bind = [](const RunInfo& run) {
    Memory memory(run, std::vector<float>(run.layout.coordinates()));
    HostDevice device;
    const auto packer = *device.MakePacker(&run.layout, run.plan, run.direction);
    LocalStepSource source(memory.pointers);
    return source.Bind(run, &memory.replica, packer.get());
  };
  for (const auto& [words, name] :
       {std::pair(DirectionWords{.name = "adam"}, "adam with noise"),
        std::pair(DirectionWords{.name = "adam", .noise = "off"}, "adam"),
        std::pair(DirectionWords{.name = "stosign"}, "stosign"),
        std::pair(DirectionWords{.name = "sgd"}, "sgd"),
        std::pair(DirectionWords{.name = "signum", .noise = "tensor"}, "signum with noise"),
        std::pair(DirectionWords{.name = "signsgd", .error_feedback = true},
                  "signsgd with error feedback")}) {
    const auto direction = ParseDirection(words);
    ASSERT_TRUE(direction.ok()) << direction.status();
    const absl::Status refused = bind(RunOf({{.name = "a", .shape = {2}}}, *direction));
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(refused.message()), HasSubstr(name));
    EXPECT_THAT(std::string(refused.message()), HasSubstr("--direction"));
  }
  const DirectionConfig adam{.kind = DirectionKind::kAdam, .beta2 = 0.999};
  const TensorSpec voted{.name = "a", .shape = {2}},
      dense{.name = "b", .shape = {2}, .dense = true};
  const absl::Status beside = bind(RunOf({voted, dense}, adam));
  EXPECT_EQ(beside.code(), absl::StatusCode::kUnimplemented) << "a vote cannot say how long";
  EXPECT_THAT(std::string(beside.message()), HasSubstr("--dense"));
  EXPECT_TRUE(bind(RunOf({voted, dense})).ok());
  EXPECT_TRUE(bind(RunOf({dense}, adam)).ok());

  RunInfo run = RunOf({{.name = "a", .shape = {2}}});
  Memory memory(run, {1, 2});
  Worker worker(run, &memory);
  EXPECT_EQ(worker.source.Begin(TicketOf(0, kStepsMax + 1)).code(),
            absl::StatusCode::kInvalidArgument);
  memory.replica.DropX0();
  EXPECT_EQ(worker.source.Begin(TicketOf(0, 2, BallotStart::kX0)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2}));
}

// DiLoCo's inner AdamW: the displacement is the sum of the updates, and is sent as it is.
TEST(LocalStepsTest, ADenseDisplacementIsSentAsItIs) {
  RunInfo run = RunOf({{.name = "a", .shape = {3}, .dense = true}},
                      {.kind = DirectionKind::kAdam, .beta2 = 0.999});
  run.ballot_plan = *PayloadPlan::Make(
      run.plan, {{.first = ChunkIndex(0), .chunks = 1, .kind = PayloadKind::kFp32}}, 4);
  Memory memory(run, {1, 2, 3});
  LocalStepSource source(memory.pointers);
  HostDevice device;
  FakeSession session;
  session.payload = run.ballot_plan;
  auto voter = Voter::Make(run, &session, &memory.replica, &device, &source, Clock::System(), {});
  ASSERT_TRUE(voter.ok()) << voter.status();
  const std::vector<float> g = {4, -2, 0};
  const std::vector<const float*> pointers = PointersInto<const float>(run.layout, g.data());
  ASSERT_TRUE((*voter)->Begin(TicketOf(0, 2)).ok());
  while ((*voter)->wants_gradient()) {
    ASSERT_TRUE((*voter)->SetGradient(pointers).ok());
    ASSERT_TRUE((*voter)->GradientReady(0, 3).ok());
    ASSERT_TRUE((*voter)->EndGradient(1.0, 1).ok());
  }
  // The gradient is the same each time, so that an update is its sign.
  EXPECT_NEAR(memory.x[0], 0.5f, 1e-5f);
  EXPECT_NEAR(memory.x[1], 2.5f, 1e-5f);
  EXPECT_EQ(memory.x[2], 3.0f);
  const auto sent = (*voter)->FinishSteps();
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2, 3}));
  float d[3];
  ASSERT_EQ(session.ballots.size(), sizeof(d));
  std::memcpy(d, session.ballots.data(), sizeof(d));
  EXPECT_NEAR(d[0], 0.5f, 1e-5f);
  EXPECT_NEAR(d[1], -0.5f, 1e-5f);
  EXPECT_EQ(d[2], 0.0f);
}

// A round of one minibatch in a run of local steps is today's vote, by the same state.
TEST(LocalStepsTest, ARoundOfOneMinibatchIsAnOrdinaryVoteWithTheSameState) {
  constexpr uint64_t kD = 700;
  RunInfo run = RunOf({{.name = "a", .shape = {kD}}}, {.kind = DirectionKind::kSignum});
  Memory memory(run, std::vector<float>(kD, 1.0f));
  LocalStepSource source(memory.pointers);
  HostDevice device;
  FakeSession session;
  session.plan = run.plan;
  auto voter = Voter::Make(run, &session, &memory.replica, &device, &source, Clock::System(), {});
  ASSERT_TRUE(voter.ok()) << voter.status();
  session.outcome = CommitOutcome{.commits = 1, .kind = CommitKind::kStep};
  const std::vector<float> up(kD, 1.0f), down(kD, -0.05f);
  const std::vector<const float*> up_pointers = PointersInto<const float>(run.layout, up.data()),
                                  down_pointers =
                                      PointersInto<const float>(run.layout, down.data());
  ASSERT_TRUE((*voter)->Begin(TicketOf(0, 2)).ok());
  while ((*voter)->wants_gradient()) {
    ASSERT_TRUE((*voter)->SetGradient(up_pointers).ok());
    ASSERT_TRUE((*voter)->GradientReady(0, kD).ok());
    ASSERT_TRUE((*voter)->EndGradient(1.0, 1).ok());
  }
  EXPECT_EQ(memory.x[0], 0.5f) << "gradients are taken at y";
  ASSERT_TRUE((*voter)->FinishSteps().ok());
  EXPECT_EQ(memory.x[0], 1.0f);
  EXPECT_EQ(session.scalars.local_steps, 2u);
  EXPECT_THAT(session.scalars.displacement_mean, ElementsAre(0.5f));
  EXPECT_TRUE(GetBit(session.ballots.data(), kD - 1));
  ASSERT_TRUE((*voter)->Wait().ok());

  ASSERT_TRUE((*voter)->Begin(TicketOf(1, 1)).ok());
  EXPECT_FALSE((*voter)->takes_steps());
  ASSERT_TRUE((*voter)->SetGradient(down_pointers).ok());
  ASSERT_TRUE((*voter)->GradientReady(0, kD).ok());
  EXPECT_EQ(session.events.back(), "chunk 0") << "as soon as it is final";
  ASSERT_TRUE((*voter)->Finish(1.0, 1).ok());
  EXPECT_EQ(session.scalars.local_steps, 0u);
  EXPECT_TRUE(session.scalars.displacement_mean.empty());
  EXPECT_TRUE(GetBit(session.ballots.data(), 0)) << "m of the local steps outweighs this gradient";
  std::vector<float> m(kD);
  ASSERT_TRUE((*voter)->SaveState(0, 0, std::as_writable_bytes(std::span(m))).ok());
  EXPECT_NEAR(m[0], 0.9 * 0.19 - 0.1 * 0.05, 1e-6);
}

TEST(LocalStepsTest, ABallotThatFailsLeavesTheReplicaAsItWas) {
  RunInfo run = RunOf({{.name = "a", .shape = {2}}}, {.kind = DirectionKind::kSignSgd});
  Memory memory(run, {1, 2});
  Worker worker(run, &memory);
  ASSERT_TRUE(worker.source.Begin(TicketOf(0, 4)).ok());
  ASSERT_TRUE(worker.Take(0, {1, 1}).ok());
  const float* const too_few[] = {nullptr, nullptr};
  EXPECT_EQ(worker.source.TakeGradient(1, {.g = too_few}).code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(worker.source.EndSteps().ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2}));
  ASSERT_TRUE(worker.source.EndSteps().ok());
  EXPECT_EQ(memory.x, (std::vector<float>{1, 2})) << "saying it twice moves nothing";
}

}  // namespace
}  // namespace signvote
