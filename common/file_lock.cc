#include "common/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"

namespace signvote {
namespace {

constexpr mode_t kFileMode = 0644;

class PosixFileLock final : public FileLock {
 public:
  explicit PosixFileLock(int fd) : fd_(fd) {}
  PosixFileLock(const PosixFileLock&) = delete;
  PosixFileLock& operator=(const PosixFileLock&) = delete;
  ~PosixFileLock() override { (void)::close(fd_); }  // nothing was written that could be lost

  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status Failed(absl::StatusCode code, const std::string& path, std::string_view what) {
  return WithExitCode(absl::Status(code, absl::StrCat(path, ": ", std::string(what))),
                      ExitCode::kBadInput);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Take(const std::string& path) {
  int fd;
  do {
    // For writing: what locks over a network asks for it.
    fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, kFileMode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    const int error = errno;
    return Failed(absl::ErrnoToStatusCode(error), path,
                  absl::StrCat("cannot open: ", std::strerror(error)));
  }
  auto lock = std::make_unique<PosixFileLock>(fd);
  if (::flock(lock->fd(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return Failed(absl::StatusCode::kFailedPrecondition, path,
                  "is locked by another process, which is at work");
  }
  return lock;
}

}  // namespace signvote
