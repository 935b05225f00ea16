#pragma once
// How much memory a program may still take, and how much it would: for refusing what cannot work while
// it is still cheap to say so.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/file_system.h"

namespace signvote {

// Memory that can still be used.
struct MemoryLimit {
  uint64_t bytes = 0;
  std::string source;  // who sets it, for people: "the machine", "the container (memory.max of …)"
};

// The smallest of MemAvailable and what the limits of the process's memory cgroup and of all that
// contain it leave: limit − use, where file pages that the kernel can drop at once (inactive_file) do
// not count as used; and of what the process's own limit of address space (ulimit -v) leaves. Reads
// /proc/meminfo, /proc/self/limits, /proc/self/statm, /proc/self/cgroup and /sys/fs/cgroup, versions 1
// and 2, also from inside a container that sees only its own part of the tree. nullopt: the system
// does not say.
std::optional<MemoryLimit> AvailableMemory(FileSystem* fs);

// What one purpose takes.
struct MemoryPart {
  std::string what;  // "the master replica"
  uint64_t bytes = 0;
  std::string remedy;  // how to make it smaller, "--workers-max N"; empty: nothing does
};

// OK when the parts together fit into `limit`, or when there is none. RESOURCE_EXHAUSTED otherwise:
// "`what` needs N MiB and M MiB are left (source): the master replica 4000 MiB, …; --workers-max … help".
absl::Status CheckMemory(const std::string& what, const std::vector<MemoryPart>& parts,
                         const std::optional<MemoryLimit>& limit);
uint64_t TotalBytes(const std::vector<MemoryPart>& parts);

}  // namespace signvote
