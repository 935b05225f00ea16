// The index of a model in several files (common/checkpoint.h): JSON that names files. Whatever it
// says, nothing is opened but files beside it, and what is taken holds each tensor once.
//
// Input: the index. Beside it lie two files with the tensors "a" and "b" and one that is no model; a
// file outside the folder must not be looked at.

#include <set>
#include <string>

#include "common/check.h"
#include "common/checkpoint.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/memory_files.h"

namespace signvote {
namespace {

constexpr char kFolder[] = "models/llm/";

// Files in memory that lie in one folder; a look at any other ends the process.
class OneFolder final : public FileSystem {
 public:
  explicit OneFolder(FileSystem* files) : files_(files) {}

  absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) override {
    return files_->ReadFile(Inside(path), bytes_max);
  }
  absl::StatusOr<std::unique_ptr<MappedFile>> Map(const std::string& path) override {
    return files_->Map(Inside(path));
  }
  absl::StatusOr<uint64_t> FileSize(const std::string& path) override {
    return files_->FileSize(Inside(path));
  }
  absl::StatusOr<bool> IsDirectory(const std::string& path) override {
    return files_->IsDirectory(Inside(path));
  }
  absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& path) override {
    return files_->ListFiles(Inside(path));
  }
  absl::Status RequirePrivate(const std::string& path) override {
    return files_->RequirePrivate(Inside(path));
  }
  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateAtomic(const std::string& path,
                                                           uint32_t mode) override {
    return files_->CreateAtomic(path, mode);
  }
  absl::StatusOr<std::unique_ptr<LogFile>> OpenLog(const std::string& path,
                                                   uint32_t mode) override {
    return files_->OpenLog(path, mode);
  }
  absl::Status Remove(const std::string& path) override { return files_->Remove(path); }
  absl::Status MakeDirectories(const std::string& path, uint32_t mode) override {
    return files_->MakeDirectories(path, mode);
  }
  absl::StatusOr<std::string> RandomBytes(size_t count) override {
    return files_->RandomBytes(count);
  }

 private:
  static const std::string& Inside(const std::string& path) {
    SIGNVOTE_CHECK(path.starts_with(kFolder));
    SIGNVOTE_CHECK(path.find('/', sizeof(kFolder) - 1) == std::string::npos);
    return path;
  }
  FileSystem* const files_;
};

// A file of one tensor of two numbers.
std::string Safetensors(const std::string& name) {
  const std::string header =
      "{\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  return bytes + header + std::string(8, '\0');
}

void Check(const std::string& index) {
  const std::string folder = kFolder;
  const std::string path = folder + "model.safetensors.index.json";
  fuzz::MemoryFiles files({{path, index},
                           {folder + "one.safetensors", Safetensors("a")},
                           {folder + "two.safetensors", Safetensors("b")},
                           {folder + "page.html", "<!doctype html>"},
                           {"models/secret", Safetensors("a")}});
  OneFolder only(&files);
  const auto checkpoint = Checkpoint::Open(&only, path);
  if (!checkpoint.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(checkpoint.status()) ||
                   absl::IsInvalidArgument(checkpoint.status()) ||
                   absl::IsNotFound(checkpoint.status()));
    return;
  }
  // The index has each tensor of the files that it names, once: one of three layouts fits.
  const std::vector<std::vector<std::string>> sets = {{"a"}, {"b"}, {"a", "b"}};
  int fits = 0;
  for (const std::vector<std::string>& names : sets) {
    std::vector<TensorSpec> tensors;
    for (const std::string& name : names) tensors.push_back({.name = name, .shape = {2}});
    const Layout layout = *Layout::Make(std::move(tensors));
    std::vector<float> x(layout.coordinates(), 1.0f);
    if (!(*checkpoint)->CopyInto(layout, x).ok()) continue;
    ++fits;
    for (const float value : x) SIGNVOTE_CHECK(value == 0.0f);
  }
  SIGNVOTE_CHECK(fits == 1);
  SIGNVOTE_CHECK((*checkpoint)->RequireFinite().ok());
}

}  // namespace
}  // namespace signvote

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::Check(signvote::fuzz::Input(data, size).Rest());
  return 0;
}
