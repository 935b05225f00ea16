#pragma once
// Initial parameters from a model file, an index of several, or a folder that holds either (--init),
// with the config.json that lies beside it. Formats: common/checkpoint.h.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "server/run/run_model.h"

namespace signvote {

// The files are mapped and checked here, so that what cannot work is told before anything listens: its
// numbers are finite, and it holds a tensor. Errors carry the exit code kBadInput.
absl::StatusOr<std::unique_ptr<run::InitialParameters>> OpenInitFile(FileSystem* fs,
                                                                     const std::string& path);

}  // namespace signvote
