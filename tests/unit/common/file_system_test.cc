#include "common/file_system.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class FileSystemTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = dir_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string Read(const std::string& path) {
    const auto text = fs_->ReadFile(path, 1 << 20);
    EXPECT_TRUE(text.ok()) << Describe(text.status());
    return text.ok() ? *text : "";
  }
  static std::span<const std::byte> Bytes(std::string_view text) {
    return std::as_bytes(std::span(text));
  }
  static std::string Temporary(const std::string& path) {
    return path + "\\.signvote-[0-9a-f]+\\.tmp";
  }
  static uint32_t ModeOf(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0);
    return st.st_mode & 07777u;
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
};

TEST_F(FileSystemTest, ReadFileGivesTheWholeFileUpToItsLimit) {
  const std::string path = Write("a", "0123456789");
  EXPECT_EQ(*fs_->ReadFile(path, 10), "0123456789");
  const absl::Status status = fs_->ReadFile(path, 9).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_EQ(*fs_->ReadFile(Write("empty", ""), 0), "");
  const std::string large(300'000, 'x');
  EXPECT_EQ(*fs_->ReadFile(Write("large", large), large.size()), large);
}

TEST_F(FileSystemTest, RequireWritableTriesTheNameAndLeavesNothingBehind) {
  const std::string path = Write("there", "old");
  EXPECT_TRUE(RequireWritable(fs_, path).ok());
  EXPECT_EQ(Read(path), "old");
  EXPECT_TRUE(RequireWritable(fs_, dir_ / "new").ok());
  EXPECT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(path));
  for (const auto& [bad, text] :
       {std::pair<std::string, const char*>{dir_ / "none/file", "No such file"},
        {dir_.path(), "is a folder"},
        {path + "/file", "Not a directory"}}) {
    const absl::Status status = RequireWritable(fs_, bad);
    EXPECT_THAT(Describe(status), HasSubstr(text));
    EXPECT_THAT(Describe(status), HasSubstr(bad));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }
}

TEST_F(FileSystemTest, ReadFileReadsFilesThatAnnounceNoSize) {
  EXPECT_THAT(*fs_->ReadFile("/proc/self/status", 1 << 20), HasSubstr("VmRSS"));
}

TEST_F(FileSystemTest, AMissingFileIsNotFoundByPathAndEndsInBadInput) {
  const std::string path = dir_ / "missing";
  for (const absl::Status& status : {fs_->ReadFile(path, 1).status(), fs_->Map(path).status(),
                                     fs_->FileSize(path).status(), fs_->IsDirectory(path).status(),
                                     fs_->ListFiles(path).status(), fs_->RequirePrivate(path)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path + ": "));
    EXPECT_THAT(std::string(status.message()), HasSubstr("No such file or directory"));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }
}

TEST_F(FileSystemTest, AFolderOrPipeIsNoFileAndNothingHangs) {
  const std::string pipe = dir_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {dir_.path(), pipe}) {
    EXPECT_EQ(fs_->ReadFile(path, 1).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(fs_->Map(path).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(fs_->FileSize(path).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(FileSystemTest, AnUnreadableFileIsPermissionDenied) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
  const std::string path = Write("secret", "x");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const absl::Status status = fs_->ReadFile(path, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
}

TEST_F(FileSystemTest, AMapShowsTheFileAndOutlivesItsName) {
  const std::string path = Write("a", "mapped bytes");
  const auto map = fs_->Map(path);
  ASSERT_TRUE(map.ok());
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const auto data = (*map)->data();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(data.data()), data.size()), "mapped bytes");
  const auto empty = fs_->Map(Write("empty", ""));
  ASSERT_TRUE(empty.ok());
  EXPECT_TRUE((*empty)->data().empty());
}

TEST_F(FileSystemTest, CommitReplacesTheTargetWithTheAskedMode) {
  const std::string path = Write("target", "old");
  auto file = fs_->CreateAtomic(path, 0600);
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  ASSERT_TRUE((*file)->Append(Bytes("new ")).ok());
  ASSERT_TRUE((*file)->Append(Bytes("bytes")).ok());
  EXPECT_EQ(Read(path), "old");
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(Read(path), "new bytes");
  EXPECT_EQ(ModeOf(path), 0600u);
  EXPECT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(path));
}

TEST_F(FileSystemTest, WithoutCommitTheTargetIsUntouchedAndTheTemporaryGone) {
  const std::string path = Write("target", "old");
  {
    auto file = fs_->CreateAtomic(path, 0644);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append(Bytes("half a fi")).ok());
    EXPECT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(path, MatchesRegex(Temporary(path))));
  }
  EXPECT_EQ(Read(path), "old");
  EXPECT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(path));
}

