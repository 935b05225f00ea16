#include "server/routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "common/status.h"
#include "server/run/run_thread.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(60);  // longer than a busy machine takes

// A worker that has joined. A snapshot asks each for the bytes that it has moved, and nothing else
// does so again and again.
class CountingPeer final : public run::Peer {
 public:
  run::PeerId id() const override { return run::PeerId(1); }
  const run::PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }
  void Send(const v1::ServerMessage&) override {}
  void SendVerdict(const run::VerdictHeader&, std::span<const uint8_t>,
                   std::shared_ptr<const void>) override {}
  void Admit(std::shared_ptr<BallotSlots>) override {}
  size_t queued_bytes() const override { return 0; }
  void NotifyWhenBelow(size_t) override {}
  void Close(absl::Status) override {}
  void Cancel() override {}
  run::PeerBytes bytes() const override {
    ++asked_;
    return {};
  }
  int asked() const { return asked_; }

 private:
  const run::PeerIdentity identity_{.address = "ipv4:10.0.0.1:7"};
  const std::string ticket_ = "ticket";
  mutable std::atomic<int> asked_ = 0;  // a number only
};

class RoutesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run::RunOptions options;
    options.rule.rule = "fixed";
    options.rule.stepsize = 0.01;
    options.main_rounds_max = 10;
    options.model.sizes.chunk_coordinates = 512;
    auto run = run::RunThread::Create(
        {.run = std::move(options), .state = {.run_id = RunId::FromRandom(1, 2)}},
        {.memory = [] { return std::nullopt; }}, Clock::System());
    ASSERT_TRUE(run.ok()) << Describe(run.status());
    run_ = std::move(*run);
    run_->Start();
    v1::Join join;
    join.set_protocol_min(2);
    join.set_protocol_max(2);
    join.set_name("w");
    v1::TensorShape& tensor = *join.add_tensors();
    tensor.set_name("x");
    tensor.add_shape(1000);
    ASSERT_TRUE(run_->Post(
        run::StreamInput{.peer = peer_->id(), .what = run::StreamOpened{.peer = peer_}}));
    ASSERT_TRUE(run_->Post(run::StreamInput{
        .peer = peer_->id(), .what = run::JoinIn{std::make_shared<v1::Join>(join)}}));
    AfterAll();
  }
  void TearDown() override { run_->Stop(); }
  // Returns when the run's thread has done all that it was asked for.
  void AfterAll() { ASSERT_TRUE(run_->HealthNow(kLong).ok()); }

  Clock* const clock_ = Clock::System();
  const std::shared_ptr<CountingPeer> peer_ = std::make_shared<CountingPeer>();
  std::unique_ptr<run::RunThread> run_;
  ListenerState listener_;
  ServerMetrics metrics_{clock_};
  MetricsFeed feed_{&metrics_};
};

TEST_F(RoutesTest, HealthChecksTakeNoSnapshotOfTheRun) {
  const HttpRoutes routes = Routes(
      run_.get(), [this] { return listener_; }, &metrics_, &feed_, nullptr);
  const int before = peer_->asked();
  for (const char* const path : {"/healthz", "/readyz", "/healthz"}) (void)routes.at(path)();
  AfterAll();
  EXPECT_EQ(peer_->asked(), before);
  // That a snapshot would have been noticed:
  (void)routes.at("/api/v1/status")();
  AfterAll();
  EXPECT_EQ(peer_->asked(), before + 1);
}

TEST_F(RoutesTest, ARunThatIsNotReadyIsHealthyAllTheSame) {
  const HttpRoutes routes = Routes(
      run_.get(), [this] { return listener_; }, &metrics_, &feed_, nullptr);
  // 503 too when the thread does not answer in time, as on a busy machine it may once.
  const Time deadline = clock_->Now() + kLong;
  HttpResponse healthy = routes.at("/healthz")();
  while (healthy.code != 200 && clock_->Now() < deadline) healthy = routes.at("/healthz")();
  EXPECT_EQ(healthy.code, 200) << healthy.body;
  HttpResponse ready = routes.at("/readyz")();
  while (!ready.body.starts_with("waiting") && clock_->Now() < deadline) {
    ready = routes.at("/readyz")();
  }
  EXPECT_EQ(ready.code, 503);
  EXPECT_THAT(ready.body, HasSubstr("initial parameters"));
}

TEST(Readiness, ARunWithoutADescriptorLeftIsNotReadyAndSaysWhatToRaise) {
  const HttpResponse response = Readiness({.ready = true}, {.out_of_descriptors = true});
  EXPECT_EQ(response.code, 503);
  EXPECT_EQ(response.body,
            "no descriptor is left for another connection; raise the limit (LimitNOFILE=, ulimit "
            "-n)\n");
}

TEST(Readiness, ACrowdOfStrangersSendsNobodyElsewhereButIsTold) {
  const HttpResponse response = Readiness({.ready = true}, {.waiting = 700, .crowded = true});
  EXPECT_EQ(response.code, 200);
  EXPECT_EQ(response.body,
            "ok\ncrowded: 700 connections without a handshake, and some are turned away\n");
  EXPECT_EQ(Readiness({.ready = true}, {}).body, "ok\n");
}

TEST(Readiness, WhatTheRunWaitsForComesFirst) {
  const HttpResponse response = Readiness({.not_ready_because = "waiting for the first worker"},
                                          {.out_of_descriptors = true});
  EXPECT_EQ(response.code, 503);
  EXPECT_EQ(response.body, "waiting for the first worker\n");
}

TEST_F(RoutesTest, AThreadThatIsGoneIsNeitherHealthyNorReady) {
  const HttpRoutes routes = Routes(
      run_.get(), [this] { return listener_; }, &metrics_, &feed_, nullptr);
  run_->Stop();
  for (const auto& [path, answer] : routes) EXPECT_EQ(answer().code, 503) << path;
}

}  // namespace
}  // namespace signvote
