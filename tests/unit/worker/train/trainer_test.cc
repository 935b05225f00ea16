// Goal:   the order of things in a round: probe, forward, backward with chunks leaving, scalars,
//         commit.
// Method: a model whose gradient is known in closed form, a data set whose batches carry their key,
// and a session that
//         is one-worker server in memory. All of them write what happens into one list of events.
#include "worker/train/trainer.h"

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/bits.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/unit/worker/train/trainer_fixture.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(TrainerTest, EachChunkLeavesAsSoonAsItsLastCoordinateIsFinalAndBeforeBackwardEnds) {
  Bench bench(1);
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2",
                                        "final 300", "chunk 1", "final 0", "chunk 0",
                                        "backward ends", "scalars", "wait", "leave finished"));
}

TEST(TrainerTest, TakesItsMemoryAndThrowsOnePassAwayBeforeItIsReady) {
  for (const bool probes : {false, true}) {
    Bench bench(1, {});
    bench.session.probe = probes;
    std::map<ReplicaSlot, int> kept;
    int packers = 0;
    bench.session.on_attach = [&] {
      kept = bench.model.kept;
      packers = bench.device.packers;
    };
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_THAT(bench.session.before_ready, ElementsAre("forward 0", "final 1100", "final 700",
                                                        "final 300", "final 0", "backward ends"));
    EXPECT_EQ(kept[ReplicaSlot::kSnapshot], 1);
    EXPECT_EQ(kept[ReplicaSlot::kPrevious], probes ? 1 : 0);
    EXPECT_EQ(packers, 1) << "the direction's state";
    EXPECT_EQ(bench.device.packers, 1);
  }
}

TEST(TrainerTest, AModelThatDoesNotFitEndsBeforeItIsReady) {
  Bench bench(1);
  bench.session.probe = true;
  bench.model.keep_status = absl::ResourceExhaustedError("copy of the replica: out of memory");
  bench.session.on_attach = [] { FAIL() << "it said that it was ready"; };
  EXPECT_EQ(bench.trainer.Run(), bench.model.keep_status);
  Bench stateless(1);
  stateless.device.packer_status = absl::ResourceExhaustedError("the direction's state: no memory");
  stateless.session.on_attach = [] { FAIL() << "it said that it was ready"; };
  EXPECT_EQ(stateless.trainer.Run(), stateless.device.packer_status);
}

TEST(TrainerTest, WhatDoesNotFitIsToldRightAfterTheWelcomeAndNothingIsTaken) {
  // Of 8 d for the probe and 4 d for a snapshot beside the model, less than all.
  for (const uint64_t left : {uint64_t{12 * kCoordinates}, uint64_t{13 * kCoordinates}}) {
    Bench bench(1, {});
    bench.session.probe = true;
    int asked = 0;
    bench.trainer.set_memory_left([&]() -> std::optional<MemoryLimit> {
      ++asked;
      return MemoryLimit{.bytes = left, .source = "the machine"};
    });
    bool attached = false;
    bench.session.on_attach = [&] { attached = true; };
    const absl::Status status = bench.trainer.Run();
    EXPECT_EQ(asked, 1);
    const bool fits = left == 13 * kCoordinates;
    EXPECT_EQ(attached, fits);
    EXPECT_EQ(status.ok(), fits) << status;
    if (fits) continue;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kNoMemory);
    EXPECT_TRUE(bench.model.kept.empty());
    EXPECT_EQ(bench.device.packers, 0);
    EXPECT_TRUE(bench.session.before_ready.empty());
  }
}

TEST(TrainerTest, ADeviceThatQueuesHasItsChunksSentAsTheyGetDone) {
  for (const bool still_running : {true, false}) {
    Bench bench(1);
    bench.device.queues = true;
    bench.device.ready = 1;  // chunk 2 gets done while the host still queues the backward pass
    bench.model.running_after_return = still_running;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_THAT(bench.events,
                ElementsAre("forward 3000", "final 1100", "final 700", "start 2", "chunk 2",
                            "final 300", "start 1", "final 0", "start 0", "backward ends",
                            "chunk 1", "chunk 0", "scalars", "wait", "leave finished"));
    EXPECT_TRUE(bench.rounds_seen.at(0).first_chunk_overlapped);
  }
}

TEST(TrainerTest, AChunkOverlapsWhenItLeavesBeforeTheDeviceHasEndedItsBackwardPass) {
  for (const bool still_running : {true, false}) {
    Bench bench(1);
    bench.device.queues = true;  // nothing is done when Backward returns
    bench.model.running_after_return = still_running;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "chunk 2"), 1);
    EXPECT_EQ(bench.rounds_seen.at(0).first_chunk_overlapped, still_running);
  }
}

TEST(TrainerTest, AQueuedNonFiniteGradientWithdrawsTheChunksNotYetSent) {
  Bench bench(1);
  bench.device.queues = true;
  bench.model.poisoned = 600;  // chunk 1
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events,
              ElementsAre("forward 3000", "final 1100", "final 700", "start 2", "final 300",
                          "start 1", "final 0", "start 0", "backward ends", "chunk 2",
                          "abstain gradient", "wait", "leave finished"));
}

