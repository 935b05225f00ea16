#include "common/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr char kOurs[] =
    R"({"model_type": "llama", "hidden_size": 64, "rope_theta": 10000, "torch_dtype": "float32"})";

Layout OneTensor() { return *Layout::Make({{.name = "w", .shape = {3}}}); }
const std::vector<float> kValues = {1, 2, 3};

class ModelFileTest : public testing::Test {
 protected:
  absl::Status Write(const std::string& config) {
    return WriteModel(fs_, path_, format_, OneTensor(), kValues, {{"signvote.round", "7"}}, config);
  }
  void Put(const std::string& config) {
    ASSERT_TRUE(WriteFileAtomically(fs_, dir_ / "config.json", config, 0644).ok());
  }
  std::string Config() { return *fs_->ReadFile(dir_ / "config.json", 1 << 20); }
  std::vector<float> Values(const std::string& path) {
    const auto file = Checkpoint::Open(fs_, path);
    if (!file.ok()) return {};
    std::vector<float> x(3);
    EXPECT_TRUE((*file)->CopyInto(OneTensor(), x).ok());
    return x;
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  const std::string path_ = dir_ / "model.safetensors";
  ModelFormat format_;
};

TEST_F(ModelFileTest, TheModelIsWrittenWithItsConfigBesideIt) {
  ASSERT_TRUE(Write(kOurs).ok());
  EXPECT_EQ(Values(path_), kValues);
  EXPECT_EQ((*Checkpoint::Open(fs_, path_))->metadata().at("signvote.round"), "7");
  EXPECT_EQ(Config(), kOurs);
}

TEST_F(ModelFileTest, WithoutAConfigOfItsOwnThereIsNone) {
  ASSERT_TRUE(Write("").ok());
  EXPECT_FALSE(fs_->FileSize(dir_ / "config.json").ok());
}

TEST_F(ModelFileTest, TheUsersKeysStayAndOursAreAddedAndTheDtypeIsWhatIsWritten) {
  Put(R"({"_name_or_path": "mine", "architectures": ["MyModel"], "hidden_size": 64.0,
          "bos_token_id": 1, "dtype": "bfloat16", "pad_token_id": null})");
  ASSERT_TRUE(Write(kOurs).ok());
  EXPECT_EQ(json::parse(Config()),
            json::parse(R"({"_name_or_path": "mine", "architectures": ["MyModel"],
                            "hidden_size": 64.0, "bos_token_id": 1, "dtype": "float32",
                            "pad_token_id": null, "model_type": "llama", "rope_theta": 10000})"));
}

TEST_F(ModelFileTest, TheConfigSaysTheFormatThatIsWrittenWhoeverSaidAnother) {
  const std::string theirs = R"({"bos_token_id": 1, "torch_dtype": "bfloat16"})";
  ASSERT_TRUE(Write(theirs).ok());  // of a run that began with a file of theirs
  EXPECT_EQ(json::parse(Config()), json::parse(R"({"bos_token_id": 1, "torch_dtype": "float32"})"));
  format_.dtype = TensorDtype::kBf16;
  ASSERT_TRUE(Write(kOurs).ok());
  EXPECT_EQ(json::parse(Config()).at("torch_dtype"), "bfloat16");
  EXPECT_EQ(Values(path_), kValues);
  EXPECT_EQ(std::filesystem::file_size(path_) % 64, 3 * 2u);
}

TEST_F(ModelFileTest, AModelInShardsHasItsConfigBesideItToo) {
  format_.shard_bytes = 1;
  ASSERT_TRUE(WriteModel(fs_, path_, format_,
                         *Layout::Make({{.name = "a", .shape = {1}}, {.name = "b", .shape = {2}}}),
                         kValues, {}, kOurs)
                  .ok());
  EXPECT_EQ(Config(), kOurs);
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(std::filesystem::exists(path_ + ".index.json"));
  EXPECT_TRUE(RequireModelTarget(fs_, path_, kOurs).ok());
}

TEST_F(ModelFileTest, AnIndexOfSomebodyElsesIsToldBeforeTheRun) {
  const std::string index = path_ + ".index.json";
  ASSERT_TRUE(WriteFileAtomically(fs_, index, R"({"weight_map": {"a": "m"}})", 0644).ok());
  const absl::Status told = RequireModelTarget(fs_, path_, kOurs);
  EXPECT_EQ(ExitCodeFor(told), ExitCode::kBadInput);
  EXPECT_THAT(Describe(told), HasSubstr(index + " is there, and signvote did not write it"));
}

TEST_F(ModelFileTest, AFileThatSaysItAllStaysAsItWasLaidOut) {
  const std::string mine =
      "{\"rope_theta\":1e4,\n\n\"hidden_size\":64, \"model_type\":\"llama\",\"x\":1,"
      "\"torch_dtype\":\"float32\"}";
  Put(mine);
  ASSERT_TRUE(Write(kOurs).ok());
  EXPECT_EQ(Config(), mine);
}

