#include "common/process.h"

#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace signvote {
namespace {

static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

// A tenth of an ordinary thread's share of a processor that both want: late, but never starved.
constexpr int kYieldingNiceness = 10;

// Set by the handler and read by everybody; the eventfd's write and poll order the rest.
std::atomic<bool> g_stop_requested{false};
std::atomic<int> g_stop_signals{0};
std::atomic<bool> g_reload_requested{false};

// Readable once a stop was requested, for any number of waiters. Lives as long as the process.
int StopEvent() {
  static const int fd = [] {
    const int created = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    SIGNVOTE_CHECK(created >= 0);
    return created;
  }();
  return fd;
}

void OnStopSignal(int signal) {
  const int saved_errno = errno;
  if (g_stop_signals.fetch_add(1) > 0) {
    // Pending until this handler returns, then the default action ends the process.
    (void)std::signal(signal, SIG_DFL);
    (void)std::raise(signal);
  } else {
    RequestStop();
  }
  errno = saved_errno;
}

void OnReloadSignal(int) { g_reload_requested.store(true); }

}  // namespace

const char* SoftwareVersion() { return SIGNVOTE_VERSION; }

void TuneMalloc() {
  // A refused setting costs speed, not correctness.
  (void)::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  (void)::mallopt(M_TRIM_THRESHOLD, 2000 << 20);
  (void)::mallopt(M_TOP_PAD, 64 << 20);
}

void InstallStopSignals() {
  (void)StopEvent();  // made here, so that the handler only writes to it
  struct sigaction action {};
  action.sa_handler = OnStopSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  SIGNVOTE_CHECK(::sigaction(SIGTERM, &action, nullptr) == 0);
  SIGNVOTE_CHECK(::sigaction(SIGINT, &action, nullptr) == 0);
  action.sa_handler = SIG_IGN;
  SIGNVOTE_CHECK(::sigaction(SIGPIPE, &action, nullptr) == 0);
}

bool StopRequested() { return g_stop_requested.load(); }

bool WaitForStop(Duration timeout) {
  const Time deadline = Clock::System()->Now() + timeout;
  while (!StopRequested()) {
    const Duration left = deadline - Clock::System()->Now();
    if (left <= Duration::zero()) break;
    // Rounded up: a wait of less than a millisecond must not spin.
    const int64_t left_ms = std::min<int64_t>((left.count() + 999'999) / 1'000'000, INT_MAX);
    pollfd event{StopEvent(), POLLIN, 0};
    (void)::poll(&event, 1,
                 static_cast<int>(left_ms));  // the loop's conditions decide, whatever it returned
  }
  return StopRequested();
}

void RequestStop() {
  g_stop_requested.store(true);
  const uint64_t one = 1;
  const ssize_t written = ::write(StopEvent(), &one, sizeof(one));
  (void)written;  // can only fail when the event is already set as often as it counts
}

void InstallReloadSignal() {
  struct sigaction action {};
  action.sa_handler = OnReloadSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  SIGNVOTE_CHECK(::sigaction(SIGHUP, &action, nullptr) == 0);
}

bool TakeReloadRequest() { return g_reload_requested.exchange(false); }

void YieldToOtherThreads() {
  // On Linux this is the calling thread's own. Giving way is always allowed; were it not, it would
  // cost speed only.
  const int now = ::getpriority(PRIO_PROCESS, 0);
  (void)::setpriority(PRIO_PROCESS, 0, now + kYieldingNiceness);
}

void RunWhenIdle() {
  // Always allowed; were it not, it would cost speed only.
  const sched_param none{};
  (void)::sched_setscheduler(0, SCHED_IDLE, &none);
}

uint64_t ResidentBytes() {
  std::FILE* const file = std::fopen("/proc/self/status", "re");
  if (file == nullptr) return 0;
  uint64_t kib = 0;
  char line[256];
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::strncmp(line, "VmRSS:", 6) == 0) {
      kib = std::strtoull(line + 6, nullptr, 10);
      break;
    }
  }
  (void)std::fclose(file);  // opened for reading only
  return kib * 1024;
}

double ProcessCpuSeconds() {
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0.0;
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace signvote
