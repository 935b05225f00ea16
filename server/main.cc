// signvote-server: parses flags and serves.

#include <cstdio>
#include <utility>

#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/grpc_setup.h"
#include "server/flags.h"
#include "server/server.h"

namespace signvote {
namespace {

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  TuneMalloc();
  InstallStopSignals();
  (void)RaiseDescriptorLimit();
  ReserveMemory();
  ServerFlags flags;
  absl::Status status = ParseServerFlags(argc, argv, FileSystem::Posix(), &flags);
  if (status.ok() && flags.print.has_value()) {
    std::fputs(flags.print->c_str(), stdout);
    return 0;
  }
  InitLogging(flags.log);
  wire::SetUpGrpc();
  if (status.ok()) {
    if (const absl::StatusOr<Isa> isa = ChooseIsa(); !isa.ok())
      status = WithExitCode(isa.status(), ExitCode::kUsage);
  }
  if (status.ok()) {
    // Without files to read again SIGHUP is a stop.
    if (!flags.tokens.empty() || !flags.insecure) InstallReloadSignal();
    status = Serve(flags,
                   {.stop_requested = StopRequested,
                    .take_reload = TakeReloadRequest,
                    .take_save = TakeSaveRequest,
                    .take_reopen = TakeReopenRequest},
                   Clock::System(), FileSystem::Posix());
  }
  if (status.ok()) status = MemoryReserveStatus();
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
