#include "tests/sim/sim_disk.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote::sim {
namespace {

constexpr size_t kSector = 512;

class Copy final : public MappedFile {
 public:
  explicit Copy(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  std::span<const std::byte> data() const override { return bytes_; }

 private:
  const std::vector<std::byte> bytes_;
};

}  // namespace

class SimDisk::File final : public DiskFile {
 public:
  File(SimDisk* disk, std::shared_ptr<Inode> inode) : disk_(disk), inode_(std::move(inode)) {}
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> data) override {
    return disk_->WriteTo(inode_.get(), offset, data);
  }
  void StartWriteback(uint64_t, uint64_t) override {}
  absl::Status Sync() override { return disk_->SyncOf(inode_.get()); }

 private:
  SimDisk* const disk_;
  const std::shared_ptr<Inode> inode_;
};

void SimDisk::Set(const DiskFaults& faults) {
  MutexLock lock(&mu_);
  faults_ = faults;
}

void SimDisk::KillAfter(uint64_t bytes) {
  MutexLock lock(&mu_);
  kill_after_ = bytes;
}

void SimDisk::Kill() {
  MutexLock lock(&mu_);
  killed_ = true;
}

bool SimDisk::killed() const {
  MutexLock lock(&mu_);
  return killed_;
}

DiskStrikes SimDisk::strikes() const {
  MutexLock lock(&mu_);
  return strikes_;
}

absl::Status SimDisk::Dead() const {
  return killed_ ? absl::AbortedError("the process is dead") : absl::OkStatus();
}

bool SimDisk::Strikes(double chance) { return chance > 0 && rng_.Uniform() < chance; }

uint64_t SimDisk::Used() const {
  uint64_t bytes = 0;
  for (const auto& [name, inode] : names_) bytes += inode->bytes.size();
  return bytes;
}

absl::Status SimDisk::WriteTo(Inode* inode, uint64_t offset, std::span<const std::byte> data) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  if (Strikes(faults_.write_fails)) {
    ++strikes_.writes_failed;
    return absl::UnavailableError("cannot write: the disk says no");
  }
  const uint64_t end = offset + data.size();
  if (end > inode->bytes.size() && Used() + (end - inode->bytes.size()) > faults_.capacity) {
    ++strikes_.full;
    return absl::ResourceExhaustedError("cannot write: no space left");
  }
  if (kill_after_.has_value() && *kill_after_ < data.size()) {
    data = data.first(*kill_after_);
    killed_ = true;
    ++strikes_.killed_in_write;
  }
  if (kill_after_.has_value()) *kill_after_ -= std::min<uint64_t>(*kill_after_, data.size());
  Write write{.offset = offset, .before = {}, .after = {data.begin(), data.end()}};
  const uint64_t size = inode->bytes.size();
  if (offset < size) {
    const uint64_t known = std::min<uint64_t>(size - offset, data.size());
    write.before.assign(inode->bytes.begin() + static_cast<std::ptrdiff_t>(offset),
                        inode->bytes.begin() + static_cast<std::ptrdiff_t>(offset + known));
  }
  inode->bytes.resize(std::max<uint64_t>(size, offset + data.size()));
  std::copy(data.begin(), data.end(), inode->bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  inode->unsynced.push_back(std::move(write));
  return Dead();
}

absl::Status SimDisk::SyncOf(Inode* inode) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  if (Strikes(faults_.sync_fails)) {
    ++strikes_.syncs_failed;
    return absl::UnavailableError("cannot sync: the disk says no");
  }
  if (Strikes(faults_.sync_lost)) {
    ++strikes_.syncs_lost;
    return absl::OkStatus();
  }
  inode->unsynced.clear();
  return absl::OkStatus();
}

void SimDisk::TakeBack(Inode* inode, const Write& write) {
  for (size_t at = 0; at < write.after.size();) {
    const uint64_t byte = write.offset + at;
    const size_t sector = std::min(write.after.size() - at, kSector - byte % kSector);
    if (rng_.Uniform() < 0.5) {
      for (size_t i = at; i < at + sector; ++i) {
        const std::byte before = i < write.before.size() ? write.before[i] : std::byte{0};
        inode->bytes[static_cast<size_t>(write.offset) + i] = before;
      }
    }
    at += sector;
  }
}

