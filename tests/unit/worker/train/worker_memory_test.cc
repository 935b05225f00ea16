#include "worker/train/worker_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kD = 1'000'000;

RunInfo RunOf(bool probes, size_t planes) {
  RunInfo run;
  run.layout = *Layout::Make({{.name = "w", .shape = {kD}}});
  run.plan = ChunkPlan(kD, 512);
  run.ballot_plan = run.commit_plan = PayloadPlan(run.plan);
  run.probes = probes;
  for (size_t k = 0; k < planes; ++k) run.planes.push_back({.name = "m", .element_bytes = 4});
  return run;
}

// docs/models.md, "Memory": 24 d with the defaults, 16 d without the probe, 4 d less without evaluations.
TEST(WorkerMemory, FollowsTheTableOfThePage) {
  const uint64_t bits = 3 * BytesForBits(kD);
  const uint64_t model = TotalBytes(ModelMemory(kD));
  EXPECT_EQ(model, 8 * kD);
  EXPECT_EQ(model + TotalBytes(RunMemory(RunOf(true, 1), {.evaluates = true})), 24 * kD + bits);
  EXPECT_EQ(model + TotalBytes(RunMemory(RunOf(false, 1), {.evaluates = true})), 16 * kD + bits);
  EXPECT_EQ(model + TotalBytes(RunMemory(RunOf(false, 1), {})), 12 * kD + bits);
  EXPECT_EQ(model + TotalBytes(RunMemory(RunOf(false, 0), {.writes_copies = true})),
            12 * kD + bits);
  RunInfo with_x0 = RunOf(false, 0);
  with_x0.needs_x0 = true;
  EXPECT_EQ(TotalBytes(RunMemory(with_x0, {})), 4 * kD + bits);
  RunInfo local = RunOf(false, 0);
  local.local_steps_max = 16;
  EXPECT_EQ(TotalBytes(RunMemory(local, {})), 4 * kD + bits);
}

// docs/algorithms.md, "Directions": Adam's t is one number; what takes whole tensors has a plane more.
TEST(WorkerMemory, OfADirectionTheStateCountsAndWhatWaitsToBeSigned) {
  const uint64_t bits = 3 * BytesForBits(kD);
  RunInfo adam = RunOf(false, 3);
  adam.direction = *ParseDirection({.name = "adam"});
  adam.planes.push_back({.name = "t", .element_bytes = 8, .single = true});
  EXPECT_EQ(TotalBytes(RunMemory(adam, {})), 12 * kD + 8 + bits);
  RunInfo muon = RunOf(false, 1);
  muon.direction = *ParseDirection({.name = "muon", .state_dtype = "bf16"});
  muon.planes[0].element_bytes = 2;
  // One vector, of which Muon holds five copies for a while.
  EXPECT_EQ(TotalBytes(RunMemory(muon, {})), (6 + 5 * 4) * kD + bits);
  RunInfo feedback = RunOf(false, 1);
  feedback.direction = *ParseDirection({.name = "signsgd", .error_feedback = true});
  EXPECT_EQ(TotalBytes(RunMemory(feedback, {})), (8 + 4 * 4) * kD + bits);
  const std::string text =
      Describe(CheckRunMemory(feedback, {}, MemoryLimit{.bytes = 1, .source = "the machine"}));
  EXPECT_THAT(text, HasSubstr("what waits to be signed 4 MiB (4000000 bytes)"));
  EXPECT_THAT(text, HasSubstr("no --error-feedback at the server"));
  EXPECT_THAT(text, Not(HasSubstr("--direction signsgd")));
}

// Five copies of the largest matrix, and five squares of its shorter side.
TEST(WorkerMemory, OfMuonTheProductsOfTheLargestMatrixCount) {
  RunInfo muon = RunOf(false, 1);
  muon.direction = *ParseDirection({.name = "muon"});
  const auto products = [&muon](std::vector<TensorSpec> tensors) {
    muon.layout = *Layout::Make(std::move(tensors));
    for (const MemoryPart& part : RunMemory(muon, {}))
      if (part.what.find("arithmetic") != std::string::npos) return part.bytes;
    return uint64_t{0};
  };
  EXPECT_EQ(products({{.name = "w", .shape = {100, 300}}, {.name = "v", .shape = {50}}}),
            4 * (5 * 30000 + 5 * 10000));
  EXPECT_EQ(products({{.name = "w", .shape = {300, 10, 10}}}), 4 * (5 * 30000 + 5 * 10000));
  EXPECT_EQ(products({{.name = "w", .shape = {100, 300}, .treatment = TensorTreatment::kPlain}}),
            4 * 5 * 30000);
}

TEST(WorkerMemory, OfCountsTheVerdictsAreLargerAndOfDenseTensorsTheBallotToo) {
  RunInfo run = RunOf(false, 0);
  const PayloadRange all{.first = ChunkIndex(0), .chunks = run.plan.chunks()};
  PayloadRange counts = all, dense = all;
  counts.kind = PayloadKind::kCounts;
  dense.kind = PayloadKind::kFp32;
  run.commit_plan = *PayloadPlan::Make(run.plan, {counts}, 7);
  EXPECT_EQ(TotalBytes(RunMemory(run, {})),
            run.ballot_plan.TotalBytes() + 2 * run.commit_plan.TotalBytes());
  EXPECT_GE(run.commit_plan.TotalBytes(), 3 * BytesForBits(kD));
  run.ballot_plan = run.commit_plan = *PayloadPlan::Make(run.plan, {dense}, 7);
  EXPECT_EQ(TotalBytes(RunMemory(run, {})), (2 + 2) * 4 * kD);
}

TEST(WorkerMemory, WhatDoesNotFitIsToldByAllItsPartsWithTheFlagsThatHelp) {
  const RunInfo run = RunOf(true, 1);
  const WorkerMemoryNeeds needs{.evaluates = true, .writes_copies = true};
  const uint64_t needed = TotalBytes(RunMemory(run, needs));
  const MemoryLimit enough{.bytes = needed, .source = "the machine"};
  EXPECT_TRUE(CheckRunMemory(run, needs, enough).ok()) << "the model has its own already";
  EXPECT_TRUE(CheckRunMemory(run, needs, std::nullopt).ok());
  const absl::Status status =
      CheckRunMemory(run, needs, MemoryLimit{.bytes = needed - 1, .source = "the machine"});
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kNoMemory);
  const std::string text = Describe(status);
  EXPECT_THAT(text, Not(HasSubstr("\n")));
  for (const char* const words :
       {"a worker of this run, whose model has 1000000 coordinates, needs 28 MiB", "(the machine)",
        "parameters 4 MiB (4000000 bytes)", "gradients 4 MiB (4000000 bytes)",
        "the previous replica and its gradient, for the probe 8 MiB (8000000 bytes)",
        "the direction's state m 4 MiB (4000000 bytes)",
        "the replica that is evaluated 4 MiB (4000000 bytes)",
        "a copy that is written 4 MiB (4000000 bytes)", "ballot and verdicts 1 MiB (375000 bytes)",
        "a smaller --model", "--rule fixed at the server", "--direction signsgd at the server",
        "--eval off", "no --save-every"}) {
    EXPECT_THAT(text, HasSubstr(words));
  }
}

}  // namespace
}  // namespace signvote
