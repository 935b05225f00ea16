#include "ctl/top.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/status.h"
#include "ctl/terminal.h"
#include "ctl/top_lines.h"
#include "ctl/top_model.h"
#include "ctl/top_view.h"

namespace signvote::ctl {
namespace {

constexpr Duration kRetryMin = std::chrono::milliseconds(200), kRetryMax = std::chrono::seconds(2);
// Nothing waits without a bound; who has nothing to do looks again after this time.
constexpr Duration kLookAgain = std::chrono::seconds(10);
// the times shown go on without an answer
constexpr Duration kLookEvery = std::chrono::milliseconds(500);
constexpr int kColumnsDefault = 80, kColumnsMax = 1000;

class SignalFd final : public TopSignals {
 public:
  explicit SignalFd(int fd) : fd_(fd) {}
  ~SignalFd() override { close(fd_); }
  int fd() const override { return fd_; }
  int Next() override {
    signalfd_siginfo info{};
    return read(fd_, &info, sizeof(info)) == sizeof(info) ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  const int fd_;
};

// Asks on a thread of its own, so that keys and signals never wait for a network.
class Poller {
 public:
  struct Answer {
    absl::StatusOr<v1::WatchReply> reply;
    Time at;
  };

  Poller(AdminClient* client, Clock* clock, Duration interval)
      : client_(client),
        clock_(clock),
        interval_(interval),
        fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Poller() {
    {
      MutexLock lock(&mu_);
      stopped_ = true;
      cv_.NotifyAll();
    }
    client_->Cancel();
    thread_.join();
    if (fd_ >= 0) close(fd_);
  }

  // Readable when there is an answer.
  int fd() const { return fd_; }
  std::optional<Answer> Take() {
    uint64_t count = 0;
    (void)!read(fd_, &count, sizeof(count));  // empty: an answer that was taken already
    MutexLock lock(&mu_);
    if (answers_.empty()) return std::nullopt;
    Answer answer = std::move(answers_.front());
    answers_.pop_front();
    cv_.NotifyAll();
    return answer;
  }

 private:
  void Run() {
    std::string run_id;
    uint64_t events_after = 0;
    Duration wait{};  // the first answer is wanted now
    while (true) {
      const Time begin = clock_->Now();
      absl::StatusOr<v1::WatchReply> reply = client_->Watch(events_after, wait);
      if (reply.ok() && !run_id.empty() && reply->status().run_id() != run_id) {
        // Another run counts its events anew.
        reply = client_->Watch(0, Duration::zero());
      }
      Duration pause{};
      if (reply.ok()) {
        if (reply->status().run_id() != run_id) events_after = 0;
        run_id = reply->status().run_id();
        if (reply->events_size() > 0)
          events_after = reply->events(reply->events_size() - 1).sequence();
        // Whoever answers early is not asked more often for it.
        if (wait > Duration::zero()) pause = begin + wait - clock_->Now();
        wait = interval_;
      } else {
        pause = std::clamp(interval_, kRetryMin, kRetryMax);
        wait = Duration::zero();
      }
      MutexLock lock(&mu_);
      answers_.push_back({std::move(reply), clock_->Now()});
      const uint64_t one = 1;
      (void)!write(fd_, &one, sizeof(one));  // full: it is readable anyhow
      const Time until = clock_->Now() + pause;
      const auto stopped = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopped_; };
      if (cv_.WaitUntil(&mu_, clock_, until, stopped)) return;
      // For whoever takes answers.
      const auto room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopped_ || answers_.size() <= 1;
      };
      while (!cv_.WaitUntil(&mu_, clock_, clock_->Now() + kLookAgain, room)) {
      }
      if (stopped_) return;
    }
  }

  AdminClient* const client_;
  Clock* const clock_;
  const Duration interval_;
  const int fd_;
  std::thread thread_;
  Mutex mu_;
  CondVar cv_;
  std::deque<Answer> answers_ ABSL_GUARDED_BY(mu_);  // bounded: at two, nobody asks further
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

int64_t UtcOffsetSeconds(int64_t unix_seconds) {
  const time_t now = static_cast<time_t>(unix_seconds);
  tm local{};
  return localtime_r(&now, &local) == nullptr ? 0 : local.tm_gmtoff;
}

absl::Status Write(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("cannot write to standard output: ", std::strerror(errno)));
}

int ColumnsOfOutput() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char* columns = std::getenv("COLUMNS");
  const int64_t wanted = columns == nullptr ? 0 : std::strtol(columns, nullptr, 10);
  return wanted > 0 ? static_cast<int>(std::min<int64_t>(wanted, kColumnsMax)) : kColumnsDefault;
}