void SimDisk::Begin(Restart restart) {
  MutexLock lock(&mu_);
  killed_ = false;
  kill_after_.reset();
  faults_ = {};
  if (restart == Restart::kPower) {
    const auto names =
        static_cast<size_t>(rng_.Uniform() * static_cast<double>(names_since_.size()));
    strikes_.renames_lost += names_since_.size() - 1 - names;
    names_ = names_since_[names];
    for (auto& [name, inode] : names_) {
      // From the last to the first: what an earlier one had written is there again behind a later one.
      for (size_t i = inode->unsynced.size(); i-- > 0;) {
        const Write& write = inode->unsynced[i];
        const double fate = rng_.Uniform();
        if (fate < 0.4) continue;
        if (fate < 0.7) {
          ++strikes_.writes_lost;
          for (size_t k = 0; k < write.after.size(); ++k) {
            const std::byte before = k < write.before.size() ? write.before[k] : std::byte{0};
            inode->bytes[static_cast<size_t>(write.offset) + k] = before;
          }
        } else {
          ++strikes_.writes_torn;
          TakeBack(inode.get(), write);
        }
      }
    }
  }
  // The operating system still has what a process that died had not synced.
  if (restart == Restart::kProcess) return;
  for (auto& [name, inode] : names_) inode->unsynced.clear();
  names_since_ = {names_};
}

void SimDisk::Flip(const std::string& name, uint64_t byte, int bit) {
  MutexLock lock(&mu_);
  Inode& inode = *names_.at(name);
  inode.bytes.at(byte) ^= static_cast<std::byte>(1 << bit);
  ++strikes_.flips;
}

std::string SimDisk::Bytes(const std::string& name) const {
  MutexLock lock(&mu_);
  const Inode& inode = *names_.at(name);
  return {reinterpret_cast<const char*>(inode.bytes.data()), inode.bytes.size()};
}

absl::StatusOr<std::vector<DiskEntry>> SimDisk::List() {
  MutexLock lock(&mu_);
  std::vector<DiskEntry> entries;
  for (const auto& [name, inode] : names_) entries.push_back({name, inode->bytes.size()});
  return entries;
}

absl::StatusOr<std::unique_ptr<DiskFile>> SimDisk::Create(const std::string& name, uint64_t bytes) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  if (names_.contains(name)) return absl::AlreadyExistsError(name);
  if (Used() + bytes > faults_.capacity) {
    ++strikes_.full;
    return absl::ResourceExhaustedError(name + ": no space left");
  }
  auto inode = std::make_shared<Inode>();
  inode->bytes.resize(bytes);
  names_[name] = inode;
  names_since_.push_back(names_);
  return std::make_unique<File>(this, inode);
}

absl::StatusOr<std::unique_ptr<DiskFile>> SimDisk::Open(const std::string& name) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  const auto found = names_.find(name);
  if (found == names_.end()) return absl::NotFoundError(name);
  return std::make_unique<File>(this, found->second);
}

absl::StatusOr<std::unique_ptr<MappedFile>> SimDisk::Map(const std::string& name) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  const auto found = names_.find(name);
  if (found == names_.end()) return absl::NotFoundError(name);
  return std::make_unique<Copy>(found->second->bytes);
}

absl::Status SimDisk::Rename(const std::string& from, const std::string& to) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  const auto found = names_.find(from);
  if (found == names_.end()) return absl::NotFoundError(from);
  std::shared_ptr<Inode> inode = found->second;
  names_.erase(found);
  names_[to] = std::move(inode);
  names_since_.push_back(names_);
  return absl::OkStatus();
}

absl::Status SimDisk::Remove(const std::string& name) {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  if (names_.erase(name) == 0) return absl::NotFoundError(name);
  names_since_.push_back(names_);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SimDisk::FreeBytes() {
  MutexLock lock(&mu_);
  return faults_.capacity - std::min(Used(), faults_.capacity);
}

absl::Status SimDisk::SyncFolder() {
  MutexLock lock(&mu_);
  if (absl::Status dead = Dead(); !dead.ok()) return dead;
  names_since_ = {names_};
  return absl::OkStatus();
}

}  // namespace signvote::sim
