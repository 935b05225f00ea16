#pragma once
// Initial parameters from a file (--init), with the config.json that lies beside it.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "server/run/run_model.h"

namespace signvote {

// The file is mapped and checked here, so that what cannot work is told before anything listens: its
// numbers are finite, and it holds a tensor. Errors carry the exit code kBadInput.
absl::StatusOr<std::unique_ptr<run::InitialParameters>> OpenInitFile(FileSystem* fs,
                                                                     const std::string& path);

}  // namespace signvote
