#include "ctl/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

namespace signvote::ctl {
namespace {

v1::Status Sample() {
  v1::Status status;
  status.set_software_version("0.1.0");
  status.set_run_id("0f8fad5b-d9cb-469f-a165-70867728950e");
  status.set_epoch(1);
  status.set_phase(v1::Status::PHASE_ROUND_OPEN);
  status.set_round(128);
  status.set_main_round(128);
  status.set_main_rounds(300);
  status.set_coordinates(851968);
  status.set_layout_digest(0x0123456789abcdefull);
  status.set_rule("alias");
  status.set_direction("signum");
  status.set_stepsize(0.0012345);
  status.set_loss(2.84125);
  status.set_round_seconds(0.21);
  status.set_seconds_left(36.2);
  status.set_uptime_seconds(75);
  status.set_joins(4);
  status.set_losses(1);
  status.mutable_wire()->set_up_rounds_bytes(41'000'000);
  status.mutable_wire()->set_down_rounds_bytes(41'000'000);
  status.mutable_wire()->set_fp32_equivalent_bytes(1'308'000'000);
  for (const char* name : {"w0", "a-worker-with-quite-a-long-name.example.org"}) {
    v1::Worker* worker = status.add_workers();
    worker->set_name(name);
    worker->set_connected(true);
    worker->set_role(v1::Worker::ROLE_MEMBER);
    worker->set_ballots(128);
    worker->set_agreement(0.7123);
    worker->set_arrival_seconds(0.18);
    worker->set_final_digest(7);
  }
  return status;
}

size_t Columns(const std::string& line) {
  size_t columns = 0;
  for (const char c : line) columns += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return columns;
}

TEST(RenderTest, ProgressIsThatOfMainRounds) {
  v1::Status status = Sample();
  status.set_round(140);  // 12 of them moved nothing
  EXPECT_THAT(
      RenderTable(status, Colour::kOff),
      testing::AllOf(testing::HasSubstr("128 of 300 (43 %)"),
                     testing::HasSubstr("commits   140, with those that are no main rounds")));
  status.set_main_rounds(0);
  status.set_round(128);
  EXPECT_THAT(RenderTable(status, Colour::kOff),
              testing::AllOf(testing::HasSubstr("main      128 "),
                             testing::Not(testing::HasSubstr(" of "))));
}

void AddRace(v1::Status* status) {
  status->mutable_race()->set_trials(3);
  status->mutable_race()->set_rounds(45);
  status->mutable_race()->set_rounds_max(75);
  for (const char* name : {"s", "rho", "z"}) {
    v1::RuleNumber& number = *status->add_rule_numbers();
    number.set_name(name);
    number.set_value(-1.25e-8);
  }
}

TEST(RenderTest, TheRaceAndTheRulesNumbersHaveRowsWhereThereAreSome) {
  v1::Status status = Sample();
  EXPECT_THAT(RenderTable(status, Colour::kOff),
              testing::AllOf(testing::Not(testing::HasSubstr("\nrace ")),
                             testing::Not(testing::HasSubstr("\nrule "))));
  AddRace(&status);
  EXPECT_THAT(
      RenderTable(status, Colour::kOff),
      testing::AllOf(testing::HasSubstr("\nrace      trial 3, 45 of at most 75 rounds\n"),
                     testing::HasSubstr("\nrule      s -1.25e-08 rho -1.25e-08 z -1.25e-08\n")));
  const auto json = nlohmann::json::parse(RenderJson(status));
  EXPECT_EQ(json["race"]["rounds_max"], 75);
  EXPECT_EQ(json["rule_numbers"][2]["name"], "z");
}

TEST(RenderTest, TheTableFitsEightyColumns) {
  v1::Status status = Sample();
  for (int i = 0; i < 9; ++i) AddRace(&status);
  status.mutable_race()->set_trials(1'000'000'000);
  status.mutable_race()->set_rounds(1'000'000'000);
  status.mutable_race()->set_rounds_max(1'000'000'000);
  status.set_round(123'456'789);
  status.set_main_round(123'456'789);
  status.set_main_rounds(1'000'000'000);
  status.set_attempt(3);
  status.set_coordinates(350'000'000'000);
  status.set_abstentions(123'456);
  status.set_late_chunks(1'234'567);
  status.mutable_wire()->set_up_rounds_bytes(41'000'000'000'000);
  status.mutable_wire()->set_down_rounds_bytes(41'000'000'000'000);
  status.mutable_wire()->set_fp32_equivalent_bytes(1'308'000'000'000'000);
  std::istringstream lines(RenderTable(status, Colour::kOff));
  for (std::string line; std::getline(lines, line);) EXPECT_LE(Columns(line), 80u) << line;
}

TEST(RenderTest, TheTableSaysBitsPerParameterAndMinibatchOnceTheyAreKnown) {
  v1::Status status = Sample();
  EXPECT_THAT(RenderTable(status, Colour::kOff), testing::Not(testing::HasSubstr("\nbits ")));
  status.set_up_bits(0.0635);
  status.set_down_bits(0.1904);
  status.set_minibatches(4096);
  EXPECT_THAT(RenderTable(status, Colour::kOff),
              testing::HasSubstr("\nbits      0.0635 up             0.19 down, a parameter and "
                                 "minibatch (4,096)\n"));
}

TEST(RenderTest, TheTableSaysWhatTheRunDoes) {
  const std::string table = RenderTable(Sample(), Colour::kOff);
  for (const char* text : {"128 of 300 (43 %)", "round open", "2.8413", "0.001234 (alias, signum)",
                           "851,968", "31.9 x less", "41.0 MB up", "36.2 s left", "71.2%", "180 ms",
                           "member", "a-worker-with-…", "0f8fad5b-d9cb-469f-a165-70867728950e"}) {
    EXPECT_THAT(table, testing::HasSubstr(text));
  }
  EXPECT_THAT(table, testing::Not(testing::HasSubstr("\x1b")));
}

TEST(RenderTest, WhatTheStepsizeIsShortOfIsShownWholeWithinTheColumns) {
  EXPECT_THAT(RenderTable(Sample(), Colour::kOff), testing::Not(testing::HasSubstr("warning")));
  v1::Status status = Sample();
  std::string warning = "no worker's probe has come";
  for (int i = 0; i < 30; ++i) warning += " word" + std::to_string(i);
  status.set_stepsize_warning(warning);
  const std::string table = RenderTable(status, Colour::kOff);
  EXPECT_THAT(table, testing::HasSubstr("warning   no worker's probe has come word0"));
  EXPECT_THAT(table, testing::HasSubstr("word29\n"));
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(Columns(line), 80u) << line;
}

TEST(RenderTest, ColourIsAddedOnlyWhenAskedFor) {
  EXPECT_THAT(RenderTable(Sample(), Colour::kOn), testing::HasSubstr("\x1b[32m"));
}

TEST(RenderTest, UnknownValuesAreDashes) {
  v1::Status status = Sample();
  status.set_round(0);
  status.set_main_round(0);
  status.set_loss(NAN);
  status.set_seconds_left(NAN);
  status.mutable_workers(0)->set_ballots(0);
  status.mutable_workers(0)->set_connected(false);
  const std::string table = RenderTable(status, Colour::kOff);
  EXPECT_THAT(table, testing::Not(testing::HasSubstr("nan")));
  EXPECT_THAT(table, testing::HasSubstr("time left unknown"));
  EXPECT_THAT(table, testing::HasSubstr("lost"));
}

TEST(RenderTest, TheLastHeldOutLossHasItsErrorRoundWorkerAndWindows) {
  v1::Status status = Sample();
  status.set_evaluator("w0");
  v1::HeldOut& held_out = *status.mutable_held_out();
  held_out.set_loss(NAN);
  EXPECT_THAT(RenderTable(status, Colour::kOff),
              testing::HasSubstr("held out  -                     w0 measures it\n"));
  held_out.set_loss(3.00814);
  held_out.set_error(0.0214);
  held_out.set_round(100);
  held_out.set_windows(0xab);
  held_out.set_worker("a-worker-with-quite-a-long-name.example.org");
  const std::string table = RenderTable(status, Colour::kOff);
  EXPECT_THAT(table, testing::HasSubstr("held out  3.0081 ± 0.0214       round 100, by "
                                        "a-worker-with-quite-a-l…\n"
                                        "windows   00000000000000ab\n"));
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(Columns(line), 80u) << line;
  status.clear_held_out();  // a server that knows of none
  status.clear_evaluator();
  EXPECT_THAT(RenderTable(status, Colour::kOff), testing::Not(testing::HasSubstr("held out")));
}

TEST(RenderTest, JsonHasEveryFieldUnderItsProtoName) {
  v1::Status status = Sample();
  status.set_g_l1(NAN);
  const auto json = nlohmann::json::parse(RenderJson(status));
  const auto* descriptor = v1::Status::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    EXPECT_TRUE(json.contains(descriptor->field(i)->name())) << descriptor->field(i)->name();
  }
  EXPECT_EQ(json["round"], 128);
  EXPECT_EQ(json["phase"], "round_open");
  EXPECT_EQ(json["layout_digest"], "0123456789abcdef");
  EXPECT_TRUE(json["g_l1"].is_null());
  EXPECT_EQ(json["wire"]["up_rounds_bytes"], 41'000'000);
  ASSERT_EQ(json["workers"].size(), 2u);
  EXPECT_EQ(json["workers"][0]["role"], "member");
  EXPECT_EQ(json["workers"][0]["final_digest"], "0000000000000007");
  EXPECT_EQ(json["workers"][0]["connected"], true);
}

TEST(RenderTest, AnAnswerIsOneLineWithItsEvents) {
  v1::WatchReply reply;
  *reply.mutable_status() = Sample();
  v1::Event& event = *reply.add_events();
  event.set_sequence(3);
  event.set_kind(v1::Event::KIND_ABSTAINED);
  event.set_worker("w0");
  event.set_reason("no ballot in time");
  reply.mutable_series()->add_loss(1);
  const std::string line = RenderJsonLine(reply);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["events"][0]["kind"], "abstained");
  EXPECT_EQ(json["events"][0]["sequence"], 3);
  json.erase("events");
  EXPECT_EQ(json, nlohmann::json::parse(RenderJson(Sample())));
}

}  // namespace
}  // namespace signvote::ctl