TEST(TrainerTest, TheBallotIsTheSignOfTheGradientOfTheTicketsMinibatch) {
  Bench bench(1);
  ASSERT_TRUE(bench.trainer.Run().ok());
  const double target = static_cast<double>(3000 % 97) * 0.01;
  double l1 = 0;
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const double g = bench.session.xs[0][i] - target;
    l1 += std::abs(g);
    EXPECT_EQ(GetBit(bench.session.verdict_.data(), i), g > 0) << i;
  }
  ASSERT_EQ(bench.session.all_scalars.size(), 1u);
  const BallotScalars& scalars = bench.session.all_scalars[0];
  EXPECT_NEAR(scalars.g_l1, l1, 1e-3);
  EXPECT_EQ(scalars.samples, 1u);
  EXPECT_FALSE(ProbeL1(scalars).has_value());
  EXPECT_FALSE(PrevInner(scalars).has_value());
}

TEST(TrainerTest, TheProbeRunsFirstOnTheSameMinibatchAtThePreviousReplica) {
  Bench bench(3);
  bench.session.probe = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  // Round 0 has no previous replica.
  EXPECT_THAT(std::vector<std::string>(bench.events.begin(), bench.events.begin() + 2),
              ElementsAre("forward 3000", "final 1100"));
  const auto probe = std::find(bench.events.begin(), bench.events.end(), "probe 3010");
  const auto forward = std::find(bench.events.begin(), bench.events.end(), "forward 3010");
  ASSERT_NE(probe, bench.events.end());
  EXPECT_LT(probe, forward);
  const auto& scalars = bench.session.all_scalars;
  ASSERT_EQ(scalars.size(), 3u);
  EXPECT_FALSE(ProbeL1(scalars[0]).has_value());
  for (size_t t = 1; t < 3; ++t) {
    // g − h = x_t − x_{t−1} for this model: γ per coordinate, twice that in tensor b.
    ASSERT_TRUE(ProbeL1(scalars[t]).has_value());
    EXPECT_NEAR(*ProbeL1(scalars[t]), 0.01 * 700 + 0.02 * 800, 1e-3);
    double inner = 0;
    const double target = static_cast<double>((3000 + 10 * t) % 97) * 0.01;
    for (uint64_t i = 0; i < kCoordinates; ++i) {
      const double b =
          bench.session.xs[t][i] < bench.session.xs[t - 1][i] ? 1.0 : -1.0;  // x moved against b
      inner += (i < 700 ? 1.0 : 2.0) * b * (bench.session.xs[t][i] - target);
    }
    ASSERT_TRUE(PrevInner(scalars[t]).has_value());
    EXPECT_NEAR(*PrevInner(scalars[t]), inner, 1e-3);
  }
}

TEST(TrainerTest, TheLastRoundsGradientIsKeptWhereTheRunComparesWithIt) {
  Bench bench(4);
  bench.session.keeps_gradients = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.model.gradients_kept, 5);  // one of them before it was ready
  EXPECT_EQ(bench.model.kept[ReplicaSlot::kPrevious], 0);
  const auto& scalars = bench.session.all_scalars;
  ASSERT_EQ(scalars.size(), 4u);
  EXPECT_TRUE(std::isnan(scalars[0].wanted.at(1)));
  for (size_t t = 1; t < 4; ++t) {
    const auto target = [](size_t round) {
      return static_cast<double>((3000 + 10 * round) % 97) * 0.01;
    };
    double change = 0;
    for (uint64_t i = 0; i < kCoordinates; ++i) {
      change += std::abs(bench.session.xs[t][i] - target(t) -
                         (bench.session.xs[t - 1][i] - target(t - 1)));
    }
    EXPECT_NEAR(scalars[t].wanted.at(1), change, 2e-3) << t;
  }
}

TEST(TrainerTest, AfterAGapOrAStateTransferThereIsNeitherProbeNorPreviousVerdict) {
  for (const bool in_next_round : {false, true}) {
    Bench bench(4);
    bench.session.probe = true;
    if (in_next_round) {
      bench.session.jump_before = 2;  // round 2 is skipped
    } else {
      bench.session.gap_after = 2;
    }
    ASSERT_TRUE(bench.trainer.Run().ok());
    std::map<uint64_t, bool> probed;
    for (const RoundReport& round : bench.rounds_seen) {
      probed[round.round.value()] = round.probe_l1.has_value();
      EXPECT_EQ(round.prev_inner.has_value(), round.probe_l1.has_value());
    }
    if (in_next_round) {
      EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {1, true}, {3, false}}));
    } else {
      EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {1, true}, {2, false}, {3, true}}));
    }
  }
}

