#include "server/run/books_proto.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace signvote::run {
namespace {

TEST(BooksProto, NumbersAndWordsOfEventsAreThoseOfTheMessage) {
  const auto* const kinds = v1::Event::Kind_descriptor();
  for (int i = 1; i < kinds->value_count(); ++i) {
    std::string name = "KIND_";
    for (const char c : Words(static_cast<EventKind>(kinds->value(i)->number()))) {
      name += static_cast<char>(c - 'a' + 'A');
    }
    EXPECT_EQ(name, kinds->value(i)->name());
  }
}

TEST(BooksProto, EveryFieldOfAPageTravels) {
  StatusPage page;
  page.run_id = "r";
  page.rule = "alias";
  page.direction = "signum";
  page.epoch = Epoch(2);
  page.phase = PagePhase::kFinishing;
  page.round = Round(3);
  page.attempt = Attempt(1);
  page.main_round = 2;
  page.main_rounds = 9;
  page.coordinates = 100;
  page.layout_digest = 5;
  page.stepsize = 0.5;
  page.rho = 0.75;
  page.rule_numbers = {{"z", 0.25}};
  page.race = {.trials = 3, .rounds = 45, .rounds_max = 75, .over = true};
  page.stepsize_warning = "no probe";
  page.loss = 1;
  page.g_l1 = 2;
  page.density = 0.25;
  page.round_seconds = 3;
  page.seconds_left = 18;
  page.uptime_seconds = 50;
  page.split = {
      .compute = 1, .wait = 2, .tally = 3, .commit = 4, .apply = 5, .worker_apply = 6, .round = 7};
  page.wire = {1, 2, 3, 4, 5, 6, 7};
  page.minibatches = 12;
  page.minibatches_planned = 36;
  page.joins = page.losses = page.abstentions = page.late_chunks = page.duplicate_chunks = 4;
  page.master_digest = 77;
  page.master_digest_round = Round(50);
  page.resident_bytes = 1000;
  WorkerPage worker;
  worker.name = "a";
  worker.incarnation = Incarnation(4);
  worker.connected = worker.member = true;
  worker.address = "1:2";
  worker.metrics_address = "m:3";
  worker.agreement = worker.loss = worker.joined_seconds = worker.arrival_seconds = 0.75;
  worker.wire.ballots = 8;
  worker.share = Share(5);
  worker.ballots = worker.abstentions = worker.late_chunks = worker.duplicate_chunks = 6;
  worker.final_digest = 0xf;
  const HeldOut held_out{
      .loss = 2.5, .error = 0.5, .round = Round(4), .windows = 0xab, .worker = "a", .own = true};
  worker.held_out = page.held_out = held_out;
  page.evaluator = "a";
  page.workers = {worker};
  const v1::Status out = ToProto(page);
  // Method: no field of the message is left at its default.
  const auto all_set = [](const google::protobuf::Message& message) {
    std::vector<const google::protobuf::FieldDescriptor*> set;
    message.GetReflection()->ListFields(message, &set);
    EXPECT_EQ(static_cast<int>(set.size()), message.GetDescriptor()->field_count())
        << message.ShortDebugString();
  };
  all_set(out);
  all_set(out.workers(0));
  all_set(out.wire());
  all_set(out.time_split());
  all_set(out.held_out());
  all_set(out.race());
  ASSERT_EQ(out.rule_numbers_size(), 1);
  all_set(out.rule_numbers(0));
  EXPECT_EQ(out.race().rounds(), 45u);
  EXPECT_EQ(out.rho(), 0.75);
  all_set(out.workers(0).held_out());
  EXPECT_EQ(out.held_out().windows(), 0xabu);
  EXPECT_TRUE(std::isnan(ToProto(StatusPage()).held_out().loss())) << "none was measured";
  EXPECT_EQ(out.phase(), v1::Status::PHASE_FINISHING);
  EXPECT_EQ(out.main_round(), page.main_round);
  EXPECT_EQ(out.main_rounds(), 9u);
  EXPECT_EQ(out.wire().down_rounds_bytes(), 2u);
  EXPECT_EQ(out.wire().up_setup_bytes(), 3u);
  EXPECT_EQ(out.time_split().worker_apply(), 6);
  EXPECT_EQ(out.workers(0).role(), v1::Worker::ROLE_MEMBER);
  EXPECT_EQ(out.workers(0).final_digest(), 0xfu);
  EXPECT_EQ(out.workers(0).share(), 5u);
}

TEST(BooksProto, AViewCarriesEventsAndSeries) {
  WatchView view;
  EXPECT_FALSE(ToProto(view).has_series());
  view.events = {{.sequence = 4,
                  .kind = EventKind::kEvicted,
                  .round = 2,
                  .unix_seconds = 1.5,
                  .worker = "a",
                  .reason = "why"}};
  view.series = RoundSeries{
      .first_round = 1, .rounds_per_point = 2, .loss = {0.5f, 0.25f}, .stepsize = {1, 2}};
  view.held_out = {{.loss = 3, .worker = "a"}, {.loss = 2, .worker = "b"}};
  const v1::WatchReply out = ToProto(view);
  ASSERT_EQ(out.held_out_size(), 2);
  EXPECT_EQ(out.held_out(0).loss(), 3);
  EXPECT_EQ(out.held_out(1).worker(), "b");
  ASSERT_EQ(out.events_size(), 1);
  EXPECT_EQ(out.events(0).sequence(), 4u);
  EXPECT_EQ(out.events(0).kind(), v1::Event::KIND_EVICTED);
  EXPECT_EQ(out.events(0).round(), 2u);
  EXPECT_EQ(out.events(0).unix_time(), 1.5);
  EXPECT_EQ(out.events(0).worker(), "a");
  EXPECT_EQ(out.events(0).reason(), "why");
  EXPECT_EQ(out.series().first_round(), 1u);
  EXPECT_EQ(out.series().rounds_per_point(), 2u);
  EXPECT_EQ(out.series().loss(1), 0.25f);
  EXPECT_EQ(out.series().stepsize(1), 2.0f);
}

}  // namespace
}  // namespace signvote::run
