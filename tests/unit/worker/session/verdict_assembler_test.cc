#include "worker/session/verdict_assembler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "common/checksum.h"
#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;
using Added = VerdictAssembler::Added;

std::vector<uint8_t> Verdict(uint8_t seed) {
  std::vector<uint8_t> bits(kSmallPlan.TotalBytes());
  std::iota(bits.begin(), bits.end(), seed);
  return bits;
}
std::span<const uint8_t> Chunk(const std::vector<uint8_t>& bits, uint32_t k) {
  return {bits.data() + kSmallPlan.ByteOffset(ChunkIndex(k)), kSmallPlan.Bytes(ChunkIndex(k))};
}
// The hash, written out: counts and checksums of the chunks in order.
uint64_t HashOf(const std::vector<uint8_t>& bits, uint64_t counted) {
  std::vector<uint64_t> words;
  for (uint32_t k = 0; k < kSmallPlan.chunks(); ++k) {
    words.push_back(counted);
    words.push_back(Xxh3(Chunk(bits, k).data(), Chunk(bits, k).size()));
  }
  return Xxh3(words.data(), words.size() * sizeof(uint64_t));
}
v1::Commit CommitOf(uint64_t round, const std::vector<uint8_t>& bits, uint32_t attempt = 0) {
  v1::Commit commit = CommitMessage(round).commit();
  commit.set_attempt(attempt);
  commit.set_payload_hash(HashOf(bits, 3));
  return commit;
}

class VerdictAssemblerTest : public ::testing::Test {
 protected:
  VerdictAssemblerTest() : store_(PayloadPlan(kSmallPlan), 3, std::pmr::new_delete_resource()) {}