// The first worker's model gives the run its order; another's may have it otherwise.
TEST(TrainerTest, TheRunsOrderOfTensorsIsAdopted) {
  Bench bench(2);
  bench.session.reversed = true;
  bench.session.probe = true;
  const std::vector<float> before = bench.model.x();
  ASSERT_TRUE(bench.trainer.Run().ok());
  const RunInfo& run = bench.trainer.report().run;
  ASSERT_EQ(run.layout.tensors()[0].name, "b");
  // Coordinate i of the run is i + 700 of the model in b, i − 800 in a.
  const auto of_model = [](uint64_t i) { return i < 800 ? i + 700 : i - 800; };
  for (uint64_t i = 0; i < kCoordinates; ++i)
    ASSERT_EQ(bench.session.xs[0][i], before[of_model(i)]) << i;
  std::vector<float> x(kCoordinates);
  ASSERT_TRUE(bench.trainer.replica()->Read(0, x).ok());
  for (uint64_t i = 0; i < kCoordinates; ++i) ASSERT_EQ(x[i], bench.model.x()[of_model(i)]) << i;
  const double target = static_cast<double>(3010 % 97) * 0.01;
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const float g = bench.session.xs[1][i] - static_cast<float>(target);
    ASSERT_EQ(GetBit(bench.session.verdict_.data(), i), g > 0) << i;
  }
  EXPECT_NEAR(*ProbeL1(bench.session.all_scalars[1]), 0.01 * 700 + 0.02 * 800, 1e-3);
  // Chunk 0 is final once all of its coordinates are, though they come last in the model's order.
  const auto first = std::find(bench.events.begin(), bench.events.end(), "chunk 1");
  EXPECT_NE(first, bench.events.end());
}

TEST(TrainerTest, ATensorThatTheModelHasNotEndsTheRunWithItsName) {
  Bench bench(1);
  bench.session.stranger = true;
  const absl::Status status = bench.trainer.Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor \"z\""));
}

TEST(TrainerTest, ItJoinsWithWhatTheModelIsAndCan) {
  Bench bench(1, {});
  ASSERT_TRUE(bench.trainer.Run().ok());
  const ModelDescription& joined = bench.session.description;
  ASSERT_EQ(joined.tensors.size(), 2u);
  EXPECT_EQ(joined.tensors[1].name, "b");
  EXPECT_EQ(joined.config_json, ModelConfigJson(bench.model.config()));
  EXPECT_TRUE(joined.can_probe);
  ASSERT_TRUE(joined.held_out_hash.has_value());
  Bench more(1, {}, /*windows=*/7);
  ASSERT_TRUE(more.trainer.Run().ok());
  EXPECT_NE(more.session.description.held_out_hash, joined.held_out_hash);
  Bench unwilling(1, {.evaluate = Evaluate::kOff}), unable(1, {}, /*windows=*/0);
  for (Bench* none : {&unwilling, &unable}) {
    ASSERT_TRUE(none->trainer.Run().ok());
    EXPECT_FALSE(none->session.description.held_out_hash.has_value());
  }
}

TEST(TrainerTest, ACommitOfKindNoneMovesNothingAndEndsNoProbeButItsOwn) {
  Bench bench(5);
  bench.session.probe = true;
  bench.session.kinds = {{2, CommitKind::kNone}};
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.session.xs[2], bench.session.xs[3]);
  EXPECT_NE(bench.session.xs[3], bench.session.xs[4]);
  std::map<uint64_t, bool> probed;
  for (const RoundReport& round : bench.rounds_seen)
    probed[round.round.value()] = round.probe_l1.has_value();
  EXPECT_EQ(probed,
            (std::map<uint64_t, bool>{{0, false}, {1, true}, {2, true}, {3, false}, {4, true}}));
  EXPECT_EQ(bench.rounds_seen[2].kind, CommitKind::kNone);
  EXPECT_EQ(bench.rounds_seen[2].main_round, 2u);
  EXPECT_EQ(bench.rounds_seen[4].main_round, 4u);
  EXPECT_TRUE(bench.rounds_seen[4].run_done);
  EXPECT_FALSE(bench.rounds_seen[3].run_done);
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "reset"), 0);
}

TEST(TrainerTest, ARewindGoesBackToTheStartWithoutStateProbeOrPreviousVerdict) {
  Bench bench(5);
  bench.session.probe = true;
  bench.session.kinds = {{2, CommitKind::kRewind}};
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.session.xs[3], bench.session.xs[0]);
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "reset"), 1);
  EXPECT_FALSE(bench.rounds_seen[3].probe_l1.has_value());
  EXPECT_FALSE(bench.rounds_seen[3].prev_inner.has_value());
  EXPECT_TRUE(bench.rounds_seen[4].probe_l1.has_value());
}

TEST(TrainerTest, WithoutProbesInTheRunNoPreviousReplicaIsKept) {
  Bench bench(3);
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.model.kept[ReplicaSlot::kPrevious], 0);
  Bench probing(3);
  probing.session.probe = true;
  ASSERT_TRUE(probing.trainer.Run().ok());
  EXPECT_EQ(probing.model.kept[ReplicaSlot::kPrevious], 1 + 3) << "one before it is ready";
}

