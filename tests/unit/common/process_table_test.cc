#include "common/process_table.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace signvote {
namespace {

constexpr char kStatus[] =
    "Name:\tsignvote-worker\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t71\nPid:\t71\nPPid:\t1\n"
    "Threads:\t9\nCpus_allowed:\t5,00000003\nCpus_allowed_list:\t0-1,32,34\n";

std::string With(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(ProcessTableTest, ProgramIdAndProcessorsAreRead) {
  const auto entry = ParseProcessStatus(kStatus);
  ASSERT_TRUE(entry.has_value());
  EXPECT_EQ(entry->program, "signvote-worker");
  EXPECT_EQ(entry->id, 71u);
  EXPECT_EQ(entry->processors, (std::vector<uint32_t>{3, 5}));
  EXPECT_EQ(entry->ProcessorCount(), 4u);
}

TEST(ProcessTableTest, WhoHasEndedOrSaysTooLittleIsNoEntry) {
  EXPECT_FALSE(ParseProcessStatus(With(kStatus, "S (sleeping)", "Z (zombie)")).has_value());
  EXPECT_FALSE(ParseProcessStatus(With(kStatus, "Cpus_allowed:\t5", "Cpus:\t5")).has_value());
  EXPECT_FALSE(ParseProcessStatus(With(kStatus, "5,0", "x,0")).has_value());
  EXPECT_FALSE(ParseProcessStatus(With(kStatus, "Pid:\t71", "Pid:\t-")).has_value());
  EXPECT_FALSE(ParseProcessStatus("").has_value());
}

TEST(ProcessTableTest, ProcessorsAreSharedWhereTheMasksMeet) {
  const ProcessEntry low{.id = 1, .program = "a", .processors = {3}};
  const ProcessEntry high{.id = 2, .program = "a", .processors = {4, 1}};
  const ProcessEntry all{.id = 3, .program = "a", .processors = {7, 7}};
  EXPECT_FALSE(low.SharesProcessorsWith(high));
  EXPECT_TRUE(low.SharesProcessorsWith(all));
  EXPECT_TRUE(all.SharesProcessorsWith(high));
}

TEST(ProcessTableTest, TheMachinesTableHasThisProcessAndItsChild) {
  ProcProcessTable table(FileSystem::Posix());
  const auto self = table.Self();
  ASSERT_TRUE(self.has_value());
  EXPECT_EQ(self->id, static_cast<uint64_t>(::getpid()));
  EXPECT_GT(self->ProcessorCount(), 0u);
  int held[2];
  ASSERT_EQ(::pipe(held), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    (void)::close(held[1]);
    char byte;
    ::_exit(static_cast<int>(::read(held[0], &byte, 1)));  // until the parent lets go
  }
  ASSERT_GT(child, 0);
  const std::vector<ProcessEntry> others = table.Others();
  const auto has = [&others](pid_t id) {
    return std::any_of(others.begin(), others.end(),
                       [id](const ProcessEntry& o) { return o.id == static_cast<uint64_t>(id); });
  };
  EXPECT_TRUE(has(child));
  EXPECT_FALSE(has(::getpid()));
  (void)::close(held[0]);
  (void)::close(held[1]);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

}  // namespace
}  // namespace signvote
