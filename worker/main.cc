// signvote-worker: trains a model as one worker of a run. docs/operations.md.

#include <cstdio>
#include <stop_token>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/grpc_setup.h"
#include "worker/flags.h"
#include "worker/worker.h"

namespace signvote {
namespace {

constexpr Duration kForever = std::chrono::hours(24 * 365);

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  TuneMalloc();
  (void)RaiseDescriptorLimit();
  InstallStopSignals();
  ReserveMemory();
  WorkerFlags flags;
  std::string print;
  absl::Status status = ParseWorkerFlags(argc, argv, FileSystem::Posix(), &flags, &print);
  if (!print.empty()) {
    std::fputs(print.c_str(), stdout);
    return static_cast<int>(ExitCode::kOk);
  }
  if (status.ok()) {
    InitLogging(flags.log);
    wire::SetUpGrpc();
    std::stop_source stop;
    std::jthread watcher([&stop] {
      if (WaitForStop(kForever)) stop.request_stop();
    });
    status = RunWorker(
        flags,
        {.stop = stop.get_token(), .take_save = TakeSaveRequest, .take_reopen = TakeReopenRequest});
    RequestStop();  // wakes the watcher
  }
  if (status.ok()) status = MemoryReserveStatus();
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
