// Goal:   every message of a worker is the input that it says, and what no stream may say ends it.
#include "server/run/from_worker.h"

#include <variant>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote::run {
namespace {

using testing::ElementsAre;

template <typename What>
What Read(const v1::WorkerMessage& message, bool joined = true) {
  absl::StatusOr<StreamWhat> what = InputFrom(message, joined);
  EXPECT_TRUE(what.ok()) << what.status();
  if (!what.ok() || !std::holds_alternative<What>(*what)) {
    ADD_FAILURE() << "another input";
    return {};
  }
  return std::get<What>(*std::move(what));
}

TEST(FromWorkerTest, AJoinComesFirstAndOnce) {
  v1::WorkerMessage join, ready;
  join.mutable_join()->set_name("a");
  ready.mutable_ready()->set_round(7);
  EXPECT_EQ(Read<JoinIn>(join, /*joined=*/false).join->name(), "a");
  EXPECT_TRUE(absl::IsInvalidArgument(InputFrom(join, /*joined=*/true).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(InputFrom(ready, /*joined=*/false).status()));
  EXPECT_EQ(Read<ReadyIn>(ready).round, Round(7));
}

TEST(FromWorkerTest, ScalarsComeWholeWithTheHeldOutLossWhereThereIsOne) {
  v1::WorkerMessage message;
  v1::Scalars& scalars = *message.mutable_scalars();
  scalars.set_round(3);
  scalars.set_attempt(2);
  scalars.set_loss(1.5);
  scalars.set_g_l1(4);
  scalars.set_g_l2_squared(5);
  scalars.set_samples(6);
  scalars.set_nonfinite_coordinates(1);
  scalars.add_wanted(8);
  scalars.set_compute_us(9);
  scalars.set_apply_us(10);
  ScalarsIn in = Read<ScalarsIn>(message);
  EXPECT_EQ(in.round, Round(3));
  EXPECT_EQ(in.attempt, Attempt(2));
  EXPECT_EQ(in.scalars.loss, 1.5);
  EXPECT_EQ(in.scalars.g_l1, 4);
  EXPECT_EQ(in.scalars.g_l2_squared, 5);
  EXPECT_EQ(in.scalars.samples, 6u);
  EXPECT_EQ(in.scalars.nonfinite_coordinates, 1u);
  EXPECT_THAT(in.scalars.wanted, ElementsAre(8));
  EXPECT_EQ(in.times.compute_us, 9u);
  EXPECT_EQ(in.times.apply_us, 10u);
  EXPECT_FALSE(in.held_out.has_value());
  scalars.set_held_out_loss(2.5);
  scalars.set_held_out_error(0.5);
  scalars.set_held_out_round(1);
  scalars.set_held_out_hash(11);
  in = Read<ScalarsIn>(message);
  ASSERT_TRUE(in.held_out.has_value());
  EXPECT_EQ(in.held_out->loss, 2.5);
  EXPECT_EQ(in.held_out->error, 0.5);
  EXPECT_EQ(in.held_out->round, Round(1));
  EXPECT_EQ(in.held_out->windows, 11u);
}

TEST(FromWorkerTest, AReasonOfALaterVersionIsAnOtherOne) {
  v1::WorkerMessage message;
  message.mutable_abstain()->set_reason(v1::Abstain::REASON_NONFINITE_GRADIENT);
  EXPECT_EQ(Read<AbstainIn>(message).reason, AbstainReason::kNonFiniteGradient);
  message.mutable_abstain()->set_reason(static_cast<v1::Abstain::Reason>(99));
  EXPECT_EQ(Read<AbstainIn>(message).reason, AbstainReason::kOther);
}

TEST(FromWorkerTest, AGoodbyeIsMadeFitForPeople) {
  v1::WorkerMessage message;
  message.mutable_leave()->set_reason("a\nb" + std::string(1000, 'x'));
  const std::string reason = Read<LeaveIn>(message).reason;
  EXPECT_EQ(reason.substr(0, 3), "a b");
  EXPECT_LE(reason.size(), 200u);
}

TEST(FromWorkerTest, WhatIsNoMessageEndsTheStream) {
  EXPECT_TRUE(absl::IsInvalidArgument(InputFrom(v1::WorkerMessage(), /*joined=*/true).status()));
}

}  // namespace
}  // namespace signvote::run
