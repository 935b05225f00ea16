#include "worker/session/commit_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <variant>
#include <vector>

#include "common/checksum.h"
#include "tests/unit/worker/session/fake_stream.h"
#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using Added = VerdictAssembler::Added;

class CommitReceiverTest : public ::testing::Test {
 protected:
  CommitReceiverTest() : bits_(kSmallPlan.TotalBytes()) {
    std::iota(bits_.begin(), bits_.end(), uint8_t{3});
    conversation_.Introduce(
        {.name = "w1", .token = "", .metrics_address = "", .model = SmallModel()});
    receiver_.Begin(PayloadPlan(kSmallPlan), std::pmr::new_delete_resource());
    EXPECT_TRUE(conversation_.Begins(stream_).has_value());
    EXPECT_TRUE(conversation_.Hear(WelcomeMessage(v1::Welcome::STATE_FETCH), clock_.Now()).ok());
  }
  void Follow(uint64_t round) { conversation_.SayReplicaStandsAt(1, Round(round)); }

  const uint8_t* Chunk(uint32_t k) const {
    return bits_.data() + kSmallPlan.ByteOffset(ChunkIndex(k));
  }
  uint64_t Checksum(uint32_t k) const { return Xxh3(Chunk(k), kSmallPlan.Bytes(ChunkIndex(k))); }
  // As the server sends it.
  absl::StatusOr<Added> Give(uint64_t round, uint32_t k, uint64_t checksum_off_by = 0,
                             RunId run = kSmallRun) {
    const grpc::ByteBuffer message =
        wire::EncodeVote(wire::BulkKind::kVerdictChunk,
                         {.run_id = run,
                          .epoch = Epoch(1),
                          .round = Round(round),
                          .attempt = Attempt(0),
                          .chunk = ChunkIndex(k),
                          .checksum = Checksum(k) + checksum_off_by},
                         {Chunk(k), kSmallPlan.Bytes(ChunkIndex(k))}, nullptr);
    const auto view = wire::DecodeVote(wire::BulkKind::kVerdictChunk, message);
    EXPECT_TRUE(view.ok() && view->has_value());
    return receiver_.OnChunk(**view, message);
  }
  void GiveAll(uint64_t round) {
    for (uint32_t k = 0; k < kSmallPlan.chunks(); ++k) {
      const auto added = Give(round, k);
      ASSERT_TRUE(added.ok()) << added.status();
      ASSERT_EQ(*added, Added::kKept);
    }
  }
  v1::Commit CommitOf(uint64_t round) const {
    v1::Commit commit = CommitMessage(round).commit();
    std::vector<uint64_t> words;
    for (uint32_t k = 0; k < kSmallPlan.chunks(); ++k) {
      words.push_back(3);
      words.push_back(Checksum(k));
    }
    commit.set_payload_hash(Xxh3(words.data(), words.size() * sizeof(uint64_t)));
    return commit;
  }
  // The commit that waits for the caller.
  CommitEvent Take() {
    auto event = events_.TryNext();
    EXPECT_TRUE(event.has_value() && std::holds_alternative<CommitEvent>(*event));
    return event ? std::get<CommitEvent>(*event) : CommitEvent();
  }
  uint64_t Mismatches() const { return counters_.Read({}, true).verdict_mismatches; }

  std::vector<uint8_t> bits_;
  int log_lines_ = 0;
  const SessionLog log_ = [this](LogLevel, std::string_view, std::initializer_list<LogField>) {
    ++log_lines_;
  };
  FakeClock clock_;
  EventQueue events_{"head:9", Waits(&clock_, {})};
  Conversation conversation_{&events_};
  SessionCounters counters_;
  CommitReceiver receiver_{&clock_, &conversation_, &counters_, &log_};
  std::shared_ptr<FakeStream> stream_ = std::make_shared<FakeStream>();
};

TEST_F(CommitReceiverTest, AVerdictAndItsCommitBecomeTheCallersEvent) {
  Follow(4);
  GiveAll(4);
  ASSERT_TRUE(receiver_.OnCommit(CommitOf(4)).ok());
  const CommitEvent commit = Take();
  EXPECT_EQ(commit.round, Round(4));
  ASSERT_NE(commit.slot, nullptr);
  EXPECT_TRUE(std::equal(bits_.begin(), bits_.end(), commit.slot->bits.begin()));
  EXPECT_EQ(Mismatches(), 0u);
  receiver_.Release(commit.slot);
}