// Two workers that were given one --save: the slower one's half-written file never has its name.
TEST_F(FileSystemTest, OfTwoWritersOfOneFileEachCommitsAWholeOne) {
  const std::string path = dir_ / "target";
  auto first = fs_->CreateAtomic(path, 0644);
  ASSERT_TRUE(first.ok() && (*first)->Append(Bytes("the first")).ok());
  auto second = fs_->CreateAtomic(path, 0644);
  ASSERT_TRUE(second.ok() && (*second)->Append(Bytes("the sec")).ok());
  EXPECT_TRUE(RequireWritable(fs_, path).ok()) << "as a third that begins";
  ASSERT_TRUE((*first)->Commit().ok());
  EXPECT_EQ(Read(path), "the first");
  ASSERT_TRUE((*second)->Append(Bytes("ond")).ok());
  ASSERT_TRUE((*second)->Commit().ok());
  EXPECT_EQ(Read(path), "the second");
  EXPECT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(path));
}

TEST_F(FileSystemTest, TemporariesOfProcessesThatAreGoneAreRemovedAndNobodyElsesFile) {
  const std::string path = dir_ / "target";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto file = fs_->CreateAtomic(dir_ / "another", 0644);
    std::_Exit(file.ok() && (*file)->Append(Bytes("half")).ok() ? 0 : 1);
  }
  int ended = -1;
  ASSERT_EQ(::waitpid(child, &ended, 0), child);
  ASSERT_EQ(ended, 0);
  ASSERT_THAT(*fs_->ListFiles(dir_.path()), ElementsAre(MatchesRegex(Temporary(dir_ / "another"))));
  const std::string mine = Write("target.tmp", "mine");
  const std::string alike = Write("target.signvote-0123456789abcdeX.tmp", "mine");
  const std::string link = dir_ / "a.signvote-0123456789abcdef.tmp";
  ASSERT_EQ(::symlink(mine.c_str(), link.c_str()), 0);
  const auto open = fs_->CreateAtomic(dir_ / "open", 0644);
  ASSERT_TRUE(open.ok());
  ASSERT_TRUE(WriteFileAtomically(fs_, path, "new", 0644).ok());
  EXPECT_THAT(*fs_->ListFiles(dir_.path()),
              ElementsAre(link, MatchesRegex(Temporary(dir_ / "open")), path, alike, mine));
  EXPECT_EQ(Read(mine), "mine");
}

TEST_F(FileSystemTest, AsLongANameAsAFileMayHaveIsWritten) {
  const std::string path = dir_ / std::string(NAME_MAX, 'n');
  ASSERT_TRUE(WriteFileAtomically(fs_, path, "new", 0644).ok());
  EXPECT_EQ(Read(path), "new");
}

TEST_F(FileSystemTest, NamesOfOneFileAreToldFromNamesOfTwo) {
  const std::string a = Write("a", "x"), b = Write("b", "x");
  ASSERT_TRUE(fs_->MakeDirectories(dir_ / "folder", 0755).ok());
  ASSERT_EQ(::symlink(".", (dir_ / "here").c_str()), 0);
  ASSERT_EQ(::symlink("a", (dir_ / "link").c_str()), 0);
  ASSERT_EQ(::symlink("none", (dir_ / "dangling").c_str()), 0);
  for (const char* const same : {"a", "./a", "folder/../a", "here/a", "link"})
    EXPECT_TRUE(fs_->IsSameFile(a, dir_ / same)) << same;
  for (const char* const same : {"none", "here/none", "dangling"})
    EXPECT_TRUE(fs_->IsSameFile(dir_ / "none", dir_ / same)) << same << ", which is not there yet";
  for (const char* const other : {"b", "none", "folder/a", "folder"})
    EXPECT_FALSE(fs_->IsSameFile(a, dir_ / other)) << other;
  EXPECT_FALSE(fs_->IsSameFile(dir_ / "none", dir_ / "no"));
  EXPECT_FALSE(fs_->IsSameFile(dir_ / "gone/none", dir_ / "folder/none"));
  EXPECT_FALSE(fs_->IsSameFile("/dev/null", "/dev/null")) << "is no file";
}

