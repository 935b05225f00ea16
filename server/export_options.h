#pragma once
// What --export and its neighbours ask for.

#include <cstdint>
#include <string>

#include "common/clock.h"
#include "common/every.h"
#include "common/model_writer.h"

namespace signvote {

struct ExportOptions {
  std::string path;  // "": nothing is ever written
  Every every;
  uint32_t keep = 2;
  ModelFormat format;
  // How long a model that cannot be written is held for whoever saves it elsewhere.
  Duration linger = std::chrono::minutes(10);
};

}  // namespace signvote
