#include "common/process.h"

#include <dirent.h>
#include <fcntl.h>
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
std::atomic<bool> g_save_requested{false};
std::atomic<bool> g_reopen_requested{false};
// Constant once InstallStopSignals() and InstallReloadSignal() have run.
std::atomic<bool> g_hang_up_reloads{false};
std::atomic<bool> g_hang_up_was_ignored{false};
std::atomic<bool> g_had_terminal{false};

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

// Whether this process has a controlling terminal. Async-signal-safe.
bool HasTerminal() {
  const int fd = ::open("/dev/tty", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return false;
  (void)::close(fd);
  return true;
}

bool TerminalHungUp(const siginfo_t& info) {
  if (g_hang_up_was_ignored.load()) return false;
  if (info.si_code == SI_KERNEL) return true;
  if (!g_had_terminal.load() || HasTerminal()) return false;
  // Its shell says so too, and may be gone by now. Who sends it from elsewhere, to a program that
  // outlived its terminal, wants a reload.
  const pid_t session = ::getsid(info.si_pid);
  return session < 0 || session == ::getsid(0);
}

void OnHangUp(int, siginfo_t* info, void*) {
  const int saved_errno = errno;
  if (g_hang_up_reloads.load() && !TerminalHungUp(*info)) {
    g_reload_requested.store(true);
  } else {
    RequestStop();
  }
  errno = saved_errno;
}

void OnOutOfProcessorTime(int) {
  const int saved_errno = errno;
  RequestStop();
  errno = saved_errno;
}

void Handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  SIGNVOTE_CHECK(::sigaction(signal, &action, nullptr) == 0);
}

void HandleHangUp() {
  struct sigaction action {};
  action.sa_sigaction = OnHangUp;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART | SA_SIGINFO;
  SIGNVOTE_CHECK(::sigaction(SIGHUP, &action, nullptr) == 0);
}

}  // namespace

const char* SoftwareVersion() { return SIGNVOTE_VERSION; }

void TuneMalloc() {
  for (const char* const own :
       {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"})
    if (std::getenv(own) != nullptr) return;
  // A refused setting costs speed, not correctness.
  (void)::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  (void)::mallopt(M_TRIM_THRESHOLD, 2000 << 20);
  (void)::mallopt(M_TOP_PAD, 64 << 20);
}

void OpenStandardDescriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest that is free, and those below are taken. Without /dev/null nothing can be done.
    (void)::open("/dev/null", O_RDWR);
  }
}

void IgnoreFileSizeSignal() { Handle(SIGXFSZ, SIG_IGN); }

void InstallStopSignals() {
  (void)StopEvent();  // made here, so that the handler only writes to it
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT}) Handle(signal, OnStopSignal);
  Handle(SIGXCPU, OnOutOfProcessorTime);
  Handle(SIGUSR1, [](int) { g_save_requested.store(true); });
  Handle(SIGUSR2, [](int) { g_reopen_requested.store(true); });
  Handle(SIGPIPE, SIG_IGN);
  IgnoreFileSizeSignal();
  struct sigaction hang_up {};
  SIGNVOTE_CHECK(::sigaction(SIGHUP, nullptr, &hang_up) == 0);
  if (hang_up.sa_handler == SIG_IGN) {
    g_hang_up_was_ignored.store(true);
  } else {
    HandleHangUp();
  }
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

bool TakeSaveRequest() { return g_save_requested.exchange(false); }

bool TakeReopenRequest() { return g_reopen_requested.exchange(false); }

void InstallReloadSignal() {
  g_had_terminal.store(HasTerminal());
  g_hang_up_reloads.store(true);
  HandleHangUp();
}

bool TakeReloadRequest() { return g_reload_requested.exchange(false); }

void YieldToOtherThreads() {
  // On Linux this is the calling thread's own. Every thread may give way; where a filter of system
  // calls forbids it, that costs speed only.
  const int now = ::getpriority(PRIO_PROCESS, 0);
  (void)::setpriority(PRIO_PROCESS, 0, now + kYieldingNiceness);
}

uint64_t DescriptorLimit() {
  rlimit limit{};
  SIGNVOTE_CHECK(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  return limit.rlim_cur;
}

uint64_t RaiseDescriptorLimit() {
  rlimit limit{};
  SIGNVOTE_CHECK(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);  // refused (seccomp): the old one holds
  return DescriptorLimit();
}

uint64_t OpenDescriptors() {
  DIR* const folder = ::opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  uint64_t entries = 0;
  while (::readdir(folder) != nullptr) ++entries;
  (void)::closedir(folder);            // opened for reading only
  constexpr uint64_t kNotCounted = 3;  // ".", "..", and the folder itself
  return entries > kNotCounted ? entries - kNotCounted : 0;
}

void RunWhenIdle() {
  // As above.
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
