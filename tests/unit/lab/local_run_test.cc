// Goal:   a run in one process is the run that a server and as many workers compute, bit for bit, whatever
//         the direction and the rule.
// Method: the same task and flags through LocalServer and VirtualWorkers, and through a real server with
//         gRPC and a Trainer per thread; parameters, losses, stepsizes and kinds of commits are compared
//         exactly.
#include "tests/unit/lab/local_run.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "lab/cell.h"
#include "lab/local/virtual_workers.h"
#include "lab/sweep/methods.h"
#include "proto/wire/wire.h"

namespace signvote::lab {
namespace {

using testing::Contains;
using testing::HasSubstr;

class LocalRunTest : public testing::TestWithParam<LocalRunCase> {};

TEST_P(LocalRunTest, EndsInTheBitsOfTheSameRunOverGrpc) { ExpectSameBits(GetParam(), {}); }

// Each direction and each rule at least once, with one worker and with several.
INSTANTIATE_TEST_SUITE_P(
    Runs, LocalRunTest,
    testing::Values(
        LocalRunCase{
            "fixed_signsgd_1", "logistic", 1, {"--rule", "fixed", "--direction", "signsgd"}},
        LocalRunCase{
            "cosine_clip_3",
            "mlp",
            3,
            {"--rule", "fixed", "--stepsize", "0.01", "--schedule", "cosine", "--clip", "norm"}},
        LocalRunCase{"alias2_signum_4", "logistic", 4, {"--rule", "alias"}},
        LocalRunCase{"alias1_lion_1",
                     "mlp",
                     1,
                     {"--rule", "alias", "--alias-option", "I", "--direction", "lion"}},
        LocalRunCase{"previous_nesterov_3",
                     "mlp",
                     3,
                     {"--rule", "alias", "--alias-probe", "previous", "--direction", "nesterov"}},
        LocalRunCase{
            "directional_turns_3",
            "logistic",
            3,
            {"--rule", "alias", "--alias-probe", "directional", "--alias-probe-every", "2"}},
        LocalRunCase{"extrema_2", "logistic", 2, {"--rule", "alias", "--alias-probe", "extrema"}},
        LocalRunCase{
            "prodigy_stosign_3", "mlp", 3, {"--rule", "prodigy", "--direction", "stosign"}},
        LocalRunCase{
            "mechanic_adam_2", "logistic", 2, {"--rule", "mechanic", "--direction", "adam"}},
        LocalRunCase{"sgd_tensors_2",
                     "mlp",
                     2,
                     {"--rule", "fixed", "--direction", "sgd", "--noise", "tensor",
                      "--tensor-scale", "*.weight=fan-in", "--tensor-treatment", "*.bias=sparse"}},
        LocalRunCase{"lever_race_2",
                     "logistic",
                     2,
                     {"--rule", "lever", "--lever-race", "on", "--max-rounds", "320"}},
        LocalRunCase{"lever_lite_1", "mlp", 1, {"--rule", "lever", "--lever-form", "lite"}},
        LocalRunCase{"sos_2", "logistic", 2, {"--rule", "sos", "--max-rounds", "320"}},
        LocalRunCase{"accumulate_2", "mlp", 2, {"--rule", "alias", "--max-rounds", "20"}, 3},
        LocalRunCase{"many_16", "logistic", 16, {"--rule", "alias", "--max-rounds", "20"}},
        LocalRunCase{"bf16_state_2",
                     "mlp",
                     2,
                     {"--rule", "alias", "--state-dtype", "bf16", "--max-rounds", "30"}},
        LocalRunCase{"small_chunks_3",
                     "mlp",
                     3,
                     {"--rule", "alias", "--chunk-coordinates", "512", "--max-rounds", "30"}}),
    [](const testing::TestParamInfo<LocalRunCase>& param) {
      return std::string(param.param.name);
    });

// Several virtual workers take their steps on one model, one after the other.
INSTANTIATE_TEST_SUITE_P(
    LocalSteps, LocalRunTest,
    testing::Values(LocalRunCase{"local_lion_3",
                                 "mlp",
                                 3,
                                 {"--rule", "fixed", "--stepsize", "0.002", "--direction", "lion",
                                  "--local-steps", "4", "--max-rounds", "20"}},
                    LocalRunCase{"local_schedule_verdict_2",
                                 "mlp",
                                 2,
                                 {"--rule", "fixed", "--stepsize", "0.002", "--local-steps",
                                  "2,6@50", "--aggregate", "vote", "--max-rounds", "20"}},
                    LocalRunCase{"local_accumulate_1",
                                 "logistic",
                                 1,
                                 {"--rule", "fixed", "--direction", "signsgd", "--local-steps", "3",
                                  "--max-rounds", "12"},
                                 2},
                    LocalRunCase{"local_adam_dense_3",
                                 "mlp",
                                 3,
                                 {"--rule",
                                  "fixed",
                                  "--stepsize",
                                  "0.002",
                                  "--direction",
                                  "adam",
                                  "--noise",
                                  "off",
                                  "--local-steps",
                                  "4",
                                  "--dense",
                                  "*",
                                  "--dense-optimizer",
                                  "sgd",
                                  "--dense-momentum",
                                  "0.9",
                                  "--dense-nesterov",
                                  "--dense-stepsize",
                                  "0.7",
                                  "--max-rounds",
                                  "20"}},
                    LocalRunCase{"local_dense_beside_votes_1",
                                 "mlp",
                                 1,
                                 {"--rule", "fixed", "--stepsize", "0.002", "--direction", "lion",
                                  "--local-steps", "4", "--dense", "*.bias", "--dense-optimizer",
                                  "sgd", "--dense-wire", "bf16", "--max-rounds", "20"}},
                    LocalRunCase{"local_race_3",
                                 "logistic",
                                 3,
                                 {"--rule", "lever", "--lever-race", "on", "--local-steps", "8",
                                  "--max-rounds", "80"}}),
    [](const testing::TestParamInfo<LocalRunCase>& param) {
      return std::string(param.param.name);
    });

// What is told back to workers is more than a bit, or no vote at all.
INSTANTIATE_TEST_SUITE_P(
    Aggregates, LocalRunTest,
    testing::Values(
        LocalRunCase{"average_1",
                     "mlp",
                     1,
                     {"--rule", "fixed", "--aggregate", "average", "--max-rounds", "30"}},
        LocalRunCase{"average_3",
                     "mlp",
                     3,
                     {"--rule", "alias", "--aggregate", "average", "--max-rounds", "30"}},
        LocalRunCase{"average_stosign_4",
                     "logistic",
                     4,
                     {"--rule", "fixed", "--aggregate", "average", "--direction", "stosign"}},
        LocalRunCase{"average_race_3",
                     "logistic",
                     3,
                     {"--rule", "lever", "--lever-race", "on", "--aggregate", "average",
                      "--max-rounds", "320"}},
        LocalRunCase{
            "dense_f32_3",
            "mlp",
            3,
            {"--rule", "fixed", "--dense", "*.bias", "--dense-wire", "f32", "--max-rounds", "30"}},
        LocalRunCase{"dense_bf16_adamw_2",
                     "mlp",
                     2,
                     {"--rule", "fixed", "--dense", "*.weight", "--dense-wire", "bf16",
                      "--dense-optimizer", "adamw", "--max-rounds", "30"}},
        LocalRunCase{
            "dense_race_2",
            "logistic",
            2,
            {"--rule", "lever", "--lever-race", "on", "--dense", "*.bias", "--max-rounds", "320"}}),
    [](const testing::TestParamInfo<LocalRunCase>& param) {
      return std::string(param.param.name);
    });

TEST(LocalBytesTest, AChunksMessageIsAsLongAsOnTheWire) {
  const RunId run_id = RunId::FromRandom(1, 2);
  for (const uint64_t payload : {1u, 17u, 127u, 128u, 866u, 20'000u}) {
    const std::vector<uint8_t> bits(payload, 0xa5);
    for (const uint64_t round : {0u, 1u, 127u, 128u, 70'000u}) {
      for (const uint32_t chunk : {0u, 1u, 300u}) {
        for (const wire::BulkKind kind :
             {wire::BulkKind::kBallotChunk, wire::BulkKind::kVerdictChunk}) {
          const auto message = wire::EncodeVote(kind,
                                                {.run_id = run_id,
                                                 .epoch = Epoch(1),
                                                 .round = Round(round),
                                                 .attempt = Attempt(0),
                                                 .chunk = ChunkIndex(chunk),
                                                 .checksum = 7},
                                                bits, nullptr);
          EXPECT_EQ(ChunkMessageBytes(
                        {run_id, Epoch(1), Round(round), Attempt(0), ChunkIndex(chunk)}, payload),
                    message.Length())
              << payload << ", " << round << ", " << chunk;
        }
      }
    }
  }
}

TEST(LocalBytesTest, ARunsFiguresHaveWholeMessagesOfEachChunk) {
  constexpr uint64_t kPayload = 17, kRounds = 60;  // of 130 coordinates
  const LocalRunOutcome run =
      RunLocally("logistic", OptionsOf({"bytes", "logistic", 2, {"--rule", "fixed"}}), {});
  const uint64_t least = ChunkMessageBytes(
      {RunId::FromRandom(1, 2), Epoch(1), Round(1), Attempt(0), ChunkIndex(0)}, kPayload);
  EXPECT_GE(least, kPayload + 30);
  EXPECT_GE(run.bytes_up, 2 * kRounds * least);
  // Ballots travel with the losses that a round wants, verdicts with its opening and its commit.
  EXPECT_LE(run.bytes_up, 2 * kRounds * (least + 100));
  EXPECT_GE(run.bytes_down, 2 * kRounds * least);
  EXPECT_LE(run.bytes_down, 2 * kRounds * (least + 200));
}

TEST(LocalRaceTest, RewindsRescalesAndLetsGoOfTheStart) {
  const LocalRunOutcome run =
      RunLocally("logistic",
                 OptionsOf({"lever",
                            "logistic",
                            3,
                            {"--rule", "lever", "--lever-race", "on", "--max-rounds", "400"}}),
                 {});
  // Main rounds, and those of the race: a quarter at most.
  EXPECT_GT(run.kinds.size(), 400u);
  EXPECT_LE(run.kinds.size(), 500u);
  EXPECT_THAT(run.kinds, Contains(CommitKind::kRewind));
  EXPECT_LT(run.held_out_last, 0.8 * run.held_out_first);
}

TEST(LocalRunLearnsTest, TheHeldOutLossFallsForOneWorkerAndForFour) {
  for (const uint32_t workers : {1u, 4u}) {
    for (const char* task : {"logistic", "mlp"}) {
      const LocalRunOutcome run = RunLocally(
          task, OptionsOf({task, task, workers, {"--rule", "alias", "--max-rounds", "300"}}), {});
      EXPECT_LT(run.held_out_last, 0.8 * run.held_out_first) << task << ", " << workers;
    }
  }
}

// As signvote lab sweep makes them.
absl::Status RunFlags(const std::string& task, const std::vector<std::string>& flags,
                      CellResult* result) {
  CellOptions options{.task = {.name = task}, .workers = 2};
  absl::StatusOr<ServerFlags> read = ReadRunFlags(FileSystem::Posix(), flags, options.workers);
  if (!read.ok()) return read.status();
  options.server = *std::move(read);
  return RunCell({.fs = FileSystem::Posix(), .clock = Clock::System()}, options, nullptr, {},
                 result);
}

TEST(LocalCellTest, WithLocalStepsTheStepsizeOfARoundIsThatOfItsFirstMinibatch) {
  CellOptions options{.task = {.name = "logistic"}, .workers = 2};
  const std::vector<std::string> flags = {"--rule",       "fixed",  "--stepsize",    "0.5",
                                          "--schedule",   "linear", "--local-steps", "5",
                                          "--max-rounds", "10",     "--eval-every",  "0"};
  absl::StatusOr<ServerFlags> read = ReadRunFlags(FileSystem::Posix(), flags, options.workers);
  ASSERT_TRUE(read.ok()) << read.status();
  options.server = *std::move(read);
  std::vector<float> stepsizes;
  CellResult result;
  const absl::Status status = RunCell(
      {.fs = FileSystem::Posix(), .clock = Clock::System()}, options,
      [&](const LocalRound& round) { stepsizes.push_back(round.stepsize); }, {}, &result);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(stepsizes.size(), 10u);
  for (size_t r = 0; r < stepsizes.size(); ++r)
    EXPECT_FLOAT_EQ(stepsizes[r], 0.5f * (1 - static_cast<float>(r) / 10)) << r;
}

TEST(LocalCellTest, AWorkerTakesAllItsLocalStepsWhateverTheMachinesClockSays) {
  for (const char* rule : {"fixed", "lever"}) {
    CellResult result;
    const absl::Status status = RunFlags(
        "logistic",
        {"--rule", rule, "--local-steps", "8", "--max-rounds", "40", "--eval-every", "0"}, &result);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(result.report.minibatches, 2u * 8 * 40) << rule;
  }
}

// Muon and error feedback need LibTorch.
bool NeedsTorch(const Method& method) {
  return std::any_of(method.flags.begin(), method.flags.end(), [](const MethodFlag& flag) {
    return flag.value == "muon" || flag.name == "error-feedback";
  });
}

TEST(LocalCellTest, EveryNamedMethodTrains) {
  for (const bool directions : {true, false}) {
    for (const Method& method : directions ? NamedDirections() : NamedRules()) {
      if (NeedsTorch(method)) continue;
      std::vector<std::string> flags = {"--max-rounds", "320", "--eval-every", "320"};
      if (directions) flags.insert(flags.end(), {"--rule", "fixed", "--stepsize", "0.003"});
      for (const MethodFlag& flag : method.flags) {
        flags.push_back("--" + std::string(flag.name));
        if (flag.value != "true") flags.push_back(std::string(flag.value));
        if (flag.name == "dense-stepsize") flags.insert(flags.end(), {"--local-steps", "4"});
      }
      CellResult result;
      const absl::Status status = RunFlags("logistic", flags, &result);
      EXPECT_TRUE(status.ok()) << method.name << ": " << status;
      EXPECT_EQ(result.report.main_rounds, 320u) << method.name;
      ASSERT_TRUE(result.report.held_out_first.has_value()) << method.name;
      ASSERT_TRUE(result.report.held_out_last.has_value()) << method.name;
      EXPECT_EQ(result.report.held_out_first->round, Round(0)) << method.name;
      // Slow here: noise of length 1, whatever the gradients'; Option I between minibatches, whose noise
      // it takes for curvature; and dense updates that are small by themselves, for this stepsize is one
      // of signs, and with four of them a round it overshoots. What does not move at all has the loss
      // it began with.
      constexpr std::string_view kSlow[] = {"diloco-lion", "stosign-no-envelope", "alias1-previous",
                                            "alias-adam", "plain-sgd"};
      const bool slow =
          std::find(std::begin(kSlow), std::end(kSlow), method.name) != std::end(kSlow);
      EXPECT_LT(result.report.held_out_last->loss,
                (slow ? 1 : 0.95) * result.report.held_out_first->loss)
          << method.name;
    }
  }
}

TEST(LocalCellTest, FlagsOfAServerOfItsOwnAreRefused) {
  for (const char* flag :
       {"--listen", "--http", "--wait-timeout", "--upload-timeout", "--session-buffer-bytes",
        "--catch-up-bytes", "--linger", "--test-applier-delay-ms", "--test-applier-delayed"}) {
    for (const std::string& end : {"", "=10"}) {
      const auto read =
          ReadRunFlags(FileSystem::Posix(), {"--max-rounds", "3", flag + end, "10"}, 1);
      EXPECT_TRUE(absl::IsInvalidArgument(read.status())) << flag;
      EXPECT_THAT(std::string(read.status().message()),
                  HasSubstr(std::string(flag) + " is for a server of its own"));
    }
  }
}

TEST(LocalCellTest, TakesAsManyWorkersAsAVoteCounts) {
  const auto places = [](uint32_t workers, const std::vector<std::string>& more) {
    std::vector<std::string> flags = {"--max-rounds", "3", "--rule", "fixed"};
    flags.insert(flags.end(), more.begin(), more.end());
    const auto read = ReadRunFlags(FileSystem::Posix(), flags, workers);
    return read.ok() ? absl::StatusOr<uint32_t>(read->run.model.sizes.workers_max) : read.status();
  };
  EXPECT_EQ(places(1, {}).value_or(0), 64u);
  EXPECT_EQ(places(65, {}).value_or(0), 65u);
  EXPECT_EQ(places(kLocalWorkersMax, {}).value_or(0), kLocalWorkersMax);
  EXPECT_EQ(places(2, {"--workers-max", "100"}).value_or(0), 100u);
  EXPECT_THAT(std::string(places(kLocalWorkersMax + 1, {}).status().message()),
              HasSubstr("1024 workers are more than the 1023 that a run takes"));
  EXPECT_THAT(std::string(places(100, {"--workers-max=65"}).status().message()),
              HasSubstr("--workers-max 65"));

  const LocalRunOutcome run =
      RunLocally("logistic",
                 OptionsOf({"many", "logistic", 65, {"--rule", "fixed", "--max-rounds", "3"}}), {});
  EXPECT_EQ(run.kinds.size(), 3u);
}

TEST(LocalCellTest, OnlyLeverGoesOnWithoutTheLengthOfTheRun) {
  CellResult result;
  const absl::Status status =
      RunFlags("logistic", {"--max-rounds", "40", "--rule", "alias", "--length-unknown"}, &result);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--length-unknown belongs to --rule lever"));
}

// Gives up at its third decision.
class GivesUpRule final : public StepsizeRule {
 public:
  std::string_view name() const override { return "gives up"; }
  bool probes() const override { return false; }
  bool needs_x0() const override { return false; }
  std::vector<ScalarKind> Wanted(const RoundAhead&) const override { return {}; }
  StepsizeDecision Decide(const RuleInput&) override {
    ++decisions_;
    return {.kind = CommitKind::kStep, .gamma = 1e-3f};
  }
  absl::Status failure() const override {
    return decisions_ < 3 ? absl::OkStatus() : absl::FailedPreconditionError("nothing helps");
  }
  std::string Save() const override { return ""; }
  absl::Status Restore(std::string_view) override { return absl::OkStatus(); }

 private:
  int decisions_ = 0;
};

TEST(LocalRunEndsTest, ARuleThatFindsNoStepsizeEndsTheRunWithItsOwnWords) {
  Task task = MustMakeTask("logistic", {});
  auto server = LocalServer::Create({.run = OptionsOf({"gives_up", "logistic", 2, {}}),
                                     .run_id = RunId::FromRandom(1, 2),
                                     .rule = std::make_unique<GivesUpRule>()});
  ASSERT_TRUE(server.ok()) << server.status();
  VirtualWorkers workers(server->get(), task.model.get(), task.data.get(), Clock::System(),
                         {.workers = 2});
  const absl::Status status = workers.Run({});
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("nothing helps"));
  EXPECT_EQ(workers.report().rounds, 3u);
}

TEST(LocalRunEndsTest, WhenNoWorkerHasAFiniteLossTheRunEndsAsDiverged) {
  Task task = MustMakeTask("mlp", {});
  const run::RunOptions options = OptionsOf(
      {"diverges", "mlp", 2, {"--rule", "fixed", "--stepsize", "1e30", "--nonfinite-rounds", "3"}});
  auto server = LocalServer::Create({.run = options, .run_id = RunId::FromRandom(1, 2)});
  ASSERT_TRUE(server.ok()) << server.status();
  VirtualWorkers workers(server->get(), task.model.get(), task.data.get(), Clock::System(),
                         {.workers = 2});
  const absl::Status status = workers.Run({});
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kDiverged) << status;
}

TEST(LocalRunEndsTest, AStopEndsTheRunBehindTheRoundInProgress) {
  Task task = MustMakeTask("logistic", {});
  auto server =
      LocalServer::Create({.run = OptionsOf({"stops", "logistic", 2, {"--rule", "fixed"}}),
                           .run_id = RunId::FromRandom(1, 2)});
  ASSERT_TRUE(server.ok()) << server.status();
  VirtualWorkers workers(server->get(), task.model.get(), task.data.get(), Clock::System(),
                         {.workers = 2});
  std::stop_source stop;
  workers.set_on_round([&](const LocalRound& round) {
    if (round.round == Round(4)) stop.request_stop();
  });
  const absl::Status status = workers.Run(stop.get_token());
  EXPECT_TRUE(status.ok()) << status;
  // The round that was open by then was the last.
  EXPECT_GE(workers.report().rounds, 5u);
  EXPECT_LE(workers.report().rounds, 6u);
  EXPECT_TRUE(workers.report().stopped);
}

}  // namespace
}  // namespace signvote::lab
