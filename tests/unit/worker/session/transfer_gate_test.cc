#include "worker/session/transfer_gate.h"

#include <gtest/gtest.h>

#include <memory>

namespace signvote {
namespace {

class TransferGateTest : public testing::Test {
 protected:
  FakeClock clock_;
  TransferGate gate_{Waits(&clock_, {})};
};

TEST_F(TransferGateTest, ATransferBelongsToTheLiveConnection) {
  EXPECT_EQ(gate_.Begin(0), nullptr) << "there is none yet";
  gate_.ConnectionBegins(1);
  EXPECT_NE(gate_.Begin(1), nullptr);
  EXPECT_EQ(gate_.Begin(2), nullptr);
  gate_.ConnectionEnds();
  EXPECT_EQ(gate_.Begin(1), nullptr);
  gate_.ConnectionBegins(2);
  EXPECT_EQ(gate_.Begin(1), nullptr);
  EXPECT_NE(gate_.Begin(2), nullptr);
}

TEST_F(TransferGateTest, TheEndOfItsConnectionBreaksItOff) {
  gate_.ConnectionBegins(1);
  const std::shared_ptr<TransferStop> transfer = gate_.Begin(1);
  EXPECT_FALSE(transfer->stopped());
  gate_.ConnectionEnds();
  EXPECT_TRUE(transfer->stopped());
  gate_.ConnectionBegins(2);
  EXPECT_FALSE(gate_.Begin(2)->stopped());
}

TEST_F(TransferGateTest, AWishToLeaveBreaksItOffAndLetsNoneBegin) {
  gate_.ConnectionBegins(1);
  const std::shared_ptr<TransferStop> transfer = gate_.Begin(1);
  gate_.Drain();
  EXPECT_TRUE(transfer->stopped());
  EXPECT_EQ(gate_.Begin(1), nullptr);
  gate_.ConnectionBegins(2);
  EXPECT_EQ(gate_.Begin(2), nullptr);
}

// Whoever waited to the end on this clock, which stands still, would wait for ever.
TEST_F(TransferGateTest, APauseIsEndedByWhatEndsTheTransfer) {
  const Duration hour = std::chrono::hours(1);
  gate_.ConnectionBegins(1);
  EXPECT_TRUE(gate_.Pause(1, Duration::zero()).ok()) << "it may pass whole";
  EXPECT_TRUE(gate_.Pause(2, hour).ok());
  gate_.ConnectionEnds();
  EXPECT_TRUE(gate_.Pause(1, hour).ok());
  gate_.ConnectionBegins(2);
  gate_.Drain();
  EXPECT_TRUE(gate_.Pause(2, hour).ok());
}

}  // namespace
}  // namespace signvote
