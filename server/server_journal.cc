#include "server/server_journal.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"
#include "server/commit/commit_ring.h"
#include "server/journal/journal_format.h"
#include "server/journal/recovery.h"
#include "server/run/run_recovery.h"
#include "server/run/settings.h"

namespace signvote {
namespace {

constexpr Duration kTellEvery = std::chrono::seconds(2);

journal::RecoveryOptions RecoveryOptionsOf(const run::RunOptions& run, Clock* clock) {
  journal::RecoveryOptions options;
  // Whoever lost the server lacks a round or two.
  options.recent_max = CommitRing::kRoundsMax;
  options.recent_bytes = run.model.sizes.catch_up_bytes.value_or(CommitRing::kDefaultBytesMin);
  options.progress = [clock, tell = clock->Now() + kTellEvery](Round round) mutable {
    if (clock->Now() < tell) return;
    tell = clock->Now() + kTellEvery;
    LogInfo("recovering", {{"round", round.value()}});
  };
  return options;
}

void Tell(const JournalFlags& flags, const journal::Recovered& recovered,
          const run::RunState& state) {
  const journal::RecoveryReport& report = recovered.report;
  for (const std::string& why : report.unusable)
    LogWarning("a snapshot cannot be used", {{"why", why}});
  if (!recovered.run_id.has_value()) {
    LogInfo("a new journal",
            {{"folder", flags.path}, {"durability", std::string(Words(flags.durability))}});
    return;
  }
  const double seconds = std::max(report.seconds, 1e-9);
  LogInfo("recovered the run from its journal",
          {{"folder", flags.path},
           {"run", state.run_id.ToText()},
           {"epoch", state.epoch.value()},
           {"round", state.engine.round.value()},
           {"snapshot", report.snapshot.has_value() ? absl::StrCat(report.snapshot->value())
                                                    : std::string("none")},
           {"commits", report.commits},
           {"seconds", report.seconds},
           {"commits_per_second", static_cast<double>(report.commits) / seconds},
           {"bytes_per_second", static_cast<double>(report.payload_bytes) / seconds},
           {"torn_tails", report.torn_tails},
           {"void_records", report.void_records}});
}

absl::Status Unusable(const absl::Status& status) {
  return WithExitCode(
      absl::Status(
          status.code(),
          absl::StrCat(status.message(),
                       "; make its folder writable, with room in it, or give another one")),
      ExitCode::kBadInput);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerJournal>> ServerJournal::Open(const JournalFlags& flags,
                                                                   const run::RunOptions& run,
                                                                   Clock* clock, const Begin& begin,
                                                                   run::RunState* state) {
  std::unique_ptr<ServerJournal> out(new ServerJournal);
  out->clock_ = clock;
  absl::StatusOr<std::unique_ptr<Disk>> disk = Disk::OpenPosix(flags.path);
  if (!disk.ok()) return Unusable(disk.status());
  out->disk_ = *std::move(disk);
  auto lock = FileLock::Take(out->disk_->PathOf(journal::kLockName));
  if (absl::IsFailedPrecondition(lock.status())) return lock.status();  // another server has it
  if (!lock.ok()) return Unusable(lock.status());
  out->lock_ = *std::move(lock);
  SIGNVOTE_ASSIGN_OR_RETURN(
      journal::Recovered recovered,
      journal::Recover(out->disk_.get(), RecoveryOptionsOf(run, clock), clock));
  if (recovered.begun) SIGNVOTE_RETURN_IF_ERROR(run::CheckSettings(recovered.head, run));
  if (recovered.run_id.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(*state, run::TakeUp(recovered));
  }
  if (!recovered.begun) {
    run::RunState begins = *state;
    SIGNVOTE_RETURN_IF_ERROR(begin(&begins));
    if (recovered.run_id.has_value() && begins.run_id != state->run_id) {
      return WithExitCode(
          absl::FailedPreconditionError(absl::StrCat(
              flags.path, " has a run ", state->run_id.ToText(), " that has not begun, and --init ",
              begins.run_id.ToText(), "; move the folder away")),
          ExitCode::kBadInput);
    }
    if (begins.has_parameters()) {
      *state = std::move(begins);
    } else if (!recovered.run_id.has_value()) {
      state->begun = {{.epoch = state->epoch, .round = Round(0)}};
    }
  }
  Tell(flags, recovered, *state);
  CrashPoint("recovery.done");
  // Epochs have a gap where a run went on from a worker's save.
  out->recoveries_ = state->begun.empty() ? 0 : state->begun.size() - 1;
  out->recovery_seconds_ = recovered.report.seconds;
  auto opened = journal::Journal::Open(
      out->disk_.get(), {.mode = flags.durability},
      {.run_id = state->run_id, .epoch = state->epoch, .round = state->engine.round}, recovered,
      clock);
  if (!opened.ok()) return Unusable(opened.status());
  out->journal_ = *std::move(opened);
  out->snapshotter_ = std::make_unique<journal::Snapshotter>(
      out->disk_.get(), flags.snapshots, out->journal_.get(), recovered.snapshots, clock);
  return out;
}

void ServerJournal::Show(ServerMetrics* metrics) const {
  const auto set = [metrics](ServerMetric metric, auto value) {
    metrics->Set(metric, static_cast<double>(value));
  };
  const auto raise = [metrics](ServerMetric metric, auto total) {
    metrics->RaiseTo(metric, static_cast<double>(total));
  };
  uint64_t bytes = 0;
  // A folder that cannot be read is told where it is written to.
  if (const auto entries = disk_->List(); entries.ok())
    for (const DiskEntry& entry : *entries) bytes += entry.bytes;
  const uint64_t free_bytes = disk_->FreeBytes().value_or(0);
  const journal::JournalStats stats = journal_->stats();
  const journal::Snapshotter::Stats snapshots = snapshotter_->stats();
  set(ServerMetric::kJournalBytes, bytes);
  set(ServerMetric::kJournalFree, free_bytes);
  set(ServerMetric::kJournalFailed, journal_->status().ok() ? 0 : 1);
  set(ServerMetric::kSnapshotAge, ToSeconds(clock_->Now() - snapshots.taken));
  set(ServerMetric::kSnapshotRound, snapshots.newest.value_or(Round(0)).value());
  set(ServerMetric::kRecoveries, recoveries_);
  set(ServerMetric::kRecoverySeconds, recovery_seconds_);
  raise(ServerMetric::kJournalWritten, stats.written_bytes);
  raise(ServerMetric::kJournalSyncs, stats.syncs);
  raise(ServerMetric::kJournalSyncSeconds, stats.sync_seconds);
  raise(ServerMetric::kSnapshots, snapshots.taken_total);
  raise(ServerMetric::kSnapshotFailures, snapshots.failed_total);
}

}  // namespace signvote
