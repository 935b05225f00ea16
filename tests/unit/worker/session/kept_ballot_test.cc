#include "worker/session/kept_ballot.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "proto/wire/wire.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;

const ChunkPlan kPlan(1500, 512);  // chunks of 64, 64 and 60 bytes
const Time kOpened = Time{} + std::chrono::seconds(5);

VoteId Vote(uint64_t epoch, uint32_t attempt) {
  return {.run_id = *RunId::FromBytes(std::string(16, '\7')),
          .epoch = Epoch(epoch),
          .attempt = Attempt(attempt)};
}

class KeptBallotTest : public testing::Test {
 protected:
  KeptBallotTest() { std::iota(bits_->begin(), bits_->end(), uint8_t{1}); }

  absl::Status Add(uint32_t k, uint64_t checksum, Time now) {
    const std::shared_ptr<const uint8_t> bits(bits_,
                                              bits_->data() + kPlan.ByteOffset(ChunkIndex(k)));
    return ballot_.AddChunk(ChunkIndex(k), bits, checksum, now);
  }
  // What another side reads of a chunk's message.
  static wire::VoteView Read(const OutgoingMessage& out) {
    EXPECT_EQ(out.kind, MessageKind::kBallot);
    const auto view = wire::DecodeVote(wire::BulkKind::kBallotChunk, out.message);
    EXPECT_TRUE(view.ok() && view->has_value());
    return **view;
  }
  static v1::WorkerMessage Parse(const OutgoingMessage& out) {
    v1::WorkerMessage message;
    EXPECT_TRUE(wire::ParseMessage(out.message, &message).ok());
    return message;
  }

  std::shared_ptr<std::vector<uint8_t>> bits_ =
      std::make_shared<std::vector<uint8_t>>(kPlan.TotalBytes());
  KeptBallot ballot_;
};

TEST_F(KeptBallotTest, WithoutAnOpenRoundNothingIsTaken) {
  EXPECT_FALSE(ballot_.open());
  EXPECT_EQ(ballot_.AddScalars({}, kOpened).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ballot_.AddAbstain(v1::Abstain::REASON_NONFINITE_LOSS).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Add(0, 1, kOpened).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(KeptBallotTest, TheSameBitsAreSentUnderEachVote) {
  ballot_.Open(Round(9), kOpened, PayloadPlan(kPlan));
  ASSERT_TRUE(Add(2, 77, kOpened).ok());
  for (const VoteId& vote : {Vote(1, 0), Vote(2, 3)}) {
    const OutgoingMessage out = ballot_.ChunkMessage(ChunkIndex(2), vote);
    const wire::VoteView view = Read(out);
    EXPECT_EQ(view.header.run_id, vote.run_id);
    EXPECT_EQ(view.header.epoch, vote.epoch);
    EXPECT_EQ(view.header.round, Round(9));
    EXPECT_EQ(view.header.attempt, vote.attempt);
    EXPECT_EQ(view.header.chunk, ChunkIndex(2));
    EXPECT_EQ(view.header.checksum, 77u);
    std::vector<uint8_t> payload(view.payload_bytes);
    EXPECT_TRUE(
        absl::IsDataLoss(wire::CopyPayloadChecked(out.message, view.payload_offset, 77, payload)))
        << "the checksum is the caller's";
    EXPECT_EQ(payload, std::vector<uint8_t>(bits_->begin() + 128, bits_->end()));
  }
}

TEST_F(KeptBallotTest, IsWholeWithTheScalarsAfterItsLastChunkAndOnlyOnce) {
  ballot_.Open(Round(9), kOpened, PayloadPlan(kPlan));
  ASSERT_TRUE(Add(2, 1, kOpened + milliseconds(3)).ok());
  ASSERT_TRUE(Add(0, 1, kOpened + milliseconds(4)).ok());
  EXPECT_EQ(ballot_.first_chunk(), kOpened + milliseconds(3));
  EXPECT_EQ(Add(0, 1, kOpened).code(), absl::StatusCode::kFailedPrecondition)
      << "handed over twice";
  EXPECT_FALSE(*ballot_.AddScalars({}, kOpened + milliseconds(5))) << "chunk 1 is missing";

  ballot_.Open(Round(10), kOpened, PayloadPlan(kPlan));
  for (uint32_t k = 0; k < 3; ++k) ASSERT_TRUE(Add(k, 1, kOpened + milliseconds(4 + k)).ok());
  v1::Scalars scalars;
  scalars.set_loss(2.5);
  EXPECT_TRUE(*ballot_.AddScalars(scalars, kOpened + milliseconds(50)));
  EXPECT_FALSE(*ballot_.AddScalars(scalars, kOpened + milliseconds(50)));
  const v1::WorkerMessage message = Parse(ballot_.ScalarsMessage(Vote(1, 2)));
  EXPECT_EQ(message.scalars().round(), 10u);
  EXPECT_EQ(message.scalars().attempt(), 2u);
  EXPECT_EQ(message.scalars().loss(), 2.5);
  EXPECT_EQ(message.scalars().compute_us(), 6000u) << "up to the last chunk, not to the scalars";
}

TEST_F(KeptBallotTest, AllMessagesAreWhatWasHandedOverInOrder) {
  ballot_.Open(Round(9), kOpened, PayloadPlan(kPlan));
  EXPECT_TRUE(ballot_.AllMessages(Vote(1, 0)).empty());
  ASSERT_TRUE(Add(2, 1, kOpened).ok());
  ASSERT_TRUE(Add(0, 1, kOpened).ok());
  ASSERT_TRUE(ballot_.AddAbstain(v1::Abstain::REASON_NONFINITE_GRADIENT).ok());
  const std::vector<OutgoingMessage> all = ballot_.AllMessages(Vote(1, 4));
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(Read(all[0]).header.chunk, ChunkIndex(0));
  EXPECT_EQ(Read(all[1]).header.chunk, ChunkIndex(2));
  const v1::WorkerMessage last = Parse(all[2]);
  EXPECT_EQ(last.abstain().round(), 9u);
  EXPECT_EQ(last.abstain().attempt(), 4u);
  EXPECT_EQ(last.abstain().reason(), v1::Abstain::REASON_NONFINITE_GRADIENT);
}

TEST_F(KeptBallotTest, TheBitsAreSharedUntilTheLastMessageIsGone) {
  ballot_.Open(Round(9), kOpened, PayloadPlan(kPlan));
  const long own = bits_.use_count();
  ASSERT_TRUE(Add(0, 1, kOpened).ok());
  std::vector<OutgoingMessage> sent;
  for (const uint32_t attempt : {0u, 1u})
    sent.push_back(ballot_.ChunkMessage(ChunkIndex(0), Vote(1, attempt)));
  ballot_ = KeptBallot();
  EXPECT_FALSE(ballot_.open());
  EXPECT_GT(bits_.use_count(), own);
  sent.pop_back();
  EXPECT_GT(bits_.use_count(), own);
  sent.pop_back();
  EXPECT_EQ(bits_.use_count(), own);
}

}  // namespace
}  // namespace signvote
