#include "lab/sweep/inputs.h"

#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

constexpr const char* kProgramFile = "/proc/self/exe";

std::string Hexadecimal(uint64_t hash) { return absl::StrFormat("%016x", hash); }

absl::StatusOr<uint64_t> HashOf(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t bytes, fs->FileSize(path));
  if (bytes == 0) return Xxh3(nullptr, 0);  // no map is of nothing
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, fs->Map(path));
  const uint64_t hash = Xxh3(file->data());
  if (file->cut()) return absl::DataLossError(absl::StrCat(path, ": was cut while it was read"));
  return hash;
}

}  // namespace

absl::StatusOr<std::string> ProgramMark(FileSystem* fs) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t hash, HashOf(fs, kProgramFile));
  return absl::StrCat(SoftwareVersion(), "-", Hexadecimal(hash));
}

absl::StatusOr<std::string> ContentsMark(FileSystem* fs, const std::string& path) {
  const bool index = path.ends_with(".index.json");
  // Names beside it are what they are whatever the folder that the program was started in.
  if (index && FolderPrefix(path).empty()) return ContentsMark(fs, "./" + path);
  SIGNVOTE_ASSIGN_OR_RETURN(const bool folder, fs->IsDirectory(path));
  std::vector<std::string> files{path};
  std::string below;
  if (folder) {
    below = path;
    SIGNVOTE_ASSIGN_OR_RETURN(files, fs->ListFiles(path));
  } else if (index) {
    below = FolderPrefix(path);
    SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<std::string> beside, fs->ListFiles(below));
    for (const std::string& file : beside)
      if (file.ends_with(".safetensors")) files.push_back(file);
  }
  std::string all;
  for (const std::string& file : files) {
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t hash, HashOf(fs, file));
    // A file alone is what it holds, whatever it is called.
    absl::StrAppend(&all, files.size() == 1 && !folder ? "" : file.substr(below.size()), "\n",
                    Hexadecimal(hash), "\n");
  }
  return Hexadecimal(Xxh3(all.data(), all.size()));
}

absl::Status NameInputs(FileSystem* fs, SweepSpec* spec) {
  SIGNVOTE_ASSIGN_OR_RETURN(spec->program, ProgramMark(fs));
  std::map<std::string, std::string> marks;
  for (CellGroup& group : spec->groups) {
    group.inputs = spec->program;
    const auto init = group.flags.find("init");
    for (const std::string& path :
         {group.task_options.data, init == group.flags.end() ? std::string() : init->second}) {
      if (path.empty()) continue;
      std::string& mark = marks[path];
      if (mark.empty()) {
        SIGNVOTE_ASSIGN_OR_RETURN(mark, ContentsMark(fs, path));
      }
      absl::StrAppend(&group.inputs, "\n", mark);
    }
  }
  return absl::OkStatus();
}

}  // namespace signvote::lab
