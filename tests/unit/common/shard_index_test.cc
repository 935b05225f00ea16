#include "common/shard_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include <nlohmann/json.hpp>

#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

using testing::HasSubstr;

void ExpectRefused(const std::string& text, absl::StatusCode code, const std::string& message) {
  const absl::Status status = ParseShardIndex("dir/m.index.json", text).status();
  EXPECT_EQ(status.code(), code) << Describe(status);
  EXPECT_THAT(Describe(status), HasSubstr("dir/m.index.json: "));
  EXPECT_THAT(Describe(status), HasSubstr(message));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
}

TEST(ShardIndexTest, WhatIsWrittenIsReadAgainAndIsWhatTransformersWrites) {
  const ShardIndex index{.files = {{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}},
                         .metadata = {{"by", "me"}}};
  const std::string text = ShardIndexText(index, 24);
  EXPECT_EQ(nlohmann::json::parse(text),
            nlohmann::json::parse(R"({"metadata": {"by": "me", "total_size": 24},
                                      "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})"));
  const auto again = ParseShardIndex("m.index.json", text);
  ASSERT_TRUE(again.ok()) << Describe(again.status());
  EXPECT_EQ(*again, index);
}

TEST(ShardIndexTest, MetadataThatIsNoTextIsLeftOut) {
  const auto index = ParseShardIndex(
      "i", R"({"metadata": {"total_size": 1, "list": [], "by": "me"}, "weight_map": {"a": "f"}})");
  ASSERT_TRUE(index.ok()) << Describe(index.status());
  EXPECT_EQ(index->metadata, (std::map<std::string, std::string>{{"by", "me"}}));
  EXPECT_TRUE(ParseShardIndex("i", R"({"metadata": 3, "weight_map": {"a": "f"}})").ok());
}

TEST(ShardIndexTest, WhatIsNoIndexIsRefusedWithTheCulprit) {
  const absl::StatusCode loss = absl::StatusCode::kDataLoss;
  ExpectRefused("{\n\"weight_map\": {\"a\" \"f\"}}", loss,
                "not an index of safetensors files: line 2, column 22");
  ExpectRefused("[]", loss, "a JSON array");
  for (const char* text : {"{}", R"({"weight_map":{}})", R"({"weight_map":[]})"})
    ExpectRefused(text, loss, "it has no object \"weight_map\"");
  ExpectRefused(R"({"weight_map":{"a":"f","b":"f","a":"g"}})", loss, "the key \"a\" stands twice");
  for (const char* name :
       {"\"../f\"", "\"/etc/passwd\"", "\"..\"", "\".\"", "\"\"", "1", "[]", "\"f\\u0000\""})
    ExpectRefused(std::string(R"({"weight_map":{"b":)") + name + "}}", loss,
                  "tensor \"b\" is not in a file beside the index");
  ExpectRefused("<!DOCTYPE html>", absl::StatusCode::kInvalidArgument, "a web page");
}

}  // namespace
}  // namespace signvote
