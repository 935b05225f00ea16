#include "worker/vote/ballot_source.h"

#include <gtest/gtest.h>

#include <cmath>

namespace signvote {
namespace {

TEST(GradientSourceTest, TakesOneGradientAndLeavesWhatIsSignedToTheDirection) {
  GradientSource source;
  const RoundTicket ticket{.round = Round(3)};
  EXPECT_EQ(source.Gradients(ticket), 1u);
  EXPECT_TRUE(source.Begin(ticket).ok());
  EXPECT_TRUE(source.MakeChunk(0, 512, {}).ok());
  EXPECT_TRUE(source.u().empty());
  EXPECT_TRUE(source.displacement_mean().empty());
  EXPECT_TRUE(std::isnan(source.Scalar(ScalarKind::kLocalInner)));
  EXPECT_TRUE(source.Reset().ok());
  EXPECT_FALSE(source.takes_steps());
  EXPECT_EQ(source.TakeGradient(0, {}).code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(source.PackChunk(ChunkIndex(0), nullptr).code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(source.EndSteps().ok());
}

TEST(GradientSourceTest, RefusesRoundsOfLocalStepsWithTheRemedy) {
  GradientSource source;
  const absl::Status many = source.Begin({.round = Round(3), .local_steps = 16});
  EXPECT_EQ(many.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(many.message(),
            "round 3 asks for 16 local steps, but this worker signs one gradient per ballot; use a "
            "worker that takes local steps, or a server without --local-steps");
  for (const BallotStart start : {BallotStart::kContinue, BallotStart::kX0}) {
    EXPECT_EQ(source.Begin({.round = Round(3), .start = start}).code(),
              absl::StatusCode::kUnimplemented);
  }
}

}  // namespace
}  // namespace signvote
