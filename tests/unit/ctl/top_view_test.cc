// Goal: what an operator reads, at several sizes. Method: whole pictures as text, drawn from one
// made-up run.
#include "ctl/top_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "ctl/format.h"
#include "tests/unit/ctl/top_sample.h"

namespace signvote::ctl {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TopView View(int columns, int rows, Charset charset = Charset::kUtf8) {
  return {.rows = rows,
          .columns = columns,
          .charset = charset,
          .server = "train:7070",
          .now = Time{} + std::chrono::seconds(1),
          .unix_seconds = kNoon};
}

// The picture without the blanks at the ends of its lines.
std::string Picture(const TopModel& model, const TopView& view) {
  std::string out;
  for (const Line& line : RenderTop(model, view).lines) {
    std::string text = PlainText(line);
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  }
  return out;
}

TEST(TopViewTest, EightyColumnsShowTheWholeRun) {
  EXPECT_EQ(Picture(Model(Sample()), View(80, 24)),
            R"(run 0f8fad5b-d9cb-469f-a165-70867728950e  train:7070  up 1 min 15 s  epoch 1
round open  128 of 300 main ██████████████░░░░░░░░░░░░░░░░░░░  42 %  36.2 s left
loss 2.8413  stepsize 0.001234 (alias, signum)  4.0 rounds/s  d 857,216
saved 2.5 GB  up 108 kB a ballot, 31.8 x  down 108 kB, 31.7 x less than fp32
round 210 ms  █████████████████████████████████████████████████████████░░░░░░▓▞▞
█ compute 180 ms  ░ wait 20 ms  ▓ tally 2.1 ms  ▒ commit 0.60 ms  ▞ apply 7.0 ms

loss 5.5000 → 2.8413  rounds 0 to 127
⣿⣷⣶⣤⣤⣀⣀⣀                                                                     5.5
⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣶⣶⣶⣶⣶⣦⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣄⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀     2.41

worker role      share  ballots  abst  agree     loss  arrival      up/s
alice  member        0      128     0  70.0%   2.8000   180 ms  431 kB/s
bob    observer      1      127     2  71.0%   2.9000   180 ms  431 kB/s
carol  lost          2      126     0  72.0%   3.0000   180 ms         -

events, the latest first
11:59:05  round 120      carol lost
11:59:04  round 94       bob became an observer: 5 rounds without a ballot
11:59:03  round 90       bob abstained: no ballot in time
11:59:02  round 0        alice is a member
11:59:01  round 0        alice joined

q quit  h help  s sort: name  p freeze
)");
}

TEST(TopViewTest, WhatTheStepsizeIsShortOfStandsBelowItWholeWhereThereIsRoom) {
  v1::WatchReply reply = Sample();
  reply.mutable_status()->set_stepsize_warning(
      "no worker's probe has come for 8 rounds: let a worker join that probes, or choose another "
      "rule");
  EXPECT_THAT(
      Picture(Model(reply), View(80, 24)),
      HasSubstr("d 857,216\n"
                "no worker's probe has come for 8 rounds: let a worker join that probes, or\n"
                "choose another rule\n"
                "saved "));
  EXPECT_THAT(Picture(Model(reply), View(40, 10)),
              HasSubstr("\nno worker's probe has come for 8 rounds…\nsaved "));
  // However long it is, the rest is there.
  for (int i = 0; i < 99; ++i) reply.mutable_status()->mutable_stepsize_warning()->append(" word");
  EXPECT_THAT(Picture(Model(reply), View(40, 24)),
              HasSubstr("\nanother rule word word word word word w…\nsaved "));
  for (const int rows : {10, 14, 18, 24}) {
    const Frame frame = RenderTop(Model(reply), View(40, rows));
    EXPECT_EQ(frame.lines.size(), static_cast<size_t>(rows));
    EXPECT_GE(frame.workers_shown, 1u);
  }
}

TEST(TopViewTest, TheRaceAndTheRulesNumbersStandBelowTheStepsize) {
  v1::WatchReply reply = Sample();
  v1::Race& race = *reply.mutable_status()->mutable_race();
  race.set_trials(3);
  race.set_rounds(45);
  race.set_rounds_max(75);
  EXPECT_THAT(Picture(Model(reply), View(80, 24)),
              HasSubstr("d 857,216\nrace trial 3, 45 of at most 75 rounds\nsaved "));
  race.set_over(true);
  v1::RuleNumber& number = *reply.mutable_status()->add_rule_numbers();
  number.set_name("z");
  number.set_value(0.125);
  EXPECT_THAT(Picture(Model(reply), View(80, 24)),
              HasSubstr("d 857,216\nrace over: 3 trials in 45 rounds  z 0.125\nsaved "));
  EXPECT_THAT(Picture(Model(reply), View(80, 16)), Not(HasSubstr("race over"))) << "no room";
  EXPECT_EQ(RenderTop(Model(reply), View(40, 18)).lines.size(), 18u);
}

TEST(TopViewTest, BitsPerParameterAndMinibatchStandBelowWhatWasSaved) {
  v1::WatchReply reply = Sample();
  EXPECT_THAT(Picture(Model(reply), View(80, 24)), Not(HasSubstr("\nbits "))) << "nothing is known";
  reply.mutable_status()->set_up_bits(0.0635);
  reply.mutable_status()->set_down_bits(0.1904);
  reply.mutable_status()->set_minibatches(4096);
  EXPECT_THAT(
      Picture(Model(reply), View(80, 24)),
      HasSubstr("\nbits 0.0635 up 0.19 down a parameter and minibatch  minibatches 4,096\nround "));
  EXPECT_THAT(Picture(Model(reply), View(80, 18)), Not(HasSubstr("\nbits "))) << "no room";
}

TEST(TopViewTest, AWideTerminalShowsMore) {
  EXPECT_EQ(
      Picture(Model(Sample()), View(120, 34)),
      R"(run 0f8fad5b-d9cb-469f-a165-70867728950e  train:7070  up 1 min 15 s  server 0.1.0  epoch 1                      12:00:00
round open  128 of 300 main ███████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  42 %  36.2 s left
loss 2.8413  stepsize 0.001234 (alias, signum)  4.0 rounds/s  d 857,216  joined 4  lost 1  abstentions 2
saved 2.5 GB  up 108 kB a ballot, 31.8 x  down 108 kB, 31.7 x less than fp32  now 862 kB/s up 865 kB/s down
round 210 ms  ███████████████████████████████████████████████████████████████████████████████████████████░░░░░░░░░░▓▞▞▞▞
█ compute 180 ms  ░ wait 20 ms  ▓ tally 2.1 ms  ▒ commit 0.60 ms  ▞ apply 7.0 ms  (server's own apply 3.0 ms, beside)

loss 5.5000 → 2.8413  rounds 0 to 127
⣿⣶⣶⣄⣀⡀                                                                                                               5.5
⣿⣿⣿⣿⣿⣿⣿⣶⣶⣤⣄⣀⡀
⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣶⣶⣶⣦⣤⣤⣀⣀⣀⣀⡀
⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣷⣶⣶⣶⣶⣶⣶⣶⣶⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀     2.41

worker role      share  ballots  abst  agree     loss  arrival      up/s    down/s               address
alice  member        0      128     0  70.0%   2.8000   180 ms  431 kB/s  433 kB/s       192.0.2.1:40000
bob    observer      1      127     2  71.0%   2.9000   180 ms  431 kB/s  433 kB/s       192.0.2.2:40000
carol  lost          2      126     0  72.0%   3.0000   180 ms         -         -       192.0.2.3:40000

events, the latest first
11:59:05  round 120      carol lost
11:59:04  round 94       bob became an observer: 5 rounds without a ballot
11:59:03  round 90       bob abstained: no ballot in time
11:59:02  round 0        alice is a member
11:59:01  round 0        alice joined









q quit  h help  s sort: name  p freeze
)");
}

TEST(TopViewTest, ASmallTerminalKeepsWhatMatters) {
  EXPECT_EQ(Picture(Model(Sample()), View(60, 16)),
            R"(run 0f8fad5b-d9cb-469f-a165-70867728950e  train:7070
round open  128 of 300 main █████░░░░░░░░  42 %  36.2 s left
loss 2.8413  stepsize 0.001234 (alias, signum)  4.0 rounds/s
saved 2.5 GB  up 108 kB a ballot, 31.8 x less than fp32
round 210 ms  ████████████████████████████████████████░░░░▞▞
█ compute 180 ms ░ wait 20 ms ▓ tally 2.1 ms ▞ apply 7.0 ms
worker role       ballots  abst  agree     loss  arrival
alice  member         128     0  70.0%   2.8000   180 ms
bob    observer       127     2  71.0%   2.9000   180 ms
carol  lost           126     0  72.0%   3.0000   180 ms
events, the latest first
11:59:05  round 120      carol lost
11:59:04  round 94       bob became an observer: 5 rounds w…
11:59:03  round 90       bob abstained: no ballot in time
11:59:02  round 0        alice is a member
q quit  h help  s sort: name  p freeze
)");
  EXPECT_EQ(Picture(Model(Sample()), View(kColumnsMin, kRowsMin)),
            R"(run 0f8fad5b-d9cb-469f-a165-70867728950e
round open  128 of 300 ████░░░░░░░  42 %
loss 2.8413  stepsize 0.001234
saved 2.5 GB  up 108 kB a ballot, 31.8 x
worker role       agree     loss
alice  member     70.0%   2.8000
bob    observer   71.0%   2.9000
carol  lost       72.0%   3.0000

q quit  h help  s sort: name  p freeze
)");
}

TEST(TopViewTest, WithoutUtf8EverythingIsAscii) {
  EXPECT_EQ(Picture(Model(Sample()), View(80, 24, Charset::kAscii)),
            R"(run 0f8fad5b-d9cb-469f-a165-70867728950e  train:7070  up 1 min 15 s  epoch 1
round open  128 of 300 main ##############...................  42 %  36.2 s left
loss 2.8413  stepsize 0.001234 (alias, signum)  4.0 rounds/s  d 857,216
saved 2.5 GB  up 108 kB a ballot, 31.8 x  down 108 kB, 31.7 x less than fp32
round 210 ms  CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCwwwwwwTAA
C compute 180 ms  w wait 20 ms  T tally 2.1 ms  m commit 0.60 ms  A apply 7.0 ms

loss 5.5000 -> 2.8413  rounds 0 to 127
##::....                                                                     5.5
##############::::::::::::.............................................     2.41

worker role      share  ballots  abst  agree     loss  arrival      up/s
alice  member        0      128     0  70.0%   2.8000   180 ms  431 kB/s
bob    observer      1      127     2  71.0%   2.9000   180 ms  431 kB/s
carol  lost          2      126     0  72.0%   3.0000   180 ms         -

events, the latest first
11:59:05  round 120      carol lost
11:59:04  round 94       bob became an observer: 5 rounds without a ballot
11:59:03  round 90       bob abstained: no ballot in time
11:59:02  round 0        alice is a member
11:59:01  round 0        alice joined

q quit  h help  s sort: name  p freeze
)");
}

TEST(TopViewTest, BeforeTheFirstWorkerNothingIsInvented) {
  v1::WatchReply reply;
  reply.mutable_status()->set_run_id("0f8fad5b-d9cb-469f-a165-70867728950e");
  reply.mutable_status()->set_phase(v1::Status::PHASE_WAITING_FOR_WORKERS);
  reply.mutable_status()->set_main_rounds(300);
  reply.mutable_status()->set_software_version("0.1.0");
  reply.mutable_status()->set_uptime_seconds(3);
  reply.mutable_status()->set_loss(NAN);
  reply.mutable_status()->set_seconds_left(NAN);
  reply.mutable_status()->set_rule("alias");
  reply.mutable_status()->set_direction("signum");
  TopModel model;
  model.OnReply(reply, Time{});
  EXPECT_EQ(Picture(model, View(80, 24)),
            R"(run 0f8fad5b-d9cb-469f-a165-70867728950e  train:7070  up 3.0 s  server 0.1.0
waiting for workers  0 of 300 main ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░   0 %
loss -  stepsize - (alias, signum)  - rounds/s  d -
saved -
round -
█ compute -  ░ wait -  ▓ tally -  ▒ commit -  ▞ apply -

loss no round has one yet



worker role      share  ballots  abst  agree     loss  arrival      up/s
none yet: start signvote-worker --server train:7070

events, the latest first
none yet







q quit  h help  s sort: name  p freeze
)");
}

v1::HeldOut HeldOut(double loss, uint64_t round, uint64_t windows) {
  v1::HeldOut held_out;
  held_out.set_loss(loss);
  held_out.set_error(0.0125);
  held_out.set_round(round);
  held_out.set_windows(windows);
  held_out.set_worker("bob");
  return held_out;
}

TEST(TopViewTest, HeldOutLossesAreComparedWithThoseOfTheSameWindowsOnly) {
  v1::WatchReply reply = Sample();
  *reply.add_held_out() = HeldOut(5.5, 0, 0xab);
  EXPECT_THAT(Picture(Model(reply), View(80, 24)),
              HasSubstr("held out 5.5000 ± 0.0125  round 0  by bob  windows 00000000000000ab\n"));
  *reply.add_held_out() = HeldOut(4.5, 50, 0xab);
  EXPECT_THAT(
      Picture(Model(reply), View(80, 24)),
      HasSubstr("held out 5.5000 → 4.5000 ± 0.0125  round 50  by bob  windows 00000000000000ab\n"));
  *reply.add_held_out() = HeldOut(3.5, 100, 0xcd);
  EXPECT_THAT(Picture(Model(reply), View(80, 24)),
              HasSubstr("held out 3.5000 ± 0.0125  round 100  by bob  windows 00000000000000cd\n"));
  *reply.add_held_out() = HeldOut(3.25, 120, 0xcd);
  EXPECT_THAT(
      Picture(Model(reply), View(80, 24, Charset::kAscii)),
      HasSubstr(
          "held out 3.5000 -> 3.2500 +- 0.0125  round 120  by bob  windows 00000000000000cd\n"));
  const Frame frame = RenderTop(Model(reply), View(80, 24));
  EXPECT_EQ(frame.lines.size(), 24u) << "the others make room";
  EXPECT_THAT(Picture(Model(reply), View(80, 13)), Not(HasSubstr("held out")));
}

TEST(TopViewTest, ARunOfUnknownLengthHasNoBar) {
  v1::WatchReply reply = Sample();
  reply.mutable_status()->set_main_rounds(0);
  EXPECT_THAT(Picture(Model(reply), View(80, 24)), HasSubstr("round open  128 main rounds\n"));
}

TEST(TopViewTest, AFinishedRunSaysSoAndHasNothingLeft) {
  v1::WatchReply reply = Sample();
  reply.mutable_status()->set_phase(v1::Status::PHASE_ENDED);
  reply.mutable_status()->set_round(300);
  reply.mutable_status()->set_main_round(300);
  reply.mutable_status()->set_seconds_left(0);
  v1::Event& event = *reply.add_events();
  event.set_sequence(100);
  event.set_kind(v1::Event::KIND_ENDED);
  TopModel model = Model(reply);
  model.OnLost("gone", Time{} + std::chrono::seconds(1));
  const std::string picture = Picture(model, View(80, 24));
  EXPECT_THAT(picture,
              AllOf(HasSubstr("ended  300 of 300 main █"), HasSubstr("100 %\n"),
                    HasSubstr("the run has ended\n"), HasSubstr("the run has ended  q quit"),
                    Not(HasSubstr("left")), Not(HasSubstr("reconnecting"))));
}

TEST(TopViewTest, ALostServerIsNamedWithTheTimeOfItsLastAnswer) {
  TopModel model = Model(Sample());
  model.OnLost("connection refused", Time{} + std::chrono::seconds(3));
  TopView view = View(80, 24);
  view.now = Time{} + std::chrono::seconds(13);
  const std::string picture = Picture(model, view);
  EXPECT_THAT(
      picture,
      HasSubstr(
          "reconnecting to train:7070 since 11:59:48 (12.0 s); what is shown is from before\n"));
  EXPECT_THAT(picture, HasSubstr("alice  member")) << "what was known stays";
}

TEST(TopViewTest, ValuesThatAreNotFiniteAreDashesAndGaps) {
  v1::WatchReply reply = Sample();
  reply.mutable_status()->set_loss(NAN);
  reply.mutable_status()->mutable_workers(0)->set_loss(INFINITY);
  reply.mutable_status()->mutable_workers(0)->set_agreement(NAN);
  reply.mutable_status()->mutable_workers(0)->set_arrival_seconds(NAN);
  reply.mutable_status()->mutable_time_split()->set_compute(NAN);
  for (int i = 32; i < 96; ++i) reply.mutable_series()->set_loss(i, i % 2 == 0 ? NAN : INFINITY);
  for (const Charset charset : {Charset::kUtf8, Charset::kAscii}) {
    const std::string picture = Picture(Model(reply), View(80, 24, charset));
    EXPECT_THAT(picture,
                AllOf(HasSubstr("loss -  stepsize"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  }
  // The middle half of the graph, and nothing else of it, is empty.
  TopView view = View(80, 24, Charset::kAscii);
  const std::string graph = PlainText(RenderTop(Model(reply), view).lines[9]).substr(0, 71);
  EXPECT_EQ(graph.substr(18, 35), std::string(35, ' '));
  EXPECT_EQ(graph.substr(0, 17).find(' '), std::string::npos) << graph;
  EXPECT_EQ(graph.substr(54).find(' '), std::string::npos) << graph;
}

TEST(TopViewTest, AConstantLossIsALineInTheMiddle) {
  v1::WatchReply reply = Sample();
  reply.mutable_series()->clear_loss();
  reply.mutable_series()->add_loss(2);
  const std::string picture = Picture(Model(reply), View(80, 40, Charset::kAscii));
  EXPECT_THAT(picture, HasSubstr("\n" + std::string(71, '#') + "\n"));
}

TEST(TopViewTest, ManyWorkersScroll) {
  v1::WatchReply reply = Sample();
  reply.mutable_status()->clear_workers();
  for (int i = 0; i < 100; ++i) {
    v1::Worker& worker = *reply.mutable_status()->add_workers();
    worker.set_name(absl::StrFormat("worker-%02d-with-a-name-that-is-too-long", i));
    worker.set_connected(true);
  }
  TopModel model;
  model.OnReply(reply, Time{});
  TopView view = View(80, 24);
  Frame frame = RenderTop(model, view);
  EXPECT_EQ(frame.lines.size(), 24u);
  const size_t page = frame.workers_shown;
  EXPECT_GE(page, 4u);
  EXPECT_THAT(Picture(model, view), AllOf(HasSubstr("worker-00-with-… "),
                                          HasSubstr(absl::StrFormat("workers 1-%d of 100", page)),
                                          HasSubstr("carol lost")));
  view.first_worker = 50;
  EXPECT_THAT(Picture(model, view), AllOf(HasSubstr("worker-50-"), Not(HasSubstr("worker-49-"))));
  view.first_worker = 1000;  // too far: the last page
  frame = RenderTop(model, view);
  EXPECT_EQ(frame.first_worker, 100 - page);
  EXPECT_THAT(Picture(model, view), HasSubstr("worker-99-"));
}

// The names in the order shown.
std::vector<std::string> Order(const TopModel& model, SortKey sort, bool reversed) {
  TopView view = View(100, 30);
  view.sort = sort;
  view.reversed = reversed;
  std::vector<std::string> names;
  for (const Line& line : RenderTop(model, view).lines) {
    const std::string text = PlainText(line);
    for (const char* name : {"alice", "bob", "carol", "dave"}) {
      if (text.starts_with(std::string(name) + " ")) names.emplace_back(name);
    }
  }
  return names;
}

TEST(TopViewTest, WorkersAreSortedByWhatTheOperatorLooksFor) {
  v1::WatchReply reply = Sample();
  v1::Worker& dave = *reply.mutable_status()->add_workers();
  dave.set_name("dave");
  dave.set_connected(true);
  dave.set_loss(NAN);
  dave.set_agreement(0.9);
  const TopModel model = Model(reply);
  using Names = std::vector<std::string>;
  // carol is gone: last in every order; dave's loss is unknown: behind those that are known.
  EXPECT_EQ(Order(model, SortKey::kName, false), (Names{"alice", "bob", "dave", "carol"}));
  EXPECT_EQ(Order(model, SortKey::kName, true), (Names{"dave", "bob", "alice", "carol"}));
  EXPECT_EQ(Order(model, SortKey::kLoss, false), (Names{"bob", "alice", "dave", "carol"}));
  EXPECT_EQ(Order(model, SortKey::kLoss, true), (Names{"alice", "bob", "dave", "carol"}));
  EXPECT_EQ(Order(model, SortKey::kAgreement, false), (Names{"alice", "bob", "dave", "carol"}));
  EXPECT_EQ(Order(model, SortKey::kAbstentions, false), (Names{"bob", "alice", "dave", "carol"}));
  SortKey key = SortKey::kName;
  do {
    EXPECT_EQ(PreviousSortKey(NextSortKey(key)), key);
    key = NextSortKey(key);
  } while (key != SortKey::kName);
}

// Goal: no size, whatever the state, draws outside the screen or breaks. Method: all small ones,
// and some large.
TEST(TopViewTest, NoSizeIsLeft) {
  v1::WatchReply crowded = Sample();
  for (int i = 0; i < 60; ++i)
    *crowded.mutable_status()->add_workers() = crowded.status().workers(i % 3);
  v1::Status& status = *crowded.mutable_status();
  status.set_round(999'999'999);
  status.set_main_round(999'999'999);
  status.set_main_rounds(1'000'000'000);
  status.set_attempt(12);
  status.set_seconds_left(1e9);
  status.set_coordinates(350'000'000'000);
  TopModel lost = Model(crowded);
  lost.OnLost(std::string(500, 'x'), Time{});
  const TopModel empty;
  for (const TopModel& model : {Model(Sample()), Model(crowded), lost, empty}) {
    for (const Charset charset : {Charset::kUtf8, Charset::kAscii}) {
      for (const bool help : {false, true}) {
        for (int columns = 1; columns < 200; columns += columns < 50 ? 1 : 13) {
          for (int rows = 1; rows < 80; rows += rows < 26 ? 1 : 11) {
            TopView view = View(columns, rows, charset);
            view.help = help;
            view.server = "a.very.long.host.name.example.org:7070";
            view.first_worker = 7;
            const Frame frame = RenderTop(model, view);
            ASSERT_LE(frame.lines.size(), static_cast<size_t>(rows)) << columns << "x" << rows;
            for (const Line& line : frame.lines) {
              const std::string text = PlainText(line);
              ASSERT_LE(TextWidth(text), static_cast<size_t>(columns))
                  << columns << "x" << rows << ": " << text;
              if (charset == Charset::kAscii) {
                ASSERT_EQ(TextWidth(text), text.size()) << text;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace signvote::ctl
