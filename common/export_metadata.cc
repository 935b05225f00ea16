#include "common/export_metadata.h"

namespace signvote {

std::map<std::string, std::string> ExportMetadata(const RunId& run_id, Round round) {
  return {{"format", "pt"},
          {"signvote.run_id", run_id.ToText()},
          {"signvote.round", std::to_string(round.value())}};
}

}  // namespace signvote
