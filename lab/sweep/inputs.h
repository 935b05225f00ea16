#pragma once
// What a run is computed from beside its flags: the contents of the files that they name, and the program
// itself. With them in its id no result is taken for that of other data or of another program.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "lab/sweep/spec.h"

namespace signvote::lab {

// "0.1.0-1f6b02a94c7d5e38": this program's version, and a hash of its file. Failure: the file's.
absl::StatusOr<std::string> ProgramMark(FileSystem* fs);

// 16 hexadecimal digits of what is in a file; in all files of a folder, and what they are called there; or
// of an index of shards (*.index.json) and all safetensors beside it. Failure: the file's.
absl::StatusOr<std::string> ContentsMark(FileSystem* fs, const std::string& path);

// Fills CellGroup::inputs and SweepSpec::program. Reads every file that a group names, once.
absl::Status NameInputs(FileSystem* fs, SweepSpec* spec);

}  // namespace signvote::lab
