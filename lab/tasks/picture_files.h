#pragma once
// Which files of a folder are pictures, of which class, and which of them are never trained on.
// docs/lab.md, "Pictures".
//
// A file is a picture by its suffix (png, jpg, jpeg, bmp, pgm, ppm, pnm) and unless its name begins with
// a dot. Its class is the name of the first folder on its way; where the first folders are called train or
// training and val, valid, validation or test, it is the name of the second, and the first says whether
// it is held out. Otherwise every tenth of a class in order of path is.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace signvote::lab {

inline constexpr size_t kPictureClassesMax = 4096;
// Where no file is held out by its name, one of so many is.
inline constexpr size_t kHeldOutOf = 10;

struct PictureFile {
  std::string path;
  uint32_t label = 0;  // an index of `classes`
};

struct PictureFiles {
  std::vector<std::string> classes;   // in order of name, two at least
  std::vector<PictureFile> train;     // in order of path, each class at least once
  std::vector<PictureFile> held_out;  // likewise, at least one
  std::string held_out_folders;       // "val", "test, val"; empty: none is by its folder's name
  std::vector<std::string> left_out;  // no pictures, in order of path
};

// Pure. `folder` is what every path of `files` begins with. INVALID_ARGUMENT with exit code kBadInput
// names the file or folder that is wrong, and the remedy.
absl::StatusOr<PictureFiles> ChoosePictureFiles(const std::string& folder,
                                                std::vector<std::string> files);

}  // namespace signvote::lab
