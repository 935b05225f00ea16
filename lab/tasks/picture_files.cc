#include "lab/tasks/picture_files.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "common/text.h"
#include "worker/data/corpus_files.h"

namespace signvote::lab {
namespace {

constexpr std::array<std::string_view, 7> kSuffixes = {"png", "jpg", "jpeg", "bmp",
                                                       "pgm", "ppm", "pnm"};
constexpr std::array<std::string_view, 2> kTrainNames = {"train", "training"};
constexpr std::array<std::string_view, 4> kHeldOutNames = {"val", "valid", "validation", "test"};
constexpr size_t kNameBytesMax = 80;

template <size_t n>
bool Contains(const std::array<std::string_view, n>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string Lower(std::string_view text) {
  return absl::AsciiStrToLower({text.data(), text.size()});
}

// A file's way from the folder.
struct Way {
  std::vector<std::string> folders;
  std::string name;
};
Way WayOf(const std::string& folder, std::string_view path) {
  if (path.starts_with(folder)) path.remove_prefix(folder.size());
  Way way;
  while (true) {
    path.remove_prefix(std::min(path.find_first_not_of('/'), path.size()));
    const size_t slash = path.find('/');
    if (slash == std::string_view::npos) break;
    way.folders.emplace_back(path.substr(0, slash));
    path.remove_prefix(slash);
  }
  way.name = std::string(path);
  return way;
}

bool IsPicture(const std::string& name) {
  const size_t dot = name.rfind('.');
  return !name.starts_with('.') && dot != std::string::npos &&
         Contains(kSuffixes, Lower(std::string_view(name).substr(dot + 1)));
}

std::string Shown(const std::string& name) { return ForPeople(name, kNameBytesMax); }

absl::Status Bad(const std::string& path, const std::string& what_and_remedy) {
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat("--data ", path, ": ", what_and_remedy)),
      ExitCode::kBadInput);
}

// The pictures of one class, in order of path.
struct Class {
  std::vector<std::string> train, held_out;
};
using Classes = std::map<std::string, Class>;

// Sorts the classes' pictures into one list each.
absl::Status Collect(const std::string& folder, Classes classes, bool parts, PictureFiles* chosen) {
  if (classes.size() < 2) {
    return Bad(folder, absl::StrCat("all pictures lie in the folder of one class, ",
                                    Shown(classes.begin()->first),
                                    "; give a folder with a folder of pictures for each class"));
  }
  if (classes.size() > kPictureClassesMax) {
    return Bad(folder, absl::StrCat(classes.size(), " folders of pictures are more classes than ",
                                    kPictureClassesMax, "; give a folder with fewer"));
  }
  const bool by_name = std::any_of(classes.begin(), classes.end(),
                                   [](const auto& one) { return !one.second.held_out.empty(); });
  for (auto& [name, files] : classes) {
    if (files.train.empty()) {
      return Bad(files.held_out.front(),
                 absl::StrCat("there is no picture of the class ", Shown(name),
                              " to train on; put some in its folder, or take the class away"));
    }
    const auto label = static_cast<uint32_t>(chosen->classes.size());
    chosen->classes.push_back(name);
    for (size_t k = 0; k < files.train.size(); ++k) {
      const bool held_out = !by_name && k % kHeldOutOf == kHeldOutOf - 1;
      (held_out ? chosen->held_out : chosen->train).push_back({std::move(files.train[k]), label});
    }
    for (std::string& path : files.held_out) chosen->held_out.push_back({std::move(path), label});
  }
  if (!chosen->held_out.empty()) return absl::OkStatus();
  return Bad(folder,
             absl::StrCat("no class has ", kHeldOutOf,
                          " pictures, of which one would be held out; give more, or a folder ",
                          parts ? "val beside train" : "train and a folder val"));
}

}  // namespace

absl::StatusOr<PictureFiles> ChoosePictureFiles(const std::string& folder,
                                                std::vector<std::string> files) {
  PictureFiles chosen;
  std::vector<std::pair<std::string, Way>> pictures;
  bool parts = false;  // whether the first folders are train and val
  for (std::string& path : files) {
    Way way = WayOf(folder, path);
    if (!IsPicture(way.name)) {
      chosen.left_out.push_back(std::move(path));
      continue;
    }
    parts = parts || (!way.folders.empty() && Contains(kTrainNames, Lower(way.folders.front())));
    pictures.emplace_back(std::move(path), std::move(way));
  }
  if (pictures.empty()) {
    return Bad(folder, absl::StrCat("the folder holds no picture (PNG, JPEG, BMP, PGM, PPM)",
                                    chosen.left_out.empty() ? "" : ", but ",
                                    ListedFiles(folder, chosen.left_out),
                                    "; give one with a folder of pictures for each class"));
  }
  Classes classes;
  std::set<std::string> held_out_folders;
  const size_t depth = parts ? 1 : 0;
  for (auto& [path, way] : pictures) {
    if (way.folders.size() <= depth)
      return Bad(path, "lies in no class's folder; move it into one, or out of what is given");
    bool held_out = false;
    if (parts) {
      const std::string& part = way.folders.front();
      held_out = Contains(kHeldOutNames, Lower(part));
      if (!held_out && !Contains(kTrainNames, Lower(part))) {
        return Bad(path, absl::StrCat("lies beside a folder train, and ", Shown(part),
                                      " is none of val, valid, validation and test; rename it, or "
                                      "move it away"));
      }
      if (held_out) held_out_folders.insert(Shown(part));
    }
    Class& one = classes[way.folders[depth]];
    (held_out ? one.held_out : one.train).push_back(std::move(path));
  }
  chosen.held_out_folders = absl::StrJoin(held_out_folders, ", ");
  SIGNVOTE_RETURN_IF_ERROR(Collect(folder, std::move(classes), parts, &chosen));
  return chosen;
}

}  // namespace signvote::lab
