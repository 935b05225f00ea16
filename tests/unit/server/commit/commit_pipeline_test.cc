// Goal: each commit is published once and applied once, in order, never before it is durable, and
// the proposer learns when the applier holds it up. Method: durability and consumer that the test
// drives by hand; at the end a random walk over all of them against the invariant.
#include "server/commit/commit_pipeline.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <vector>

#include "common/rng.h"
#include "tests/unit/server/commit/records.h"

namespace signvote {
namespace {

using testing::Empty;

// Remembers what it was asked, answers when the test does.
class HeldDurability final : public Durability {
 public:
  void Append(std::shared_ptr<const CommitRecord> record) override {
    appended.push_back(record->round.value());
  }
  std::vector<uint64_t> appended;
};

class HeldConsumer final : public CommitConsumer {
 public:
  explicit HeldConsumer(size_t room) : room_(room) {}
  bool TryPush(const std::shared_ptr<const CommitRecord>& record) override {
    if (waiting_ == room_) return false;
    ++waiting_;
    pushed.push_back(record->round.value());
    return true;
  }
  // What the applier would say next.
  Applied Apply() {
    --waiting_;
    return {.next_round = Round(pushed[applied_++] + 1)};
  }
  bool idle() const { return waiting_ == 0; }
  std::vector<uint64_t> pushed;

 private:
  const size_t room_;
  size_t waiting_ = 0, applied_ = 0;
};

struct House {
  explicit House(size_t kept, size_t room, uint64_t start = 0)
      : ring({.start = Round(start), .rounds_kept = kept}), consumer(room) {}

  void Propose() { pipeline.Propose(Empty(pipeline.proposed().value())); }

