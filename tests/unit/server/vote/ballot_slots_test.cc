#include "server/rpc/ballot_slots.h"

#include <gtest/gtest.h>

#include <cstring>

namespace signvote::rpc {
namespace {

using Place = BallotSlots::Place;

class BallotSlotsTest : public ::testing::Test {
 protected:
  const ChunkPlan plan_{1000, 512};
  const std::shared_ptr<uint8_t> buffer_{new uint8_t[125](), std::default_delete<uint8_t[]>()};
  BallotSlots slots_{plan_, buffer_};
  std::span<uint8_t> place_;
  const Round round_{3};
  const Attempt attempt_{1};
};

TEST_F(BallotSlotsTest, NothingIsAcceptedBeforeARoundIsOpened) {
  EXPECT_EQ(slots_.Begin(Round(0), Attempt(0), ChunkIndex(0), &place_), Place::kNotOpen);
}

TEST_F(BallotSlotsTest, AChunkLandsInItsPlaceOnce) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(1), &place_), Place::kWrite);
  ASSERT_EQ(place_.size(), plan_.Bytes(ChunkIndex(1)));
  std::memset(place_.data(), 0x5A, place_.size());
  EXPECT_TRUE(slots_.End(round_, attempt_, ChunkIndex(1), true));
  EXPECT_EQ(slots_.chunk(ChunkIndex(1))[0], 0x5A);
  EXPECT_EQ(slots_.chunk(ChunkIndex(1)), buffer_.get() + 64);
  EXPECT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(1), &place_), Place::kNotNeeded);
}

TEST_F(BallotSlotsTest, ADamagedChunkMayComeAgain) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  EXPECT_FALSE(slots_.End(round_, attempt_, ChunkIndex(0), false));
  EXPECT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
}

TEST_F(BallotSlotsTest, OldRoundsAndAttemptsAreNotNeededAndFutureOnesNotOpen) {
  slots_.Open(round_, attempt_);
  EXPECT_EQ(slots_.Begin(Round(2), Attempt(7), ChunkIndex(0), &place_), Place::kNotNeeded);
  EXPECT_EQ(slots_.Begin(round_, Attempt(0), ChunkIndex(0), &place_), Place::kNotNeeded);
  EXPECT_EQ(slots_.Begin(round_, Attempt(2), ChunkIndex(0), &place_), Place::kNotOpen);
  EXPECT_EQ(slots_.Begin(Round(4), Attempt(0), ChunkIndex(0), &place_), Place::kNotOpen);
}

TEST_F(BallotSlotsTest, AChunkThatIsClosedWhileItIsWrittenDoesNotCount) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  slots_.Close(ChunkIndex(0));
  EXPECT_FALSE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kNotNeeded);
}

TEST_F(BallotSlotsTest, AWriterOfAnOlderAttemptDoesNotFillTheNewOnesSlot) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  slots_.Open(round_, attempt_.next());
  EXPECT_FALSE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_EQ(slots_.Begin(round_, attempt_.next(), ChunkIndex(0), &place_), Place::kWrite);
  EXPECT_TRUE(slots_.End(round_, attempt_.next(), ChunkIndex(0), true));
}

}  // namespace
}  // namespace signvote::rpc
