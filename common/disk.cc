#include "common/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/exit_codes.h"
#include "common/may_wait.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr mode_t kFileMode = 0600;
constexpr uint32_t kFolderMode = 0700;
constexpr size_t kWriteMax = size_t{1} << 30;  // Linux writes a little less than 2 GiB per call

absl::Status ErrnoStatus(int error, const std::string& path, std::string_view what) {
  const absl::StatusCode code = error == ENOSPC || error == EDQUOT || error == EFBIG
                                    ? absl::StatusCode::kResourceExhausted
                                    : absl::ErrnoToStatusCode(error);
  return WithExitCode(
      absl::Status(code, path + ": " + std::string(what) + ": " + std::strerror(error)),
      ExitCode::kBadInput);
}

int OpenRetry(const std::string& path, int flags) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, kFileMode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

class PosixDiskFile final : public DiskFile {
 public:
  PosixDiskFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  PosixDiskFile(const PosixDiskFile&) = delete;
  PosixDiskFile& operator=(const PosixDiskFile&) = delete;
  ~PosixDiskFile() override { (void)::close(fd_); }  // what counts was synced

  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> data) override {
    CheckMayWait("a write to a file");
    while (!data.empty()) {
      const ssize_t written =
          ::pwrite(fd_, data.data(), std::min(data.size(), kWriteMax), static_cast<off_t>(offset));
      if (written < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, path_, "cannot write");
      }
      offset += static_cast<uint64_t>(written);
      data = data.subspan(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  void StartWriteback(uint64_t offset, uint64_t bytes) override {
    // A hint: Sync() tells what goes wrong.
    (void)::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                            SYNC_FILE_RANGE_WRITE);
  }

  absl::Status Sync() override {
    CheckMayWait("a file's sync");
    if (::fdatasync(fd_) != 0) return ErrnoStatus(errno, path_, "cannot sync");
    return absl::OkStatus();
  }

  // Takes the room of `bytes` bytes; the errno, 0: done.
  int Reserve(uint64_t bytes) {
    if (bytes == 0) return 0;
    int error;
    do {
      error = ::posix_fallocate(fd_, 0, static_cast<off_t>(bytes));
    } while (error == EINTR);
    return error;
  }

 private:
  const std::string path_;
  const int fd_;
};

class PosixDisk final : public Disk {
 public:
  explicit PosixDisk(std::string path) : path_(std::move(path)) {}

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::vector<DiskEntry>> List() override {
    DIR* const dir = ::opendir(path_.c_str());
    if (dir == nullptr) return ErrnoStatus(errno, path_, "cannot read the folder");
    std::vector<DiskEntry> entries;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      struct stat st;
      if (::lstat(PathOf(name).c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
      entries.push_back({name, static_cast<uint64_t>(st.st_size)});
    }
    (void)::closedir(dir);  // opened for reading only
    std::sort(entries.begin(), entries.end(),
              [](const DiskEntry& a, const DiskEntry& b) { return a.name < b.name; });
    return entries;
  }

  absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name,
                                                   uint64_t bytes) override {
    const std::string path = PathOf(name);
    const int fd = OpenRetry(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW);
    if (fd < 0) return ErrnoStatus(errno, path, "cannot create");
    auto file = std::make_unique<PosixDiskFile>(path, fd);
    if (const int error = file->Reserve(bytes); error != 0) {
      (void)::unlink(path.c_str());
      return ErrnoStatus(error, path, "cannot take the room for it");
    }
    return file;
  }

  absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) override {
    const std::string path = PathOf(name);
    const int fd = OpenRetry(path, O_RDWR | O_NOFOLLOW);
    if (fd < 0) return ErrnoStatus(errno, path, "cannot open");
    return std::make_unique<PosixDiskFile>(path, fd);
  }

  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& name) override {
    return FileSystem::Posix()->Map(PathOf(name));
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (::rename(PathOf(from).c_str(), PathOf(to).c_str()) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, PathOf(from), "cannot rename to " + to);
  }

  absl::Status Remove(const std::string& name) override {
    if (::unlink(PathOf(name).c_str()) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, PathOf(name), "cannot remove");
  }

  absl::Status SyncFolder() override {
    CheckMayWait("a folder's sync");
    const int fd = OpenRetry(path_, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return ErrnoStatus(errno, path_, "cannot open the folder");
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    (void)::close(fd);
    if (error != 0) return ErrnoStatus(error, path_, "cannot sync the folder");
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> FreeBytes() override {
    struct statvfs space {};
    if (::statvfs(path_.c_str(), &space) != 0)
      return ErrnoStatus(errno, path_, "cannot ask for the room on its disk");
    return uint64_t{space.f_bavail} * space.f_frsize;
  }

 private:
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Disk>> Disk::OpenPosix(const std::string& path) {
  SIGNVOTE_RETURN_IF_ERROR(FileSystem::Posix()->MakeDirectories(path, kFolderMode));
  return std::make_unique<PosixDisk>(path);
}

}  // namespace signvote