// How a model is shown. Each call returns OK to go on.
class Display {
 public:
  virtual ~Display() = default;
  virtual absl::Status OnAnswer(const TopModel& model) = 0;
  virtual absl::Status OnLost(const TopModel& model) = 0;
  // Time passes without an answer.
  virtual absl::Status OnTick(const TopModel& model) = 0;
  // OK; or the operator quits: CANCELLED.
  virtual absl::Status OnKeys(const TopModel&) { return absl::OkStatus(); }
  virtual absl::Status OnSignal(const TopModel&, int) { return absl::OkStatus(); }
  virtual bool wants_keys() const { return false; }
  virtual bool done() const { return false; }
};

// What every display needs to know about the moment.
struct Moment {
  Clock* clock;
  double unix_seconds() const { return static_cast<double>(clock->UnixMicros()) * 1e-6; }
  int64_t utc_offset() const { return UtcOffsetSeconds(clock->UnixMicros() / 1'000'000); }
};

class LinesDisplay final : public Display {
 public:
  LinesDisplay(const TopOptions& options, Clock* clock) : options_(options), moment_{clock} {}

  absl::Status OnAnswer(const TopModel& model) override {
    const bool json = options_.mode == TopMode::kJson;
    if (lost_ || model.new_run()) {
      SIGNVOTE_RETURN_IF_ERROR(Note(
          model.new_run()
              ? absl::StrCat(options_.server, " answers: another run, ", model.status().run_id())
              : options_.server + " answers again"));
    }
    lost_ = false;
    done_ = model.ended();
    const bool changed =
        !shown_ || model.status().round() != round_ || model.status().phase() != phase_;
    shown_ = true;
    round_ = model.status().round();
    phase_ = model.status().phase();
    const size_t news = model.since_last_reply();
    if (json) {
      if (!changed && news == 0) return absl::OkStatus();
      v1::WatchReply reply;
      *reply.mutable_status() = model.status();
      for (size_t i = model.events().size() - news; i < model.events().size(); ++i) {
        *reply.add_events() = model.events()[i];
      }
      return Write(RenderJsonLine(reply));
    }
    std::string text = std::exchange(headed_, true) ? "" : LinesHeader();
    for (size_t i = model.events().size() - news; i < model.events().size(); ++i) {
      text += LinesEvent(model.events()[i], moment_.utc_offset());
    }
    if (changed) text += LinesRow(model, moment_.unix_seconds(), moment_.utc_offset());
    const std::string& warning = model.status().stepsize_warning();
    if (warning != std::exchange(warning_, warning) && !warning.empty()) {
      text += LinesNote(warning, moment_.unix_seconds(), moment_.utc_offset());
    }
    return text.empty() ? absl::OkStatus() : Write(text);
  }
  absl::Status OnLost(const TopModel& model) override {
    done_ = model.ended();
    if (done_ || std::exchange(lost_, true)) return OnTick(model);
    return Note(absl::StrCat("reconnecting to ", options_.server, ": ", model.lost()->why));
  }
  absl::Status OnTick(const TopModel& model) override {
    if (!lost_ || moment_.clock->Now() - model.lost()->since < options_.server_timeout)
      return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(options_.server, ": no answer for ",
                                               ToSeconds(options_.server_timeout),
                                               " s (--server-timeout); ", model.lost()->why));
  }
  bool done() const override { return done_; }

 private:
  // Objects alone on standard output: programs read them.
  absl::Status Note(const std::string& text) {
    const std::string line = LinesNote(text, moment_.unix_seconds(), moment_.utc_offset());
    if (options_.mode != TopMode::kJson) return Write(line);
    std::fputs(line.c_str(), stderr);
    return absl::OkStatus();
  }

  const TopOptions options_;
  const Moment moment_;
  bool headed_ = false, shown_ = false, lost_ = false, done_ = false;
  uint64_t round_ = 0;
  v1::Status::Phase phase_ = v1::Status::PHASE_UNSPECIFIED;
  std::string warning_;  // of the stepsize rule, as it was told
};