  CommitRing ring;
  HeldDurability durability;
  HeldConsumer consumer;
  std::vector<uint64_t> published;
  std::function<void(uint64_t)> on_publish;
  CommitPipeline pipeline{&ring, &durability, &consumer,
                          [this](const std::shared_ptr<const CommitRecord>& record) {
                            published.push_back(record->round.value());
                            if (on_publish) on_publish(record->round.value());
                          }};
};

using Rounds = std::vector<uint64_t>;

TEST(CommitPipelineTest, ACommitGoesFromStageToStage) {
  House house(8, 8);
  house.Propose();
  EXPECT_EQ(house.durability.appended, Rounds({0}));
  EXPECT_EQ(house.ring.Find(Round(0))->round, Round(0));
  EXPECT_EQ(house.pipeline.proposed(), Round(1));
  EXPECT_EQ(house.pipeline.durable(), Round(0));
  EXPECT_TRUE(house.published.empty());
  house.pipeline.OnDurable(Round(0));
  EXPECT_EQ(house.pipeline.durable(), Round(1));
  EXPECT_EQ(house.pipeline.published(), Round(1));
  EXPECT_EQ(house.pipeline.applied(), Round(0));
  EXPECT_EQ(house.pipeline.backlog(), 1u);
  EXPECT_EQ(house.published, Rounds({0}));
  EXPECT_EQ(house.consumer.pushed, Rounds({0}));
  house.pipeline.OnApplied(house.consumer.Apply());
  EXPECT_EQ(house.pipeline.applied(), Round(1));
  EXPECT_EQ(house.pipeline.backlog(), 0u);
}

TEST(CommitPipelineTest, NothingIsPublishedOrAppliedBeforeItIsDurable) {
  House house(8, 8);
  for (int i = 0; i < 3; ++i) house.Propose();
  EXPECT_TRUE(house.published.empty());
  EXPECT_TRUE(house.consumer.pushed.empty());
  // One answer releases all up to its round.
  house.pipeline.OnDurable(Round(1));
  EXPECT_EQ(house.published, Rounds({0, 1}));
  EXPECT_EQ(house.consumer.pushed, Rounds({0, 1}));
  house.pipeline.OnDurable(Round(1));
  house.pipeline.OnDurable(Round(0));
  EXPECT_EQ(house.pipeline.durable(), Round(2));
  EXPECT_EQ(house.published, Rounds({0, 1}));
}

TEST(CommitPipelineTest, EverybodyHearsOfACommitBeforeTheApplier) {
  House house(8, 8);
  house.on_publish = [&](uint64_t) { EXPECT_TRUE(house.consumer.pushed.empty()); };
  house.Propose();
  house.Propose();
  house.pipeline.OnDurable(Round(1));
  EXPECT_EQ(house.consumer.pushed, Rounds({0, 1}));
}

TEST(CommitPipelineTest, WhatTheApplierHasNoRoomForWaitsInTheRing) {
  House house(8, 2);
  for (int i = 0; i < 5; ++i) house.Propose();
  house.pipeline.OnDurable(Round(4));
  EXPECT_EQ(house.published, Rounds({0, 1, 2, 3, 4}));
  EXPECT_EQ(house.consumer.pushed, Rounds({0, 1}));
  EXPECT_EQ(house.pipeline.backlog(), 5u);
  house.pipeline.OnApplied(house.consumer.Apply());
  EXPECT_EQ(house.consumer.pushed, Rounds({0, 1, 2}));
  while (!house.consumer.idle()) house.pipeline.OnApplied(house.consumer.Apply());
  EXPECT_EQ(house.consumer.pushed, Rounds({0, 1, 2, 3, 4}));
  EXPECT_EQ(house.pipeline.applied(), Round(5));
}

TEST(CommitPipelineTest, AProposalWaitsOnlyWhenTheRingWouldLoseAnUnappliedCommit) {
  House house(3, 1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(house.pipeline.CanPropose());
    house.Propose();
    house.pipeline.OnDurable(Round(static_cast<uint64_t>(i)));
  }
  EXPECT_FALSE(house.pipeline.CanPropose());
  EXPECT_EQ(house.ring.first(), Round(0));
  house.pipeline.OnApplied(house.consumer.Apply());
  EXPECT_TRUE(house.pipeline.CanPropose());
  house.Propose();
  EXPECT_FALSE(house.pipeline.CanPropose());
  EXPECT_EQ(house.ring.first(), Round(1));
}

TEST(CommitPipelineTest, DurabilityNoneAnswersAtOnce) {
  CommitRing ring({.rounds_kept = 4});
  HeldConsumer consumer(4);
  CommitPipeline* pipeline = nullptr;
  Rounds published;
  NoDurability durability([&](Round round) { pipeline->OnDurable(round); });
  CommitPipeline owner(&ring, &durability, &consumer,
                       [&](const auto& record) { published.push_back(record->round.value()); });
  pipeline = &owner;
  owner.Propose(Empty(0));
  EXPECT_EQ(published, Rounds({0}));
  EXPECT_EQ(owner.published(), Round(1));
}

TEST(CommitPipelineTest, ACommitProposedWhileOneIsPublishedComesAfterIt) {
  CommitRing ring({.rounds_kept = 8});
  HeldConsumer consumer(8);
  CommitPipeline* pipeline = nullptr;
  Rounds begun, ended;
  NoDurability durability([&](Round round) { pipeline->OnDurable(round); });
  CommitPipeline owner(&ring, &durability, &consumer, [&](const auto& record) {
    const uint64_t round = record->round.value();
    begun.push_back(round);
    if (round < 3) pipeline->Propose(Empty(round + 1));
    ended.push_back(round);
  });
  pipeline = &owner;
  owner.Propose(Empty(0));
  EXPECT_EQ(begun, Rounds({0, 1, 2, 3}));
  EXPECT_EQ(ended, begun);
  EXPECT_EQ(consumer.pushed, begun);
}

TEST(CommitPipelineTest, ARunThatGoesOnBeginsAtItsRound) {
  House house(4, 4, 1000);
  EXPECT_EQ(house.pipeline.applied(), Round(1000));
  EXPECT_EQ(house.pipeline.proposed(), Round(1000));
  EXPECT_TRUE(house.pipeline.CanPropose());
  house.Propose();
  house.pipeline.OnDurable(Round(1000));
  house.pipeline.OnApplied(house.consumer.Apply());
  EXPECT_EQ(house.pipeline.applied(), Round(1001));
}

TEST(CommitPipelineTest, AnyOrderOfAnswersKeepsTheStagesInOrder) {
  uint64_t waits = 0, full = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed, 0);
    House house(1 + rng.Below(6), 1 + rng.Below(4));
    const CommitPipeline& pipeline = house.pipeline;
    for (int step = 0; step < 300; ++step) {
      switch (rng.Below(3)) {
        case 0:
          if (pipeline.CanPropose()) {
            house.Propose();
          } else {
            ++waits;
            EXPECT_EQ(pipeline.proposed().value() - pipeline.applied().value(),
                      house.ring.rounds_kept());
          }
          break;
        case 1:
          if (pipeline.durable() < pipeline.proposed()) {
            const uint64_t more =
                rng.Below(pipeline.proposed().value() - pipeline.durable().value());
            house.pipeline.OnDurable(Round(pipeline.durable().value() + more));
          }
          break;
        default:
          if (!house.consumer.idle()) house.pipeline.OnApplied(house.consumer.Apply());
      }
      ASSERT_LE(pipeline.applied(), pipeline.published());
      ASSERT_LE(pipeline.published(), pipeline.durable());
      ASSERT_LE(pipeline.durable(), pipeline.proposed());
      ASSERT_LE(house.ring.first(), pipeline.applied());
      if (house.consumer.pushed.size() < house.published.size()) ++full;
    }
    for (uint64_t r = 0; r < house.published.size(); ++r) ASSERT_EQ(house.published[r], r);
    for (uint64_t r = 0; r < house.consumer.pushed.size(); ++r)
      ASSERT_EQ(house.consumer.pushed[r], r);
    ASSERT_EQ(house.durability.appended.size(), pipeline.proposed().value());
  }
  EXPECT_GT(waits, 100u);
  EXPECT_GT(full, 100u);
}

TEST(CommitPipelineDeathTest, AnswersThatCannotBeAreBugs) {
  House house(2, 2);
  EXPECT_DEATH(house.pipeline.OnDurable(Round(0)), "check failed");
  house.Propose();
  EXPECT_DEATH(house.pipeline.OnDurable(Round(1)), "check failed");
  EXPECT_DEATH(house.pipeline.OnApplied({.next_round = Round(1)}), "check failed");
  house.pipeline.OnDurable(Round(0));
  EXPECT_DEATH(house.pipeline.OnApplied({.next_round = Round(2)}), "check failed");
  EXPECT_DEATH(house.pipeline.OnApplied({.next_round = Round(0)}), "check failed");
  EXPECT_DEATH(house.pipeline.Propose(Empty(0)), "check failed");
  house.Propose();
  EXPECT_DEATH(house.Propose(), "check failed");
}

}  // namespace
}  // namespace signvote
