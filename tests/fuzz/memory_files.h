#pragma once
// A file system of a few files in memory, for readers that want one. What only writers need is
// UNIMPLEMENTED. Each map is a heap block of the file's exact size, so that a sanitizer sees the
// first byte beyond it.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote::fuzz {

class MemoryFiles final : public FileSystem {
 public:
  // By path. A folder is there when a file's path begins with it.
  explicit MemoryFiles(std::map<std::string, std::string> files) : files_(std::move(files)) {}

  absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) override {
    const auto file = files_.find(path);
    if (file == files_.end()) return absl::NotFoundError(path);
    if (file->second.size() > bytes_max) return absl::ResourceExhaustedError(path);
    return file->second;
  }
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    const auto file = files_.find(path);
    if (file == files_.end()) return absl::NotFoundError(path);
    return std::make_unique<Block>(file->second);
  }
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    const auto file = files_.find(path);
    if (file == files_.end()) return absl::NotFoundError(path);
    return file->second.size();
  }
  absl::StatusOr<bool> IsDirectory(const std::string& path) override {
    if (files_.contains(path)) return false;
    if (!ListFiles(path)->empty()) return true;
    return absl::NotFoundError(path);
  }
  absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& path) override {
    std::vector<std::string> inside;
    for (const auto& [name, bytes] : files_)
      if (name.starts_with(path + "/")) inside.push_back(name);
    return inside;
  }
  absl::Status RequirePrivate(const std::string&) override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string& path,
                                                           uint32_t) override {
    return absl::UnimplementedError(path);
  }
  absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string& path, uint32_t) override {
    return absl::UnimplementedError(path);
  }
  absl::Status Remove(const std::string& path) override { return absl::UnimplementedError(path); }
  absl::Status MakeDirectories(const std::string& path, uint32_t) override {
    return absl::UnimplementedError(path);
  }
  absl::StatusOr<std::string> RandomBytes(size_t) override {
    return absl::UnimplementedError("chance is not for readers");
  }

 private:
  class Block final : public MappedFile {
   public:
    explicit Block(const std::string& bytes)
        : bytes_(new std::byte[bytes.size()]), size_(bytes.size()) {
      std::transform(bytes.begin(), bytes.end(), bytes_.get(),
                     [](char c) { return static_cast<std::byte>(c); });
    }
    std::span<const std::byte> data() const override { return {bytes_.get(), size_}; }

   private:
    const std::unique_ptr<std::byte[]> bytes_;
    const size_t size_;
  };

  const std::map<std::string, std::string> files_;
};

}  // namespace signvote::fuzz
