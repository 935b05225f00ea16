// signvote-lab: trains in one process, and compares methods. docs/lab.md.

#include <unistd.h>

#include <cstdio>
#include <stop_token>
#include <string>
#include <thread>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status.h"
#include "lab/commands.h"
#include "lab/flags.h"
#include "lab/report.h"

namespace signvote::lab {
namespace {

constexpr Duration kForever = std::chrono::hours(24 * 365);

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  TuneMalloc();
  InstallStopSignals();
  LabFlags flags;
  std::string print;
  absl::Status status = ParseLabFlags(argc, argv, FileSystem::Posix(), &flags, &print);
  Print(print);
  if (status.ok() && print.empty()) {
    InitLogging(flags.log);
    std::stop_source stop;
    std::jthread watcher([&stop] {
      if (WaitForStop(kForever)) stop.request_stop();
    });
    status =
        RunLab(flags, {.cell = {.fs = FileSystem::Posix(),
                                .clock = Clock::System(),
                                .torch = {.network = MakeTorchModel, .source = MakeTorchSource}},
                       .terminal = isatty(STDOUT_FILENO) != 0,
                       .print = Print,
                       .stop = stop.get_token(),
                       .make_report = MakeReport});
    RequestStop();  // wakes the watcher
  }
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote::lab

int main(int argc, char** argv) { return signvote::lab::Main(argc, argv); }