TEST_F(ModelFileTest, TheConfigOfAnotherModelIsRefusedByItsKeyAndLeftAlone) {
  struct Case {
    const char* there;
    const char* key;
  };
  for (const auto& [there, key] :
       {Case{R"({"hidden_size": 65})", "\"hidden_size\" is 64 here, 65 there"},
        Case{R"({"rope_theta": 500000})", "\"rope_theta\" is 10000 here, 500000 there"},
        Case{R"({"rope_parameters": {"rope_theta": 5e5}})",
             "\"rope_theta\" is 10000 here, 500000 there"},
        Case{R"({"rope_scaling": {"factor": 8}})", "\"rope_scaling\" is missing here"}}) {
    Put(there);
    const absl::Status told = RequireModelTarget(fs_, path_, kOurs);
    EXPECT_EQ(told.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ExitCodeFor(told), ExitCode::kBadInput);
    EXPECT_THAT(std::string(told.message()), HasSubstr(key));
    EXPECT_THAT(std::string(told.message()), HasSubstr(dir_ / "config.json is of another model"));
    // Whoever put it there meanwhile: the model itself is not lost for it.
    const absl::Status written = Write(kOurs);
    EXPECT_THAT(std::string(written.message()),
                HasSubstr(path_ + " is written, config.json beside it is not"));
    EXPECT_EQ(Values(path_), kValues);
    EXPECT_EQ(Config(), there);
  }
}

TEST_F(ModelFileTest, AConfigThatIsNoneIsToldBeforeTheModelIsKnown) {
  EXPECT_TRUE(RequireModelTarget(fs_, path_, "").ok());
  Put("{\"hidden_size\": 65}");
  EXPECT_TRUE(RequireModelTarget(fs_, path_, "").ok());
  Put("<html>");
  const absl::Status told = RequireModelTarget(fs_, path_, "");
  EXPECT_EQ(ExitCodeFor(told), ExitCode::kBadInput);
  EXPECT_THAT(std::string(told.message()), HasSubstr("is not a JSON object"));
  Put("");  // as a full disk leaves it
  for (const char* const ours : {"", "{}", R"({"model_type": "llama"})"}) {
    const absl::Status empty = RequireModelTarget(fs_, path_, ours);
    EXPECT_EQ(ExitCodeFor(empty), ExitCode::kBadInput);
    EXPECT_THAT(std::string(empty.message()), HasSubstr("is empty and not a JSON object"));
  }
  EXPECT_EQ(JoinConfigs("{}", "", TensorDtype::kF32).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(dir_ / "config.json");
  std::filesystem::create_directory(dir_ / "config.json");
  EXPECT_EQ(ExitCodeFor(RequireModelTarget(fs_, path_, "")), ExitCode::kBadInput);
}

TEST_F(ModelFileTest, ALinkIsFollowedAndStays) {
  std::filesystem::create_directory(dir_ / "elsewhere");
  std::filesystem::create_symlink("elsewhere/real", path_);  // relative, to nothing yet
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(Write("").ok());
    EXPECT_TRUE(std::filesystem::is_symlink(path_));
    EXPECT_EQ(Values(dir_ / "elsewhere/real"), kValues);
  }
  EXPECT_EQ(fs_->ListFiles(dir_ / "elsewhere")->size(), 1u);  // no temporary is left
}

TEST_F(ModelFileTest, WhatIsNoFileIsNeverReplaced) {
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  std::filesystem::create_directory(dir_ / "folder");
  std::filesystem::create_symlink("fifo", dir_ / "link");
  std::filesystem::create_symlink("loop", dir_ / "loop");
  struct Case {
    std::string path;
    const char* what;
  };
  for (const auto& [path, what] :
       {Case{"/dev/null", "is a device"}, Case{dir_ / "fifo", "is a FIFO"},
        Case{dir_ / "link", "is a FIFO"}, Case{dir_ / "folder", "is a folder"},
        Case{dir_ / "loop", "cannot follow the link"}}) {
    const absl::Status told = RequireModelTarget(fs_, path, "");
    EXPECT_EQ(ExitCodeFor(told), ExitCode::kBadInput);
    EXPECT_THAT(std::string(told.message()), HasSubstr(path + ": "));
    EXPECT_THAT(std::string(told.message()), HasSubstr(what));
    EXPECT_FALSE(WriteModel(fs_, path, {}, OneTensor(), kValues, {}, "").ok());
  }
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_TRUE(std::filesystem::is_fifo(dir_ / "fifo"));
}

}  // namespace
}  // namespace signvote
