#include "server/replica/applier.h"

#include <utility>

#include "common/check.h"
#include "common/memory_reserve.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote {
namespace {

// Nothing waits without a bound; these waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);

}  // namespace

Applier::Applier(MasterReplica* replica, Clock* clock, size_t backlog_max)
    : replica_(replica), clock_(clock), backlog_max_(backlog_max) {
  SIGNVOTE_CHECK(backlog_max > 0);
}

bool Applier::TryPush(const std::shared_ptr<const CommitRecord>& record) {
  {
    MutexLock lock(&mu_);
    if (queue_.size() >= backlog_max_) return false;
    queue_.push_back(record);
    ++pushed_;
  }
  changed_.NotifyAll();
  return true;
}

std::optional<Applied> Applier::ApplyNext() {
  std::shared_ptr<const CommitRecord> record;
  bool drop_x0 = false;
  {
    MutexLock lock(&mu_);
    if (busy_ || queue_.empty()) return std::nullopt;
    busy_ = true;
    record = queue_.front();
    if (drop_x0_from_.has_value() && record->round >= *drop_x0_from_) {
      drop_x0 = true;
      drop_x0_from_.reset();
    }
  }
  Applied applied{.next_round = record->round.next()};
  const Time begin = clock_->Now();
  if (drop_x0) replica_->DropX0();
  const uint64_t digest = replica_->Apply(*record);
  applied.took = clock_->Now() - begin;
  if (record->digest_due) applied.digest = digest;
  {
    MutexLock lock(&mu_);
    queue_.pop_front();
    stepsize_.Note(record->kind, record->gamma);
    busy_ = false;
  }
  changed_.NotifyAll();
  return applied;
}

bool Applier::WaitForWork(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  // For the run's thread, which proposes commits, and for a snapshot that is being taken.
  return changed_.WaitUntil(&mu_, clock_, until, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return woken_ || (!busy_ && !queue_.empty());
  }) && !woken_;
}

void Applier::Wake() {
  {
    MutexLock lock(&mu_);
    woken_ = true;
  }
  changed_.NotifyAll();
}

bool Applier::WaitUntilIdle(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  // For whoever calls ApplyNext().
  return changed_.WaitUntil(&mu_, clock_, until,
                            [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return queue_.empty(); });
}

uint64_t Applier::pushed() const {
  MutexLock lock(&mu_);
  return pushed_;
}

bool Applier::WaitUntilApplied(uint64_t pushed, Duration timeout, const GiveUp& give_up) {
  const Time until = clock_->Now() + timeout;
  bool given_up = false;
  MutexLock lock(&mu_);
  // For whoever calls ApplyNext().
  return changed_.WaitUntil(&mu_, clock_, until, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    given_up = give_up && give_up();
    return given_up || pushed_ - queue_.size() >= pushed;
  }) && !given_up;
}

size_t Applier::backlog() const {
  MutexLock lock(&mu_);
  return queue_.size();
}

std::optional<float> Applier::stepsize() const {
  MutexLock lock(&mu_);
  return stepsize_.value();
}

void Applier::DropX0From(Round round) {
  MutexLock lock(&mu_);
  drop_x0_from_ = round;
}

absl::StatusOr<Applier::Snapshot> Applier::TakeSnapshot(WithX0 with_x0, Duration timeout,
                                                        const GiveUp& give_up) {
  const Time until = clock_->Now() + timeout;
  const auto given_up = [&give_up] { return give_up && give_up(); };
  Snapshot snapshot;
  // Fresh memory is slow to touch: before commits wait for it.
  SIGNVOTE_RETURN_IF_ERROR(TryResize(&snapshot.x, replica_->coordinates()));
  if (with_x0 == WithX0::kYes && replica_->has_x0()) {
    SIGNVOTE_RETURN_IF_ERROR(TryResize(&snapshot.x0, replica_->coordinates()));
  }
  {
    MutexLock lock(&mu_);
    // For the commit that is being applied.
    if (!changed_.WaitUntil(&mu_, clock_, until,
                            [this, &given_up]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                              return !busy_ || given_up();
                            })) {
      return absl::DeadlineExceededError(
          "the master replica was busy with one commit all the time: no copy of it was made");
    }
    if (given_up()) return absl::CancelledError("no copy of the master replica is wanted any more");
    busy_ = true;
    snapshot.stepsize = stepsize_.value();
  }
  const absl::Status status = Copy(&snapshot);
  {
    MutexLock lock(&mu_);
    busy_ = false;
  }
  changed_.NotifyAll();
  if (!status.ok()) return status;
  return snapshot;
}

void Applier::AskAgain() {
  {
    // Whoever has asked and been told no does not yet wait until it lets go of the lock.
    MutexLock lock(&mu_);
  }
  changed_.NotifyAll();
}

absl::Status Applier::Copy(Snapshot* out) const {
  // It may have been dropped since.
  if (!replica_->has_x0()) out->x0.clear();
  for (uint64_t p = 0; p < replica_->pieces(); ++p) {
    const uint64_t first = replica_->First(p);
    SIGNVOTE_ASSIGN_OR_RETURN(out->round, replica_->CopyPiece(Plane::kX, p, out->x.data() + first));
    if (out->x0.empty()) continue;
    SIGNVOTE_RETURN_IF_ERROR(replica_->CopyPiece(Plane::kX0, p, out->x0.data() + first).status());
  }
  return absl::OkStatus();
}

ApplierThread::ApplierThread(Applier* applier, Clock* clock, Options options)
    : applier_(applier), clock_(clock), options_(std::move(options)), thread_([this] { Run(); }) {}

ApplierThread::~ApplierThread() { Stop(); }

void ApplierThread::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stopped_.NotifyAll();
  applier_->Wake();
  if (thread_.joinable()) thread_.join();
}

bool ApplierThread::WaitBefore() {
  const Time until = clock_->Now() + options_.delay;
  MutexLock lock(&mu_);
  return !stopped_.WaitUntil(&mu_, clock_, until,
                             [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_; });
}

bool ApplierThread::stopping() {
  MutexLock lock(&mu_);
  return stopping_;
}

void ApplierThread::Run() {
  // Verdicts and commit are still being sent, and workers wait for those.
  YieldToOtherThreads();
  uint64_t delayed = 0;
  while (!stopping()) {
    if (!applier_->WaitForWork(kLookAgain)) continue;
    if (options_.delay > Duration::zero() && delayed < options_.delayed) {
      ++delayed;
      if (!WaitBefore()) return;
    }
    // Not for the last commit's verdict when it holds up the next one.
    if (options_.give_way && applier_->backlog() == 1) options_.give_way();
    const std::optional<Applied> applied = applier_->ApplyNext();
    if (applied.has_value() && options_.on_applied) options_.on_applied(*applied);
  }
}

}  // namespace signvote
