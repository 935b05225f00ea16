#include "server/vote/ballot_slots.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace signvote {
namespace {

using Place = BallotSlots::Place;

std::shared_ptr<uint8_t> Buffer() { return {new uint8_t[125](), std::default_delete<uint8_t[]>()}; }

class BallotSlotsTest : public ::testing::Test {
 protected:
  const ChunkPlan plan_{1000, 512};
  const std::shared_ptr<uint8_t> buffer_ = Buffer();
  BallotSlots slots_{PayloadPlan(plan_), buffer_};
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
  EXPECT_EQ(slots_.buffer(), buffer_);
  EXPECT_EQ(buffer_.get()[63], 0);
  EXPECT_EQ(buffer_.get()[64], 0x5A);
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
  EXPECT_FALSE(slots_.Close(ChunkIndex(0)));
  EXPECT_FALSE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kNotNeeded);
}

TEST_F(BallotSlotsTest, ClosingSaysWhetherTheChunkWasThere) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  ASSERT_TRUE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_TRUE(slots_.Close(ChunkIndex(0)));
  EXPECT_FALSE(slots_.Close(ChunkIndex(0)));  // closed before
  EXPECT_FALSE(slots_.Close(ChunkIndex(1)));  // never came
}

TEST_F(BallotSlotsTest, AWriterOfAnOlderAttemptDoesNotFillTheNewOnesSlot) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  slots_.Open(round_, attempt_.next());
  EXPECT_FALSE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_EQ(slots_.Begin(round_, attempt_.next(), ChunkIndex(0), &place_), Place::kWrite);
  EXPECT_TRUE(slots_.End(round_, attempt_.next(), ChunkIndex(0), true));
}

TEST_F(BallotSlotsTest, AnotherBufferTakesTheNextAttemptAndTheOldOneStaysAsItIs) {
  slots_.Open(round_, attempt_);
  ASSERT_EQ(slots_.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  std::memset(place_.data(), 0x11, place_.size());
  ASSERT_TRUE(slots_.End(round_, attempt_, ChunkIndex(0), true));
  const std::shared_ptr<uint8_t> next = Buffer();
  slots_.OpenIn(next, round_, attempt_.next());
  EXPECT_EQ(slots_.buffer(), next);
  ASSERT_EQ(slots_.Begin(round_, attempt_.next(), ChunkIndex(0), &place_), Place::kWrite);
  std::memset(place_.data(), 0x22, place_.size());
  EXPECT_TRUE(slots_.End(round_, attempt_.next(), ChunkIndex(0), true));
  EXPECT_EQ(buffer_.get()[0], 0x11);
  EXPECT_EQ(next.get()[0], 0x22);
}

TEST_F(BallotSlotsTest, ABufferThatIsReplacedUnderItsWriterLivesUntilTheWriterIsDone) {
  std::shared_ptr<uint8_t> first = Buffer();
  const std::weak_ptr<uint8_t> watched = first;
  BallotSlots slots(PayloadPlan(plan_), std::exchange(first, nullptr));
  slots.Open(round_, attempt_);
  ASSERT_EQ(slots.Begin(round_, attempt_, ChunkIndex(0), &place_), Place::kWrite);
  slots.OpenIn(Buffer(), round_, attempt_.next());
  EXPECT_FALSE(watched.expired());
  std::memset(place_.data(), 0x33, place_.size());
  EXPECT_FALSE(slots.End(round_, attempt_, ChunkIndex(0), true));
  EXPECT_TRUE(watched.expired());
}

using BallotSlotsDeathTest = BallotSlotsTest;

TEST_F(BallotSlotsDeathTest, AChunkBeyondTheModelIsABug) {
  slots_.Open(round_, attempt_);
  EXPECT_DEATH((void)slots_.Begin(round_, attempt_, ChunkIndex(2), &place_), "check failed");
}

}  // namespace
}  // namespace signvote