// The held-out loss of each of six windows.
std::vector<double> LossesAt(const std::vector<float>& x) {
  std::vector<double> losses;
  for (int window = 0; window < 6; ++window)
    losses.push_back(QuadraticModel::Loss(x, window * 0.01));
  return losses;
}
double MeanOf(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

TEST(TrainerTest, AnEvaluationThatTheServerAsksForGoesWithTheScalarsOnceItIsKnown) {
  Bench bench(8, {});
  bench.session.evaluate_at = {4};
  bench.session.evaluate_every = 3;
  ASSERT_TRUE(bench.trainer.Run().ok());
  // Six windows in three rounds: known after round 6, sent with round 7's scalars.
  const std::vector<BallotScalars>& sent = bench.session.all_scalars;
  ASSERT_EQ(sent.size(), 8u);
  EXPECT_FALSE(sent[6].held_out.has_value());
  ASSERT_TRUE(sent[7].held_out.has_value());
  EXPECT_EQ(sent[7].held_out->round, Round(4));
  EXPECT_EQ(sent[7].held_out->windows, bench.session.description.held_out_hash);
  const std::vector<double> losses = LossesAt(bench.session.xs[4]);
  const double mean = MeanOf(losses);
  double squares = 0;
  for (const double loss : losses) squares += (loss - mean) * (loss - mean);
  EXPECT_NEAR(sent[7].held_out->loss, mean, 1e-12);
  EXPECT_NEAR(sent[7].held_out->error, std::sqrt(squares / 5 / 6), 1e-12);
  ASSERT_TRUE(bench.rounds_seen[6].held_out.has_value());
  EXPECT_FALSE(bench.rounds_seen[6].held_out_own);
}

TEST(TrainerTest, OneThatIsNotAskedMeasuresNothing) {
  Bench bench(4, {});
  ASSERT_TRUE(bench.trainer.Run().ok());
  for (const std::string& event : bench.events) EXPECT_THAT(event, Not(HasSubstr("held-out")));
  EXPECT_FALSE(bench.trainer.report().held_out_first.has_value());
  EXPECT_FALSE(bench.trainer.report().held_out_last.has_value());
}

TEST(TrainerTest, OneThatWasAskedMeasuresTheLastReplicaToo) {
  Bench bench(4, {});
  bench.session.evaluate_at = {0};
  bench.session.evaluate_every = 50;
  ASSERT_TRUE(bench.trainer.Run().ok());
  const TrainerReport& report = bench.trainer.report();
  ASSERT_TRUE(report.held_out_first.has_value() && report.held_out_last.has_value());
  EXPECT_EQ(report.held_out_first->round, Round(0));
  EXPECT_EQ(report.held_out_last->round, Round(4));
  EXPECT_NEAR(report.held_out_last->loss, MeanOf(LossesAt(bench.model.x())), 1e-12);
}

TEST(TrainerTest, AnEvaluationThatIsAskedForIsKnownWellBeforeTheNext) {
  Bench bench(20, {});
  bench.session.evaluate_at = {0, 8, 16};
  bench.session.evaluate_every = 8;
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, uint64_t> known;
  for (const RoundReport& round : bench.rounds_seen) {
    if (round.held_out.has_value()) known[round.round.value()] = round.held_out->round.value();
  }
  EXPECT_EQ(known, (std::map<uint64_t, uint64_t>{{5, 0}, {13, 8}})) << "a quarter is left";
}

TEST(TrainerTest, OneThatMeasuresForItselfDoesWhatTheServerAsksForBesideIt) {
  Bench bench(12, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 4});
  bench.session.evaluate_at = {5};
  bench.session.evaluate_every = 4;
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, bool> own;  // by the round of the replica
  for (const RoundReport& round : bench.rounds_seen) {
    if (round.held_out.has_value()) own[round.held_out->round.value()] = round.held_out_own;
  }
  EXPECT_EQ(own, (std::map<uint64_t, bool>{{0, true}, {5, false}, {8, true}}));
}

// docs/algorithms.md: rows that no text uses move by coins, and only their norm shows it.
TEST(TrainerTest, WithEachHeldOutLossComesTheEmbeddingsNormWhereverItLies) {
  for (const bool reversed : {false, true}) {
    Bench bench(6, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 2});
    bench.session.reversed = reversed;
    ASSERT_TRUE(bench.trainer.Run().ok());
    const size_t first = reversed ? 800 : 0;
    int measured = 0;
    for (const RoundReport& round : bench.rounds_seen) {
      EXPECT_EQ(round.embedding_norm.has_value(), round.held_out.has_value());
      if (!round.embedding_norm.has_value()) continue;
      ++measured;
      double squares = 0;
      for (size_t i = 0; i < 700; ++i) {
        const double x = bench.session.xs[round.round.value()][first + i];
        squares += x * x;
      }
      EXPECT_NEAR(*round.embedding_norm, std::sqrt(squares), 1e-9);
      EXPECT_GT(*round.embedding_norm, 1);
    }
    EXPECT_GE(measured, 2);
  }
}