TEST_F(FileSystemTest, ASecondNameStaysWhateverBecomesOfTheFirst) {
  const std::string path = Write("a", "old"), also = dir_ / "b";
  ASSERT_TRUE(fs_->AlsoCall(path, also).ok());
  EXPECT_TRUE(fs_->IsSameFile(path, also));
  ASSERT_TRUE(WriteFileAtomically(fs_, path, "new", 0644).ok());
  EXPECT_EQ(Read(also), "old");
  EXPECT_EQ(fs_->AlsoCall(path, also).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Read(also), "old");
  EXPECT_EQ(fs_->AlsoCall(dir_ / "none", dir_ / "c").code(), absl::StatusCode::kNotFound);
}

TEST_F(FileSystemTest, ALogFileGrowsAtItsEndWhoeverOpensIt) {
  const std::string path = dir_ / "log";
  for (const char* line : {"one\n", "two\n"}) {
    auto log = fs_->OpenLog(path, 0644);
    ASSERT_TRUE(log.ok()) << Describe(log.status());
    ASSERT_TRUE((*log)->Append(line).ok());
  }
  EXPECT_EQ(Read(path), "one\ntwo\n");
  const auto missing = fs_->OpenLog(dir_ / "no/folder", 0644);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ExitCodeFor(missing.status()), ExitCode::kBadInput);
}

TEST_F(FileSystemTest, AFifoThatNobodyReadsIsNoLogAndOneThatIsReadTakesLines) {
  const std::string path = dir_ / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const absl::Status none = fs_->OpenLog(path, 0644).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ExitCodeFor(none), ExitCode::kBadInput);
  EXPECT_THAT(std::string(none.message()), HasSubstr(path + ": nobody reads this FIFO"));
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  const auto log = fs_->OpenLog(path, 0644);
  ASSERT_TRUE(log.ok()) << Describe(log.status());
  ASSERT_TRUE((*log)->Append("line\n").ok());
  char text[8] = "";
  EXPECT_EQ(::read(reader, text, sizeof(text)), 5);
  EXPECT_STREQ(text, "line\n");
  ::close(reader);
}

TEST_F(FileSystemTest, ARemovedFileIsGoneAndNotThereTwice) {
  const std::string path = Write("a", "x");
  EXPECT_TRUE(fs_->Remove(path).ok());
  EXPECT_EQ(fs_->Remove(path).code(), absl::StatusCode::kNotFound);
}

TEST_F(FileSystemTest, AfterAFailureEveryLaterCallReturnsIt) {
  const std::string folder = dir_ / "folder";
  ASSERT_EQ(::mkdir(folder.c_str(), 0755), 0);
  auto file = fs_->CreateAtomic(folder + "/target", 0644);
  ASSERT_TRUE(file.ok());
  // A folder that comes in the way: the rename must fail.
  ASSERT_EQ(::mkdir((folder + "/target").c_str(), 0755), 0);
  const absl::Status first = (*file)->Commit();
  EXPECT_FALSE(first.ok());
  EXPECT_THAT(std::string(first.message()), HasSubstr(folder + "/target"));
  EXPECT_EQ((*file)->Append(Bytes("x")), first);
  EXPECT_EQ((*file)->Commit(), first);
}

