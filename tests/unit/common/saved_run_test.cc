#include "common/saved_run.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/export_metadata.h"
#include "common/status.h"

namespace signvote {
namespace {

using Metadata = std::map<std::string, std::string>;

SavedRun Save() {
  return {.head = std::string("\0head\xff", 6),
          .after = "after",
          .digest = 0xfedcba9876543210,
          .run_id = RunId::FromRandom(1, 2),
          .round = Round(7)};
}

Metadata Of(const SavedRun& run) {
  Metadata metadata =
      ExportMetadata({.run_id = run.run_id, .round = run.round, .rule = "lever", .stepsize = {}});
  AddSavedRun(run, &metadata);
  return metadata;
}

TEST(SavedRunTest, WhatAFileSaysOfItsRunComesBack) {
  SavedRun run = Save();
  for (const bool x0 : {false, true}) {
    if (x0) run.x0 = {.file = "m.x0.safetensors", .digest = 5};
    const Metadata metadata = Of(run);
    EXPECT_EQ(metadata.at("signvote.digest"), "fedcba9876543210");
    const auto back = SavedRunOf(metadata);
    ASSERT_TRUE(back.ok()) << Describe(back.status());
    ASSERT_TRUE(back->has_value());
    EXPECT_EQ(**back, run);
  }
}

TEST(SavedRunTest, AFileWithoutARunSaysNone) {
  const auto none = SavedRunOf(ExportMetadata(
      {.run_id = RunId::FromRandom(1, 2), .round = Round(7), .rule = "alias", .stepsize = {}}));
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
}

TEST(SavedRunTest, WhateverIsChangedOrLeftOutIsDamage) {
  SavedRun run = Save();
  run.x0 = {.file = "m.x0.safetensors", .digest = 5};
  const Metadata whole = Of(run);
  int keys = 0;
  for (const auto& [key, value] : whole) {
    if (key == "format" || key == "signvote.rule") continue;
    ++keys;
    Metadata changed = whole;
    changed[key] = value == "AAAA" ? "BBBB" : "AAAA";
    EXPECT_EQ(SavedRunOf(changed).status().code(), absl::StatusCode::kDataLoss) << key;
    changed.erase(key);
    EXPECT_EQ(SavedRunOf(changed).status().code(), absl::StatusCode::kDataLoss) << key;
  }
  EXPECT_EQ(keys, 8);
}

TEST(SavedRunTest, X0IsLookedForInTheFilesOwnFolderAlone) {
  for (const char* file : {"", "/etc/passwd", "../m.x0.safetensors", "folder/m.x0.safetensors"}) {
    SavedRun run = Save();
    run.x0 = {.file = file, .digest = 5};
    EXPECT_EQ(SavedRunOf(Of(run)).status().code(), absl::StatusCode::kDataLoss) << file;
  }
}

TEST(SavedRunTest, X0LiesBesideTheModelUnderANameOfItsOwn) {
  EXPECT_EQ(X0PathOf("/models/a.safetensors"), "/models/a.x0.safetensors");
}

}  // namespace
}  // namespace signvote
