// signvote-lab-run: elastic experiments. docs/lab.md, "Elastic experiments".

#include <cstdio>
#include <string>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status.h"
#include "lab/run/run_command.h"

namespace signvote::lab {
namespace {

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  InstallStopSignals();
  RunLabFlags flags;
  std::string print;
  absl::Status status = ParseRunLabFlags(argc, argv, FileSystem::Posix(), &flags, &print);
  Print(print);
  if (status.ok() && print.empty()) {
    InitLogging({});
    status = RunLabScenarios(flags, {.fs = FileSystem::Posix(),
                                     .clock = Clock::System(),
                                     .programs = ProgramPaths::Beside(),
                                     .make_processes = Processes::Posix,
                                     .wait = WaitForStop,
                                     .print = Print});
  }
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote::lab

int main(int argc, char** argv) { return signvote::lab::Main(argc, argv); }