TEST(TrainerTest, ANonFiniteLossAbstainsBeforeTheFirstChunk) {
  for (const double loss :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Bench bench(1);
    bench.model.next_loss = loss;
    ASSERT_TRUE(bench.trainer.Run().ok());
    EXPECT_THAT(bench.events,
                ElementsAre("forward 3000", "abstain loss", "wait", "leave finished"));
    EXPECT_EQ(bench.trainer.report().rounds_abstained, 1u);
    EXPECT_EQ(bench.rounds_seen.at(0).abstained, AbstainReason::kNonFiniteLoss);
  }
}

TEST(TrainerTest, ANonFiniteGradientWithdrawsTheChunksNotYetSent) {
  Bench bench(1);
  bench.model.poisoned = 600;  // chunk 1; chunk 2 has left by then
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2",
                                        "final 300", "final 0", "backward ends", "abstain gradient",
                                        "wait", "leave finished"));
  EXPECT_EQ(bench.rounds_seen.at(0).scalars.nonfinite_coordinates, 1u);
}

TEST(TrainerTest, AccumulationAveragesMicroBatchesAndSendsInTheLastOne) {
  Bench bench(2, {.accumulate = 2, .evaluate = Evaluate::kOff});
  bench.session.probe = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  const std::vector<std::string> head(bench.events.begin(), bench.events.begin() + 9);
  EXPECT_THAT(head, ElementsAre("forward 3000", "final 1100", "final 700", "final 300", "final 0",
                                "backward ends", "forward 3001", "final 1100", "final 700"));
  EXPECT_EQ(bench.events[9], "chunk 2");
  // The mean of the two targets.
  const double target = (static_cast<double>(3000 % 97) + static_cast<double>(3001 % 97)) * 0.005;
  double l1 = 0;
  for (float x : bench.session.xs[0]) l1 += std::abs(x - target);
  EXPECT_NEAR(bench.session.all_scalars[0].g_l1, l1, 1e-3);
  EXPECT_EQ(bench.session.all_scalars[0].samples, 2u);
  // The probe sees the same two.
  EXPECT_NEAR(*ProbeL1(bench.session.all_scalars[1]), 0.01 * 700 + 0.02 * 800, 1e-3);
}

// The model looks (QuadraticModel::Backward): a graph refers to the buffers of its batch.
TEST(TrainerTest, TheBatchOfAForwardIsLeftAloneUntilItsBackward) {
  Bench bench(
      3, {.accumulate = 2, .evaluate = Evaluate::kOnItsOwnToo, .eval_every = 1, .eval_rows = 2});
  bench.session.probe = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_GE(bench.model.batches_kept, 3 * 2 + 2 * 2) << "each round's passes, and the probes'";
}

// Minibatches data_step, data_step + 1, … of the ticket's share, each at the parameters that the one before
// has moved; the replica is back before anything is sent.
TEST(TrainerTest, LocalStepsGoThroughTheirMinibatchesAndLeaveTheReplica) {
  Bench bench(2, {.evaluate = Evaluate::kOff});
  bench.session.local_steps[0] = {.steps = 3};
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::vector<std::string> passes;
  for (const std::string& event : bench.events) {
    if (event.starts_with("forward") || event.starts_with("chunk") || event == "scalars")
      passes.push_back(event);
  }
  EXPECT_THAT(passes, ElementsAre("forward 3000", "forward 3010", "forward 3020", "chunk 2",
                                  "chunk 1", "chunk 0", "scalars", "forward 3010", "chunk 2",
                                  "chunk 1", "chunk 0", "scalars"));
  const std::vector<float>& x = bench.session.xs[0];
  std::vector<float> y = x;
  const Layout layout = TestLayout();
  double loss = 0;
  for (const int64_t input : {3000, 3010, 3020}) {
    const double target = static_cast<double>(input % 97) * 0.01;
    loss += QuadraticModel::Loss(y, target) / 3;
    for (uint64_t i = 0; i < kCoordinates; ++i) {
      const float length = LoopSession::kLocalEta * (i < 700 ? 1.0f : 2.0f);
      y[i] -= y[i] - static_cast<float>(target) > 0 ? length : -length;
    }
  }
  const BallotScalars& scalars = bench.session.all_scalars[0];
  EXPECT_NEAR(scalars.loss, loss, 1e-6);
  EXPECT_EQ(scalars.samples, 3u);
  EXPECT_EQ(scalars.local_steps, 3u);
  double means[2] = {};
  for (uint64_t i = 0; i < kCoordinates; ++i)
    means[i < 700 ? 0 : 1] += std::fabs(x[i] - y[i]) / (i < 700 ? 700 : 800);
  ASSERT_EQ(scalars.displacement_mean.size(), 2u);
  EXPECT_NEAR(scalars.displacement_mean[0], means[0], 1e-6);
  EXPECT_NEAR(scalars.displacement_mean[1], means[1], 1e-6);
  EXPECT_EQ(bench.rounds_seen.at(0).minibatches, 3u);
  EXPECT_EQ(bench.rounds_seen.at(1).minibatches, 1u);
  EXPECT_EQ(bench.rounds_seen.at(1).scalars.local_steps, 0u) << "an ordinary vote";
  EXPECT_EQ(bench.trainer.report().minibatches, 4u);
  EXPECT_EQ(bench.trainer.report().targets, 4u);
}

