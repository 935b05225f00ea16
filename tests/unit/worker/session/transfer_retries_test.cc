#include "worker/session/transfer_retries.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

using std::chrono::seconds;

TEST(TransferRetriesTest, PausesDoubleUpToTheLongest) {
  TransferRetries retries(seconds(1));
  EXPECT_EQ(retries.Pause(), Duration::zero()) << "before the first";
  for (const int expected : {1, 2, 4, 8, 16, 30, 30}) {
    retries.Begins();
    EXPECT_EQ(retries.Pause(), seconds(expected));
  }
  for (int i = 0; i < 100; ++i) retries.Begins();
  EXPECT_EQ(retries.Pause(), TransferRetries::kPauseLongest) << "and never overflow";
}

TEST(TransferRetriesTest, ItIsHopelessAfterFiveInARow) {
  TransferRetries retries(seconds(1));
  for (int i = 0; i < TransferRetries::kInVainMax; ++i) {
    EXPECT_FALSE(retries.hopeless());
    retries.Begins();
    retries.Failed();
  }
  EXPECT_TRUE(retries.hopeless());
  retries.Withdrawn();
  EXPECT_FALSE(retries.hopeless()) << "one that the caller gave up does not count";
  retries.RoundOpened();
  EXPECT_EQ(retries.in_vain(), 0);
}

TEST(TransferRetriesTest, ASuccessIsRememberedUntilARoundOpensOrTheNextFails) {
  TransferRetries retries(seconds(1));
  EXPECT_FALSE(retries.fell_behind().has_value());
  retries.Begins();
  retries.Succeeded({.seconds = 3, .rounds = 7});
  ASSERT_TRUE(retries.fell_behind().has_value());
  EXPECT_EQ(retries.fell_behind()->rounds, 7u);
  retries.RoundOpened();
  EXPECT_FALSE(retries.fell_behind().has_value());
  retries.Succeeded({});
  retries.Failed();
  EXPECT_FALSE(retries.fell_behind().has_value());
}

}  // namespace
}  // namespace signvote
