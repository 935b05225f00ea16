#include "common/export_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace signvote {
namespace {

using ::testing::HasSubstr;

ExportOrigin Origin(std::string rule, std::optional<float> stepsize) {
  return {.run_id = RunId::FromRandom(1, 2),
          .round = Round(7),
          .rule = std::move(rule),
          .stepsize = stepsize};
}

TEST(ExportMetadataTest, AFileSaysItsRunItsRoundAndItsStepsize) {
  const auto metadata = ExportMetadata(Origin("alias", 0.25f));
  EXPECT_EQ(metadata.at("format"), "pt");
  EXPECT_EQ(metadata.at("signvote.run_id"), RunId::FromRandom(1, 2).ToText());
  EXPECT_EQ(metadata.at("signvote.round"), "7");
  EXPECT_EQ(metadata.at("signvote.rule"), "alias");
  EXPECT_EQ(metadata.at("signvote.stepsize"), "0.25");
  EXPECT_FALSE(ExportMetadata(Origin("alias", {})).contains("signvote.stepsize"));
}

TEST(ExportMetadataTest, EveryStepsizeComesBackToTheBit) {
  for (const float stepsize :
       {1e-5f, 0.1f, 2.5e-4f, 1.00000012f, std::numeric_limits<float>::min(),
        std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max()}) {
    const auto back = AliasStepsizeOf(ExportMetadata(Origin("alias", stepsize)));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, stepsize);
  }
}

TEST(ExportMetadataTest, WhatNoRunOfAliasWroteSaysNoStepsize) {
  using Metadata = std::map<std::string, std::string>;
  const std::vector<Metadata> all = {
      Metadata{}, ExportMetadata(Origin("alias", {})),
      // The end of a schedule says nothing of the model.
      ExportMetadata(Origin("fixed", 1e-9f)),
      Metadata{{"format", "pt"}, {"signvote.stepsize", "0.1"}},
      Metadata{{"signvote.rule", "fixed"}, {"signvote.stepsize", "junk"}}};
  for (const Metadata& metadata : all) {
    const auto stepsize = AliasStepsizeOf(metadata);
    ASSERT_TRUE(stepsize.ok()) << stepsize.status();
    EXPECT_FALSE(stepsize->has_value());
  }
}

TEST(ExportMetadataTest, AStepsizeThatIsNoneIsToldWithKeyAndRemedy) {
  for (const char* text : {"", "junk", "nan", "inf", "0", "-0.1", "1e-60", "1e60", "0.1x"}) {
    const absl::Status status =
        AliasStepsizeOf({{"signvote.rule", "alias"}, {"signvote.stepsize", text}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("signvote.stepsize"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("--alias-eta0"));
  }
}

TEST(LastStepsizeTest, NothingIsKnownUntilTheStepsizeHasChanged) {
  LastStepsize last;
  EXPECT_FALSE(last.value().has_value());
  for (int round = 0; round < 9; ++round) last.Note(CommitKind::kStep, 1e-5f);
  EXPECT_FALSE(last.value().has_value());
  last.Note(CommitKind::kStep, 0.25f);
  EXPECT_EQ(last.value(), 0.25f);
  last.Note(CommitKind::kStep, 0.125f);
  last.Note(CommitKind::kStep, 0.125f);
  EXPECT_EQ(last.value(), 0.125f);
}

TEST(LastStepsizeTest, CommitsThatAreNoStepSayNothing) {
  LastStepsize last;
  last.Note(CommitKind::kNone, 0);  // before the first step
  last.Note(CommitKind::kStep, 0.5f);
  last.Note(CommitKind::kRewind, 0.25f);
  last.Note(CommitKind::kNone, 0.125f);
  last.Note(CommitKind::kStep, 0);  // of a worker that was told of no commit
  EXPECT_FALSE(last.value().has_value());
  last.Note(CommitKind::kStep, 0.75f);
  last.Note(CommitKind::kRewind, 0.25f);
  EXPECT_EQ(last.value(), 0.75f);
}

}  // namespace
}  // namespace signvote