TEST(TrainerTest, ATrialOfLocalStepsGoesOnFromWhereItWasAndSendsNoBallot) {
  Bench bench(3, {.evaluate = Evaluate::kOff});
  bench.session.kinds = {{0, CommitKind::kNone}, {1, CommitKind::kRewind}};
  bench.session.local_steps[0] = {.steps = 2, .start = BallotStart::kX0};
  bench.session.local_steps[1] = {.steps = 2, .start = BallotStart::kContinue};
  bench.session.local_steps[2] = {.steps = 2};
  ASSERT_TRUE(bench.trainer.Run().ok());
  ASSERT_EQ(bench.session.all_scalars.size(), 3u);
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "chunk 0"), 1);
  for (const std::vector<float>& x : bench.session.xs) EXPECT_EQ(x, bench.session.xs[0]);
  // By then each coordinate has gone down two steps.
  const double target = static_cast<double>(3010 % 97) * 0.01;
  std::vector<float> y = bench.session.xs[0];
  for (const int64_t input : {3000, 3010}) {
    for (uint64_t i = 0; i < kCoordinates; ++i) {
      const float length = LoopSession::kLocalEta * (i < 700 ? 1.0f : 2.0f);
      y[i] -=
          y[i] - static_cast<float>(static_cast<double>(input % 97) * 0.01) > 0 ? length : -length;
    }
  }
  std::vector<float> further = y;
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const float length = LoopSession::kLocalEta * (i < 700 ? 1.0f : 2.0f);
    further[i] -= further[i] - static_cast<float>(target) > 0 ? length : -length;
  }
  EXPECT_NEAR(bench.session.all_scalars[1].loss,
              (QuadraticModel::Loss(y, target) +
               QuadraticModel::Loss(further, static_cast<double>(3020 % 97) * 0.01)) /
                  2,
              1e-6);
}

// Whoever saves the replica of a run that failed finds what the last commit made of it.
TEST(TrainerTest, AFailureAmongLocalStepsLeavesTheReplica) {
  Bench bench(3, {.evaluate = Evaluate::kOff});
  for (uint64_t round = 0; round < 3; ++round) bench.session.local_steps[round] = {.steps = 4};
  bench.data.fails_from = 3040;  // the last minibatch of the second round
  EXPECT_EQ(bench.trainer.Run().code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(bench.session.xs.size(), 1u);
  std::vector<float> x(kCoordinates), before = bench.session.xs[0];
  ASSERT_TRUE(bench.trainer.replica()->Read(0, x).ok());
  ASSERT_TRUE(HostReplicaMemory(std::span(before))
                  .ApplyStep(bench.trainer.report().run.layout, bench.session.gamma, 0,
                             kCoordinates, bench.session.verdict_.data())
                  .ok());
  EXPECT_EQ(x, before);
}

TEST(TrainerTest, ALossThatIsNotFiniteAmongLocalStepsAbstainsAndLeavesTheReplica) {
  Bench bench(1, {.evaluate = Evaluate::kOff});
  bench.session.local_steps[0] = {.steps = 4};
  bench.model.poisoned = 600;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.rounds_seen.at(0).abstained, AbstainReason::kNonFiniteGradient);
  EXPECT_EQ(bench.rounds_seen.at(0).minibatches, 1u);
  Bench other(1, {.evaluate = Evaluate::kOff});
  other.session.local_steps[0] = {.steps = 4};
  const std::vector<float> start = other.model.x();
  other.model.next_loss = std::numeric_limits<double>::infinity();
  ASSERT_TRUE(other.trainer.Run().ok());
  EXPECT_EQ(other.rounds_seen.at(0).abstained, AbstainReason::kNonFiniteLoss);
  EXPECT_EQ(other.session.xs.at(0), start);
}

TEST(TrainerTest, AfterAFetchedStateTheNextRoundIsAskedForAtOnce) {
  Bench bench(4);
  bench.session.probe = true;
  bench.session.fetched_instead = 1;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(std::count(bench.events.begin(), bench.events.end(), "wait"), 4);
  std::map<uint64_t, bool> probed;  // of the rounds whose commit came
  for (const RoundReport& round : bench.rounds_seen) {
    probed[round.round.value()] = round.probe_l1.has_value();
  }
  EXPECT_EQ(probed, (std::map<uint64_t, bool>{{0, false}, {2, false}, {3, true}}));
}

