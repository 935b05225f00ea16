#include "worker/data/background_check.h"

#include <atomic>

#include <gtest/gtest.h>

namespace signvote {
namespace {

// Says `found` once `go` is given, or that it was stopped.
class GatedDataset : public Dataset {
 public:
  absl::Status TrainBatch(const BatchKey&, Batch*) const override { return absl::OkStatus(); }
  uint64_t held_out_windows() const override { return 0; }
  absl::Status HeldOut(uint64_t, uint64_t, Batch*) const override { return absl::OkStatus(); }
  absl::Status CheckAll(const std::stop_token& stop) const override {
    const std::stop_callback stopped(stop, [this] { Go(); });
    go.wait(false);
    return stop.stop_requested() ? absl::CancelledError("stopped") : found;
  }
  std::string description() const override { return "gated"; }
  std::string target_unit() const override { return "token"; }

  void Go() const {
    go = true;
    go.notify_all();
  }

  mutable std::atomic<bool> go{false};
  absl::Status found;
};

TEST(BackgroundCheckTest, SaysNothingUntilItHasFoundSomething) {
  GatedDataset data;
  data.found = absl::InvalidArgumentError("token 300");
  const BackgroundCheck check(&data);
  EXPECT_TRUE(check.found().ok());
  data.Go();
  while (!check.done()) std::this_thread::yield();
  EXPECT_EQ(check.found(), data.found);
}

TEST(BackgroundCheckTest, EndsWithItsOwner) {
  GatedDataset data;
  { const BackgroundCheck check(&data); }
  EXPECT_TRUE(data.go);
}

}  // namespace
}  // namespace signvote
