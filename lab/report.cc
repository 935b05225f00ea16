#include "lab/report.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/program_beside.h"

namespace signvote::lab {
namespace {

constexpr const char* kName = "signvote-lab-report";

}  // namespace

absl::Status MakeReport(const std::string& folder) {
  const std::string program = ProgramBeside(kName);
  std::string name = kName, argument = folder;
  const std::array<char*, 3> arguments{name.data(), argument.data(), nullptr};
  pid_t child = 0;
  const int error =
      ::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments.data(), environ);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat(program, " cannot be started: ", std::strerror(error),
                     "; it belongs beside this program and needs python3"));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return absl::InternalError(absl::StrCat("waitpid: ", std::strerror(errno)));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(program, " failed; it says why above"));
}

}  // namespace signvote::lab
