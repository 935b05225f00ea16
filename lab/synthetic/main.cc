// signvote-synthetic-worker: a worker with a quadratic objective. docs/lab.md, "Elastic experiments".

#include <cstdio>
#include <string>
#include <utility>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status.h"
#include "lab/synthetic/synthetic_worker.h"

namespace signvote {
namespace {

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  TuneMalloc();
  InstallStopSignals();
  InitLogging({});
  SyntheticFlags flags;
  std::string print;
  absl::Status status = ParseSyntheticFlags(argc, argv, FileSystem::Posix(), &flags, &print);
  std::fwrite(print.data(), 1, print.size(), stdout);
  if (status.ok() && print.empty()) status = RunSyntheticWorker(std::move(flags));
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
