#include "common/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <string>

#include "common/status.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// Reads what it was given, and nothing else.
class FakeFiles final : public FileSystem {
 public:
  std::map<std::string, std::string> files;

  absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) override {
    const auto it = files.find(path);
    if (it == files.end()) return absl::NotFoundError(path);
    if (it->second.size() > bytes_max) return absl::ResourceExhaustedError(path);
    return it->second;
  }
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string&) override { return No(); }
  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string&, uint32_t) override {
    return No();
  }
  absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string&, uint32_t) override {
    return No();
  }
  absl::Status Remove(const std::string&) override { return No(); }
  absl::StatusOr<uint64_t> FileSize(const std::string&) override { return No(); }
  absl::StatusOr<bool> IsDirectory(const std::string&) override { return No(); }
  absl::StatusOr<std::vector<std::string>> ListFiles(const std::string&) override { return No(); }
  absl::Status MakeDirectories(const std::string&, uint32_t) override { return No(); }
  absl::Status RequirePrivate(const std::string&) override { return No(); }
  absl::StatusOr<std::string> RandomBytes(size_t) override { return No(); }

 private:
  static absl::Status No() { return absl::UnimplementedError("not here"); }
};

FakeFiles Machine(uint64_t available) {
  FakeFiles fs;
  fs.files["/proc/meminfo"] =
      "MemTotal:  99999999 kB\nMemFree: 1 kB\nMemAvailable:   " + std::to_string(available / 1024) +
      " kB\n";
  return fs;
}

TEST(AvailableMemory, TheProcessesOwnLimitOfAddressSpaceCounts) {
  FakeFiles fs = Machine(8 * kGiB);
  fs.files["/proc/self/statm"] = "1000 500 100 1 0 200 0\n";
  fs.files["/proc/self/limits"] =
      "Limit                     Soft Limit           Hard Limit           Units     \n"
      "Max address space         unlimited            unlimited            bytes     \n";
  EXPECT_EQ(AvailableMemory(&fs)->source, "the machine");
  fs.files["/proc/self/limits"] =
      "Max stack size            8388608              unlimited            bytes     \n"
      "Max address space         1073741824           unlimited            bytes     \n";
  const auto limit = AvailableMemory(&fs);
  EXPECT_EQ(limit->bytes, kGiB - 1000 * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  EXPECT_EQ(limit->source, "this process's limit of address space, ulimit -v");
}

TEST(AvailableMemory, WithoutACgroupTheMachineDecides) {
  FakeFiles fs = Machine(8 * kGiB);
  const auto limit = AvailableMemory(&fs);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->bytes, 8 * kGiB);
  EXPECT_EQ(limit->source, "the machine");
  FakeFiles nothing;
  EXPECT_FALSE(AvailableMemory(&nothing).has_value());
}

TEST(AvailableMemory, AContainersLimitMinusItsUseCounts) {
  FakeFiles fs = Machine(8 * kGiB);
  fs.files["/proc/self/cgroup"] = "0::/\n";
  fs.files["/sys/fs/cgroup/memory.max"] = std::to_string(4 * kGiB) + "\n";
  fs.files["/sys/fs/cgroup/memory.current"] = std::to_string(3 * kGiB) + "\n";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 1 * kGiB);
  EXPECT_THAT(AvailableMemory(&fs)->source, HasSubstr("/sys/fs/cgroup/memory.max"));
  // File pages that can be dropped at once are not held; active ones are.
  fs.files["/sys/fs/cgroup/memory.stat"] =
      "active_file 5\ntotal_inactive_file 7\ninactive_file " + std::to_string(2 * kGiB) + "\n";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 3 * kGiB);
  fs.files["/sys/fs/cgroup/memory.stat"] = "inactive_file " + std::to_string(9 * kGiB) + "\n";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 4 * kGiB);
  fs.files["/sys/fs/cgroup/memory.stat"] = "";
  fs.files["/sys/fs/cgroup/memory.current"] = std::to_string(5 * kGiB) + "\n";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 0u);
  fs.files["/sys/fs/cgroup/memory.max"] = "max\n";
  EXPECT_EQ(AvailableMemory(&fs)->source, "the machine");
}

