#pragma once
// What an exported safetensors file says of itself, whichever program wrote it.

#include <map>
#include <string>

#include "common/ids.h"

namespace signvote {

// The file's metadata: it holds the parameters of this run with all commits before `round`.
std::map<std::string, std::string> ExportMetadata(const RunId& run_id, Round round);

}  // namespace signvote
