#pragma once
// The processes of this machine, as far as this one sees them: those of its container, and where /proc
// hides other users' (hidepid), its own user's.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/file_system.h"

namespace signvote {

struct ProcessEntry {
  uint64_t id = 0;
  std::string program;               // the kernel's name of it: the first 15 bytes of the file's
  std::vector<uint32_t> processors;  // that it may run on: bit b of word w is number 32 w + b

  uint32_t ProcessorCount() const;
  bool SharesProcessorsWith(const ProcessEntry& other) const;
};

// What /proc/ID/status says. nullopt: it is of another form, or of a process that has ended and waits
// for its parent.
std::optional<ProcessEntry> ParseProcessStatus(std::string_view text);

// Threads: thread-safe.
class ProcessTable {
 public:
  virtual ~ProcessTable() = default;
  // nullopt: the system does not say.
  virtual std::optional<ProcessEntry> Self() = 0;
  // All but this one. Whoever ends meanwhile may be missing or not.
  virtual std::vector<ProcessEntry> Others() = 0;
};

// Reads /proc.
class ProcProcessTable final : public ProcessTable {
 public:
  explicit ProcProcessTable(FileSystem* fs) : fs_(fs) {}
  std::optional<ProcessEntry> Self() override;
  std::vector<ProcessEntry> Others() override;

 private:
  FileSystem* const fs_;
};

}  // namespace signvote
