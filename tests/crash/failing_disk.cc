// A disk that fails amid a run, for a program that is started with this library in LD_PRELOAD: while the file
// FAILING_DISK_SWITCH is there, what it names ("write" or "sync") fails with the errno behind it ("write 28") in files
// below the folder FAILING_DISK_FOLDER. A kernel lets no disk become read-only while a file on it is open for writing, as a
// journal's is: but for errors of the disk itself, which this stands for.

#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

bool LiesThere(int fd) {
  const char* const folder = std::getenv("FAILING_DISK_FOLDER");
  if (folder == nullptr) return false;
  char name[32], path[PATH_MAX];
  std::snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
  const ssize_t length = ::readlink(name, path, sizeof(path));
  const size_t wanted = std::strlen(folder);
  return length > static_cast<ssize_t>(wanted) && std::strncmp(path, folder, wanted) == 0 &&
         path[wanted] == '/';
}

// Sets errno.
bool Fails(int fd, const char* what) {
  const char* const path = std::getenv("FAILING_DISK_SWITCH");
  if (path == nullptr) return false;
  std::FILE* const file = std::fopen(path, "re");
  if (file == nullptr) return false;
  char named[16];
  int error = 0;
  const bool read = std::fscanf(file, "%15s %d", named, &error) == 2;
  (void)std::fclose(file);  // opened for reading only
  if (!read || std::strcmp(named, what) != 0 || !LiesThere(fd)) return false;
  errno = error;
  return true;
}

using PwriteFunction = ssize_t (*)(int, const void*, size_t, off_t);
using SyncFunction = int (*)(int);

}  // namespace

extern "C" {

__attribute__((visibility("default"))) ssize_t pwrite(int fd, const void* data, size_t count,
                                                      off_t offset) {
  static const auto real = reinterpret_cast<PwriteFunction>(::dlsym(RTLD_NEXT, "pwrite"));
  return Fails(fd, "write") ? -1 : real(fd, data, count, offset);
}

__attribute__((visibility("default"))) int fdatasync(int fd) {
  static const auto real = reinterpret_cast<SyncFunction>(::dlsym(RTLD_NEXT, "fdatasync"));
  return Fails(fd, "sync") ? -1 : real(fd);
}

}  // extern "C"