TEST_F(FileSystemTest, ACommittedFileTakesNothingMore) {
  auto file = fs_->CreateAtomic(dir_ / "target", 0644);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ((*file)->Append(Bytes("x")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*file)->Commit().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FileSystemTest, AFullDiskPoisonsTheFile) {
  auto file = fs_->CreateAtomic(dir_ / "target", 0644);
  ASSERT_TRUE(file.ok());
  // A file-size limit stands for the full disk; its signal is ignored, as servers do.
  const auto outcome = [&] {
    ::rlimit limit{}, before{};
    (void)::getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 4;
    const auto previous = std::signal(SIGXFSZ, SIG_IGN);
    (void)::setrlimit(RLIMIT_FSIZE, &limit);
    const absl::Status status = (*file)->Append(Bytes("five!"));
    (void)::setrlimit(RLIMIT_FSIZE, &before);
    (void)std::signal(SIGXFSZ, previous);
    return status;
  }();
  EXPECT_FALSE(outcome.ok());
  EXPECT_EQ((*file)->Append(Bytes("x")), outcome);
  EXPECT_EQ((*file)->Commit(), outcome);
  file->reset();
  EXPECT_FALSE(std::filesystem::exists(dir_ / "target"));
}

TEST_F(FileSystemTest, AMissingFolderIsNotFound) {
  EXPECT_EQ(fs_->CreateAtomic(dir_ / "no/such/file", 0644).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(WriteFileAtomically(fs_, dir_ / "no/such/file", "x", 0644).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(FileSystemTest, SizesAndKindsAreTold) {
  EXPECT_EQ(*fs_->FileSize(Write("a", "12345")), 5u);
  EXPECT_FALSE(*fs_->IsDirectory(dir_ / "a"));
  EXPECT_TRUE(*fs_->IsDirectory(dir_.path()));
}

TEST_F(FileSystemTest, ListFilesIsSortedRecursiveAndSurvivesLoops) {
  ASSERT_TRUE(fs_->MakeDirectories(dir_ / "sub/deep", 0755).ok());
  const std::string c = Write("sub/deep/c", "");
  const std::string a = Write("a", "");
  const std::string b = Write("sub/b", "");
  ASSERT_EQ(::symlink(dir_.path().c_str(), (dir_ / "sub/loop").c_str()), 0);
  ASSERT_EQ(::symlink("self", (dir_ / "self").c_str()), 0);
  ASSERT_EQ(::symlink("nowhere", (dir_ / "dangling").c_str()), 0);
  ASSERT_EQ(::symlink("a", (dir_ / "link").c_str()), 0);
  const auto files = fs_->ListFiles(dir_.path());
  ASSERT_TRUE(files.ok()) << Describe(files.status());
  EXPECT_THAT(*files, ElementsAre(a, dir_ / "link", b, c));
  EXPECT_THAT(*fs_->ListFiles(dir_.path() + "/"), ElementsAre(a, dir_ / "link", b, c));
}

TEST_F(FileSystemTest, NamesAreTakenApartAtTheirLastSlashAndDot) {
  EXPECT_EQ(FolderPrefix("/a.b/c"), "/a.b/");
  EXPECT_EQ(FolderPrefix("c"), "");
  EXPECT_EQ(AddToName("/a.b/m.st", "-1"), "/a.b/m-1.st");
  EXPECT_EQ(AddToName("/a.b/m", "-1"), "/a.b/m-1");
  EXPECT_EQ(AddToName(".hidden", "-1"), ".hidden-1");
  EXPECT_EQ(AddToName("m.a.st", "-1"), "m.a-1.st");
}

TEST_F(FileSystemTest, ListFilesOfAFileIsAnError) {
  const absl::Status status = fs_->ListFiles(Write("a", "")).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("Not a directory"));
}

TEST_F(FileSystemTest, MakeDirectoriesMakesWhatIsMissing) {
  EXPECT_TRUE(fs_->MakeDirectories(dir_ / "x/y/z", 0700).ok());
  EXPECT_TRUE(fs_->MakeDirectories(dir_ / "x/y/z", 0700).ok());
  EXPECT_TRUE(fs_->MakeDirectories(dir_ / "x//w/", 0700).ok());
  EXPECT_TRUE(*fs_->IsDirectory(dir_ / "x/y/z"));
  EXPECT_TRUE(*fs_->IsDirectory(dir_ / "x/w"));
  Write("file", "");
  const absl::Status status = fs_->MakeDirectories(dir_ / "file/below", 0700);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("Not a directory"));
}

TEST_F(FileSystemTest, RequirePrivateNamesPathModeAndRemedy) {
  const std::string path = Write("token", "secret");
  for (const mode_t mode : {0600u, 0400u, 0700u}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    EXPECT_TRUE(fs_->RequirePrivate(path).ok()) << std::oct << mode;
  }
  for (const mode_t mode : {0644u, 0640u, 0604u, 0660u, 0602u}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    const absl::Status status = fs_->RequirePrivate(path);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << std::oct << mode;
    EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600 " + path));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  EXPECT_THAT(std::string(fs_->RequirePrivate(path).message()), HasSubstr("0644"));
}

TEST_F(FileSystemTest, NobodyIsAdvisedToChangeTheModeOfAFolderOrADevice) {
  for (const std::string& path : {dir_.path(), std::string("/dev/null")}) {
    const absl::Status status = fs_->RequirePrivate(path);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()), path + ": not a regular file");
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }
}

TEST_F(FileSystemTest, RandomBytesHaveTheirLengthAndDiffer) {
  EXPECT_EQ(fs_->RandomBytes(0)->size(), 0u);
  const auto a = fs_->RandomBytes(1000);
  const auto b = fs_->RandomBytes(1000);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->size(), 1000u);
  EXPECT_NE(*a, *b);
}

}  // namespace
}  // namespace signvote
