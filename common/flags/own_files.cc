#include "common/flags/own_files.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/flags/describe.h"
#include "common/flags/flags.h"
#include "common/standing_model.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr char kConfig[] = "config.json";
constexpr size_t kPathBytesMax = 300;

struct Given {
  std::string flag, path;
  ValueKind kind;
  bool written() const { return kind != ValueKind::kFile && kind != ValueKind::kPath; }
};

absl::Status Usage(const std::string& text) {
  return WithExitCode(absl::InvalidArgumentError(text), ExitCode::kUsage);
}

std::string Shown(const Given& given) {
  return absl::StrCat(given.flag, " ", ForPeople(given.path, kPathBytesMax));
}

void AddGiven(const CLI::App& app, std::vector<Given>* all) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0) continue;
    const std::string name = KindNameOf(*option);
    for (const ValueKind kind : {ValueKind::kFile, ValueKind::kPath, ValueKind::kNewFile,
                                 ValueKind::kNewModel, ValueKind::kLog}) {
      if (name == NameOf(kind))
        all->push_back({option->get_name(), option->reduced_results().back(), kind});
    }
  }
  for (const CLI::App* command : app.get_subcommands()) AddGiven(*command, all);
}

absl::Status CheckPair(const Given& a, const Given& b, FileSystem* fs) {
  if (!a.written() && !b.written()) return absl::OkStatus();
  if (fs->IsSameFile(a.path, b.path)) {
    return Usage(absl::StrCat(Shown(a), " is the file of ", b.flag,
                              " too, and would be lost for it; give each a file of its own"));
  }
  for (const auto& [model, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    if (model->kind != ValueKind::kNewModel || !other->written()) continue;
    for (const std::string& beside :
         {FolderPrefix(model->path) + kConfig, ShardIndexPath(model->path)}) {
      if (!fs->IsSameFile(beside, other->path)) continue;
      return Usage(absl::StrCat(Shown(*other), " is what is written beside ", model->flag,
                                "; give it another name"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RequireOwnFiles(const CLI::App& app, FileSystem* fs) {
  std::vector<Given> all;
  AddGiven(app, &all);
  for (const Given& given : all) {
    if (given.kind == ValueKind::kNewModel &&
        given.path.substr(FolderPrefix(given.path).size()) == kConfig) {
      return Usage(absl::StrCat(Shown(given), ": a model's ", kConfig,
                                " is written beside it; give it another name, such as "
                                "model.safetensors"));
    }
  }
  for (size_t a = 0; a < all.size(); ++a) {
    for (size_t b = a + 1; b < all.size(); ++b) {
      if (absl::Status own = CheckPair(all[a], all[b], fs); !own.ok()) return own;
    }
  }
  return absl::OkStatus();
}

}  // namespace signvote
