#pragma once
// A disk in memory that does to a journal what disks do: it ends a process in the middle of a write,
// loses, tears and reorders what was not synced when the power goes, says that it has synced and has
// not, is full, fails, and flips bits. Every draw comes from one seed.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/disk.h"
#include "common/mutex.h"
#include "common/rng.h"

namespace signvote::sim {

struct DiskFaults {
  double write_fails = 0, sync_fails = 0;  // chances, per call
  double sync_lost = 0;                    // likewise: it answers OK, and nothing is durable
  uint64_t capacity = UINT64_MAX;          // bytes of all files
};

// How often each fault struck.
struct DiskStrikes {
  uint64_t killed_in_write = 0, writes_lost = 0, writes_torn = 0, renames_lost = 0;
  uint64_t syncs_lost = 0, syncs_failed = 0, writes_failed = 0, full = 0, flips = 0;
};

// Threads: thread-safe.
class SimDisk final : public Disk {
 public:
  explicit SimDisk(uint64_t seed) : path_("disk"), rng_(seed, 0x51) {}

  void Set(const DiskFaults& faults);
  // The process is killed once so many further bytes are written: what is left of that write is not,
  // and from then on every call fails.
  void KillAfter(uint64_t bytes);
  // Now.
  void Kill();
  bool killed() const;

  enum class Restart {
    kProcess,  // all that was written is there
    kPower,  // of what was not synced each write is there, or not, or some of its sectors; names as
             // far as any number of the changes since the last SyncFolder() have come
  };
  // Another process. Faults are off.
  void Begin(Restart restart);
  // Inverts one bit of a file. REQUIRES: it is there and long enough.
  void Flip(const std::string& name, uint64_t byte, int bit);
  // What the file has beside what was never synced.
  std::string Bytes(const std::string& name) const;
  DiskStrikes strikes() const;

  // ---- Disk
  const std::string& path() const override { return path_; }
  absl::StatusOr<std::vector<DiskEntry>> List() override;
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name,
                                                   uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) override;
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& name) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& name) override;
  absl::Status SyncFolder() override;
  absl::StatusOr<uint64_t> FreeBytes() override;

 private:
  class File;
  struct Write {
    uint64_t offset = 0;
    std::vector<std::byte> before,
        after;  // of the same length, but for growth: then before is shorter
  };
  struct Inode {
    std::vector<std::byte> bytes;  // with every write
    std::vector<Write> unsynced;
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  absl::Status Dead() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t Used() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status WriteTo(Inode* inode, uint64_t offset, std::span<const std::byte> data)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status SyncOf(Inode* inode) ABSL_LOCKS_EXCLUDED(mu_);
  // The write as if it had not been, or only in some of its sectors.
  void TakeBack(Inode* inode, const Write& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Strikes(double chance) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;

  mutable Mutex mu_;
  Rng rng_ ABSL_GUARDED_BY(mu_);
  DiskFaults faults_ ABSL_GUARDED_BY(mu_);
  std::optional<uint64_t> kill_after_ ABSL_GUARDED_BY(mu_);
  bool killed_ ABSL_GUARDED_BY(mu_) = false;
  Names names_ ABSL_GUARDED_BY(mu_);
  // As they would be after a power cut: the last synced ones, and behind each change since.
  std::vector<Names> names_since_ ABSL_GUARDED_BY(mu_) = {{}};
  DiskStrikes strikes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::sim