// Waits for a second answer, because rates need two.
class OnceDisplay final : public Display {
 public:
  OnceDisplay(const TopOptions& options, Clock* clock) : options_(options), moment_{clock} {}

  absl::Status OnAnswer(const TopModel& model) override {
    if (++answers_ < 2 && !model.ended()) return absl::OkStatus();
    return Show(model);
  }
  absl::Status OnLost(const TopModel& model) override { return Show(model); }
  absl::Status OnTick(const TopModel&) override { return absl::OkStatus(); }
  bool done() const override { return done_; }

 private:
  absl::Status Show(const TopModel& model) {
    done_ = true;
    constexpr int kRowsAroundWorkers = 30;
    const TopView view{.rows = kRowsAroundWorkers + model.status().workers_size(),
                       .columns = ColumnsOfOutput(),
                       .charset = TerminalCharset(),
                       .keys = false,
                       .server = options_.server,
                       .now = moment_.clock->Now(),
                       .unix_seconds = moment_.unix_seconds(),
                       .utc_offset_seconds = moment_.utc_offset()};
    std::string text;
    for (const Line& line : RenderTop(model, view).lines) {
      std::string plain = PlainText(line);
      plain.erase(plain.find_last_not_of(' ') + 1);
      text += plain + "\n";
    }
    return Write(text);
  }

  const TopOptions options_;
  const Moment moment_;
  int answers_ = 0;
  bool done_ = false;
};

class ScreenDisplay final : public Display {
 public:
  ScreenDisplay(const TopOptions& options, Clock* clock, std::unique_ptr<Terminal> terminal)
      : moment_{clock}, terminal_(std::move(terminal)) {
    view_.charset = TerminalCharset();
    view_.server = options.server;
  }

  absl::Status OnAnswer(const TopModel& model) override { return Draw(model); }
  absl::Status OnLost(const TopModel& model) override { return Draw(model); }
  absl::Status OnTick(const TopModel& model) override { return Draw(model); }
  bool wants_keys() const override { return true; }

  absl::Status OnKeys(const TopModel& model) override {
    bool any = false;
    while (const std::optional<Key> key = terminal_->ReadKey()) {
      any = true;
      if (*key == Key::kQuit) return absl::CancelledError("q");
      if (std::exchange(view_.help, false)) continue;
      On(*key, model);
    }
    // Readable without a key: the terminal is gone.
    if (!any) return absl::CancelledError("the terminal hung up");
    return Draw(model);
  }

  absl::Status OnSignal(const TopModel& model, int signal) override {
    if (signal == SIGTSTP) terminal_->Suspend();
    if (signal == SIGWINCH || signal == SIGCONT) terminal_->Refit();
    return Draw(model);
  }

 private:
  void On(Key key, const TopModel& model) {
    const size_t page = std::max<size_t>(1, page_);
    switch (key) {
      case Key::kHelp:
        view_.help = true;
        return;
      case Key::kSort:
        view_.sort = NextSortKey(view_.sort);
        return;
      case Key::kSortBack:
        view_.sort = PreviousSortKey(view_.sort);
        return;
      case Key::kReverse:
        view_.reversed = !view_.reversed;
        return;
      case Key::kFreeze:
        if (frozen_.has_value()) {
          frozen_.reset();
        } else {
          frozen_ = model;
        }
        return;
      case Key::kUp:
        view_.first_worker -= std::min<size_t>(1, view_.first_worker);
        return;
      case Key::kDown:
        ++view_.first_worker;
        return;
      case Key::kPageUp:
        view_.first_worker -= std::min(page, view_.first_worker);
        return;
      case Key::kPageDown:
        view_.first_worker += page;
        return;
      case Key::kHome:
        view_.first_worker = 0;
        return;
      case Key::kEnd:
        view_.first_worker = static_cast<size_t>(model.status().workers_size());
        return;
      case Key::kQuit:
      case Key::kOther:
        return;
    }
  }