  absl::StatusOr<Added> Add(uint64_t round, uint32_t k, const std::vector<uint8_t>& bits,
                            uint32_t attempt = 0, uint64_t epoch = 1) {
    return assembler_.Add({.epoch = Epoch(epoch),
                           .round = Round(round),
                           .attempt = Attempt(attempt),
                           .chunk = ChunkIndex(k),
                           .checksum = Xxh3(Chunk(bits, k).data(), Chunk(bits, k).size())},
                          Chunk(bits, k), now_);
  }
  void AddAll(uint64_t round, const std::vector<uint8_t>& bits, uint32_t attempt = 0) {
    for (uint32_t k = 0; k < kSmallPlan.chunks(); ++k) {
      const absl::StatusOr<Added> added = Add(round, k, bits, attempt);
      ASSERT_TRUE(added.ok()) << added.status();
      ASSERT_EQ(*added, Added::kKept);
    }
  }
  std::string WhyNot(const v1::Commit& commit) {
    const absl::Status status = assembler_.Take(commit, now_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    return std::string(status.message());
  }
  // Slots that are free.
  size_t Free() {
    std::vector<VerdictStore::Slot*> taken;
    while (VerdictStore::Slot* const slot = store_.Acquire(Round(0))) taken.push_back(slot);
    for (VerdictStore::Slot* const slot : taken) store_.Release(slot);
    return taken.size();
  }

  Time now_ = Time{} + std::chrono::seconds(7);
  VerdictStore store_;
  VerdictAssembler assembler_{&store_};
};

TEST_F(VerdictAssemblerTest, AVerdictInAnyOrderWithItsCommitBecomesAnEvent) {
  const std::vector<uint8_t> bits = Verdict(1);
  ASSERT_TRUE(Add(5, 2, bits).ok());
  now_ = now_ + std::chrono::seconds(1);
  ASSERT_TRUE(Add(5, 0, bits).ok());
  ASSERT_TRUE(Add(5, 1, bits).ok());
  v1::Commit commit = CommitOf(5, bits);
  commit.set_epoch(1);
  commit.set_loss(2.5);
  commit.set_voters(3);
  commit.set_main_round(6);
  commit.set_next_data_step(9);
  commit.set_run_done(true);
  commit.set_digest_due(true);
  commit.set_rho(0.5f);
  commit.add_scales(4.0f);
  now_ = now_ + std::chrono::seconds(1);
  const absl::StatusOr<CommitEvent> event = assembler_.Take(commit, now_);
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(event->round, Round(5));
  EXPECT_EQ(event->epoch, Epoch(1));
  EXPECT_EQ(event->kind, CommitKind::kStep);
  EXPECT_EQ(event->stepsize, 0.25f);
  EXPECT_EQ(event->decay_step, 0.25f) << "the stepsize, where nothing else is said";
  EXPECT_EQ(event->rho, 0.5f);
  EXPECT_EQ(event->scales, std::vector<float>{4.0f});
  EXPECT_EQ(event->loss, 2.5);
  EXPECT_EQ(event->voters, 3u);
  EXPECT_EQ(event->main_round, 6u);
  EXPECT_EQ(event->next_data_step, DataStep(9));
  EXPECT_TRUE(event->run_done);
  EXPECT_TRUE(event->digest_due);
  EXPECT_EQ(event->times.first_verdict, now_ - std::chrono::seconds(2));
  EXPECT_EQ(event->times.committed, now_);
  ASSERT_NE(event->slot, nullptr);
  EXPECT_EQ(std::vector<uint8_t>(event->slot->bits.begin(), event->slot->bits.end()), bits);
  EXPECT_EQ(Free(), 2u) << "the slot is the event's";
  store_.Release(event->slot);
  EXPECT_EQ(Free(), 3u);
}

TEST_F(VerdictAssemblerTest, ADecayOfItsOwnIsTaken) {
  const std::vector<uint8_t> bits = Verdict(1);
  AddAll(5, bits);
  v1::Commit commit = CommitOf(5, bits);
  commit.set_decay_step(0);
  EXPECT_EQ(assembler_.Take(commit, now_)->decay_step, 0.0f);
}

TEST_F(VerdictAssemblerTest, AVerdictThatIsNotTheCommitsIsRefusedByWhatIsWrongAndLetGo) {
  const std::vector<uint8_t> bits = Verdict(1);
  EXPECT_THAT(WhyNot(CommitOf(5, bits)), HasSubstr("no verdict chunk came"));
  ASSERT_TRUE(Add(5, 0, bits).ok());
  ASSERT_TRUE(Add(5, 1, bits).ok());
  EXPECT_THAT(WhyNot(CommitOf(5, bits)), HasSubstr("missing or of another vote"));
  EXPECT_EQ(Free(), 3u);
  AddAll(5, bits);
  EXPECT_THAT(WhyNot(CommitOf(5, bits, 1)), HasSubstr("missing or of another vote"));
  AddAll(5, bits);
  v1::Commit commit = CommitOf(5, bits);
  commit.set_epoch(2);
  EXPECT_THAT(WhyNot(commit), HasSubstr("missing or of another vote"));
  AddAll(5, bits);
  EXPECT_THAT(WhyNot(CommitOf(5, Verdict(2))), HasSubstr("hash"));
  AddAll(5, bits);
  commit = CommitOf(5, bits);
  commit.set_counted(1, 4);
  EXPECT_THAT(WhyNot(commit), HasSubstr("hash")) << "counts are part of it";
  AddAll(5, bits);
  commit = CommitOf(5, bits);
  commit.add_counted(3);
  EXPECT_THAT(WhyNot(commit), HasSubstr("hash"));
  EXPECT_EQ(Free(), 3u);
}

TEST_F(VerdictAssemblerTest, ChunksOfALaterVoteTakeThePlaceOfThoseOfAnEarlierOne) {
  const std::vector<uint8_t> early = Verdict(1), late = Verdict(2);
  AddAll(5, early, 0);
  AddAll(5, late, 1);
  EXPECT_EQ(Free(), 2u);
  const absl::StatusOr<CommitEvent> event = assembler_.Take(CommitOf(5, late, 1), now_);
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::vector<uint8_t>(event->slot->bits.begin(), event->slot->bits.end()), late);
}

