#include "common/model_series.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <utility>

#include "common/mutex.h"
#include "tests/support/address_space.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

ModelCopy CopyAt(uint64_t round) {
  return {.layout = *Layout::Make({{.name = "w", .shape = {2}}}),
          .round = Round(round),
          .x = {1, 2},
          .metadata = {},
          .config_json = ""};
}

class ModelSeriesTest : public testing::Test {
 protected:
  void Write(ModelSeries* series, uint64_t round) {
    series->Write([round] { return absl::StatusOr<ModelCopy>(CopyAt(round)); });
    series->Finish();
  }
  std::vector<std::string> Files() {
    std::vector<std::string> names = *FileSystem::Posix()->ListFiles(dir_.path());
    for (std::string& name : names) name = name.substr(dir_.path().size() + 1);
    return names;
  }
  TempDir dir_;
  const std::string path_ = dir_ / "m.safetensors";
};

TEST_F(ModelSeriesTest, NamesSortAsRoundsDo) {
  EXPECT_EQ(ModelSeries::PathOf("/a.b/m.safetensors", Round(40)),
            "/a.b/m.round-00000040.safetensors");
  EXPECT_EQ(ModelSeries::PathOf("/a.b/m", Round(40)), "/a.b/m.round-00000040");
  EXPECT_EQ(ModelSeries::PathOf("m.st", Round(1234567890)), "m.round-1234567890.st");
  EXPECT_EQ(ModelSeries::PathOf("a/.hidden", Round(1)), "a/.hidden.round-00000001");
}

TEST_F(ModelSeriesTest, TheLastFewAreKeptAndWhatOthersWroteIsNeverRemoved) {
  const std::string foreign = ModelSeries::PathOf(path_, Round(1));
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), foreign, "mine", 0644).ok());
  ModelSeries series(FileSystem::Posix(), {.path = path_, .keep = 2});
  for (const uint64_t round : {10, 20, 20, 30}) Write(&series, round);
  EXPECT_EQ(Files(), (std::vector<std::string>{"m.round-00000001.safetensors",
                                               "m.round-00000020.safetensors",
                                               "m.round-00000030.safetensors"}));
}

TEST_F(ModelSeriesTest, OldCopiesInShardsAreRemovedWithAllTheirFiles) {
  ModelSeries series(FileSystem::Posix(), {.path = path_, .keep = 1, .format = {.shard_bytes = 4}});
  for (const uint64_t round : {10, 20}) {
    series.Write([round]() -> absl::StatusOr<ModelCopy> {
      ModelCopy copy = CopyAt(round);
      copy.layout = *Layout::Make({{.name = "v", .shape = {1}}, {.name = "w", .shape = {1}}});
      return copy;
    });
    series.Finish();
  }
  EXPECT_EQ(Files(), (std::vector<std::string>{"m.round-00000020-00001-of-00002.safetensors",
                                               "m.round-00000020-00002-of-00002.safetensors",
                                               "m.round-00000020.safetensors.index.json"}));
}

TEST_F(ModelSeriesTest, ACopyThatCannotBeTakenOrWrittenCostsNoneThatIsThere) {
  ModelSeries series(FileSystem::Posix(), {.path = path_, .keep = 1});
  Write(&series, 10);
  series.Write([] { return absl::StatusOr<ModelCopy>(absl::UnavailableError("busy")); });
  series.Finish();
  std::filesystem::create_directory(ModelSeries::PathOf(path_, Round(20)));
  Write(&series, 20);
  EXPECT_EQ(Files(), std::vector<std::string>{"m.round-00000010.safetensors"});
  Write(&series, 30);
  EXPECT_EQ(Files(), std::vector<std::string>{"m.round-00000030.safetensors"});
}

TEST_F(ModelSeriesTest, WhoeverAsksForACopyDoesNotWaitForItsBeingTaken) {
  struct Gate {
    Mutex mu;
    CondVar changed;
    bool open ABSL_GUARDED_BY(mu) = false;
  };
  const auto gate = std::make_shared<Gate>();
  ModelSeries series(FileSystem::Posix(), {.path = path_});
  EXPECT_FALSE(series.busy());
  series.Write([gate]() -> absl::StatusOr<ModelCopy> {
    MutexLock lock(&gate->mu);
    (void)gate->changed.WaitUntil(
        &gate->mu, Clock::System(), Clock::System()->Now() + std::chrono::minutes(1),
        [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(gate->mu) { return gate->open; });
    return CopyAt(5);
  });
  EXPECT_TRUE(series.busy());
  EXPECT_TRUE(Files().empty());
  {
    MutexLock lock(&gate->mu);
    gate->open = true;
    gate->changed.NotifyAll();
  }
  series.Finish();
  EXPECT_FALSE(series.busy());
  EXPECT_EQ(Files(), std::vector<std::string>{"m.round-00000005.safetensors"});
}

// Sanitizers need the address space.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// The exit code, 0: the copy is there.
int WriteWhereNoThreadCanBeMade() {
  const TempDir dir;
  const std::string path = dir / "m";
  ModelSeries series(FileSystem::Posix(), {.path = path});
  const auto write = [&series](uint64_t round) {
    series.Write([round] { return absl::StatusOr<ModelCopy>(CopyAt(round)); });
    series.Finish();
  };
  write(1);  // what is made once, such as the log's thread, is there from now on
  pthread_attr_t large;
  (void)::pthread_attr_init(&large);
  // Beyond what the library keeps of stacks that were used before.
  (void)::pthread_attr_setstacksize(&large, size_t{256} << 20);
  if (::pthread_setattr_default_np(&large) != 0) return 2;
  if (!LimitAddressSpace(size_t{64} << 20)) return 3;
  write(5);
  return std::filesystem::exists(ModelSeries::PathOf(path, Round(5))) ? 0 : 4;
}

TEST(ModelSeriesDeathTest, ACopyIsWrittenWhereNoThreadCanBeMade) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::_Exit(WriteWhereNoThreadCanBeMade()), testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
}  // namespace signvote
