// Goal: whatever ends a writer, what a reader opens is one whole model, the old or the new one; and what
// is written is what was given, to the bit or rounded as promised.
// Method: a file system that stops doing anything after its n-th act, for every n.
#include "common/model_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/half_float.h"
#include "common/shard_index.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Three tensors of 16, 8 and 12 bytes in fp32.
Layout ThreeTensors() {
  return *Layout::Make({{.name = "model.embed_tokens.weight", .shape = {2, 2}},
                        {.name = "a", .shape = {2}},
                        {.name = "b", .shape = {3}}});
}

std::vector<float> Values(float first) {
  std::vector<float> x(9);
  for (size_t i = 0; i < x.size(); ++i) x[i] = first + static_cast<float>(i);
  return x;
}

absl::StatusOr<WrittenModel> WriteTo(FileSystem* fs, const std::string& path,
                                     const ModelFormat& format, std::span<const float> x,
                                     const std::string& run = "") {
  std::map<std::string, std::string> metadata = {{"signvote.round", "7"}};
  if (!run.empty()) metadata["signvote.run_id"] = run;
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ModelWriter> writer,
                            ModelWriter::Create(fs, path, ThreeTensors(), format, metadata));
  // In pieces that end within tensors.
  for (size_t at = 0; at < x.size(); at += 2)
    SIGNVOTE_RETURN_IF_ERROR(writer->Append(x.subspan(at, std::min<size_t>(2, x.size() - at))));
  return writer->Commit();
}

// Acts on the real file system until it has acted `acts` times; from then on every act fails, as in a
// process that is gone, or every one that takes room, as on a disk that is full.
class DyingFiles final : public FileSystem {
 public:
  enum class Lacks { kLife, kRoom };
  explicit DyingFiles(int acts, Lacks lacks = Lacks::kLife) : lacks_(lacks), acts_(acts) {}

  absl::Status Act() {
    return acts_-- > 0 ? absl::OkStatus() : absl::UnavailableError("the process is gone");
  }

  absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) override {
    return real_->ReadFile(path, bytes_max);
  }
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    return real_->Map(path);
  }
  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string& path,
                                                           uint32_t mode) override {
    SIGNVOTE_RETURN_IF_ERROR(Act());
    SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> file, real_->CreateAtomic(path, mode));
    return std::make_unique<DyingFile>(this, std::move(file));
  }
  absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string& path,
                                                   uint32_t mode) override {
    return real_->OpenLog(path, mode);
  }
  absl::StatusOr<std::string> FollowLinks(const std::string& path) override {
    return real_->FollowLinks(path);
  }
  bool IsSameFile(const std::string& a, const std::string& b) override {
    return real_->IsSameFile(a, b);
  }
  absl::Status AlsoCall(const std::string& path, const std::string& also) override {
    SIGNVOTE_RETURN_IF_ERROR(Act());
    return real_->AlsoCall(path, also);
  }
  absl::Status Remove(const std::string& path) override {
    if (lacks_ == Lacks::kLife) SIGNVOTE_RETURN_IF_ERROR(Act());
    return real_->Remove(path);
  }
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    return real_->FileSize(path);
  }
  absl::StatusOr<bool> IsDirectory(const std::string& path) override {
    return real_->IsDirectory(path);
  }
  absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& path) override {
    return real_->ListFiles(path);
  }
  absl::Status MakeDirectories(const std::string& path, uint32_t mode) override {
    return real_->MakeDirectories(path, mode);
  }
  absl::Status RequirePrivate(const std::string& path) override {
    return real_->RequirePrivate(path);
  }
  absl::StatusOr<std::string> RandomBytes(size_t n) override { return real_->RandomBytes(n); }

 private:
  class DyingFile final : public AtomicFile {
   public:
    DyingFile(DyingFiles* files, std::unique_ptr<AtomicFile> file)
        : files_(files), file_(std::move(file)) {}
    absl::Status Append(std::span<const std::byte> data) override {
      SIGNVOTE_RETURN_IF_ERROR(files_->Act());
      return file_->Append(data);
    }
    absl::Status Commit() override {
      SIGNVOTE_RETURN_IF_ERROR(files_->Act());
      return file_->Commit();
    }

   private:
    DyingFiles* const files_;
    const std::unique_ptr<AtomicFile> file_;
  };

  FileSystem* const real_ = FileSystem::Posix();
  const Lacks lacks_;
  int acts_;
};

