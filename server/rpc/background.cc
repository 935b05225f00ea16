#include "server/rpc/background.h"

#include <utility>

namespace signvote::rpc {
namespace {

// Nothing waits without a bound; who has nothing to do looks again after this time.
constexpr Duration kLookAgain = std::chrono::seconds(10);

}  // namespace

Background::Background() : thread_([this] { Loop(); }) {}

Background::~Background() { Stop(); }

void Background::Run(std::function<void()> job) {
  {
    MutexLock lock(&mu_);
    if (stopping_) return;
    jobs_.push_back(std::move(job));
  }
  work_.NotifyOne();
}

void Background::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    jobs_.clear();
  }
  work_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void Background::Loop() {
  while (true) {
    std::function<void()> job;
    {
      MutexLock lock(&mu_);
      // For whoever has a job, or stops this.
      Clock* const clock = Clock::System();
      if (!work_.WaitUntil(&mu_, clock, clock->Now() + kLookAgain,
                           [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                             return !jobs_.empty() || stopping_;
                           })) {
        continue;
      }
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace signvote::rpc
