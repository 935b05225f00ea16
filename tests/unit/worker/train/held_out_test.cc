#include "worker/train/held_out.h"

#include <cmath>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/train/trainer_fixture.h"
#include "worker/data/held_out_windows.h"

namespace signvote {
namespace {

using testing::ElementsAre;

// Samples, not windows of tokens.
class SampleDataset : public KeyDataset {
 public:
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    SIGNVOTE_RETURN_IF_ERROR(KeyDataset::HeldOut(first, count, batch));
    batch->length = 0;
    return absl::OkStatus();
  }
};

class HeldOutTest : public testing::Test {
 protected:
  HeldOutEvaluation Make(const Dataset* dataset, uint64_t rows_at_once) {
    return {&model_, dataset, &clock_, rows_at_once};
  }
  std::vector<std::string> events_;
  FakeClock clock_;
  QuadraticModel model_{&events_};
};

TEST_F(HeldOutTest, APassTakesNoMoreWindowsThanFit) {
  const KeyDataset data;
  HeldOutEvaluation evaluation = Make(&data, 4);
  ASSERT_TRUE(evaluation.Begin(Round(3), 1).ok());
  ASSERT_TRUE(evaluation.Slice().ok());
  ASSERT_TRUE(evaluation.Now(Round(3)).ok());
  EXPECT_THAT(events_, ElementsAre("kept held-out 0 1 2 3", "kept held-out 4 5",
                                   "last held-out 0 1 2 3", "last held-out 4 5"));
}

TEST_F(HeldOutTest, HowItIsSlicedChangesNothing) {
  const KeyDataset data;
  HeldOutEvaluation evaluation = Make(&data, 8);
  const HeldOutLoss whole = *evaluation.Now(Round(0));
  EXPECT_GT(whole.error, 0);
  for (const uint64_t slices : {1, 2, 4, 6, 100}) {
    ASSERT_TRUE(evaluation.Begin(Round(0), slices).ok());
    std::optional<HeldOutLoss> loss;
    uint64_t done = 0;
    for (; !loss.has_value(); ++done) loss = *evaluation.Slice();
    EXPECT_LE(done, slices);
    EXPECT_EQ(loss->loss, whole.loss) << slices;
    EXPECT_EQ(loss->error, whole.error) << slices;
    EXPECT_EQ(loss->windows, *HashOfHeldOut(data));
  }
}

TEST_F(HeldOutTest, PerplexityIsOfTokensAlone) {
  const KeyDataset tokens;
  const HeldOutLoss loss = *Make(&tokens, 8).Now(Round(0));
  EXPECT_EQ(loss.perplexity, std::exp(loss.loss));
  const SampleDataset samples;
  EXPECT_FALSE(Make(&samples, 8).Now(Round(0))->perplexity.has_value());
}

TEST_F(HeldOutTest, OneWindowHasNoError) {
  const KeyDataset data(1);
  EXPECT_EQ(Make(&data, 8).Now(Round(0))->error, 0);
}

TEST_F(HeldOutTest, ANewReplicaTakesThePlaceOfTheOneThatIsMeasured) {
  const KeyDataset data;
  HeldOutEvaluation evaluation = Make(&data, 8);
  ASSERT_TRUE(evaluation.Begin(Round(0), 2).ok());
  EXPECT_FALSE(evaluation.Slice()->has_value());
  ASSERT_TRUE(evaluation.Begin(Round(7), 1).ok());
  const absl::StatusOr<std::optional<HeldOutLoss>> loss = evaluation.Slice();
  ASSERT_TRUE(loss.ok() && loss->has_value());
  EXPECT_EQ((*loss)->round, Round(7));
  EXPECT_THAT(events_, ElementsAre("kept held-out 0 1 2", "kept held-out 0 1 2 3 4 5"));
}

}  // namespace
}  // namespace signvote
