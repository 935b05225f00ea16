#include "common/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "common/exit_codes.h"
#include "common/file_map.h"
#include "common/may_wait.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr int kDirectoryDepthMax = 64;
constexpr int kLinksMax = 40;  // as many as the kernel follows
// A temporary's name: that of its target, as far as there is room, the mark, 16 hex digits, the end.
constexpr std::string_view kTemporaryMark = ".signvote-";
constexpr std::string_view kTemporaryEnd = ".tmp";
constexpr size_t kTemporaryDigits = 16;
constexpr size_t kTemporaryAdds = kTemporaryMark.size() + kTemporaryDigits + kTemporaryEnd.size();
// Somebody who clears up may be faster than who has just made a temporary, but not so often.
constexpr int kTemporaryTriesMax = 100;

absl::Status FileError(absl::StatusCode code, const std::string& message) {
  return WithExitCode(absl::Status(code, message), ExitCode::kBadInput);
}

// "path: what: No such file or directory", with the code that fits `error`.
absl::Status ErrnoStatus(int error, const std::string& path, std::string_view what) {
  return FileError(absl::ErrnoToStatusCode(error),
                   path + ": " + std::string(what) + ": " + std::strerror(error));
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { Close(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&&) = delete;
  bool ok() const { return fd_ >= 0; }
  int get() const { return fd_; }
  // 0, or the errno. The descriptor is gone either way.
  int Close() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0 ? 0 : errno;
  }

 private:
  int fd_;
};

Fd OpenRetry(const std::string& path, int flags, mode_t mode = 0) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return Fd(fd);
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

const char* KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

// What a new file at `path` would replace: links are followed, also one to a file that is not there
// yet.
absl::StatusOr<std::string> TargetOf(const std::string& path) {
  std::string at = path;
  for (int links = 0; links <= kLinksMax; ++links) {
    struct stat st;
    if (::lstat(at.c_str(), &st) != 0) return at;  // whoever opens it is told why
    if (S_ISREG(st.st_mode)) return at;
    if (!S_ISLNK(st.st_mode)) {
      return FileError(absl::StatusCode::kInvalidArgument,
                       path + ": is " + KindOf(st.st_mode) + "; give the name of a file");
    }
    char target[PATH_MAX];
    const ssize_t length = ::readlink(at.c_str(), target, sizeof(target));
    if (length < 0) return ErrnoStatus(errno, at, "cannot follow the link");
    const std::string next(target, static_cast<size_t>(length));
    const size_t slash = at.find_last_of('/');
    at =
        next.starts_with('/') || slash == std::string::npos ? next : at.substr(0, slash + 1) + next;
  }
  return ErrnoStatus(ELOOP, path, "cannot follow the link");
}

bool IsTemporary(std::string_view name) {
  if (name.size() < kTemporaryAdds || !name.ends_with(kTemporaryEnd)) return false;
  const std::string_view added = name.substr(name.size() - kTemporaryAdds);
  return added.starts_with(kTemporaryMark) &&
         added.substr(kTemporaryMark.size(), kTemporaryDigits)
                 .find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

absl::StatusOr<uint64_t> RandomNumber() {
  uint64_t number = 0;
  ssize_t got;
  do {
    got = ::getrandom(&number, sizeof(number), 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ErrnoStatus(errno, "getrandom", "no random bytes");
  return number;
}

absl::StatusOr<std::string> TemporaryFor(const std::string& target) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t number, RandomNumber());
  char digits[kTemporaryDigits + 1];
  std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(number));
  const std::string folder = FolderPrefix(target);
  std::string name = target.substr(folder.size(), NAME_MAX - kTemporaryAdds);
  name.append(kTemporaryMark).append(digits).append(kTemporaryEnd);
  return folder + name;
}

// 0, or the errno: EWOULDBLOCK, another process or writer has it locked. The lock lasts until the
// descriptor is closed, at the latest when the process ends.
int TryLock(const Fd& fd) { return ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }

// Whoever clears up takes the lock before it removes anything: after this nobody does.
bool LockOwn(const Fd& fd) {
  struct stat st;
  // A file system without locks is one where nobody clears up.
  return TryLock(fd) != EWOULDBLOCK && ::fstat(fd.get(), &st) == 0 && st.st_nlink > 0;
}