TEST(TrainerTest, RefusalsOfSessionAndDataEndTheRunWithTheirStatus) {
  Bench refused(1);
  refused.session.send_status = absl::UnavailableError("server gone");
  EXPECT_EQ(refused.trainer.Run(), absl::UnavailableError("server gone"));
  // The session refers to the trainer's ballot until then.
  EXPECT_EQ(refused.events.back(), "leave UNAVAILABLE: server gone");
  Bench empty(1);
  empty.data.status = absl::InvalidArgumentError("no such token");
  EXPECT_EQ(empty.trainer.Run(), absl::InvalidArgumentError("no such token"));
}

// Goal:   whoever ends the training, the replica can be kept, and is what the last commit made it.
TEST(TrainerTest, HoweverTheTrainingEndsTheReplicaIsHandedOverOnceWithItsRoundAndDigest) {
  for (const bool fails : {false, true}) {
    Bench bench(5);
    int finals = 0;
    bench.trainer.set_on_final_replica([&] {
      ++finals;
      bench.events.push_back("final");
    });
    bench.trainer.set_on_round([&](const RoundReport& round) {
      if (fails && round.round == Round(2)) bench.data.status = absl::DataLossError("cut");
    });
    EXPECT_EQ(bench.trainer.Run(), bench.data.status);
    EXPECT_EQ(finals, 1);
    const TrainerReport& report = bench.trainer.report();
    EXPECT_EQ(report.next_round, Round(fails ? 3 : 5));
    ASSERT_TRUE(report.digest.has_value());
    EXPECT_EQ(*report.digest, *bench.trainer.replica()->Digest());
    // After a failure nobody shall wait for this worker while its replica is written.
    if (fails) {
      EXPECT_EQ(bench.events.back(), "final");
    }
  }
}

TEST(TrainerTest, AReplicaThatIsNotTheRunsIsNotHandedOverAfterAFailure) {
  Bench bench(5);
  bench.session.too_late = true;
  bench.trainer.set_on_final_replica([] { FAIL() << "there is none"; });
  EXPECT_TRUE(bench.trainer.Run().ok());
  Bench refused(5);
  refused.session.stranger = true;
  refused.trainer.set_on_final_replica([] { FAIL() << "there is none"; });
  EXPECT_EQ(refused.trainer.Run().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(TrainerTest, TheReplicaIsHandedOverBeforeTheLastHeldOutLoss) {
  Bench bench(2, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 0});
  bench.trainer.set_on_final_replica([&] { bench.events.push_back("final"); });
  ASSERT_TRUE(bench.trainer.Run().ok());
  const auto final = std::find(bench.events.begin(), bench.events.end(), "final");
  ASSERT_NE(final, bench.events.end());
  EXPECT_EQ(std::count(final, bench.events.end(), "last held-out 0 1 2 3 4 5"), 1);
}

TEST(TrainerTest, WhatTheWholeOfTheDataHoldsEndsTheRunLongBeforeAMinibatchMeetsIt) {
  Bench foreign(200'000);  // the thread that reads has the lowest priority
  foreign.data.all = absl::InvalidArgumentError("token 300 at position 10^12");
  EXPECT_EQ(foreign.trainer.Run(), foreign.data.all);
  EXPECT_LT(foreign.trainer.report().rounds_voted, 200'000u);
}

TEST(TrainerTest, AFailedDeviceEndsTheRunWithItsStatus) {
  const absl::Status lost = absl::InternalError("cudaLaunchKernel: unspecified launch failure");
  Bench start(1);
  start.device.start_status = lost;
  EXPECT_EQ(start.trainer.Run(), lost);
  Bench finish(1);
  finish.device.queues = true;
  finish.device.finish_status = lost;
  EXPECT_EQ(finish.trainer.Run(), lost);
  EXPECT_EQ(std::count(finish.events.begin(), finish.events.end(), "scalars"), 0);
  EXPECT_THAT(finish.events.back(), HasSubstr("leave INTERNAL: cudaLaunchKernel"));
}

TEST(TrainerTest, ADrainEndsAfterTheRoundInProgress) {
  Bench bench(10);
  bench.trainer.set_on_round([&](const RoundReport&) { bench.session.RequestDrain("test"); });
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.events.back(), "leave drained");
  EXPECT_EQ(bench.trainer.report().rounds_voted, 1u);
}

TEST(TrainerTest, ADrainMayEndARoundWithoutACommit) {
  Bench bench(10);
  bench.session.drain_without_commit = true;
  const std::vector<float> before = bench.model.x();
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.events.back(), "leave drained");
  EXPECT_TRUE(bench.rounds_seen.empty());
  EXPECT_EQ(bench.trainer.report().next_round, Round(0));
  EXPECT_EQ(bench.model.x(), before);
}

TEST(TrainerTest, ADrainBeforeJoiningIsNoError) {
  Bench bench(10);
  bench.session.RequestDrain("test");
  EXPECT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("leave drained before it had joined"));
}