class ModelWriterTest : public testing::Test {
 protected:
  // The model as a reader finds it; nullopt: there is none.
  static std::optional<std::vector<float>> Read(const std::string& path) {
    const auto model = Checkpoint::Open(FileSystem::Posix(), path);
    if (absl::IsNotFound(model.status())) return std::nullopt;
    EXPECT_TRUE(model.ok()) << Describe(model.status());
    if (!model.ok()) return std::nullopt;
    std::vector<float> x(9);
    const absl::Status copied = (*model)->CopyInto(ThreeTensors(), x);
    EXPECT_TRUE(copied.ok()) << Describe(copied);
    return x;
  }
  static std::vector<std::string> Files(const TempDir& dir) {
    std::vector<std::string> names = *FileSystem::Posix()->ListFiles(dir.path());
    for (std::string& name : names) name = name.substr(dir.path().size() + 1);
    return names;
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
  const std::string path_ = dir_ / "model.safetensors";
};

TEST_F(ModelWriterTest, AModelThatFitsIsOneFile) {
  const auto written = WriteTo(fs_, path_, {.shard_bytes = 36}, Values(1));
  ASSERT_TRUE(written.ok()) << Describe(written.status());
  EXPECT_EQ(written->path, path_);
  EXPECT_EQ(written->bytes, 36u);
  EXPECT_EQ(written->files, 1u);
  EXPECT_THAT(Files(dir_), ElementsAre("model.safetensors"));
  EXPECT_EQ(Read(dir_.path()), Values(1));
  EXPECT_EQ((*Checkpoint::Open(fs_, path_))->metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}, {"signvote.round", "7"}}));
}

TEST_F(ModelWriterTest, ALargerOneIsShardsOfWholeTensorsBehindAnIndex) {
  const auto written = WriteTo(fs_, path_, {.shard_bytes = 20}, Values(1));
  ASSERT_TRUE(written.ok()) << Describe(written.status());
  EXPECT_EQ(written->path, path_ + ".index.json");
  EXPECT_EQ(written->bytes, 36u);
  EXPECT_EQ(written->files, 2u);
  EXPECT_THAT(Files(dir_),
              ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                          "model.safetensors.index.json"));
  const auto index = ParseShardIndex("i", *fs_->ReadFile(written->path, 1 << 20));
  ASSERT_TRUE(index.ok()) << Describe(index.status());
  EXPECT_EQ(index->files.at("model.embed_tokens.weight"), "model-00001-of-00002.safetensors");
  EXPECT_EQ(index->files.at("a"), "model-00002-of-00002.safetensors");
  EXPECT_EQ(index->files.at("b"), "model-00002-of-00002.safetensors");
  EXPECT_EQ(index->metadata.at("signvote.round"), "7");
  for (const std::string& way : {dir_.path(), path_, written->path})
    EXPECT_EQ(Read(way), Values(1));
  const auto shard = SafetensorsFile::Open(fs_, dir_ / "model-00002-of-00002.safetensors");
  EXPECT_EQ((*shard)->metadata().at("format"), "pt");  // transformers asks each for it
}

TEST_F(ModelWriterTest, ATensorThatIsLargerThanAShardHasOneOfItsOwnAndZeroNeverSplits) {
  ASSERT_TRUE(WriteTo(fs_, path_, {.shard_bytes = 1}, Values(1)).ok());
  EXPECT_EQ(Files(dir_).size(), 4u);
  EXPECT_EQ(Read(path_), Values(1));
  const std::string whole = dir_ / "whole.st";
  EXPECT_EQ(WriteTo(fs_, whole, {.shard_bytes = 0}, Values(1))->files, 1u);
}

TEST_F(ModelWriterTest, Bf16IsTheNearestWithTiesToEvenAndTakesHalfTheBytes) {
  std::vector<float> x = Values(0);
  x[0] = 1.0f + 0x1p-9f;                // nearer to 1
  x[1] = 1.0f + 0x1p-8f;                // a tie: 1 is even
  x[2] = 1.0f + 0x1p-7f + 0x1p-8f;      // a tie: 1 + 2^-6 is even
  x[3] = -(1.0f + 0x1p-8f + 0x1p-20f);  // beyond a tie
  for (const uint64_t shard_bytes : {uint64_t{0}, uint64_t{10}}) {
    const auto written =
        WriteTo(fs_, path_, {.dtype = TensorDtype::kBf16, .shard_bytes = shard_bytes}, x);
    ASSERT_TRUE(written.ok()) << Describe(written.status());
    EXPECT_EQ(written->bytes, 18u);
    EXPECT_EQ(written->files, shard_bytes == 0 ? 1u : 2u);
    EXPECT_EQ(Read(dir_.path()),
              (std::vector<float>{1.0f, 1.0f, 1.0f + 0x1p-6f, -(1.0f + 0x1p-7f), 4, 5, 6, 7, 8}));
  }
}

