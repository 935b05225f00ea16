// Goal:   what a sweep has written is what it goes on from, whatever was cut short; and no other file is
//         touched.
#include "lab/sweep/results.h"

#include <cmath>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "common/status.h"
#include "lab/sweep/inputs.h"
#include "lab/sweep/plan.h"
#include "tests/support/temp_dir.h"

namespace signvote::lab {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBytesMax = 1 << 20;

std::string Read(const std::string& path) {
  const auto text = FileSystem::Posix()->ReadFile(path, kBytesMax);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

void Write(const std::string& path, const std::string& text) {
  const absl::Status status = WriteFileAtomically(FileSystem::Posix(), path, text, 0644);
  EXPECT_TRUE(status.ok()) << status;
}

SweepSpec Spec(const std::string& more = "") {
  auto spec = ParseSweep("tasks = [\"mlp\"]\nrules = [\"alias\"]\n[run]\nmax-rounds = 5\n" + more,
                         "a.toml");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *std::move(spec);
}

std::string LineOf(const SweepSpec& spec, const SweepCell& cell) {
  LocalReport report;
  report.held_out_last = HeldOutLoss{.loss = 1.25};
  return ResultsLine(spec, cell, report, 0.5f, CellOutcome::kFinished);
}

TEST(ResultsTest, ARunThatDivergedOrFoundNoStepsizeIsAResultAndNoOtherFailureIs) {
  const auto diverged = WithExitCode(absl::AbortedError("no finite loss"), ExitCode::kDiverged);
  const auto given_up = absl::FailedPreconditionError("no stepsize");
  const HeldOutLoss good{.loss = 1.25}, bad{.loss = std::nan("")};
  EXPECT_EQ(OutcomeOf(absl::OkStatus(), absl::OkStatus(), good), CellOutcome::kFinished);
  EXPECT_EQ(OutcomeOf(absl::OkStatus(), absl::OkStatus(), bad), CellOutcome::kDiverged);
  EXPECT_EQ(OutcomeOf(diverged, diverged, std::nullopt), CellOutcome::kDiverged);
  EXPECT_EQ(OutcomeOf(given_up, given_up, std::nullopt), CellOutcome::kNoStepsize);
  // Not of the run: a file that is not there, a fault of ours.
  EXPECT_EQ(OutcomeOf(given_up, absl::OkStatus(), std::nullopt), std::nullopt);
  EXPECT_EQ(OutcomeOf(absl::InternalError("x"), absl::InternalError("x"), std::nullopt),
            std::nullopt);
}

TEST(ResultsTest, LossesAreReadBackAndALineThatWasCutShortIsPassedOver) {
  const SweepSpec spec = Spec();
  const SweepCell cell = CellOf(spec, 0, 1, 0), other = CellOf(spec, 0, 2, 0);
  LocalReport report;
  report.held_out_last = HeldOutLoss{.loss = 1.25};
  const std::string good = ResultsLine(spec, cell, report, 0.5f, CellOutcome::kFinished);
  const std::string bad = ResultsLine(spec, other, report, 0.5f, CellOutcome::kDiverged);
  const std::string text = ResultsHead() + "\n" + good + "\n" + bad + "\n";
  for (const std::string& cut : {std::string(), good.substr(0, good.size() / 2)}) {
    const auto losses = ReadLosses(text + cut, "results.csv");
    ASSERT_TRUE(losses.ok()) << losses.status();
    EXPECT_EQ(losses->size(), 2u);
    EXPECT_EQ(losses->at(cell.id), 1.25);
    EXPECT_TRUE(std::isinf(losses->at(other.id)));
  }
  EXPECT_FALSE(ReadLosses("a,b\n" + text, "results.csv").ok());
  EXPECT_FALSE(ReadLosses(text + "a,b\n", "results.csv").ok());
}

TEST(ResultsFileTest, WhatWasCutShortIsMadeWholeAndGoneOnFrom) {
  const SweepSpec spec = Spec();
  const SweepCell cell = CellOf(spec, 0, 1, 0), other = CellOf(spec, 0, 2, 0);
  const std::string head = ResultsHead() + "\n", line = LineOf(spec, cell);
  struct Case {
    std::string before, after;
    size_t losses;
  };
  for (const Case& c : {Case{"", head, 0}, Case{"task,dir", head, 0}, Case{ResultsHead(), head, 0},
                        Case{head, head, 0}, Case{head + line, head, 0},
                        Case{head + line + "\nmlp,si", head + line + "\n", 1}}) {
    const TempDir dir;
    const std::string path = dir / "results.csv";
    Write(path, c.before);
    auto file = ResultsFile::Open(FileSystem::Posix(), path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->losses().size(), c.losses) << c.before;
    EXPECT_EQ(Read(path), c.after);
    ASSERT_TRUE((*file)->Append(LineOf(spec, other)).ok());
    EXPECT_EQ(Read(path), c.after + LineOf(spec, other) + "\n");
  }
}

TEST(ResultsFileTest, AFileOfSomethingElseIsRefusedAndLeftAsItIs) {
  for (const std::string& text :
       {std::string("my precious data"), std::string("a,b\n1,2\n"), ResultsHead() + ",more",
        std::string("\n"), std::string("task;")}) {
    const TempDir dir;
    const std::string path = dir / "results.csv";
    Write(path, text);
    const auto file = ResultsFile::Open(FileSystem::Posix(), path);
    ASSERT_FALSE(file.ok()) << text;
    EXPECT_EQ(ExitCodeFor(file.status()), ExitCode::kBadInput);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("line 1 is none of results.csv"));
    EXPECT_EQ(Read(path), text);
  }
}

TEST(CellsCsvTest, NamesEveryRunByItsIdAsResultsDo) {
  const SweepSpec spec = Spec();
  const SweepCell cell = CellOf(spec, 0, 1, 0);
  EXPECT_EQ(CellsCsv(spec, {cell}),
            "id,task,direction,rule,aggregate,local_steps,n,stepsize,seed,tuned\n" + cell.id +
                ",mlp,signum,alias,vote,1,4,,1,0\n");
}

TEST(InputsTest, RunsOfOtherContentsOrOfAnotherProgramHaveOtherIds) {
  const TempDir dir;
  const std::string data = dir / "d.txt", init = dir / "m.safetensors";
  const auto id = [&] {
    SweepSpec spec = Spec("[task.mlp]\ndata = \"" + data + "\"\ninit = \"" + init + "\"\n");
    const absl::Status named = NameInputs(FileSystem::Posix(), &spec);
    EXPECT_TRUE(named.ok()) << named;
    EXPECT_EQ(spec.program, *ProgramMark(FileSystem::Posix()));
    return CellOf(spec, 0, 1, 0).id;
  };
  Write(data, "old");
  Write(init, "x0");
  const std::string first = id();
  EXPECT_EQ(id(), first);
  Write(data, "new");
  const std::string second = id();
  EXPECT_NE(second, first);
  Write(init, "x1");
  EXPECT_NE(id(), second);

  SweepSpec spec = Spec();
  const std::string unnamed = CellOf(spec, 0, 1, 0).id;
  ASSERT_TRUE(NameInputs(FileSystem::Posix(), &spec).ok());
  EXPECT_NE(CellOf(spec, 0, 1, 0).id, unnamed);
}

TEST(InputsTest, AFoldersMarkIsOfItsFilesAndTheirNamesAndAnIndexsOfItsShards) {
  FileSystem* const fs = FileSystem::Posix();
  const TempDir dir;
  ASSERT_TRUE(fs->MakeDirectories(dir / "a/b", 0755).ok());
  Write(dir / "a/b/1", "one");
  const std::string before = *ContentsMark(fs, dir / "a");
  Write(dir / "a/b/2", "");
  const std::string more = *ContentsMark(fs, dir / "a");
  EXPECT_NE(more, before);
  ASSERT_TRUE(fs->Remove(dir / "a/b/2").ok());
  Write(dir / "a/b/3", "");
  EXPECT_NE(*ContentsMark(fs, dir / "a"), more);

  const std::string index = dir / "m.safetensors.index.json";
  Write(index, "{}");
  Write(dir / "m-1.safetensors", "x");
  const std::string whole = *ContentsMark(fs, index);
  Write(dir / "m-1.safetensors", "y");
  EXPECT_NE(*ContentsMark(fs, index), whole);
  EXPECT_TRUE(absl::IsNotFound(ContentsMark(fs, dir / "none").status()));
}

}  // namespace
}  // namespace signvote::lab