// What cannot be removed is left: it takes room, and is never read.
void RemoveLeftTemporaries(const std::string& folder) {
  DIR* const dir = ::opendir(folder.c_str());
  if (dir == nullptr) return;  // whoever creates a file there is told why
  while (const dirent* entry = ::readdir(dir)) {
    if (!IsTemporary(entry->d_name)) continue;
    const std::string path = folder + "/" + entry->d_name;
    struct stat st;
    if (::lstat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    const Fd fd = OpenRetry(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK);
    if (fd.ok() && TryLock(fd) == 0) (void)::unlink(path.c_str());
  }
  (void)::closedir(dir);  // opened for reading only: nothing can be lost
}

absl::Status SyncDirectory(const std::string& path) {
  const Fd fd = OpenRetry(path, O_RDONLY | O_DIRECTORY);
  if (!fd.ok()) return ErrnoStatus(errno, path, "cannot open the folder");
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, path, "cannot sync the folder");
  return absl::OkStatus();
}

class PosixAtomicFile final : public AtomicFile {
 public:
  PosixAtomicFile(std::string path, std::string temporary, Fd fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(std::move(fd)) {}

  ~PosixAtomicFile() override {
    if (!renamed_)
      (void)::unlink(temporary_.c_str());  // nothing to report to; a leftover is cleared up later
  }

  absl::Status Append(std::span<const std::byte> data) override {
    CheckMayWait("a write to a file");
    if (!poison_.ok()) return poison_;
    if (renamed_) return Poison(absl::FailedPreconditionError(path_ + ": already committed"));
    while (!data.empty()) {
      // Linux writes at most 2 GiB − 4 KiB per call.
      const ssize_t written =
          ::write(fd_.get(), data.data(), std::min<size_t>(data.size(), size_t{1} << 30));
      if (written < 0) {
        if (errno == EINTR) continue;
        return Poison(ErrnoStatus(errno, path_, "cannot write"));
      }
      data = data.subspan(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    CheckMayWait("a file's sync");
    if (!poison_.ok()) return poison_;
    if (renamed_) return Poison(absl::FailedPreconditionError(path_ + ": already committed"));
    if (::fsync(fd_.get()) != 0) return Poison(ErrnoStatus(errno, path_, "cannot sync"));
    // Before it is closed, and with that unlocked. A close has nothing to lose behind a sync.
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
      return Poison(ErrnoStatus(errno, path_, "cannot rename " + temporary_));
    }
    renamed_ = true;
    (void)fd_.Close();
    if (absl::Status s = SyncDirectory(ParentOf(path_)); !s.ok()) return Poison(std::move(s));
    return absl::OkStatus();
  }

 private:
  absl::Status Poison(absl::Status status) {
    poison_ = status;
    return status;
  }

  const std::string path_;
  const std::string temporary_;
  Fd fd_;
  bool renamed_ = false;
  absl::Status poison_;  // OK until the first failure
};

class PosixLogFile final : public LogFile {
 public:
  PosixLogFile(std::string path, Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  absl::Status Append(std::string_view text) override {
    CheckMayWait("a write to a log");
    while (poison_.ok() && !text.empty()) {
      const ssize_t written = ::write(fd_.get(), text.data(), text.size());
      if (written < 0) {
        if (errno != EINTR) poison_ = ErrnoStatus(errno, path_, "cannot write");
        continue;
      }
      text.remove_prefix(static_cast<size_t>(written));
    }
    return poison_;
  }

 private:
  const std::string path_;
  const Fd fd_;
  absl::Status poison_;  // OK until the first failure
};

class PosixFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) override {
    // What the kernel makes up at once waits for no disk.
    if (!path.starts_with("/proc/") && !path.starts_with("/sys/")) CheckMayWait("a file's reading");
    SIGNVOTE_ASSIGN_OR_RETURN(const Fd fd, OpenRegular(path));
    std::string text;
    // Grows with what is read, not with the announced size: /proc files say 0, and a file may still
    // be growing.
    std::string buffer(size_t{1} << 16, '\0');
    while (true) {
      const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
      if (got < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, path, "cannot read");
      }
      if (got == 0) return text;
      if (static_cast<uint64_t>(got) > bytes_max - text.size()) {
        return FileError(
            absl::StatusCode::kResourceExhausted,
            path + ": larger than the " + std::to_string(bytes_max) + " bytes allowed");
      }
      text.append(buffer, 0, static_cast<size_t>(got));
    }
  }

  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    CheckMayWait("a file's map");
    SIGNVOTE_ASSIGN_OR_RETURN(const Fd fd, OpenRegular(path));
    struct stat st;
    if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    const auto size = static_cast<size_t>(st.st_size);
    void* base = nullptr;  // an empty file cannot be mapped, and needs no map
    if (size > 0) {
      base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
      if (base == MAP_FAILED) return ErrnoStatus(errno, path, "cannot map");
    }
    return GuardMap(base, size);
  }

  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string& path,
                                                           uint32_t mode) override {
    CheckMayWait("a new file");
    SIGNVOTE_ASSIGN_OR_RETURN(std::string target, TargetOf(path));
    RemoveLeftTemporaries(ParentOf(target));
    for (int tries = 0; tries < kTemporaryTriesMax; ++tries) {
      SIGNVOTE_ASSIGN_OR_RETURN(std::string temporary, TemporaryFor(target));
      Fd fd = OpenRetry(temporary, O_WRONLY | O_CREAT | O_EXCL, static_cast<mode_t>(mode));
      if (!fd.ok()) return ErrnoStatus(errno, target, "cannot create");
      if (!LockOwn(fd)) continue;
      auto file =
          std::make_unique<PosixAtomicFile>(std::move(target), std::move(temporary), std::move(fd));
      return std::unique_ptr<AtomicFile>(std::move(file));
    }
    return FileError(absl::StatusCode::kAborted,
                     target + ": somebody removes whatever is made beside it");
  }

  absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string& path,
                                                   uint32_t mode) override {
    CheckMayWait("the opening of a log");
    // O_NONBLOCK: opening a FIFO must not wait for its reader; writing to it may, again.
    Fd fd = OpenRetry(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY, mode);
    if (!fd.ok() && errno == ENXIO) {
      return FileError(absl::StatusCode::kUnavailable,
                       path + ": nobody reads this FIFO; start its reader first");
    }
    if (!fd.ok()) return ErrnoStatus(errno, path, "cannot open for appending");
    const int flags = ::fcntl(fd.get(), F_GETFL);
    if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) != 0)
      return ErrnoStatus(errno, path, "cannot open for appending");
    return std::unique_ptr<LogFile>(std::make_unique<PosixLogFile>(path, std::move(fd)));
  }

  absl::StatusOr<std::string> FollowLinks(const std::string& path) override {
    return TargetOf(path);
  }

  bool IsSameFile(const std::string& a, const std::string& b) override {
    const absl::StatusOr<std::string> a_file = TargetOf(a), b_file = TargetOf(b);
    if (!a_file.ok() || !b_file.ok()) return false;
    if (*a_file == *b_file) return true;
    struct stat a_st, b_st;
    const bool a_there = ::stat(a_file->c_str(), &a_st) == 0;
    if (a_there != (::stat(b_file->c_str(), &b_st) == 0)) return false;
    if (!a_there && (a_file->substr(FolderPrefix(*a_file).size()) !=
                         b_file->substr(FolderPrefix(*b_file).size()) ||
                     ::stat(ParentOf(*a_file).c_str(), &a_st) != 0 ||
                     ::stat(ParentOf(*b_file).c_str(), &b_st) != 0)) {
      return false;
    }
    return a_st.st_dev == b_st.st_dev && a_st.st_ino == b_st.st_ino;
  }

  absl::Status AlsoCall(const std::string& path, const std::string& also) override {
    CheckMayWait("a file's second name");
    if (::link(path.c_str(), also.c_str()) == 0) return absl::OkStatus();
    const int error = errno;
    // EPERM also where the kernel guards files of others against it (fs.protected_hardlinks).
    if (error != EPERM && error != EOPNOTSUPP && error != ENOSYS && error != EMLINK)
      return ErrnoStatus(error, path, "cannot call it " + also);
    struct stat st;
    if (::lstat(also.c_str(), &st) == 0) return ErrnoStatus(EEXIST, path, "cannot call it " + also);
    if (::rename(path.c_str(), also.c_str()) != 0)
      return ErrnoStatus(errno, path, "cannot call it " + also);
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    CheckMayWait("a file's removal");
    if (::unlink(path.c_str()) != 0) return ErrnoStatus(errno, path, "cannot remove");
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    if (!S_ISREG(st.st_mode)) return NotAFile(path);
    return static_cast<uint64_t>(st.st_size);
  }

  absl::StatusOr<bool> IsDirectory(const std::string& path) override {
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    return S_ISDIR(st.st_mode);
  }

  absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& path) override {
    std::vector<std::string> files;
    std::set<std::pair<dev_t, ino_t>> seen;
    SIGNVOTE_RETURN_IF_ERROR(ListInto(path, 0, &seen, &files));
    std::sort(files.begin(), files.end());
    return files;
  }

  absl::Status MakeDirectories(const std::string& path, uint32_t mode) override {
    for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      const std::string part = path.substr(0, end);
      if (!part.empty() && ::mkdir(part.c_str(), static_cast<mode_t>(mode)) != 0) {
        const int error = errno;
        struct stat st;
        const bool there = ::stat(part.c_str(), &st) == 0;
        if (there && !S_ISDIR(st.st_mode))
          return ErrnoStatus(ENOTDIR, part, "cannot make the folder");
        if (!there) return ErrnoStatus(error, part, "cannot make the folder");
      }
      if (end == std::string::npos) return absl::OkStatus();
    }
  }

  absl::Status RequirePrivate(const std::string& path) override {
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    // A device's or a folder's mode is none to be advised on.
    if (!S_ISREG(st.st_mode)) return NotAFile(path);
    if ((st.st_mode & (S_IRWXG | S_IRWXO)) == 0) return absl::OkStatus();
    char mode[8];
    std::snprintf(mode, sizeof(mode), "%04o", static_cast<unsigned>(st.st_mode & 07777));
    return FileError(
        absl::StatusCode::kPermissionDenied,
        path + " has mode " + mode + ": group or others can use it; run: chmod 600 " + path);
  }

  absl::StatusOr<std::string> RandomBytes(size_t n) override {
    std::string bytes(n, '\0');
    for (size_t have = 0; have < n;) {
      const ssize_t got = ::getrandom(bytes.data() + have, n - have, 0);
      if (got < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "getrandom", "no random bytes");
      }
      have += static_cast<size_t>(got);
    }
    return bytes;
  }

 private:
  static absl::Status NotAFile(const std::string& path) {
    return FileError(absl::StatusCode::kInvalidArgument, path + ": not a regular file");
  }

  static absl::StatusOr<Fd> OpenRegular(const std::string& path) {
    // O_NONBLOCK: opening a pipe without a writer must not hang.
    Fd fd = OpenRetry(path, O_RDONLY | O_NONBLOCK);
    if (!fd.ok()) return ErrnoStatus(errno, path, "cannot open");
    struct stat st;
    if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    if (!S_ISREG(st.st_mode)) return NotAFile(path);
    return fd;
  }

  static absl::Status ListInto(const std::string& path, int depth,
                               std::set<std::pair<dev_t, ino_t>>* seen,
                               std::vector<std::string>* files) {
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path, "cannot stat");
    // Each folder is visited once, whatever links lead to it.
    if (!seen->insert({st.st_dev, st.st_ino}).second) return absl::OkStatus();
    if (depth > kDirectoryDepthMax) {
      return FileError(absl::StatusCode::kOutOfRange,
                       path + ": folders nested deeper than " + std::to_string(kDirectoryDepthMax));
    }
    DIR* const dir = ::opendir(path.c_str());
    if (dir == nullptr) return ErrnoStatus(errno, path, "cannot list");
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    const int error = errno;
    (void)::closedir(dir);  // opened for reading only: nothing can be lost
    if (error != 0) return ErrnoStatus(error, path, "cannot list");
    std::sort(names.begin(), names.end());
    const std::string prefix = path.ends_with('/') ? path : path + "/";
    for (const std::string& name : names) {
      const std::string full = prefix + name;
      if (::stat(full.c_str(), &st) != 0) {
        if (errno == ENOENT || errno == ELOOP) continue;  // a dangling link, or removed meanwhile
        return ErrnoStatus(errno, full, "cannot stat");
      }
      if (S_ISREG(st.st_mode)) files->push_back(full);
      if (S_ISDIR(st.st_mode)) SIGNVOTE_RETURN_IF_ERROR(ListInto(full, depth + 1, seen, files));
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::Status FileSystem::AlsoCall(const std::string& path, const std::string& also) {
  return absl::UnimplementedError(path + ": cannot call it " + also + ": no second names here");
}

FileSystem* FileSystem::Posix() {
  static PosixFileSystem fs;
  return &fs;
}

std::string FolderPrefix(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

std::string AddToName(const std::string& path, std::string_view added) {
  const size_t name = FolderPrefix(path).size();
  const size_t dot = path.find_last_of('.');
  const size_t end = dot == std::string::npos || dot <= name ? path.size() : dot;
  return path.substr(0, end) + std::string(added) + path.substr(end);
}

absl::Status RequireWritable(FileSystem* fs, const std::string& path) {
  return fs->CreateAtomic(path, 0600).status();
}

absl::Status WriteFileAtomically(FileSystem* fs, const std::string& path, std::string_view data,
                                 uint32_t mode) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file, fs->CreateAtomic(path, mode));
  SIGNVOTE_RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(data))));
  return file->Commit();
}

}  // namespace signvote