TEST_F(VerdictAssemblerTest, AChunkThatFailsItsChecksumIsNotThere) {
  const std::vector<uint8_t> bits = Verdict(1);
  AddAll(5, bits);
  const VerdictHeader wrong{
      .epoch = Epoch(1), .round = Round(5), .chunk = ChunkIndex(1), .checksum = 1};
  EXPECT_EQ(assembler_.Add(wrong, Chunk(bits, 1), now_).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_THAT(WhyNot(CommitOf(5, bits)), HasSubstr("missing"));
}

TEST_F(VerdictAssemblerTest, ChunksThatAreNoneOfTheRunsAreRefused) {
  const std::vector<uint8_t> bits = Verdict(1);
  VerdictHeader header{.epoch = Epoch(1), .round = Round(5), .chunk = ChunkIndex(3)};
  EXPECT_EQ(assembler_.Add(header, Chunk(bits, 0), now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  header.chunk = ChunkIndex(2);
  EXPECT_EQ(assembler_.Add(header, Chunk(bits, 0), now_).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "64 bytes where 60 are due";
  EXPECT_EQ(Free(), 3u);
}

// Counts of up to four ballots, which take up to three planes.
class CountsAssemblerTest : public ::testing::Test {
 protected:
  static PayloadPlan Plan() {
    return *PayloadPlan::Make(
        kSmallPlan,
        {{.first = ChunkIndex(0), .chunks = kSmallPlan.chunks(), .kind = PayloadKind::kCounts}}, 4);
  }
  absl::Status Add(uint32_t k, size_t planes) {
    const std::vector<uint8_t> bytes(planes * kSmallPlan.Bytes(ChunkIndex(k)),
                                     static_cast<uint8_t>(k + 1));
    sums_.resize(kSmallPlan.chunks());
    sums_[k].checksum = Xxh3(bytes.data(), bytes.size());
    return assembler_
        .Add({.epoch = Epoch(1),
              .round = Round(5),
              .attempt = Attempt(0),
              .chunk = ChunkIndex(k),
              .checksum = sums_[k].checksum},
             bytes, Time{})
        .status();
  }
  v1::Commit Commit(const std::vector<uint32_t>& counted) {
    v1::Commit commit = CommitMessage(5).commit();
    commit.clear_counted();
    for (size_t k = 0; k < counted.size(); ++k) {
      commit.add_counted(counted[k]);
      sums_[k].counted = counted[k];
    }
    commit.set_payload_hash(PayloadHash(sums_));
    return commit;
  }

  std::vector<ChunkSum> sums_;
  VerdictStore store_{Plan(), 3, std::pmr::new_delete_resource()};
  VerdictAssembler assembler_{&store_};
};

TEST_F(CountsAssemblerTest, EachChunkHasThePlanesOfItsOwnBallots) {
  ASSERT_TRUE(Add(0, 1).ok());
  ASSERT_TRUE(Add(1, 2).ok());
  ASSERT_TRUE(Add(2, 3).ok());
  const absl::StatusOr<CommitEvent> event = assembler_.Take(Commit({1, 3, 4}), Time{});
  ASSERT_TRUE(event.ok()) << event.status();
  const VerdictStore::Slot& slot = *event->slot;
  EXPECT_EQ(slot.sums, sums_);
  EXPECT_EQ(slot.plan->Offset(ChunkIndex(1)), 3 * 64u);
  EXPECT_EQ(slot.bits[3 * 64], 2);
  EXPECT_EQ(slot.bits[6 * 64 + 3 * 60 - 1], 3);
}

TEST_F(CountsAssemblerTest, BytesThatNoNumberOfBallotsMakesAreRefused) {
  EXPECT_EQ(Add(0, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Add(0, 4).code(), absl::StatusCode::kInvalidArgument) << "of 8 ballots; 4 are the most";
}

TEST_F(CountsAssemblerTest, BytesOfOtherBallotsThanTheCommitCountsAreNotApplied) {
  for (uint32_t k = 0; k < 3; ++k) ASSERT_TRUE(Add(k, 2).ok());
  const absl::Status status = assembler_.Take(Commit({3, 4, 3}), Time{}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not the bytes of the ballots counted"));
}

TEST_F(VerdictAssemblerTest, WithoutASlotNothingChangesAndTheChunkMayBeGivenAgain) {
  const std::vector<uint8_t> bits = Verdict(1);
  std::vector<VerdictStore::Slot*> others;
  for (int i = 0; i < 3; ++i) others.push_back(store_.Acquire(Round(0)));
  EXPECT_EQ(*Add(5, 0, bits), Added::kNoRoom);
  store_.Release(others.back());
  AddAll(5, bits);
  EXPECT_TRUE(assembler_.Take(CommitOf(5, bits), now_).ok());
}

TEST_F(VerdictAssemblerTest, ACommitFreesWhatIsBeforeItAndKeepsItsSuccessor) {
  const std::vector<uint8_t> bits = Verdict(1), next = Verdict(9);
  ASSERT_TRUE(Add(4, 0, bits).ok());
  AddAll(5, next);
  EXPECT_EQ(Free(), 1u);
  EXPECT_THAT(WhyNot(CommitOf(4, bits)), HasSubstr("missing"));
  EXPECT_EQ(Free(), 2u);
  const absl::StatusOr<CommitEvent> event = assembler_.Take(CommitOf(5, next), now_);
  ASSERT_TRUE(event.ok());
  store_.Release(event->slot);
  ASSERT_TRUE(Add(6, 0, bits).ok());
  AddAll(7, bits);
  ASSERT_TRUE(assembler_.Take(CommitOf(7, bits), now_).ok());
  EXPECT_EQ(Free(), 2u) << "round 6 was passed over";
}

TEST_F(VerdictAssemblerTest, AThirdRoundTakesThePlaceOfTheOldest) {
  const std::vector<uint8_t> bits = Verdict(1);
  AddAll(6, bits);
  AddAll(5, bits);
  AddAll(7, bits);
  EXPECT_EQ(Free(), 1u);
  EXPECT_THAT(WhyNot(CommitOf(5, bits)), HasSubstr("no verdict chunk came"));
  EXPECT_TRUE(assembler_.Take(CommitOf(6, bits), now_).ok());
}

TEST_F(VerdictAssemblerTest, CommitsWithoutPayloadNeedNoVerdict) {
  const std::vector<uint8_t> bits = Verdict(1);
  ASSERT_TRUE(Add(5, 0, bits).ok());
  v1::Commit commit = CommitOf(5, bits);
  commit.set_kind(v1::Commit::KIND_NONE);
  commit.set_reason("nobody could vote");
  absl::StatusOr<CommitEvent> event = assembler_.Take(commit, now_);
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(event->kind, CommitKind::kNone);
  EXPECT_EQ(event->slot, nullptr);
  EXPECT_EQ(event->reason, "nobody could vote");
  EXPECT_EQ(Free(), 3u) << "chunks that were voted are dropped with it";
  commit.set_round(6);
  commit.set_kind(v1::Commit::KIND_REWIND);
  event = assembler_.Take(commit, now_);
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(event->kind, CommitKind::kRewind);
}

TEST_F(VerdictAssemblerTest, WhatIsDroppedIsFree) {
  const std::vector<uint8_t> bits = Verdict(1);
  AddAll(5, bits);
  AddAll(6, bits);
  assembler_.Drop();
  EXPECT_EQ(Free(), 3u);
  EXPECT_THAT(WhyNot(CommitOf(5, bits)), HasSubstr("no verdict chunk came"));
  {
    VerdictAssembler other(&store_);
    ASSERT_TRUE(
        other.Add({.round = Round(1), .checksum = Xxh3(bits.data(), 64)}, Chunk(bits, 0), now_)
            .ok());
    EXPECT_EQ(Free(), 2u);
  }
  EXPECT_EQ(Free(), 3u) << "an assembler that goes leaves nothing behind";
}

}  // namespace
}  // namespace signvote::testing