TEST(AvailableMemory, TheTightestOfAllGroupsAboveCounts) {
  FakeFiles fs = Machine(8 * kGiB);
  fs.files["/proc/self/cgroup"] = "0::/a/b/c\n";
  fs.files["/sys/fs/cgroup/a/b/c/memory.max"] = std::to_string(3 * kGiB);
  fs.files["/sys/fs/cgroup/a/memory.max"] = std::to_string(2 * kGiB);
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 2 * kGiB);
  EXPECT_THAT(AvailableMemory(&fs)->source, HasSubstr("/sys/fs/cgroup/a/memory.max"));
  fs.files["/sys/fs/cgroup/a/b/memory.max"] = std::to_string(1 * kGiB);
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 1 * kGiB);
}

TEST(AvailableMemory, VersionOneIsReadAlsoWhereItsPathIsOutsideTheContainer) {
  FakeFiles fs = Machine(8 * kGiB);
  fs.files["/proc/self/cgroup"] = "12:cpu,cpuacct:/d/1\n5:memory:/docker/abc\n1:name=systemd:/\n";
  const std::string root = "/sys/fs/cgroup/memory/";
  fs.files[root + "memory.limit_in_bytes"] = std::to_string(4 * kGiB);
  fs.files[root + "memory.usage_in_bytes"] = std::to_string(2 * kGiB);
  fs.files[root + "memory.stat"] =
      "inactive_file 1\ntotal_inactive_file " + std::to_string(kGiB) + "\n";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 3 * kGiB);
  fs.files[root + "docker/abc/memory.limit_in_bytes"] = std::to_string(kGiB);
  EXPECT_EQ(AvailableMemory(&fs)->bytes, kGiB);
  fs.files[root + "docker/abc/memory.limit_in_bytes"] = "9223372036854771712";
  fs.files[root + "memory.limit_in_bytes"] = "9223372036854771712";
  EXPECT_EQ(AvailableMemory(&fs)->source, "the machine");
  // Another controller's group says nothing of the memory.
  fs.files["/proc/self/cgroup"] = "12:cpu,memoryless:/\nnonsense\n";
  fs.files[root + "memory.limit_in_bytes"] = "1";
  EXPECT_EQ(AvailableMemory(&fs)->source, "the machine");
  fs.files["/proc/self/cgroup"] = "12:cpu,memory:/";
  EXPECT_EQ(AvailableMemory(&fs)->bytes, 0u);
}

TEST(CheckMemory, WhatDoesNotFitIsRefusedWithTheBytesOfEachPart) {
  const std::vector<MemoryPart> parts = {
      {.what = "the replica", .bytes = 4 << 20, .remedy = ""},
      {.what = "ballots", .bytes = (2 << 20) + 1, .remedy = "--workers-max 2"}};
  const uint64_t total = (6 << 20) + 1;
  EXPECT_EQ(TotalBytes(parts), total);
  EXPECT_TRUE(CheckMemory("x", parts, std::nullopt).ok());
  EXPECT_TRUE(CheckMemory("x", parts, MemoryLimit{.bytes = total, .source = "s"}).ok());
  const absl::Status status =
      CheckMemory("x", parts, MemoryLimit{.bytes = total - 1, .source = "s"});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      std::string(ToStd(status.message())),
      "x needs 7 MiB and 6 MiB are left (s): the replica 4 MiB (4194304 bytes), ballots 3 MiB "
      "(2097153 bytes); what helps: --workers-max 2");
}

TEST(CheckMemory, ASumBeyondAllNumbersIsTooMuch) {
  const std::vector<MemoryPart> parts = {{.what = "a", .bytes = UINT64_MAX - 1, .remedy = ""},
                                         {.what = "b", .bytes = 5, .remedy = ""}};
  EXPECT_EQ(TotalBytes(parts), UINT64_MAX);
  EXPECT_FALSE(CheckMemory("x", parts, MemoryLimit{.bytes = 1, .source = ""}).ok());
}

}  // namespace
}  // namespace signvote
