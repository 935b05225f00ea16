// Goal:   files are made with their room, written in place, renamed and listed, and what goes wrong is
//         told with the path.
#include "common/disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using testing::HasSubstr;

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string Read(Disk* disk, const std::string& name) {
  const auto map = disk->Map(name);
  EXPECT_TRUE(map.ok()) << map.status();
  return {reinterpret_cast<const char*>((*map)->data().data()), (*map)->data().size()};
}

TEST(DiskTest, AFileHasItsRoomAndIsWrittenInPlace) {
  const TempDir dir;
  const auto disk = Disk::OpenPosix(dir / "made/for/it");
  ASSERT_TRUE(disk.ok()) << disk.status();
  auto file = (*disk)->Create("a", 10);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Read(disk->get(), "a"), std::string(10, '\0'));
  EXPECT_TRUE((*file)->WriteAt(4, Bytes("word")).ok());
  (*file)->StartWriteback(4, 4);
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_EQ(Read(disk->get(), "a"), std::string("\0\0\0\0word\0\0", 10));
  EXPECT_TRUE((*file)->WriteAt(9, Bytes("grows")).ok());
  EXPECT_EQ(Read(disk->get(), "a").size(), 14u);
  const auto again = (*disk)->Open("a");
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE((*again)->WriteAt(0, Bytes("x")).ok());
  EXPECT_EQ(Read(disk->get(), "a")[0], 'x');
}

TEST(DiskTest, NamesAreListedRenamedAndRemoved) {
  const TempDir dir;
  const auto disk = Disk::OpenPosix(dir.path());
  ASSERT_TRUE(Disk::OpenPosix(dir / "folder").ok());
  ASSERT_TRUE((*disk)->Create("b", 3).ok());
  ASSERT_TRUE((*disk)->Create("a", 5).ok());
  auto entries = (*disk)->List();
  ASSERT_TRUE(entries.ok());
  ASSERT_EQ(entries->size(), 2u) << "a folder is none of them";
  EXPECT_EQ((*entries)[0].name, "a");
  EXPECT_EQ((*entries)[0].bytes, 5u);
  EXPECT_TRUE((*disk)->Rename("a", "b").ok());
  EXPECT_TRUE((*disk)->SyncFolder().ok());
  EXPECT_GT((*disk)->FreeBytes().value_or(0), 0u);
  entries = (*disk)->List();
  ASSERT_EQ(entries->size(), 1u);
  EXPECT_EQ((*entries)[0].bytes, 5u);
  EXPECT_TRUE((*disk)->Remove("b").ok());
  EXPECT_TRUE(absl::IsNotFound((*disk)->Remove("b")));
}

TEST(DiskTest, WhatIsWrongIsToldWithThePath) {
  const TempDir dir;
  const auto disk = Disk::OpenPosix(dir.path());
  ASSERT_TRUE((*disk)->Create("a", 0).ok());
  const absl::Status there = (*disk)->Create("a", 0).status();
  EXPECT_TRUE(absl::IsAlreadyExists(there));
  EXPECT_THAT(std::string(there.message()), HasSubstr(dir / "a"));
  EXPECT_EQ(ExitCodeFor(there), ExitCode::kBadInput);
  EXPECT_TRUE(absl::IsNotFound((*disk)->Open("none").status()));
  EXPECT_TRUE(absl::IsNotFound((*disk)->Map("none").status()));
  const absl::Status large = (*disk)->Create("large", uint64_t{1} << 62).status();
  EXPECT_TRUE(absl::IsResourceExhausted(large)) << large;
  EXPECT_TRUE(absl::IsNotFound((*disk)->Open("large").status())) << "nothing of it is left";
}

}  // namespace
}  // namespace signvote
