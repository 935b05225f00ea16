#include "server/journal/snapshotter.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "server/journal/journal_format.h"

namespace signvote::journal {
namespace {

// Nothing waits without a bound; waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);

}  // namespace

Snapshotter::Snapshotter(Disk* disk, const SnapshotOptions& options, Journal* journal,
                         std::vector<Round> kept, Clock* clock)
    : disk_(disk), options_(options), journal_(journal), clock_(clock), kept_(std::move(kept)) {
  SIGNVOTE_CHECK(options_.keep > 0);
  if (!kept_.empty()) stats_.newest = kept_.front();
  stats_.taken = clock->Now();
}

Snapshotter::~Snapshotter() { Stop(); }

void Snapshotter::Start(Copy copy) {
  SIGNVOTE_CHECK(!thread_.joinable());
  copy_ = std::move(copy);
  thread_ = std::thread([this] { Loop(); });
}

void Snapshotter::OnApplied() {
  {
    MutexLock lock(&mu_);
    looks_ = true;
  }
  changed_.NotifyAll();
}

void Snapshotter::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

bool Snapshotter::stopping() const {
  MutexLock lock(&mu_);
  return stopping_;
}

Snapshotter::Stats Snapshotter::stats() const {
  MutexLock lock(&mu_);
  return stats_;
}

bool Snapshotter::Due() const {
  if (!journal_->status().ok()) return false;
  if (journal_->needs_snapshot()) return true;
  if (not_before_.has_value() && clock_->Now() < *not_before_) return false;
  const StateBook& states = *journal_->states();
  if (options_.every == 0) {
    return states.replay() > kReplayMost || journal_->stats().written_bytes - written_ > kBytesMost;
  }
  const uint64_t last = kept_.empty() ? 0 : kept_.front().value();
  return states.applied().value() >= last + options_.every;
}

absl::Status Snapshotter::TakeOne() {
  const Time begin = clock_->Now();
  const GiveUp give_up = [this] { return stopping(); };
  const uint64_t written = journal_->stats().written_bytes;
  SIGNVOTE_ASSIGN_OR_RETURN(Copied copied, copy_(give_up));
  // The replica may have gone on since it was copied.
  absl::StatusOr<StateBook::Standing> found = journal_->states()->At(copied.round);
  while (absl::IsNotFound(found.status()) && !stopping()) {
    SIGNVOTE_ASSIGN_OR_RETURN(copied, copy_(give_up));
    found = journal_->states()->At(copied.round);
  }
  if (!found.ok()) return found.status();
  const StateBook::Standing standing = *std::move(found);
  if (!kept_.empty() && kept_.front() == copied.round) {  // nothing was committed since
    written_ = written;
    return DropOld();
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const Layout layout, LayoutFrom(standing.head.run()));
  SnapshotView view{.head = &standing.head, .layout = &layout, .x = copied.x, .x0 = copied.x0};
  if (standing.optimizer != nullptr) view.optimizer = *standing.optimizer;
  SIGNVOTE_RETURN_IF_ERROR(WriteSnapshot(disk_, view, give_up));
  kept_.insert(kept_.begin(), copied.round);
  written_ = written;
  {
    MutexLock lock(&mu_);
    stats_.newest = copied.round;
    stats_.taken = clock_->Now();
    ++stats_.taken_total;
  }
  LogInfo("snapshot",
          {{"round", copied.round.value()}, {"seconds", ToSeconds(clock_->Now() - begin)}});
  return DropOld();
}

absl::Status Snapshotter::DropOld() {
  const Round newest = kept_.front();
  while (kept_.size() > options_.keep) {
    SIGNVOTE_RETURN_IF_ERROR(RemoveSnapshot(disk_, kept_.back()));
    kept_.pop_back();
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<DiskEntry> entries, disk_->List());
  for (const DiskEntry& entry : entries) {
    // Left over by a server that ended while it wrote one, and snapshots that were not whole.
    const std::optional<Round> of = SnapshotOf(entry.name);
    if (!of.has_value() || *of >= newest) continue;
    bool kept = false;
    for (const Round round : kept_) kept = kept || round == *of;
    if (!kept) SIGNVOTE_RETURN_IF_ERROR(disk_->Remove(entry.name));
  }
  journal_->OnSnapshot(newest, kept_.back());
  return absl::OkStatus();
}

void Snapshotter::Loop() {
  while (!stopping()) {
    {
      MutexLock lock(&mu_);
      const Time until = clock_->Now() + kLookAgain;
      (void)changed_.WaitUntil(&mu_, clock_, until, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || looks_;
      });
      looks_ = false;
      if (stopping_) return;
    }
    const absl::Status status = Turn();
    if (status.ok()) continue;
    LogError("no snapshot could be written",
             {{"error", Describe(status)},
              {"again_in_seconds", not_before_.has_value() ? ToSeconds(kTryAgain) : 0.0}});
  }
}

absl::Status Snapshotter::Turn() {
  if (!Due()) return absl::OkStatus();
  const bool first = journal_->needs_snapshot();
  const absl::Status status = TakeOne();
  not_before_.reset();
  if (status.ok() || stopping()) return absl::OkStatus();
  {
    MutexLock lock(&mu_);
    ++stats_.failed_total;
  }
  if (first) {
    journal_->Fail(WithContext(status, "the run's first snapshot"));
  } else {
    not_before_ = clock_->Now() + kTryAgain;
  }
  return status;
}

}  // namespace signvote::journal
