#include "worker/train/report.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "worker/train/progress.h"

namespace signvote {
namespace {

using Json = nlohmann::json;

TEST(ReportTest, TheReportHoldsWhatWasMeasuredAndNullForWhatWasNot) {
  ReportContext context;
  context.name = "w0";
  context.coordinates = 1000;
  context.outcome = "finished";
  TrainerReport report;
  report.rounds_voted = 8;
  report.rounds_overlapped = 6;
  report.targets = 4096;
  report.seconds = 2;
  report.loss_first = 5.5;
  report.held_out_last = {.round = Round(10),
                          .loss = 2,
                          .error = 0.25,
                          .perplexity = std::numeric_limits<double>::infinity(),
                          .windows = 0xdef};
  report.digest = 0xabc;
  report.next_round = Round(10);
  report.main_rounds = 7;
  SessionStats stats;
  stats.rounds_voted = 8;
  stats.rounds_received = 10;
  stats.rounds_applied = 50;  // the others while catching up
  stats.wire_sent_bytes = 8 * 130;
  stats.wire_received_bytes = 10 * 140;
  const Json json = Json::parse(ReportJson(context, report, stats));
  EXPECT_EQ(json["outcome"], "finished");
  EXPECT_EQ(json["next_round"], 10);
  EXPECT_EQ(json["main_rounds"], 7);
  EXPECT_EQ(json["loss"]["first"], 5.5);
  EXPECT_TRUE(json["loss"]["last"].is_null());
  EXPECT_TRUE(json["held_out"]["first"].is_null());
  EXPECT_EQ(json["held_out"]["last"], Json({{"loss", 2},
                                            {"error", 0.25},
                                            {"perplexity", nullptr},  // JSON knows no infinity
                                            {"round", 10},
                                            {"windows", "0000000000000def"}}));
  EXPECT_EQ(json["wire"]["sent_bytes_per_round"], 130);
  EXPECT_EQ(json["wire"]["received_bytes_per_round"], 140);
  EXPECT_EQ(json["wire"]["fp32_bytes_per_round"], 4000);
  EXPECT_EQ(json["wire"]["fp32_bytes"], 18 * 4000);
  EXPECT_EQ(json["digest"], "0000000000000abc");
  EXPECT_EQ(json["first_chunk_overlap_ratio"], 0.75);
  EXPECT_EQ(json["targets_per_second"], 2048);
}

TEST(ReportTest, APathThatIsNoUtf8CostsNothingButItsLetters) {
  ReportContext context;
  context.model = "/models/\xff\xfe.json";
  context.data = "/data/\xe4pfel";
  context.outcome = "DATA_LOSS: /data/\xe4pfel: was cut";
  const Json json = Json::parse(ReportJson(context, {}, {}));
  EXPECT_EQ(json["data"], "/data/\xef\xbf\xbdpfel");
}

TEST(ReportTest, ARoundIsOneLineFromWhichTheStepsizeCanBeRecomputed) {
  RoundReport round;
  round.round = Round(4);
  round.scalars.loss = 2.5;
  round.scalars.g_l1 = 3.25;
  round.probe_l1 = 0.1 + 0.2;
  round.stepsize = 1e-3f;
  round.run_loss = std::numeric_limits<double>::quiet_NaN();
  const std::string line = RoundLogLine(round);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Json json = Json::parse(line);
  EXPECT_EQ(json["probe_l1"].get<double>(), 0.1 + 0.2);  // every bit survives
  EXPECT_EQ(static_cast<float>(json["stepsize"].get<double>()), 1e-3f);
  EXPECT_TRUE(json["prev_inner"].is_null());
  EXPECT_TRUE(json["run_loss"].is_null());
  EXPECT_TRUE(json["abstained"].is_null());
  EXPECT_TRUE(json["held_out"].is_null());
  round.held_out = {.round = Round(2), .loss = 2.75, .error = 0.5, .windows = 7};
  for (const bool own : {false, true}) {
    round.held_out_own = own;
    EXPECT_EQ(Json::parse(RoundLogLine(round))["held_out"],
              Json({{"loss", 2.75},
                    {"error", 0.5},
                    {"perplexity", nullptr},  // of samples
                    {"round", 2},
                    {"windows", "0000000000000007"},
                    {"own", own}}));
  }
  round.abstained = AbstainReason::kNonFiniteLoss;
  EXPECT_EQ(Json::parse(RoundLogLine(round))["abstained"], "non-finite loss");
  EXPECT_EQ(json["commit"], "step");
  round.kind = CommitKind::kNone;
  EXPECT_EQ(Json::parse(RoundLogLine(round))["commit"], "none");
}

RoundReport ProgressRound(uint64_t number) {
  RoundReport round;
  round.round = Round(number);
  round.main_round = number + 1;
  round.members = 3;
  round.targets = 1000;
  round.scalars.loss = 2.7131;
  round.stepsize = 4.6e-4f;
  round.round_took_seconds = 0.5;
  return round;
}

TEST(ProgressTest, ALineTellsRoundLossStepsizeSpeedMembersSavingAndTimeLeft) {
  FakeClock clock;
  Progress progress(ProgressStyle::kOff, STDOUT_FILENO, &clock, std::chrono::seconds(10), "w0");
  RunInfo run;
  run.main_rounds = 300;
  run.layout = *Layout::Make({{.name = "w", .shape = {1000}}});
  progress.OnJoined(run);
  SessionStats stats;
  stats.rounds_voted = stats.rounds_received = 120;
  stats.wire_sent_bytes = stats.wire_received_bytes = 120 * 128;
  RoundReport measured = ProgressRound(119);
  measured.held_out = {.round = Round(100), .loss = 5.55, .error = 0.0214};
  progress.OnRound(measured, stats);
  EXPECT_EQ(
      progress.Line(ProgressRound(119), stats),
      "w0 round 120/300 loss 2.713 held-out 5.550±0.021 stepsize 4.6e-04 2.0k targets/s 3 members "
      "saved 31x (929 kB) "
      "ETA 1:30");
}

TEST(ProgressTest, RoundsThatAreNoMainRoundsAreToldApart) {
  FakeClock clock;
  Progress progress(ProgressStyle::kOff, STDOUT_FILENO, &clock, std::chrono::seconds(10), "w0");
  RunInfo run;
  run.main_rounds = 300;
  progress.OnJoined(run);
  RoundReport trial = ProgressRound(119);
  trial.main_round = 0;
  progress.OnRound(trial, {});
  EXPECT_EQ(
      progress.Line(trial, {}),
      "w0 round 120 (main 0/300) loss 2.713 stepsize 4.6e-04 2.0k targets/s 3 members ETA 2:30");
}

TEST(ProgressTest, WithoutAPlanThereIsNeitherAnEndNorATimeLeft) {
  FakeClock clock;
  Progress progress(ProgressStyle::kOff, STDOUT_FILENO, &clock, std::chrono::seconds(10), "w0");
  progress.OnJoined(RunInfo());
  progress.OnRound(ProgressRound(119), {});
  EXPECT_EQ(progress.Line(ProgressRound(119), {}),
            "w0 round 120 loss 2.713 stepsize 4.6e-04 2.0k targets/s 3 members");
}

TEST(ProgressTest, NoTimeIsLeftOnceTheRunIsDone) {
  FakeClock clock;
  Progress progress(ProgressStyle::kOff, STDOUT_FILENO, &clock, std::chrono::seconds(10), "w0");
  RunInfo run;
  run.main_rounds = 300;
  progress.OnJoined(run);
  RoundReport last = ProgressRound(119);
  last.run_done = true;  // earlier than planned
  progress.OnRound(last, {});
  EXPECT_EQ(progress.Line(last, {}).find("ETA"), std::string::npos);
}

TEST(ProgressTest, LinesComeAtTheirIntervalAndAtTheEnd) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  FakeClock clock;
  Progress progress(ProgressStyle::kLines, ::fileno(file), &clock, std::chrono::seconds(10), "w0");
  RunInfo run;
  progress.OnJoined(run);  // how many there will be is not known
  for (uint64_t t = 0; t < 30; ++t) {
    clock.Advance(std::chrono::seconds(1));
    RoundReport round = ProgressRound(t);
    round.run_done = t == 29;
    progress.OnRound(round, {});
  }
  progress.Finish();
  std::string text(static_cast<size_t>(::lseek(::fileno(file), 0, SEEK_CUR)), '\0');
  ASSERT_EQ(::pread(::fileno(file), text.data(), text.size(), 0),
            static_cast<ssize_t>(text.size()));
  std::fclose(file);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);  // after 1, 11, 21 and 30 seconds
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(ProgressTest, TheLineOfATerminalIsNoWiderThanIt) {
  int terminal = -1, other_end = -1;
  winsize size{.ws_row = 24, .ws_col = 40, .ws_xpixel = 0, .ws_ypixel = 0};
  ASSERT_EQ(::openpty(&other_end, &terminal, nullptr, nullptr, &size), 0);
  FakeClock clock;
  std::optional<Progress> progress;
  progress.emplace(ProgressStyle::kTerminal, terminal, &clock, std::chrono::seconds(10), "w0");
  RunInfo run;
  run.main_rounds = 300;
  run.layout = *Layout::Make({{.name = "w", .shape = {1000}}});
  progress->OnJoined(run);
  const auto shown = [&] {
    clock.Advance(std::chrono::seconds(1));
    progress->OnRound(ProgressRound(119), {});
    char text[4096];
    const ssize_t bytes = ::read(other_end, text, sizeof(text));
    return std::string(text, static_cast<size_t>(std::max<ssize_t>(0, bytes)));
  };
  // The last column stays free: behind it the cursor would go to the next line.
  EXPECT_EQ(shown(), "\rw0 round 120/300 loss 2.713 stepsize 4.\x1b[K");
  size.ws_col = 20;
  ASSERT_EQ(::ioctl(terminal, TIOCSWINSZ, &size), 0);
  EXPECT_EQ(shown(), "\rw0 round 120/300 lo\x1b[K");
  progress.reset();  // with the thread that writes to it
  ::close(terminal);
  ::close(other_end);
}

TEST(ProgressTest, AnOutputThatNobodyReadsHoldsUpNoRoundAndIsToldWhatItMissed) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  FakeClock clock;
  std::optional<Progress> progress;
  progress.emplace(ProgressStyle::kLines, ends[1], &clock, Duration{}, "w0");
  progress->OnJoined(RunInfo());
  // Several times what a pipe holds.
  for (uint64_t t = 0; t < 5000; ++t) progress->OnRound(ProgressRound(t), {});
  // All of this took no reader. Now there is one.
  std::string text;
  std::thread reader([&text, pipe = ends[0]] {
    char part[4096];
    for (ssize_t got = 0; (got = ::read(pipe, part, sizeof(part))) > 0;)
      text.append(part, static_cast<size_t>(got));
  });
  progress.reset();
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  EXPECT_EQ(text.find("w0 round 1 "), 0u) << "in order, from the first on";
  EXPECT_NE(text.find(" lines were not read in time)\n"), std::string::npos);
  EXPECT_EQ(text.back(), '\n');
}

TEST(ProgressTest, AnOutputThatIsNeverReadDoesNotKeepTheProgram) {
  int ends[2];  // stay open: the writer is left behind with one of them
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  FakeClock clock;
  Progress progress(ProgressStyle::kLines, ends[1], &clock, Duration{}, "w0");
  for (uint64_t t = 0; t < 5000; ++t) progress.OnRound(ProgressRound(t), {});
  progress.Finish();
}

TEST(ProgressTest, NumbersAreShort) {
  EXPECT_EQ(ShortCount(0), "0");
  EXPECT_EQ(ShortCount(999), "999");
  EXPECT_EQ(ShortCount(8500), "8.5k");
  EXPECT_EQ(ShortCount(123456), "123k");
  EXPECT_EQ(ShortBytes(1.2e9), "1.2 GB");
  EXPECT_EQ(ShortSeconds(65), "1:05");
  EXPECT_EQ(ShortSeconds(7384), "2:03:04");
}

}  // namespace
}  // namespace signvote
