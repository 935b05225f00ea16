#include "common/file_map.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "common/file_system.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

class FileMapTest : public testing::Test {
 protected:
  static constexpr size_t kBytes = size_t{1} << 20;
  std::unique_ptr<MappedFile> MapNew(const std::string& name) {
    const std::string path = dir_ / name;
    EXPECT_TRUE(
        WriteFileAtomically(FileSystem::Posix(), path, std::string(kBytes, 'x'), 0644).ok());
    return *FileSystem::Posix()->Map(path);
  }
  static size_t Count(const MappedFile& map, char wanted) {
    size_t count = 0;
    for (const std::byte b : map.data()) count += b == static_cast<std::byte>(wanted) ? 1 : 0;
    return count;
  }
  TempDir dir_;
};

TEST_F(FileMapTest, WhatIsCutOffReadsAsZerosAndIsTold) {
  const auto map = MapNew("cut");
  const auto whole = MapNew("whole");
  EXPECT_EQ(Count(*map, 'x'), kBytes);
  EXPECT_FALSE(map->cut());
  std::filesystem::resize_file(dir_ / "cut", 5000);
  EXPECT_EQ(Count(*map, 'x'), 5000u);
  EXPECT_TRUE(map->cut());
  EXPECT_FALSE(whole->cut());
  EXPECT_EQ(Count(*whole, 'x'), kBytes);
}

TEST_F(FileMapTest, AMapThatTakesTheOldOnesPlaceIsWatchedAndWhole) {
  for (int again = 0; again < 3; ++again) {
    const auto map = MapNew("file");
    EXPECT_FALSE(map->cut());
    std::filesystem::resize_file(dir_ / "file", 0);
    EXPECT_EQ(Count(*map, 'x'), 0u);
    EXPECT_TRUE(map->cut());
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(FileMapTest, ABusErrorElsewhereEndsTheProgramAsEver) {
  const auto watched = MapNew("watched");
  const auto outside = [&] {
    const std::string path = dir_ / "outside";
    (void)WriteFileAtomically(FileSystem::Posix(), path, std::string(kBytes, 'x'), 0644);
    std::FILE* const file = std::fopen(path.c_str(), "r");
    const auto* const bytes = static_cast<const volatile char*>(
        ::mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, ::fileno(file), 0));
    std::filesystem::resize_file(path, 0);
    (void)bytes[kBytes / 2];
  };
  EXPECT_EXIT(outside(), testing::KilledBySignal(SIGBUS), "");
}
#endif

}  // namespace
}  // namespace signvote
