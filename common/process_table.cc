#include "common/process_table.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint64_t kStatusBytesMax = 64 << 10;

// "ff,ffffffff": words of 32 bits, the last ones first.
bool ParseMask(absl::string_view text, std::vector<uint32_t>* words) {
  words->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    uint32_t word = 0;
    if (!absl::SimpleHexAtoi(part, &word)) return false;
    words->push_back(word);
  }
  std::reverse(words->begin(), words->end());
  return true;
}

}  // namespace

uint32_t ProcessEntry::ProcessorCount() const {
  uint32_t count = 0;
  for (const uint32_t word : processors) count += static_cast<uint32_t>(std::popcount(word));
  return count;
}

bool ProcessEntry::SharesProcessorsWith(const ProcessEntry& other) const {
  const size_t words = std::min(processors.size(), other.processors.size());
  for (size_t w = 0; w < words; ++w) {
    if ((processors[w] & other.processors[w]) != 0) return true;
  }
  return false;
}

std::optional<ProcessEntry> ParseProcessStatus(std::string_view text) {
  ProcessEntry entry;
  bool has_id = false, has_processors = false;
  for (absl::string_view line : absl::StrSplit(ToAbsl(text), '\n')) {
    if (absl::ConsumePrefix(&line, "Name:\t")) {
      entry.program = std::string(line);
    } else if (absl::ConsumePrefix(&line, "State:\t")) {
      if (!line.empty() && (line.front() == 'Z' || line.front() == 'X')) return std::nullopt;
    } else if (absl::ConsumePrefix(&line, "Pid:\t")) {
      has_id = absl::SimpleAtoi(line, &entry.id);
    } else if (absl::ConsumePrefix(&line, "Cpus_allowed:\t")) {
      has_processors = ParseMask(line, &entry.processors);
    }
  }
  if (entry.program.empty() || !has_id || !has_processors) return std::nullopt;
  return entry;
}

std::optional<ProcessEntry> ProcProcessTable::Self() {
  const absl::StatusOr<std::string> text = fs_->ReadFile("/proc/self/status", kStatusBytesMax);
  return text.ok() ? ParseProcessStatus(*text) : std::nullopt;
}

std::vector<ProcessEntry> ProcProcessTable::Others() {
  std::vector<ProcessEntry> others;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc"), &::closedir);
  if (folder == nullptr) return others;
  const auto own = static_cast<uint64_t>(::getpid());
  while (const dirent* const entry = ::readdir(folder.get())) {
    uint64_t id = 0;
    if (!absl::SimpleAtoi(entry->d_name, &id) || id == own) continue;
    const absl::StatusOr<std::string> text =
        fs_->ReadFile(absl::StrCat("/proc/", id, "/status"), kStatusBytesMax);
    if (!text.ok()) continue;  // it has ended
    if (std::optional<ProcessEntry> other = ParseProcessStatus(*text))
      others.push_back(*std::move(other));
  }
  return others;
}

}  // namespace signvote
