// Runs a fuzzer's corpus where there is no libFuzzer: every file that is named, and every file of
// every folder that is. Words that begin with '-' are libFuzzer's, and ignored. Exit status 1 when
// there was nothing to run.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "common/file_system.h"
#include "common/status.h"
#include "tests/fuzz/fuzz_target.h"

namespace signvote {
namespace {

constexpr uint64_t kInputBytesMax = 1 << 20;

absl::Status Replay(const std::string& path, uint64_t* inputs) {
  FileSystem* const fs = FileSystem::Posix();
  SIGNVOTE_ASSIGN_OR_RETURN(const bool folder, fs->IsDirectory(path));
  std::vector<std::string> files = {path};
  if (folder) {
    SIGNVOTE_ASSIGN_OR_RETURN(files, fs->ListFiles(path));
  }
  for (const std::string& file : files) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(file, kInputBytesMax));
    // A block of exactly this size, so that a sanitizer sees the first byte beyond it.
    const std::unique_ptr<uint8_t[]> block(new uint8_t[text.size()]);
    std::copy(text.begin(), text.end(), block.get());
    std::fprintf(stderr, "%s\n", file.c_str());  // named before it may crash
    LLVMFuzzerTestOneInput(block.get(), text.size());
    ++*inputs;
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  uint64_t inputs = 0;
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] == '-') continue;
    if (const absl::Status status = Replay(argv[i], &inputs); !status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return 1;
    }
  }
  if (inputs == 0) std::fprintf(stderr, "no input: name files or folders\n");
  return inputs == 0 ? 1 : 0;
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
