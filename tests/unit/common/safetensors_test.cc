// Goal: a file that is not exactly what the format says is refused with a message, never read
// wrongly, never a crash.
#include "common/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/model_file.h"
#include "common/rng.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

class SafetensorsTest : public ::testing::Test {
 protected:
  static Layout TwoTensors() {
    auto layout = Layout::Make({{.name = "w\"eird", .shape = {2, 3}}, {.name = "b", .shape = {}}});
    EXPECT_TRUE(layout.ok());
    return *std::move(layout);
  }
  static std::string File(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
    file += header;
    file.append(data_bytes, '\x3f');
    return file;
  }
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(const std::string& bytes) {
    path_ = dir_ / "file.safetensors";
    std::ofstream(path_, std::ios::binary)
        << bytes;  // unsynced: some tests write hundreds of files
    return SafetensorsFile::Open(fs_, path_);
  }
  void ExpectRefused(const std::string& bytes, absl::StatusCode code, const std::string& message) {
    const absl::Status status = OpenBytes(bytes).status();
    EXPECT_EQ(status.code(), code) << Describe(status) << " for " << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  std::string path_;
};

TEST_F(SafetensorsTest, WhatIsWrittenIsReadBackBitForBit) {
  const Layout layout = TwoTensors();
  std::vector<float> x = {1.0f, -0.0f, 1e-45f, 3.5f, -2.25f, 1e38f, 7.0f};
  const std::string path = dir_ / "x.safetensors";
  ASSERT_TRUE(WriteModel(fs_, path, {}, layout, x, {{"round", "12"}}, "").ok());
  const auto file = SafetensorsFile::Open(fs_, path);
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  ASSERT_EQ((*file)->tensors().size(), 2u);
  EXPECT_EQ((*file)->tensors()[0].name, "w\"eird");
  EXPECT_EQ((*file)->tensors()[0].shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ((*file)->tensors()[1].shape, std::vector<uint64_t>{});
  EXPECT_EQ((*file)->metadata().at("round"), "12");
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  std::vector<float> back(x.size());
  const size_t first = (*file)->tensors()[0].count();
  (*file)->tensors()[0].WidenInto(0, std::span(back).first(first));
  (*file)->tensors()[1].WidenInto(0, std::span(back).subspan(first));
  EXPECT_EQ(std::memcmp(back.data(), x.data(), x.size() * sizeof(float)), 0);
}

TEST_F(SafetensorsTest, TheHeaderIsAlignedAndFollowedByTheFlatBuffer) {
  const Layout layout = TwoTensors();
  const std::string header =
      SafetensorsHeader(layout.tensors(), TensorDtype::kF32, {{"format", "np"}});
  EXPECT_EQ(header.size() % 64, 0u);
  std::vector<float> x(7, 0.5f);
  std::string bytes = header;
  bytes.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
  const auto file = OpenBytes(bytes);
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  EXPECT_EQ((*file)->metadata().at("format"), "np");
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const Layout layout = TwoTensors();
  const std::vector<float> x(7, 1.0f);
  const std::string path = dir_ / "whole.safetensors";
  ASSERT_TRUE(WriteModel(fs_, path, {}, layout, x, {}, "").ok());
  const std::string whole = *fs_->ReadFile(path, 1 << 20);
  for (size_t n = 0; n < whole.size(); ++n) {
    const absl::Status status = OpenBytes(whole.substr(0, n)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << n << " " << Describe(status);
  }
  EXPECT_TRUE(OpenBytes(whole).ok());
}

TEST_F(SafetensorsTest, FlippedHeaderBytesAreRefusedOrHarmlessNeverACrash) {
  const Layout layout = TwoTensors();
  const std::vector<float> x(7, 1.0f);
  const std::string path = dir_ / "whole.safetensors";
  ASSERT_TRUE(WriteModel(fs_, path, {}, layout, x, {}, "").ok());
  const std::string whole = *fs_->ReadFile(path, 1 << 20);
  Rng rng(17, 1);
  int refused = 0;
  for (size_t at = 0; at < whole.size() - x.size() * sizeof(float); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng.Below(8)));
    OpenBytes(damaged).IgnoreError();
    const auto file = Checkpoint::Open(fs_, path_);
    std::vector<float> back(7, -1.0f);
    if (!file.ok() || !(*file)->CopyInto(layout, back).ok()) {
      ++refused;
    } else {
      EXPECT_EQ(back, x) << at;  // metadata or padding changed, the tensors did not
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(SafetensorsTest, DamagedHeadersAreRefusedWithTheCulprit) {
  const auto loss = absl::StatusCode::kDataLoss;
  const std::string t = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  ExpectRefused(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10), loss, "at most 100 MB");
  ExpectRefused(File("", 0), loss, "not a JSON object");
  ExpectRefused(File("[]", 0), loss, "not a JSON object");
  ExpectRefused(File("{", 0), loss, "not a JSON object");
  ExpectRefused(File("{\"a\xFF\":1}", 0), loss, "not a JSON object");
  ExpectRefused(File("{} {}", 0), loss, "not a JSON object");
  ExpectRefused(File("{\"a\":" + std::string(100'000, '['), 0), loss, "nests deeper");
  ExpectRefused(File("{\"a\":3}", 0), loss, "entry \"a\" is not an object");
  ExpectRefused(File("{" + t + "," + t + "}", 8), loss, "repeats the key \"a\"");
  ExpectRefused(File(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
                loss, "repeats the key \"dtype\"");
  ExpectRefused(File(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), loss, "lacks dtype");
  ExpectRefused(File(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), loss,
                "lacks dtype, shape");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":[2]}})", 8), loss,
                "lacks dtype, shape or data_offsets");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), loss,
                "not unsigned");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), loss,
                "not unsigned");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8), loss,
                "not unsigned");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), loss,
                "not unsigned");
  ExpectRefused(
      File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999999999]}})", 8), loss,
      "not unsigned");
  ExpectRefused(File(R"({"__metadata__":{"k":1}})", 0), loss, "metadata \"k\" is not a string");
  ExpectRefused(
      File(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", 8),
      loss, "too large to exist");
  ExpectRefused(File(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), loss,
                "[3] needs 12 bytes");
}

