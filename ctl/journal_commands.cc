#include "ctl/journal_commands.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/disk.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/file_lock.h"
#include "common/model_file.h"
#include "common/status.h"
#include "server/journal/journal_format.h"
#include "server/journal/recovery.h"
#include "server/journal/tool.h"

namespace signvote::ctl {

namespace {

// NOT_FOUND, INVALID_ARGUMENT: there is no such folder, or no journal in it.
absl::StatusOr<std::unique_ptr<Disk>> OpenFolder(const std::string& path, FileSystem* fs) {
  SIGNVOTE_ASSIGN_OR_RETURN(const bool folder, fs->IsDirectory(path));
  if (!folder) {
    return WithExitCode(absl::InvalidArgumentError(path + ": is no folder"), ExitCode::kBadInput);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<Disk> disk, Disk::OpenPosix(path));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<DiskEntry> entries, disk->List());
  for (const DiskEntry& entry : entries)
    if (journal::SegmentOf(entry.name).has_value()) return disk;
  return WithExitCode(absl::InvalidArgumentError(path + ": there is no journal in it"),
                      ExitCode::kBadInput);
}

}  // namespace

absl::Status LookAfterJournal(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Disk> disk, OpenFolder(flags.journal, host.fs));
  switch (flags.command) {
    case Command::kJournalVerify:
      return journal::Verify(disk.get(), host.clock, host.print);
    case Command::kJournalDump:
      return journal::Dump(disk.get(), host.print);
    case Command::kJournalTruncate: {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<FileLock> lock,
                                FileLock::Take(disk->PathOf(journal::kLockName)));
      return journal::Truncate(disk.get(), host.clock, host.print);
    }
    default:
      break;
  }
  SIGNVOTE_CHECK(false);
}

absl::Status ExportFromJournal(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Disk> disk, OpenFolder(flags.journal, host.fs));
  journal::RecoveryOptions options;
  if (flags.round.has_value()) options.until = Round(*flags.round);
  SIGNVOTE_ASSIGN_OR_RETURN(const journal::Recovered run,
                            journal::Recover(disk.get(), options, host.clock));
  if (!run.begun) {
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat(flags.journal, " has no parameters yet")),
        ExitCode::kBadInput);
  }
  ExportOrigin origin{.run_id = *run.run_id, .round = run.round(), .rule = run.head.rule()};
  if (const float stepsize = run.head.run().engine().gamma(); stepsize > 0)
    origin.stepsize = stepsize;
  const std::string& config = run.head.run().config_json();
  SIGNVOTE_RETURN_IF_ERROR(WriteModel(host.fs, flags.file, flags.format, run.layout, *run.x,
                                      ExportMetadata(origin), config));
  host.print(absl::StrCat(flags.file, ": round ", run.round().value(), ", ",
                          run.x->size() * BytesOf(flags.format.dtype), " bytes",
                          config.empty() ? "" : ", config.json beside it", "\n"));
  return absl::OkStatus();
}

}  // namespace signvote::ctl
