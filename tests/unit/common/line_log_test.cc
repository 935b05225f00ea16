#include "common/line_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>

#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

class LineLogTest : public testing::Test {
 protected:
  std::string Read(const std::string& path) {
    return FileSystem::Posix()->ReadFile(path, 1 << 20).value_or("");
  }
  // A log's destructor waits for its lines.
  void Open() { log_ = *LineLog::Open(FileSystem::Posix(), path_); }
  void Close() { log_.reset(); }
  TempDir dir_;
  const std::string path_ = dir_ / "log";
  std::unique_ptr<LineLog> log_;
};

// Waits, as long as a busy machine takes, for what the writer's thread does.
template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 6000 && !condition(); ++i)
    Clock::System()->SleepFor(std::chrono::milliseconds(10));
  return condition();
}

TEST_F(LineLogTest, ARenamedFileIsLeftForTheOneThatHasItsNameAfterAReopen) {
  Open();
  ASSERT_TRUE(log_->Write("one"));
  ASSERT_TRUE(Eventually([&] { return Read(path_) == "one\n"; }));
  std::filesystem::rename(path_, dir_ / "log.1");
  ASSERT_TRUE(log_->Write("two"));
  ASSERT_TRUE(Eventually([&] { return Read(dir_ / "log.1") == "one\ntwo\n"; }));
  log_->Reopen();
  ASSERT_TRUE(log_->Write("three"));
  Close();
  EXPECT_EQ(Read(dir_ / "log.1"), "one\ntwo\n");
  EXPECT_EQ(Read(path_), "three\n");
}

TEST_F(LineLogTest, ACopiedAndTruncatedFileGoesOnAtItsNewEnd) {
  Open();
  ASSERT_TRUE(log_->Write("one"));
  ASSERT_TRUE(Eventually([&] { return Read(path_) == "one\n"; }));
  std::filesystem::resize_file(path_, 0);
  ASSERT_TRUE(log_->Write("two"));
  Close();
  EXPECT_EQ(Read(path_), "two\n");
}

TEST_F(LineLogTest, WhereTheNameCannotBeOpenedTheOldFileStaysInUse) {
  Open();
  std::filesystem::rename(path_, dir_ / "log.1");
  std::filesystem::create_directory(path_);
  log_->Reopen();
  ASSERT_TRUE(log_->Write("one"));
  Close();
  EXPECT_EQ(Read(dir_ / "log.1"), "one\n");
}

TEST_F(LineLogTest, ALogThatFailedIsBegunAnewByAReopen) {
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = 2;
  Open();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_TRUE(log_->Write("lost"));
  EXPECT_TRUE(Eventually([&] { return Read(path_) == "lo"; }));
  std::filesystem::rename(path_, dir_ / "log.1");
  log_->Reopen();
  ASSERT_TRUE(log_->Write("y"));
  // Behind the first failure, and within the limit again.
  EXPECT_TRUE(Eventually([&] { return Read(path_) == "\ny"; }));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  log_->Reopen();
  ASSERT_TRUE(log_->Write("z"));
  Close();
  (void)std::signal(SIGXFSZ, previous);
  EXPECT_EQ(Read(dir_ / "log.1"), "lo");
  EXPECT_EQ(Read(path_), "\ny\nz\n");
}

TEST_F(LineLogTest, AFifoWhoseReaderReadsNothingHoldsUpNobody) {
  // As the programs do; for good, because the writer is left behind.
  (void)std::signal(SIGPIPE, SIG_IGN);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  const int reader = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  Open();
  const std::string line(1 << 16, 'x');
  for (int i = 0; i < 400; ++i) (void)log_->Write(line);  // more than pipe and queue hold
  EXPECT_GT(log_->dropped(), 0u);
  const Time begin = Clock::System()->Now();
  Close();
  EXPECT_LT(Clock::System()->Now() - begin, std::chrono::seconds(30));
  ::close(reader);  // the writer that was left behind gets its EPIPE
}

}  // namespace
}  // namespace signvote
