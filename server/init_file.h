#pragma once
// Initial parameters from a model file, an index of several, or a folder that holds either (--init),
// with the config.json that lies beside it. Formats: common/checkpoint.h.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "server/run/run_model.h"

namespace signvote {

// The files are mapped and checked here, so that what cannot work is told before anything listens: its
// numbers are finite, and it holds a tensor. Errors carry the exit code kBadInput. CANCELLED: `give_up`
// said so, which is asked now and then while they are read; null: nobody gives up.
absl::StatusOr<std::unique_ptr<run::InitialParameters>> OpenInitFile(
    FileSystem* fs, const std::string& path, const std::function<bool()>& give_up = {});

}  // namespace signvote
