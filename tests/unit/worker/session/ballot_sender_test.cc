#include "worker/session/ballot_sender.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/unit/worker/session/fake_stream.h"
#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BallotSenderTest : public ::testing::Test {
 protected:
  VoteId Vote(uint32_t attempt) const {
    return {.run_id = kSmallRun, .epoch = Epoch(1), .attempt = Attempt(attempt)};
  }
  absl::Status Send(uint32_t k) {
    return sender_.SendChunk(ChunkIndex(k),
                             std::shared_ptr<const uint8_t>(
                                 bits_, bits_->data() + kSmallPlan.ByteOffset(ChunkIndex(k))));
  }
  void Open(uint64_t round = 5) { sender_.Open(Round(round), Time{10}, PayloadPlan(kSmallPlan)); }

  FakeClock clock_;
  BallotSender sender_{&clock_};
  std::shared_ptr<FakeStream> stream_ = std::make_shared<FakeStream>();
  std::shared_ptr<std::vector<uint8_t>> bits_ =
      std::make_shared<std::vector<uint8_t>>(kSmallPlan.TotalBytes(), uint8_t{0});
};

TEST_F(BallotSenderTest, WhatIsHandedOverGoesUnderTheOpenVote) {
  sender_.VoteOpens(stream_, Round(5), Vote(2));
  Open();
  ASSERT_TRUE(Send(1).ok());
  ASSERT_TRUE(Send(0).ok());
  ASSERT_TRUE(Send(2).ok());
  EXPECT_TRUE(*sender_.SendScalars({}));
  EXPECT_THAT(stream_->Words(),
              ElementsAre("chunk 1 of 2", "chunk 0 of 2", "chunk 2 of 2", "scalars of 2"));
}

TEST_F(BallotSenderTest, WithoutAVoteItWaitsForTheNextOpeningOfItsRound) {
  Open();
  ASSERT_TRUE(Send(0).ok());
  EXPECT_FALSE(*sender_.SendScalars({})) << "chunks are missing";
  sender_.VoteOpens(stream_, Round(6), Vote(0));
  EXPECT_THAT(stream_->Words(), IsEmpty()) << "that is another round";
  sender_.VoteOpens(stream_, Round(5), Vote(1));
  EXPECT_THAT(stream_->Words(), ElementsAre("chunk 0 of 1", "scalars of 1"));
  EXPECT_EQ(stream_->flushes, 2);
}

TEST_F(BallotSenderTest, ALaterAttemptOrConnectionGetsTheWholeBallotAgain) {
  sender_.VoteOpens(stream_, Round(5), Vote(0));
  Open();
  ASSERT_TRUE(Send(0).ok());
  sender_.VoteOpens(stream_, Round(5), Vote(1));
  ASSERT_TRUE(Send(1).ok());
  EXPECT_THAT(stream_->Words(), ElementsAre("chunk 0 of 1", "chunk 1 of 1"));
  sender_.VoteEnds();
  ASSERT_TRUE(Send(2).ok());
  EXPECT_EQ(stream_->Words().size(), 2u) << "that connection is over";
  const auto next = std::make_shared<FakeStream>();
  sender_.VoteOpens(next, Round(5), Vote(1));
  EXPECT_THAT(next->Words(), ElementsAre("chunk 0 of 1", "chunk 1 of 1", "chunk 2 of 1"));
}

TEST_F(BallotSenderTest, AnAbstentionTakesThePlaceOfWhatHasNotLeft) {
  sender_.VoteOpens(stream_, Round(5), Vote(0));
  Open();
  ASSERT_TRUE(Send(0).ok());
  ASSERT_TRUE(sender_.SendAbstain(v1::Abstain::REASON_NONFINITE_LOSS).ok());
  EXPECT_THAT(stream_->Words(), ElementsAre("abstain of 0"));
}

TEST_F(BallotSenderTest, ClosingWithdrawsWhatWaitsAndNeverWaitsForTheNetwork) {
  sender_.VoteOpens(stream_, Round(5), Vote(0));
  const long own = bits_.use_count();
  Open();
  ASSERT_TRUE(Send(0).ok());
  ASSERT_TRUE(Send(1).ok());
  // The network has one of them in its hands.
  OutgoingMessage in_flight = std::move(stream_->queue.front());
  stream_->queue.pop_front();
  stream_->written = Time{30};
  clock_.Advance(Duration(40));
  const RoundTimes times = sender_.Close();
  EXPECT_EQ(times.opened, Time{10});
  EXPECT_EQ(times.ballot_written, Time{30});
  EXPECT_THAT(stream_->Words(), IsEmpty());
  EXPECT_FALSE(stream_->cancelled.has_value()) << "the connection goes on";
  EXPECT_GT(bits_.use_count(), own) << "the message keeps its bits";
  in_flight.message.Clear();
  EXPECT_EQ(bits_.use_count(), own);
  EXPECT_EQ(sender_.Close().ballot_written, Time{}) << "nothing was open";
}

TEST_F(BallotSenderTest, CallsThatDoNotFitAreRefusedAndSendNothing) {
  sender_.VoteOpens(stream_, Round(5), Vote(0));
  EXPECT_EQ(Send(0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(sender_.SendScalars({}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(sender_.SendAbstain(v1::Abstain::REASON_OTHER).code(),
            absl::StatusCode::kFailedPrecondition);
  Open();
  const std::shared_ptr<const uint8_t> bits(bits_, bits_->data());
  EXPECT_EQ(sender_.SendChunk(ChunkIndex(3), bits).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(sender_.SendChunk(ChunkIndex(0), nullptr).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Send(0).ok());
  EXPECT_EQ(Send(0).code(), absl::StatusCode::kFailedPrecondition) << "handed over twice";
  EXPECT_THAT(stream_->Words(), ElementsAre("chunk 0 of 0"));
}

}  // namespace
}  // namespace signvote::testing