// A value in fp32 is written over by any other format, and what is left is that model and nothing else.
TEST_F(ModelWriterTest, WhateverStoodThereIsReplacedAndNothingOfItIsLeft) {
  const ModelFormat formats[] = {{.shard_bytes = 0},
                                 {.shard_bytes = 20},
                                 {.shard_bytes = 1},
                                 {.dtype = TensorDtype::kBf16, .shard_bytes = 10}};
  float first = 1;
  for (const ModelFormat& before : formats) {
    for (const ModelFormat& after : formats) {
      TempDir dir;
      const std::string path = dir / "model.safetensors";
      ASSERT_TRUE(WriteTo(fs_, path, before, Values(first)).ok());
      first += 1;
      const auto written = WriteTo(fs_, path, after, Values(first));
      ASSERT_TRUE(written.ok()) << Describe(written.status());
      EXPECT_EQ(Read(dir.path()), Values(first));
      EXPECT_EQ(Read(path), Values(first));
      EXPECT_EQ(Files(dir).size(), written->files == 1 ? 1u : written->files + 1u);
    }
  }
}

// And one of another run for ever, under this name or beside it.
TEST_F(ModelWriterTest, AtEveryMomentAReaderFindsOneWholeModel) {
  const ModelFormat formats[] = {{.shard_bytes = 0}, {.shard_bytes = 20}, {.shard_bytes = 1}};
  std::vector<std::optional<ModelFormat>> stood = {std::nullopt};
  stood.insert(stood.end(), std::begin(formats), std::end(formats));
  int ends = 0;
  for (const std::optional<ModelFormat>& before : stood) {
    for (const ModelFormat& after : formats) {
      for (const char* const run : {"this", "another"}) {
        bool done = false;
        for (int acts = 0; !done; ++acts) {
          TempDir dir;
          const std::string path = dir / "model.safetensors";
          std::optional<std::vector<float>> old;
          if (before.has_value()) {
            old = Values(1);
            ASSERT_TRUE(WriteTo(fs_, path, *before, *old, run).ok());
          }
          DyingFiles dying(acts);
          const absl::Status status = WriteTo(&dying, path, after, Values(50), "this").status();
          const bool gone = !dying.Act().ok();
          done = !gone;
          if (gone) ++ends;
          const std::optional<std::vector<float>> kept = Read(dir / "model.earlier-1.safetensors");
          for (const std::string& way : {dir.path(), path}) {
            const std::optional<std::vector<float>> found = Read(way);
            EXPECT_TRUE(found == Values(50) || (found == old && !status.ok()))
                << acts << " acts, read as " << way << ": " << Describe(status);
            EXPECT_TRUE(run == std::string("this") ? !kept.has_value()
                                                   : found == old || kept == old)
                << acts << " acts: " << Describe(status);
          }
          ASSERT_LT(acts, 100);
        }
      }
    }
  }
  EXPECT_GT(ends, 200);
}

TEST_F(ModelWriterTest, AnAttemptThatFailsLeavesNothingAndStaysFailed) {
  absl::Status status = absl::UnknownError("not tried");
  int acts = 0;
  for (; !status.ok(); ++acts) {
    EXPECT_TRUE(Files(dir_).empty()) << "of the attempt before";
    DyingFiles full(acts, DyingFiles::Lacks::kRoom);
    const auto writer = ModelWriter::Create(&full, path_, ThreeTensors(), {.shard_bytes = 1}, {});
    status = writer.status();
    if (!status.ok()) continue;
    status = (*writer)->Append(Values(1));
    if (!status.ok()) {
      EXPECT_EQ((*writer)->Append({}), status);
      EXPECT_EQ((*writer)->Commit().status(), status);
    } else {
      status = (*writer)->Commit().status();
    }
    if (status.ok()) break;
    ASSERT_LT(acts, 100);
  }
  EXPECT_GT(acts, 10);
  EXPECT_EQ(Files(dir_).size(), 4u);  // of the attempt that did not fail
  EXPECT_EQ(Read(path_), Values(1));
}