TEST_F(CommitReceiverTest, ChunksThatNobodyWaitsForTakeNoRoom) {
  Follow(4);
  for (const uint64_t round : {0, 3, 6}) {
    for (size_t i = 0; i < 2 * CommitReceiver::kVerdictSlotsMax; ++i)
      EXPECT_EQ(*Give(round, 0), Added::kKept);
  }
  GiveAll(4);
  EXPECT_EQ(Give(4, 0, 0, RunId::FromRandom(9, 9)).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "of another run";
}

TEST_F(CommitReceiverTest, AChunkThatFailsItsChecksumIsAskedForAgainOverANewConnection) {
  Follow(4);
  EXPECT_EQ(Give(4, 0, 1).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Mismatches(), 1u);
  EXPECT_EQ(log_lines_, 1);
}

TEST_F(CommitReceiverTest, ACommitWhoseVerdictIsNotHereIsAskedForAgain) {
  Follow(4);
  ASSERT_TRUE(Give(4, 0).ok());
  EXPECT_EQ(receiver_.OnCommit(CommitOf(4)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Mismatches(), 1u);
  EXPECT_FALSE(events_.TryNext().has_value());
}

TEST_F(CommitReceiverTest, WhileTheStateIsFetchedAMismatchIsToldAndPassedOver) {
  EXPECT_EQ(*Give(4, 0, 1), Added::kKept);
  EXPECT_TRUE(receiver_.OnCommit(CommitOf(4)).ok());
  EXPECT_FALSE(events_.TryNext().has_value());
  EXPECT_EQ(Mismatches(), 0u);
  EXPECT_EQ(log_lines_, 2) << "the chunk, and the commit that lacks it";
}

// What is said of the next round waits for the caller, and nothing is lost by it.
TEST_F(CommitReceiverTest, WithoutAFreeSlotAChunkWaitsAndIsTakenOnceTheCallerLetsGo) {
  std::vector<CommitEvent> held;
  for (uint64_t round = 0; round < CommitReceiver::kVerdictSlotsMax; ++round) {
    GiveAll(round);
    ASSERT_TRUE(receiver_.OnCommit(CommitOf(round)).ok());
    held.push_back(Take());
  }
  const uint64_t next = CommitReceiver::kVerdictSlotsMax;
  EXPECT_EQ(*Give(next, 0), Added::kNoRoom);
  EXPECT_EQ(*Give(next, 0), Added::kNoRoom) << "nothing was changed";
  receiver_.Release(held.back().slot);
  held.pop_back();
  GiveAll(next);
  ASSERT_TRUE(receiver_.OnCommit(CommitOf(next)).ok());
  EXPECT_EQ(Take().round, Round(next));
}

TEST_F(CommitReceiverTest, OfLargerPayloadsFewerRoundsWait) {
  const auto slots = [](PayloadKind kind, uint32_t ballots_max) {
    return CommitReceiver::VerdictSlots(*PayloadPlan::Make(
        kSmallPlan, {{.first = ChunkIndex(0), .chunks = kSmallPlan.chunks(), .kind = kind}},
        ballots_max));
  };
  EXPECT_EQ(slots(PayloadKind::kSigns, 64), CommitReceiver::kVerdictSlotsMax);
  EXPECT_EQ(slots(PayloadKind::kCounts, 3), CommitReceiver::kVerdictSlotsMax / 2);
  EXPECT_EQ(slots(PayloadKind::kCounts, 64), 2u);
  EXPECT_EQ(slots(PayloadKind::kFp32, 64), 2u);
}

TEST_F(CommitReceiverTest, ACommitThatFindsNoPlaceInTheQueueLeavesItsSlotFree) {
  Follow(0);
  while (events_.Push(FinishEvent{}).ok()) {
  }
  for (size_t i = 0; i < 2 * CommitReceiver::kVerdictSlotsMax; ++i) {
    GiveAll(0);
    ASSERT_EQ(receiver_.OnCommit(CommitOf(0)).code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST_F(CommitReceiverTest, WhatIsDroppedIsNotPutTogetherWithWhatComesLater) {
  Follow(4);
  ASSERT_TRUE(Give(4, 0).ok());
  receiver_.Drop();
  ASSERT_TRUE(Give(4, 1).ok());
  ASSERT_TRUE(Give(4, 2).ok());
  EXPECT_EQ(receiver_.OnCommit(CommitOf(4)).code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace signvote::testing
