#include "common/memory_budget.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace signvote {
namespace {

constexpr uint64_t kTextBytesMax = 1 << 16;
// Version 1 says "no limit" by a number near 2^63.
constexpr uint64_t kNoLimit = uint64_t{1} << 60;

std::optional<uint64_t> NumberIn(std::string_view text) {
  const size_t at = text.find_first_not_of(" \t");
  if (at == std::string_view::npos) return std::nullopt;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

// The number behind `key` at the start of a line.
std::optional<uint64_t> NumberBehind(std::string_view text, std::string_view key) {
  for (size_t at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
    if (at == 0 || text[at - 1] == '\n') return NumberIn(text.substr(at + key.size()));
  }
  return std::nullopt;
}

std::optional<uint64_t> NumberInFile(FileSystem* fs, const std::string& path) {
  const absl::StatusOr<std::string> text = fs->ReadFile(path, kTextBytesMax);
  if (!text.ok()) return std::nullopt;
  return NumberIn(*text);  // "max" is no number: no limit
}

// The names that a version of the cgroup file system gives to the same things.
struct CgroupNames {
  std::string_view root, limit, used, droppable;
};
constexpr CgroupNames kVersion1{"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                "memory.usage_in_bytes", "total_inactive_file "};
constexpr CgroupNames kVersion2{"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "};

void TakeSmaller(std::optional<MemoryLimit>* smallest, MemoryLimit candidate) {
  if (!smallest->has_value() || candidate.bytes < (*smallest)->bytes) {
    *smallest = std::move(candidate);
  }
}

// What the limit of one folder leaves; nothing when it has none.
void LookInto(FileSystem* fs, const CgroupNames& names, const std::string& folder,
              std::optional<MemoryLimit>* smallest) {
  const std::string limit_path = absl::StrCat(folder, "/", std::string(names.limit));
  const std::optional<uint64_t> limit = NumberInFile(fs, limit_path);
  if (!limit.has_value() || *limit >= kNoLimit) return;
  const uint64_t used =
      NumberInFile(fs, absl::StrCat(folder, "/", std::string(names.used))).value_or(0);
  const absl::StatusOr<std::string> stat =
      fs->ReadFile(absl::StrCat(folder, "/memory.stat"), kTextBytesMax);
  const uint64_t droppable =
      stat.ok() ? NumberBehind(*stat, names.droppable).value_or(0) : uint64_t{0};
  const uint64_t held = used - std::min(used, droppable);
  TakeSmaller(smallest, {.bytes = *limit - std::min(*limit, held),
                         .source = absl::StrCat("the container's limit, ", limit_path)});
}

// The group at `path` and all that contain it. A container that sees only its own part of the tree is
// told a path that is not there: its limit then lies at the root.
void LookUpwards(FileSystem* fs, const CgroupNames& names, std::string path,
                 std::optional<MemoryLimit>* smallest) {
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    LookInto(fs, names, absl::StrCat(std::string(names.root), path), smallest);
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

// "ID:CONTROLLERS:PATH" → whether CONTROLLERS, a list with commas, names the memory.
bool NamesMemory(std::string_view controllers) {
  while (!controllers.empty()) {
    const size_t comma = std::min(controllers.find(','), controllers.size());
    if (controllers.substr(0, comma) == "memory") return true;
    controllers.remove_prefix(std::min(comma + 1, controllers.size()));
  }
  return false;
}

void LookAtAddressSpace(FileSystem* fs, std::optional<MemoryLimit>* smallest) {
  const auto limits = fs->ReadFile("/proc/self/limits", kTextBytesMax);
  const auto used = fs->ReadFile("/proc/self/statm", kTextBytesMax);
  if (!limits.ok() || !used.ok()) return;
  const auto limit = NumberBehind(*limits, "Max address space");  // "unlimited" is no number
  const auto pages = NumberIn(*used);
  if (!limit.has_value() || !pages.has_value()) return;
  const uint64_t held = *pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  TakeSmaller(smallest, {.bytes = *limit - std::min(*limit, held),
                         .source = "this process's limit of address space, ulimit -v"});
}

}  // namespace

std::optional<MemoryLimit> AvailableMemory(FileSystem* fs) {
  std::optional<MemoryLimit> smallest;
  if (const auto text = fs->ReadFile("/proc/meminfo", kTextBytesMax); text.ok()) {
    if (const auto kib = NumberBehind(*text, "MemAvailable:"); kib.has_value()) {
      TakeSmaller(&smallest, {.bytes = *kib * 1024, .source = "the machine"});
    }
  }
  LookAtAddressSpace(fs, &smallest);
  const auto groups = fs->ReadFile("/proc/self/cgroup", kTextBytesMax);
  if (!groups.ok()) return smallest;
  std::string_view rest = *groups;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t first = line.find(':');
    if (first == std::string_view::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string path(line.substr(second + 1));
    if (controllers.empty()) {
      LookUpwards(fs, kVersion2, path, &smallest);
    } else if (NamesMemory(controllers)) {
      LookUpwards(fs, kVersion1, path, &smallest);
    }
  }
  return smallest;
}

uint64_t TotalBytes(const std::vector<MemoryPart>& parts) {
  uint64_t total = 0;
  for (const MemoryPart& part : parts) {
    total = part.bytes > UINT64_MAX - total ? UINT64_MAX : total + part.bytes;
  }
  return total;
}

absl::Status CheckMemory(const std::string& what, const std::vector<MemoryPart>& parts,
                         const std::optional<MemoryLimit>& limit) {
  const uint64_t needed = TotalBytes(parts);
  if (!limit.has_value() || needed <= limit->bytes) return absl::OkStatus();
  const auto mib = [](uint64_t bytes) {
    return absl::StrCat(bytes / (1 << 20) + (bytes % (1 << 20) != 0 ? 1 : 0), " MiB");
  };
  std::string list, remedies;
  for (const MemoryPart& part : parts) {
    absl::StrAppend(&list, list.empty() ? "" : ", ", part.what, " ", mib(part.bytes), " (",
                    part.bytes, " bytes)");
    if (part.remedy.empty()) continue;
    absl::StrAppend(&remedies, remedies.empty() ? "" : ", ", part.remedy);
  }
  std::string text = absl::StrCat(what, " needs ", mib(needed), " and ", limit->bytes / (1 << 20),
                                  " MiB are left (", limit->source, "): ", list);
  if (!remedies.empty()) absl::StrAppend(&text, "; what helps: ", remedies);
  return absl::ResourceExhaustedError(text);
}

}  // namespace signvote
