#pragma once
// What each command of `signvote` does.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "ctl/admin_client.h"
#include "ctl/flags.h"
#include "ctl/render.h"

namespace signvote::ctl {

// As CommandHost::become.
absl::Status BecomeProgram(const std::string& name, const std::vector<std::string>& arguments);

// What commands touch.
struct CommandHost {
  FileSystem* fs = nullptr;
  Clock* clock = nullptr;
  Colour colour = Colour::kOff;
  std::function<void(const std::string&)> print;  // to standard output; kTop has the screen itself
  // As AdminClient::Create().
  std::function<absl::StatusOr<std::unique_ptr<AdminClient>>(
      FileSystem* fs, const AdminClientOptions& options, int64_t now_unix_seconds)>
      create_client = AdminClient::Create;
  // Becomes the program `name` of this program's folder; returns only when it cannot: UNAVAILABLE.
  std::function<absl::Status(const std::string& name, const std::vector<std::string>& arguments)>
      become = BecomeProgram;
};

// Threads: blocks until the command is done; kTop until the operator ends it.
// Failure: the server's status, or why it could not be asked; nothing was printed of a command that
//          failed.
absl::Status RunCommand(const CtlFlags& flags, const CommandHost& host);

}  // namespace signvote::ctl
