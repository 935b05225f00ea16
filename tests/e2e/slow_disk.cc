// A disk that writes slowly, for a program that is started with this library in LD_PRELOAD: what is
// written below the folder SLOW_DISK_FOLDER takes its time, SLOW_DISK_RATE bytes a second.

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

// Short, so that whoever waits for the disk is not held for longer than a real one would.
constexpr size_t kBytesAtOnce = 64 << 10;

double Rate() {
  const char* const rate = std::getenv("SLOW_DISK_RATE");
  return rate == nullptr ? 0 : std::atof(rate);
}

bool IsSlow(int fd) {
  const char* const folder = std::getenv("SLOW_DISK_FOLDER");
  if (folder == nullptr) return false;
  char name[32], path[PATH_MAX];
  std::snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
  const ssize_t length = ::readlink(name, path, sizeof(path));
  const size_t wanted = std::strlen(folder);
  return length > static_cast<ssize_t>(wanted) && std::strncmp(path, folder, wanted) == 0 &&
         path[wanted] == '/';
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ssize_t write(int fd, const void* data,
                                                                size_t count) {
  static const auto real =
      reinterpret_cast<ssize_t (*)(int, const void*, size_t)>(::dlsym(RTLD_NEXT, "write"));
  const double rate = Rate();
  if (rate <= 0 || !IsSlow(fd)) return real(fd, data, count);
  const ssize_t written = real(fd, data, std::min(count, kBytesAtOnce));
  if (written > 0) {
    const double seconds = static_cast<double>(written) / rate;
    const auto whole = static_cast<time_t>(seconds);
    const timespec pause{
        .tv_sec = whole,
        .tv_nsec = static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
    (void)::nanosleep(&pause, nullptr);
  }
  return written;
}
