#include "server/journal/journal.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/crash_point.h"
#include "common/status.h"

namespace signvote::journal {
namespace {

// Nothing waits without a bound; waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);
// Of a round beside its payload, where counts of ballots change its size.
constexpr uint64_t kHeadRoom = uint64_t{64} << 10;

}  // namespace

std::string_view Words(DurabilityMode mode) {
  switch (mode) {
    case DurabilityMode::kSync:
      return "sync";
    case DurabilityMode::kGroup:
      return "group";
    case DurabilityMode::kNone:
      return "none";
  }
  return "";
}

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(Disk* disk, const JournalOptions& options,
                                                       const LogStart& start,
                                                       const Recovered& recovered, Clock* clock) {
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SegmentLog> log,
                            SegmentLog::Open(disk, options.segment_bytes, start, recovered));
  std::unique_ptr<Journal> journal(new Journal(std::move(log), options, recovered.begun, clock));
  journal->states_.OnRecovered(FromSeconds(recovered.report.apply_seconds),
                               recovered.report.commits);
  return journal;
}

Journal::Journal(std::unique_ptr<SegmentLog> log, const JournalOptions& options, bool has_snapshot,
                 Clock* clock)
    : options_(options),
      clock_(clock),
      log_(std::move(log)),
      released_to_(log_->next()),
      has_snapshot_(has_snapshot) {}

Journal::~Journal() { Stop(); }

void Journal::Start(Released released, Failed failed) {
  SIGNVOTE_CHECK(!thread_.joinable());
  released_ = std::move(released);
  failed_ = std::move(failed);
  thread_ = std::thread([this] { Loop(); });
}

void Journal::StartByTurns(Released released, Failed failed) {
  released_ = std::move(released);
  failed_ = std::move(failed);
}

void Journal::Turn() { TakeTurn(/*stop=*/false); }

void Journal::Abandon() {
  MutexLock lock(&mu_);
  stopping_ = true;
  queue_.clear();
}

std::optional<Time> Journal::NextTurn() const {
  MutexLock lock(&mu_);
  if (HasWork()) return clock_->Now();
  if (options_.mode == DurabilityMode::kGroup && unsynced_since_.has_value())
    return *unsynced_since_ + kGroupInterval;
  return std::nullopt;
}

void Journal::Stop() {
  bool stopped = false;
  {
    MutexLock lock(&mu_);
    stopped = std::exchange(stopping_, true);
  }
  changed_.NotifyAll();
  if (thread_.joinable()) return thread_.join();
  if (!stopped && released_ != nullptr) TakeTurn(/*stop=*/true);
}

// ---- what the run says --------------------------------------------------------------------------

void Journal::Push(Item item) {
  {
    MutexLock lock(&mu_);
    // What waits behind a failure would never be written.
    if (!status_.ok()) return;
    queue_.push_back(std::move(item));
  }
  changed_.NotifyAll();
}

void Journal::Append(std::shared_ptr<const CommitRecord> record) {
  const Round round = record->round;
  bool release = false;
  {
    MutexLock lock(&mu_);
    LogCommit commit = std::exchange(next_, {});
    if (!status_.ok()) return;
    if (commit.after != nullptr) states_.Add(round.next(), commit.after, commit.optimizer);
    commit.record = std::move(record);
    queue_.push_back(std::move(commit));
    ++queued_commits_;
    release = options_.mode == DurabilityMode::kNone && queued_commits_ <= kQueuedCommits;
    if (release) released_to_ = round.next();
  }
  changed_.NotifyAll();
  if (release) released_(round);
}

void Journal::Begin(const v1::JournalHead& head,
                    std::shared_ptr<const std::vector<float>> optimizer) {
  states_.Begin(head, std::move(optimizer));
  uint64_t payload = 0;
  for (const v1::JournalRange& range : head.ranges()) {
    const auto kind = static_cast<PayloadKind>(range.kind());
    payload +=
        uint64_t{range.chunks()} * PayloadBytes(kind, head.chunk_coordinates(), head.ballots_max());
  }
  payload += head.run().optimizer_numbers() * sizeof(float);
  {
    MutexLock lock(&mu_);
    begun_ = true;
    if (!status_.ok()) return;
    queue_.push_back(Head{.bytes = head.SerializeAsString(), .round_bytes = payload + kHeadRoom});
  }
  changed_.NotifyAll();
}

void Journal::NoteName(const v1::JournalName& name) {
  Push(LogNote{.type = RecordType::kName, .payload = name.SerializeAsString()});
}

void Journal::NotePause(bool paused) {
  v1::JournalPause pause;
  pause.set_paused(paused);
  Push(LogNote{.type = RecordType::kPause, .payload = pause.SerializeAsString()});
}

void Journal::NoteChunk(Chunk chunk) { Push(std::move(chunk)); }

void Journal::NoteState(std::shared_ptr<const v1::RunState> state,
                        std::shared_ptr<const std::vector<float>> optimizer,
                        std::vector<Voters> voters) {
  MutexLock lock(&mu_);
  next_.after = std::move(state);
  next_.voters = std::move(voters);
  next_.optimizer = std::move(optimizer);
}