TEST_F(SafetensorsTest, HolesOverlapsAndStrayBytesAreRefused) {
  const auto loss = absl::StatusCode::kDataLoss;
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + first +
           R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + second + "}}";
  };
  EXPECT_TRUE(OpenBytes(File(two("[0,8]", "[8,16]"), 16)).ok());
  ExpectRefused(File(two("[0,8]", "[4,12]"), 12), loss, "inside the tensor before it");
  ExpectRefused(File(two("[0,8]", "[0,8]"), 8), loss, "inside the tensor before it");
  ExpectRefused(File(two("[0,8]", "[12,20]"), 20), loss, "after a hole");
  ExpectRefused(File(two("[4,12]", "[12,20]"), 20), loss, "after a hole");
  ExpectRefused(File(two("[0,8]", "[8,16]"), 20), loss, "4 bytes after the last tensor");
  ExpectRefused(File(two("[0,8]", "[8,16]"), 12), loss, "outside the file's 12 bytes");
  ExpectRefused(File(two("[8,0]", "[8,16]"), 16), loss, "outside the file");
}

TEST_F(SafetensorsTest, AnotherDtypeIsRefusedWithTheRemedy) {
  ExpectRefused(File(R"({"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})", 16),
                absl::StatusCode::kInvalidArgument,
                "tensor \"a\" is I64; F32, BF16 and F16 are read");
  ExpectRefused(File(R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}})", 8),
                absl::StatusCode::kDataLoss, "needs 4 bytes");
}

TEST_F(SafetensorsTest, TensorsComeInOrderOfTheirOffsets) {
  const auto file = OpenBytes(File(R"({"z":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                   R"("e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]},)"
                                   R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                   8));
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  ASSERT_EQ((*file)->tensors().size(), 3u);
  EXPECT_EQ((*file)->tensors()[0].name, "z");
  EXPECT_EQ((*file)->tensors()[1].name, "e");
  EXPECT_EQ((*file)->tensors()[2].name, "a");
}

TEST_F(SafetensorsTest, AFailedWriteLeavesTheOldFile) {
  const Layout layout = TwoTensors();
  const std::vector<float> x(7, 1.0f);
  EXPECT_EQ(WriteModel(fs_, dir_ / "no/such/folder.safetensors", {}, layout, x, {}, "").code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SafetensorsTest, TheFirstNumberThatIsNotFiniteIsNamed) {
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[3],"data_offsets":[8,20]}})";
  const auto with = [&](float value) {
    std::string bytes = File(header, 20);
    std::memcpy(bytes.data() + bytes.size() - 8, &value, sizeof(value));
    auto file = OpenBytes(bytes);
    EXPECT_TRUE(file.ok()) << Describe(file.status());
    return file.ok() ? (*file)->RequireFinite(nullptr) : file.status();
  };
  EXPECT_TRUE(with(std::numeric_limits<float>::max()).ok());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    const absl::Status status = with(bad);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
    EXPECT_THAT(Describe(status), HasSubstr(path_ + ": number 1 of tensor \"b\" is not finite"));
  }
}

}  // namespace
}  // namespace signvote
