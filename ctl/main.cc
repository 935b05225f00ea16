// signvote: the operator's command line. docs/operations.md.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/exit_codes.h"
#include "common/process.h"
#include "common/status.h"
#include "common/text.h"
#include "ctl/commands.h"
#include "ctl/flags.h"
#include "proto/wire/grpc_setup.h"

namespace signvote::ctl {
namespace {

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

Colour TerminalColour() {
  // https://no-color.org: present and not empty.
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && no_color[0] != '\0') return Colour::kOff;
  return isatty(STDOUT_FILENO) != 0 ? Colour::kOn : Colour::kOff;
}

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  IgnoreFileSizeSignal();
  TuneMalloc();
  wire::SetUpGrpc();
  CtlFlags flags;
  std::string print;
  absl::Status status = ParseCtlFlags(argc, argv, FileSystem::Posix(), &flags, &print);
  Print(print);
  if (status.ok() && print.empty()) {
    status = RunCommand(flags, {.fs = FileSystem::Posix(),
                                .clock = Clock::System(),
                                .colour = TerminalColour(),
                                .print = Print});
  }
  if (!status.ok()) {
    // A path in it may be no UTF-8, or have several lines.
    const std::string text = Describe(status);
    std::fprintf(stderr, "signvote: %s\n", ForPeople(text, text.size()).c_str());
  }
  if (std::fflush(stdout) != 0) return static_cast<int>(ExitCode::kInternal);
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote::ctl

int main(int argc, char** argv) { return signvote::ctl::Main(argc, argv); }