// ---- snapshots ----------------------------------------------------------------------------------

bool Journal::needs_snapshot() const {
  MutexLock lock(&mu_);
  return begun_ && !has_snapshot_;
}

void Journal::OnSnapshot(Round round, Round oldest) {
  states_.OnSnapshot(round);
  {
    MutexLock lock(&mu_);
    has_snapshot_ = true;
    oldest_ = oldest;
  }
  changed_.NotifyAll();
}

JournalStats Journal::stats() const {
  MutexLock lock(&mu_);
  return stats_;
}

absl::Status Journal::status() const {
  MutexLock lock(&mu_);
  return status_;
}

void Journal::Fail(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    if (!status_.ok()) return;
    status_ = status;
    queue_.clear();
  }
  changed_.NotifyAll();
  failed_(status);
}

// ---- the thread ---------------------------------------------------------------------------------

void Journal::Release(Round next) {
  {
    MutexLock lock(&mu_);
    if (next <= released_to_ || !status_.ok()) return;
    released_to_ = next;
  }
  released_(Round(next.value() - 1));
}

absl::Status Journal::Sync() {
  if (log_->synced()) return absl::OkStatus();
  const Time begin = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(log_->Sync());
  unsynced_since_.reset();
  MutexLock lock(&mu_);
  ++stats_.syncs;
  stats_.last_sync_seconds = ToSeconds(clock_->Now() - begin);
  stats_.sync_seconds += stats_.last_sync_seconds;
  return absl::OkStatus();
}

absl::Status Journal::WriteAll(const std::vector<Item>& items) {
  bool commit = false, note = false;
  for (const Item& item : items) {
    if (const auto* head = std::get_if<Head>(&item)) {
      SIGNVOTE_RETURN_IF_ERROR(log_->Begin(head->bytes, head->round_bytes));
    } else if (const auto* chunk = std::get_if<Chunk>(&item)) {
      SIGNVOTE_RETURN_IF_ERROR(log_->Write(*chunk));
      CrashPoint("journal.chunk-written");
    } else if (const auto* of_commit = std::get_if<LogCommit>(&item)) {
      CrashPoint("journal.commit-due");
      SIGNVOTE_RETURN_IF_ERROR(log_->Write(*of_commit));
      CrashPoint("journal.commit-written");
      commit = true;
    } else {
      SIGNVOTE_RETURN_IF_ERROR(log_->Write(std::get<LogNote>(item)));
      CrashPoint("journal.note-written");
      note = true;
    }
  }
  if ((commit || note) && !unsynced_since_.has_value()) unsynced_since_ = clock_->Now();
  const bool due =
      unsynced_since_.has_value() && clock_->Now() - *unsynced_since_ >= kGroupInterval;
  switch (options_.mode) {
    case DurabilityMode::kSync:
      if (commit || note) SIGNVOTE_RETURN_IF_ERROR(Sync());
      break;
    case DurabilityMode::kGroup:
      // Before anything else is released: so the bound holds whatever a sync takes.
      if (due) SIGNVOTE_RETURN_IF_ERROR(Sync());
      break;
    case DurabilityMode::kNone:
      break;
  }
  if (!log_->synced()) log_->StartWriteback();
  {
    MutexLock lock(&mu_);
    stats_.written_bytes = log_->written_bytes();
    for (const Item& item : items) {
      if (!std::holds_alternative<LogCommit>(item)) continue;
      ++stats_.commits;
      --queued_commits_;
    }
  }
  if (commit) {
    CrashPoint("journal.commit-synced");
    Release(log_->next());
  }
  return absl::OkStatus();
}

bool Journal::HasWork() const {
  // What follows a run's beginning waits for its first snapshot.
  return oldest_.has_value() || ((has_snapshot_ || !begun_) && !queue_.empty());
}

void Journal::TakeTurn(bool stop) {
  std::vector<Item> items;
  std::optional<Round> oldest;
  {
    MutexLock lock(&mu_);
    oldest = std::exchange(oldest_, std::nullopt);
    if (has_snapshot_ || !begun_) items.swap(queue_);
  }
  absl::Status status = WriteAll(items);
  if (status.ok() && oldest.has_value()) status = log_->DropBefore(*oldest);
  if (status.ok() && stop) status = Sync();
  if (status.ok()) return;
  unsynced_since_.reset();
  Fail(status);
}

void Journal::Loop() {
  while (true) {
    bool stop = false;
    {
      MutexLock lock(&mu_);
      Time until = clock_->Now() + kLookAgain;
      if (options_.mode == DurabilityMode::kGroup && unsynced_since_.has_value())
        until = std::min(until, *unsynced_since_ + kGroupInterval);
      (void)changed_.WaitUntil(&mu_, clock_, until, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || HasWork();
      });
      stop = stopping_;
    }
    TakeTurn(stop);
    if (!stop) continue;
    MutexLock lock(&mu_);
    if (queue_.empty() || !status_.ok() || (begun_ && !has_snapshot_)) return;
  }
}

}  // namespace signvote::journal
