#include "server/rpc/background.h"

#include <utility>

namespace signvote::rpc {
namespace {

// Nothing waits without a bound; this wait is woken by notifications and merely looks again.
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
      while (jobs_.empty() && !stopping_) (void)work_.WaitFor(&mu_, kLookAgain);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace signvote::rpc
