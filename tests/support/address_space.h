#pragma once
// Runs a process short of memory, for death tests. Not under sanitizers, which need the address space.

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace signvote {

// From now on this process gets `more` bytes of address space; false when the system refuses.
inline bool LimitAddressSpace(uint64_t more) {
  std::FILE* const file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return false;
  unsigned long pages = 0;
  const bool read = std::fscanf(file, "%lu", &pages) == 1;
  (void)std::fclose(file);  // opened for reading only
  const rlimit limit{pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) + more, RLIM_INFINITY};
  return read && ::setrlimit(RLIMIT_AS, &limit) == 0;
}

}  // namespace signvote
