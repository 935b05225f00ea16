#pragma once
// What /api/v1/status answers.

#include <string>

#include "server/run/run_books.h"

namespace signvote::rpc {

// Admin.Status as one JSON object with the field names of admin.proto.
std::string RenderStatusJson(const run::StatusPage& page);

}  // namespace signvote::rpc
