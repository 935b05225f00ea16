#include "lab/run/processes.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace signvote::lab {
namespace {

constexpr int kNotStarted = 127;
constexpr int kLogMode = 0644;

class PosixProcesses final : public Processes {
 public:
  ~PosixProcesses() override {
    for (const auto& [id, end] : known_)
      if (!end.has_value()) ::kill(static_cast<pid_t>(id), SIGKILL);
    for (const auto& [id, end] : known_)
      if (!end.has_value()) Reap(id, 0);
  }

  absl::StatusOr<int64_t> Start(const std::vector<std::string>& command,
                                const std::string& log_path) override {
    SIGNVOTE_CHECK(!command.empty());
    std::vector<std::string> texts = command;
    std::vector<char*> argv;
    for (std::string& text : texts) argv.push_back(text.data());
    argv.push_back(nullptr);
    const char* const log = log_path.c_str();
    const pid_t parent = ::getpid();
    const pid_t child = ::fork();
    if (child < 0) {
      return absl::UnavailableError(
          absl::StrCat(command.front(), " cannot be started: ", std::strerror(errno)));
    }
    if (child == 0) Become(argv.data(), log, parent);
    known_.emplace(child, std::nullopt);
    return child;
  }

  void Signal(int64_t id, int signal) override {
    if (!Ended(id).has_value()) ::kill(static_cast<pid_t>(id), signal);
  }

  std::optional<ProcessEnd> Ended(int64_t id) override {
    SIGNVOTE_CHECK(known_.contains(id));
    if (!known_[id].has_value()) Reap(id, WNOHANG);
    return known_[id];
  }

 private:
  // In the child, between fork and exec: only what is safe after a fork of a program with threads.
  [[noreturn]] static void Become(char* const* argv, const char* log, pid_t parent) {
    ::setsid();
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(kNotStarted);  // it ended before it was asked for
    for (const int signal : {SIGPIPE, SIGXFSZ, SIGHUP, SIGINT, SIGTERM}) ::signal(signal, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const int in = ::open("/dev/null", O_RDONLY);  // tidy: allow(file) between fork and exec
    const int out =
        ::open(log, O_WRONLY | O_CREAT | O_APPEND, kLogMode);  // tidy: allow(file) likewise
    if (in < 0 || out < 0 || ::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(out, 2) < 0)
      ::_exit(kNotStarted);
    if (in > 2) ::close(in);
    if (out > 2) ::close(out);
    ::execvp(argv[0], argv);
    const char* const why = std::strerror(errno);
    const char* const parts[] = {argv[0], " cannot be started: ", why, "\n"};
    for (const char* const part : parts) {
      if (::write(2, part, std::strlen(part)) < 0) break;
    }
    ::_exit(kNotStarted);
  }

  void Reap(int64_t id, int options) {
    int status = 0;
    pid_t reaped;
    do {
      reaped = ::waitpid(static_cast<pid_t>(id), &status, options);
    } while (reaped < 0 && errno == EINTR);
    if (reaped == 0) return;
    ProcessEnd end;
    if (reaped > 0 && WIFSIGNALED(status)) end.signal = WTERMSIG(status);
    if (reaped > 0 && WIFEXITED(status)) end.code = WEXITSTATUS(status);
    known_[id] = end;
  }

  std::map<int64_t, std::optional<ProcessEnd>> known_;
};

}  // namespace

std::unique_ptr<Processes> Processes::Posix() { return std::make_unique<PosixProcesses>(); }

std::string EndText(const ProcessEnd& end) {
  return end.signal != 0 ? absl::StrCat("signal ", end.signal)
                         : absl::StrCat("exit code ", end.code);
}

}  // namespace signvote::lab