TEST(TrainerTest, ARunThatEndsBeforeTheReplicaCameLeavesNothingToSave) {
  Bench bench(0, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 1});
  bench.session.too_late = true;
  EXPECT_TRUE(bench.trainer.Run().ok());
  EXPECT_THAT(bench.events, ElementsAre("leave finished"));
  EXPECT_FALSE(bench.trainer.report().digest.has_value());
  EXPECT_FALSE(bench.trainer.report().held_out_first.has_value());
}

TEST(TrainerTest, AReplicaThatIsNotTheRunsIsNeitherHashedNorEvaluated) {
  Bench bench(2, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 1});
  bench.session.lost_at_the_end = true;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.trainer.report().rounds_voted, 2u);
  EXPECT_FALSE(bench.trainer.report().digest.has_value());
  EXPECT_FALSE(bench.trainer.report().held_out_last.has_value());
}

TEST(TrainerTest, TheReportNamesTheRoundOfItsDigestAlsoAfterCatchingUp) {
  Bench bench(2);
  bench.session.caught_up = 3;
  ASSERT_TRUE(bench.trainer.Run().ok());
  EXPECT_EQ(bench.trainer.report().next_round, Round(5));
}

// Goal:   the held-out loss is that of a whole replica, though it is measured over several rounds
//         that move it.
// Method: six held-out windows, an evaluation every four rounds: two windows a round, so that the
// third round knows.
TEST(TrainerTest, HeldOutLossIsMeasuredAtTheStartAtTheEndAndInBetween) {
  Bench bench(12, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 4});
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, uint64_t> known;  // of which replica after which round
  for (const RoundReport& round : bench.rounds_seen) {
    if (!round.held_out.has_value()) continue;
    known[round.round.value()] = round.held_out->round.value();
    const std::vector<float>& x = bench.session.xs[round.held_out->round.value()];
    EXPECT_NEAR(round.held_out->loss, MeanOf(LossesAt(x)), 1e-12) << round.round.value();
    EXPECT_TRUE(round.held_out_own);
  }
  EXPECT_EQ(known, (std::map<uint64_t, uint64_t>{{2, 0}, {6, 4}, {10, 8}}));
  const TrainerReport& report = bench.trainer.report();
  ASSERT_TRUE(report.held_out_first.has_value() && report.held_out_last.has_value());
  EXPECT_EQ(report.held_out_first->loss, bench.rounds_seen[2].held_out->loss);
  EXPECT_LT(report.held_out_last->loss, report.held_out_first->loss);
  const std::vector<float>& x = bench.model.x();
  EXPECT_EQ(report.digest, ReplicaDigest(x.data(), 0, x.size()));
}

TEST(TrainerTest, ASliceOfTheHeldOutLossComesAfterTheBallotAndBeforeTheWait) {
  Bench bench(2, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 8});
  ASSERT_TRUE(bench.trainer.Run().ok());
  const auto wait = std::find(bench.events.begin(), bench.events.end(), "wait");
  EXPECT_THAT(
      std::vector<std::string>(bench.events.begin(), wait),
      ElementsAre("forward 3000", "final 1100", "final 700", "chunk 2", "final 300", "chunk 1",
                  "final 0", "chunk 0", "backward ends", "scalars", "kept held-out 0"));
  // What is left of the first is measured when nobody waits any more.
  const std::vector<std::string> tail(bench.events.end() - 4, bench.events.end());
  EXPECT_THAT(tail, ElementsAre("wait", "kept held-out 2 3 4 5", "last held-out 0 1 2 3 4 5",
                                "leave finished"));
  EXPECT_LT(bench.trainer.report().held_out_last->loss,
            bench.trainer.report().held_out_first->loss);
}

TEST(TrainerTest, WithoutFurtherEvaluationsTheFirstGoesOnWindowByWindow) {
  Bench bench(8, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 0});
  ASSERT_TRUE(bench.trainer.Run().ok());
  for (const RoundReport& round : bench.rounds_seen)
    EXPECT_EQ(round.held_out.has_value(), round.round.value() == 5) << round.round.value();
  EXPECT_EQ(bench.trainer.report().held_out_first->loss, bench.rounds_seen[5].held_out->loss);
}

TEST(TrainerTest, AnEvaluationThatCatchingUpWentPastIsBegunAtTheNextCommit) {
  Bench bench(12, {.evaluate = Evaluate::kOnItsOwnToo, .eval_every = 4});
  bench.session.jump_before = 3;  // NextRound goes from round 3 to round 4
  ASSERT_TRUE(bench.trainer.Run().ok());
  std::map<uint64_t, uint64_t> known;
  for (const RoundReport& round : bench.rounds_seen) {
    if (round.held_out.has_value()) known[round.round.value()] = round.held_out->round.value();
  }
  EXPECT_EQ(known, (std::map<uint64_t, uint64_t>{{2, 0}, {7, 5}, {10, 8}}));
}

}  // namespace
}  // namespace signvote