  absl::Status Draw(const TopModel& model) {
    view_.rows = terminal_->rows();
    view_.columns = terminal_->columns();
    view_.frozen = frozen_.has_value();
    view_.now = moment_.clock->Now();
    view_.unix_seconds = moment_.unix_seconds();
    view_.utc_offset_seconds = moment_.utc_offset();
    const Frame frame = RenderTop(frozen_.has_value() ? *frozen_ : model, view_);
    view_.first_worker = frame.first_worker;
    page_ = frame.workers_shown;
    terminal_->Draw(frame.lines);
    return absl::OkStatus();
  }

  const Moment moment_;
  const std::unique_ptr<Terminal> terminal_;
  TopView view_;
  size_t page_ = 0;
  std::optional<TopModel> frozen_;
};

// Once the first answer is there: before it, errors are plain text.
std::unique_ptr<Display> OpenDisplay(const TopOptions& options, Clock* clock) {
  if (options.mode == TopMode::kOnce) return std::make_unique<OnceDisplay>(options, clock);
  if (options.mode == TopMode::kScreen) {
    absl::StatusOr<std::unique_ptr<Terminal>> terminal = Terminal::Open(options.colour);
    if (terminal.ok()) return std::make_unique<ScreenDisplay>(options, clock, *std::move(terminal));
    // Piped output wants lines and no remark; a terminal that shows lines gets to know why.
    if (isatty(STDOUT_FILENO) != 0) {
      std::fprintf(stderr, "signvote: showing lines: %s\n", Describe(terminal.status()).c_str());
    }
  }
  return std::make_unique<LinesDisplay>(options, clock);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TopSignals>> TopSignals::Create() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGTSTP, SIGCONT}) {
    // What the caller ignores (nohup, a shell without job control) stays ignored.
    struct sigaction now {};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN) continue;
    sigaddset(&set, signal);
  }
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return absl::InternalError(absl::StrCat("signalfd: ", std::strerror(errno)));
  return std::make_unique<SignalFd>(fd);
}

absl::Status RunTop(const TopOptions& options, AdminClient* client, TopSignals* signals,
                    Clock* clock) {
  Poller poller(client, clock, options.interval);
  if (poller.fd() < 0) return absl::InternalError(absl::StrCat("eventfd: ", std::strerror(errno)));
  TopModel model;
  std::unique_ptr<Display> display;
  while (display == nullptr || !display->done()) {
    const bool keys = display != nullptr && display->wants_keys();
    std::array<pollfd, 3> waits = {pollfd{signals->fd(), POLLIN, 0}, pollfd{poller.fd(), POLLIN, 0},
                                   pollfd{keys ? STDIN_FILENO : -1, POLLIN, 0}};
    const int ready =
        poll(waits.data(), waits.size(),
             static_cast<int>(
                 std::chrono::duration_cast<std::chrono::milliseconds>(kLookEvery).count()));
    if (ready < 0 && errno != EINTR)
      return absl::InternalError(absl::StrCat("poll: ", std::strerror(errno)));
    absl::Status status;
    while (const int signal = signals->Next()) {
      if (signal == SIGINT || signal == SIGTERM || signal == SIGHUP) return absl::OkStatus();
      if (keys) {
        status.Update(display->OnSignal(model, signal));
      } else if (signal == SIGTSTP) {
        raise(SIGSTOP);
      }
    }
    if (const std::optional<Poller::Answer> answer = poller.Take()) {
      if (answer->reply.ok()) {
        model.OnReply(*answer->reply, answer->at);
        if (display == nullptr) display = OpenDisplay(options, clock);
        status.Update(display->OnAnswer(model));
      } else if (display == nullptr || !absl::IsUnavailable(answer->reply.status())) {
        return answer->reply.status();
      } else {
        model.OnLost(std::string(answer->reply.status().message()), answer->at);
        status.Update(display->OnLost(model));
      }
    } else if (ready == 0 && display != nullptr) {
      status.Update(display->OnTick(model));
    }
    if (keys && waits[2].revents != 0) status.Update(display->OnKeys(model));
    if (absl::IsCancelled(status)) return absl::OkStatus();
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace signvote::ctl
