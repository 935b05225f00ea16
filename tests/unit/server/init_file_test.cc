#include "server/init_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/model_file.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

class InitFileTest : public ::testing::Test {
 protected:
  static Layout Model() {
    auto layout = Layout::Make({{.name = "a", .shape = {2}}, {.name = "b", .shape = {1}}});
    EXPECT_TRUE(layout.ok());
    return *std::move(layout);
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomically(fs_, dir_ / name, text, 0644).ok());
  }
  // A file of one bfloat16 tensor.
  void WriteBf16(const std::string& file, const std::string& tensor,
                 const std::vector<uint16_t>& values) {
    const std::string header = "{\"" + tensor + "\":{\"dtype\":\"BF16\",\"shape\":[" +
                               std::to_string(values.size()) + "],\"data_offsets\":[0," +
                               std::to_string(2 * values.size()) + "]}}";
    const uint64_t length = header.size();
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += header;
    bytes.append(reinterpret_cast<const char*>(values.data()), 2 * values.size());
    Write(file, bytes);
  }
  void ExpectRefused(const std::string& path, const std::string& text) {
    const absl::Status status = OpenInitFile(fs_, path).status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << Describe(status);
    EXPECT_THAT(Describe(status), HasSubstr("--init"));
    EXPECT_THAT(Describe(status), HasSubstr(text));
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
};

TEST_F(InitFileTest, AFolderOfShardsIsReadWithTheConfigBesideIt) {
  WriteBf16("m-1.safetensors", "b", {0x4040});
  WriteBf16("m-2.safetensors", "a", {0x3f80, 0x4000});
  Write("model.safetensors.index.json",
        R"({"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors"}})");
  Write("config.json", R"({"model_type": "llama"})");
  const auto init = OpenInitFile(fs_, dir_ / "");
  ASSERT_TRUE(init.ok()) << Describe(init.status());
  EXPECT_EQ((*init)->config_json(), R"({"model_type": "llama"})");
  EXPECT_EQ((*init)->path(), dir_ / "");
  const Layout layout = Model();
  std::vector<float> x(3);
  ASSERT_TRUE((*init)->CopyInto(layout, x, [] { return false; }).ok());
  EXPECT_EQ(x, (std::vector<float>{1, 2, 3}));
}

TEST_F(InitFileTest, WhetherItFitsIsKnownWithoutItsNumbers) {
  WriteBf16("m.safetensors", "a", {0x3f80, 0x4000});
  const auto init = OpenInitFile(fs_, dir_ / "m.safetensors");
  ASSERT_TRUE(init.ok()) << Describe(init.status());
  EXPECT_THAT(Describe((*init)->CheckFits(Model())), HasSubstr("no tensor \"b\""));
  EXPECT_TRUE((*init)->CheckFits(*Layout::Make({{.name = "a", .shape = {2}}})).ok());
}

TEST_F(InitFileTest, ReadingItCanBeGivenUp) {
  WriteBf16("m.safetensors", "a", {0x3f80, 0x4000});
  const std::string path = dir_ / "m.safetensors";
  EXPECT_EQ(OpenInitFile(fs_, path, [] { return true; }).status().code(),
            absl::StatusCode::kCancelled);
  const auto init = OpenInitFile(fs_, path, [] { return false; });
  ASSERT_TRUE(init.ok()) << Describe(init.status());
  std::vector<float> x(2);
  const Layout layout = *Layout::Make({{.name = "a", .shape = {2}}});
  EXPECT_EQ((*init)->CopyInto(layout, x, [] { return true; }).code(), absl::StatusCode::kCancelled);
}

TEST_F(InitFileTest, AFileWithoutAConfigHasNone) {
  ASSERT_TRUE(
      WriteModel(fs_, dir_ / "m.safetensors", {}, Model(), std::vector<float>{1, 2, 3}, {}, "")
          .ok());
  const auto init = OpenInitFile(fs_, dir_ / "m.safetensors");
  ASSERT_TRUE(init.ok()) << Describe(init.status());
  EXPECT_EQ((*init)->config_json(), "");
}

TEST_F(InitFileTest, AnExportOfOursSaysWhereAliasStood) {
  const auto stepsize = [this](const std::map<std::string, std::string>& metadata,
                               const ModelFormat& format = {}) {
    EXPECT_TRUE(WriteModel(fs_, dir_ / "m.safetensors", format, Model(),
                           std::vector<float>{1, 2, 3}, metadata, "")
                    .ok());
    const auto init = OpenInitFile(fs_, dir_ / "m.safetensors");
    EXPECT_TRUE(init.ok()) << Describe(init.status());
    return (*init)->alias_stepsize();
  };
  const auto of_alias = ExportMetadata(
      {.run_id = RunId::FromRandom(1, 2), .round = Round(9), .rule = "alias", .stepsize = 0.1f});
  EXPECT_EQ(*stepsize(of_alias), 0.1f);
  EXPECT_EQ(*stepsize(of_alias, {.dtype = TensorDtype::kBf16, .shard_bytes = 2}), 0.1f)
      << "of shards their index says it";
  EXPECT_EQ(*stepsize({}), std::nullopt);
  // The file itself can be used: with another rule, or with the flag.
  const absl::Status status =
      stepsize({{"signvote.rule", "alias"}, {"signvote.stepsize", "-1"}}).status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_THAT(Describe(status), HasSubstr("--init: " + (dir_ / "m.safetensors")));
  EXPECT_THAT(Describe(status), HasSubstr("'-1' as signvote.stepsize"));
}

TEST_F(InitFileTest, WhatCannotStartARunIsToldAtTheStart) {
  ExpectRefused(dir_ / "absent.safetensors", "absent.safetensors");
  ExpectRefused(dir_ / "", "neither model.safetensors nor");
  WriteBf16("infinite.safetensors", "a", {0x3f80, 0x7f80});
  ExpectRefused(dir_ / "infinite.safetensors", "number 1 of tensor \"a\" is not finite");
  Write("empty.safetensors", std::string("\x02\0\0\0\0\0\0\0{}", 10));
  ExpectRefused(dir_ / "empty.safetensors", "holds no tensor");
}

}  // namespace
}  // namespace signvote
