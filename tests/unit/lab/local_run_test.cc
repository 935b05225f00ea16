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
        LocalRunCase{"sos_2", "logistic", 2, {"--rule", "sos", "--max-rounds", "320"}}),
    [](const testing::TestParamInfo<LocalRunCase>& param) {
      return std::string(param.param.name);
    });

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
                      bool length_unknown, CellResult* result) {
  CellOptions options{.task = {.name = task}, .workers = 2, .length_unknown = length_unknown};
  absl::StatusOr<ServerFlags> read = ReadRunFlags(FileSystem::Posix(), flags, options.workers);
  if (!read.ok()) return read.status();
  options.server = *std::move(read);
  return RunCell({.fs = FileSystem::Posix(), .clock = Clock::System()}, options, nullptr, {},
                 result);
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
      std::vector<std::string> flags = {"--max-rounds", "320", "--eval-every", "0"};
      if (directions) flags.insert(flags.end(), {"--rule", "fixed", "--stepsize", "0.003"});
      for (const MethodFlag& flag : method.flags) {
        flags.push_back("--" + std::string(flag.name));
        if (flag.value != "true") flags.push_back(std::string(flag.value));
      }
      CellResult result;
      const absl::Status status = RunFlags("logistic", flags, method.length_unknown, &result);
      EXPECT_TRUE(status.ok()) << method.name << ": " << status;
      EXPECT_EQ(result.report.main_rounds, 320u) << method.name;
      ASSERT_TRUE(result.report.held_out_last.has_value()) << method.name;
      EXPECT_LT(result.report.held_out_last->loss, 0.7) << method.name;  // that of a coin: 0.693
    }
  }
}

TEST(LocalCellTest, OnlyLeverGoesOnWithoutTheLengthOfTheRun) {
  CellResult result;
  const absl::Status status =
      RunFlags("logistic", {"--max-rounds", "40", "--rule", "alias"}, true, &result);
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
}

}  // namespace
}  // namespace signvote::lab
