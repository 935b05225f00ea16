#include "server/replica/applier.h"

#include <utility>

#include "common/process.h"

namespace signvote {
namespace {

// Nothing waits without a bound; these waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);

}  // namespace

Applier::Applier(MasterReplica* replica, Clock* clock, Options options)
    : replica_(replica), clock_(clock), options_(std::move(options)), thread_([this] { Run(); }) {}

Applier::~Applier() { Stop(); }

bool Applier::TryPush(std::shared_ptr<const CommitRecord> record) {
  {
    MutexLock lock(&mu_);
    if (queue_.size() >= options_.backlog_max) return false;
    queue_.push_back(std::move(record));
  }
  work_.NotifyOne();
  return true;
}

bool Applier::WaitForRoom(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  while (queue_.size() >= options_.backlog_max) {
    const Duration left = until - clock_->Now();
    if (left <= Duration::zero()) return false;
    (void)room_.WaitFor(&mu_, left);  // the loop looks at the condition itself
  }
  return true;
}

bool Applier::WaitUntilIdle(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  while (!queue_.empty()) {
    const Duration left = until - clock_->Now();
    if (left <= Duration::zero()) return false;
    (void)room_.WaitFor(&mu_, left);  // likewise
  }
  return true;
}

size_t Applier::backlog() const {
  MutexLock lock(&mu_);
  return queue_.size();
}

Round Applier::Snapshot(std::vector<float>* out) const {
  out->resize(replica_->coordinates());
  MutexLock lock(&replica_mu_);
  Round round;
  for (uint64_t p = 0; p < replica_->pieces(); ++p)
    round = replica_->CopyPiece(p, out->data() + replica_->First(p));
  return round;
}

void Applier::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  work_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void Applier::Run() {
  // Verdicts and commit are still being sent, and workers wait for those.
  YieldToOtherThreads();
  while (true) {
    std::shared_ptr<const CommitRecord> record;
    {
      MutexLock lock(&mu_);
      while (queue_.empty() && !stopping_) (void)work_.WaitFor(&mu_, kLookAgain);
      if (stopping_) return;
      record = queue_.front();
      const Time until = clock_->Now() + options_.delay;
      while (!stopping_ && clock_->Now() < until) (void)work_.WaitFor(&mu_, until - clock_->Now());
    }
    Applied applied{.next_round = record->round.next()};
    {
      MutexLock lock(&replica_mu_);
      const Time begin = clock_->Now();
      const uint64_t digest = replica_->Apply(*record);
      applied.took = clock_->Now() - begin;
      if (record->digest_due) applied.digest = digest;
    }
    record.reset();
    {
      MutexLock lock(&mu_);
      queue_.pop_front();
    }
    room_.NotifyAll();
    if (options_.on_applied) options_.on_applied(applied);
  }
}

}  // namespace signvote