TEST_F(ModelWriterTest, AFileThatIsThereIsNoShardsWhoeverWroteIt) {
  const std::string mine = dir_ / "model-00002-of-00003.safetensors";
  ASSERT_TRUE(WriteFileAtomically(fs_, mine, "mine", 0644).ok());
  ASSERT_TRUE(WriteTo(fs_, path_, {.shard_bytes = 1}, Values(1)).ok());
  EXPECT_EQ(*fs_->ReadFile(mine, 100), "mine");
  EXPECT_EQ(Read(path_), Values(1));
  EXPECT_THAT(Files(dir_), testing::Contains("model-v1-00002-of-00003.safetensors"));
}

TEST_F(ModelWriterTest, AnIndexThatSomebodyElseWroteIsNeverReplacedNorItsShards) {
  const std::string index = R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})";
  for (const std::string& there : {index, std::string("no index at all")}) {
    ASSERT_TRUE(WriteFileAtomically(fs_, path_ + ".index.json", there, 0644).ok());
    const absl::Status told = RequireOwnIndex(fs_, path_);
    EXPECT_EQ(told.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ExitCodeFor(told), ExitCode::kBadInput);
    EXPECT_THAT(Describe(told), HasSubstr(path_ + ".index.json is there, and signvote did not"));
    EXPECT_EQ(WriteTo(fs_, path_, {.shard_bytes = 1}, Values(1)).status(), told);
    EXPECT_THAT(Files(dir_), ElementsAre("model.safetensors.index.json"));
    // Whoever put it there meanwhile: a model that needs no index is not lost for it.
    ASSERT_TRUE(WriteTo(fs_, path_, {}, Values(1)).ok());
    EXPECT_EQ(Read(dir_.path()), Values(1));
    EXPECT_EQ(*fs_->ReadFile(path_ + ".index.json", 1 << 20), there);
    ASSERT_TRUE(fs_->Remove(path_).ok());
  }
  ASSERT_TRUE(fs_->Remove(path_ + ".index.json").ok());
  ASSERT_TRUE(WriteTo(fs_, path_, {.shard_bytes = 1}, Values(1)).ok());
  EXPECT_TRUE(RequireOwnIndex(fs_, path_).ok());
}

TEST_F(ModelWriterTest, AModelIsRemovedWithAllItsFilesAndNobodyElses) {
  EXPECT_TRUE(absl::IsNotFound(RemoveModel(fs_, path_)));
  ASSERT_TRUE(WriteFileAtomically(fs_, dir_ / "model-note.txt", "mine", 0644).ok());
  for (const uint64_t shard_bytes : {uint64_t{0}, uint64_t{1}}) {
    ASSERT_TRUE(WriteTo(fs_, path_, {.shard_bytes = shard_bytes}, Values(1)).ok());
    EXPECT_TRUE(RemoveModel(fs_, path_).ok());
    EXPECT_THAT(Files(dir_), ElementsAre("model-note.txt"));
  }
}

TEST_F(ModelWriterTest, ALinkLeadsToWhereTheShardsLie) {
  std::filesystem::create_directory(dir_ / "shelf");
  std::filesystem::create_symlink("shelf/m.st", dir_ / "link");
  const auto written = WriteTo(fs_, dir_ / "link", {.shard_bytes = 20}, Values(1));
  ASSERT_TRUE(written.ok()) << Describe(written.status());
  EXPECT_EQ(written->path, dir_ / "shelf/m.st.index.json");
  EXPECT_TRUE(std::filesystem::is_symlink(dir_ / "link"));
  EXPECT_EQ(Read(written->path), Values(1));
}

TEST_F(ModelWriterTest, OnlyTheTwoFormatsHaveNames) {
  EXPECT_EQ(*ParseWrittenDtype("--x", "f32"), TensorDtype::kF32);
  EXPECT_EQ(*ParseWrittenDtype("--x", "bf16"), TensorDtype::kBf16);
  const absl::Status other = ParseWrittenDtype("--x", "f16").status();
  EXPECT_EQ(other.message(), "--x 'f16' is unknown; use f32 or bf16");
  EXPECT_EQ(ExitCodeFor(other), ExitCode::kUsage);
}

}  // namespace
}  // namespace signvote
