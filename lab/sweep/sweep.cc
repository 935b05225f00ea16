#include "lab/sweep/sweep.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/direction_config.h"
#include "common/exit_codes.h"
#include "common/file_lock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "lab/sweep/inputs.h"
#include "lab/sweep/plan.h"
#include "lab/sweep/results.h"
#include "lab/sweep/spec.h"

namespace signvote::lab {
namespace {

constexpr uint64_t kSweepBytesMax = 1 << 20;
constexpr Duration kTellEvery = std::chrono::seconds(1);
constexpr Duration kLookAgain = std::chrono::seconds(10);  // waits end by notifications
constexpr uint64_t kCurvePoints = 200;
constexpr uint32_t kFileMode = 0644;
constexpr uint32_t kFolderMode = 0755;

std::string NameOf(const SweepSpec& spec, const SweepCell& cell) {
  const CellGroup& g = spec.groups[cell.group];
  std::string name = absl::StrCat(g.task, " ", g.direction, " ", g.rule);
  if (g.aggregate != "vote") absl::StrAppend(&name, " ", g.aggregate);
  if (g.local_steps != "1") absl::StrAppend(&name, " H=", g.local_steps);
  if (cell.stepsize.has_value()) absl::StrAppend(&name, absl::StrFormat(" %.2g", *cell.stepsize));
  absl::StrAppend(&name, " n=", g.workers, " seed ", cell.seed);
  return name;
}

std::string ResultsPath(const SweepOptions& options) { return options.folder + "/results.csv"; }

// What a run went through, in few lines: means over as many rounds each.
class Curve {
 public:
  explicit Curve(uint64_t rounds) : every_(std::max<uint64_t>(1, rounds / kCurvePoints)) {}

  void Add(const LocalRound& round) {
    if (std::isfinite(round.loss)) {
      sum_ += round.loss;
      ++count_;
    }
    if (round.held_out.has_value()) held_out_ = absl::StrFormat("%.7g", round.held_out->loss);
    if ((round.round.value() + 1) % every_ != 0 && held_out_.empty()) return;
    absl::StrAppend(
        &text_, absl::StrFormat("%d,%d,%.3f,%d,%d,%s,%.7g,%s\n", round.round.value() + 1,
                                round.main_round, round.seconds, round.bytes_up, round.bytes_down,
                                count_ == 0 ? "" : absl::StrFormat("%.7g", sum_ / count_),
                                static_cast<double>(round.stepsize), held_out_));
    sum_ = 0;
    count_ = 0;
    held_out_.clear();
  }
  std::string Text() const {
    return "round,main_round,seconds,bytes_up,bytes_down,loss,stepsize,held_out_loss\n" + text_;
  }

 private:
  const uint64_t every_;
  double sum_ = 0;
  int count_ = 0;
  std::string held_out_, text_;
};

// A run that has ended.
struct Ended {
  SweepCell cell;
  LocalReport report;
  float last_stepsize = 0;
  std::string curve;
  absl::Status status;
  absl::Status run_end;  // CellResult::run_end
};

// Runs cells, several at a time. What is under way when it goes is ended behind the round at hand.
// Threads: thread-safe; runs are on internal threads.
class Runners {
 public:
  Runners(const CellHost& host, const SweepSpec* spec, uint32_t jobs, const std::stop_token& stop)
      : host_(host), spec_(spec), stopped_(stop, [this] { stop_.request_stop(); }) {
    for (uint32_t k = 0; k < jobs; ++k) threads_.emplace_back([this] { Work(); });
  }
  ~Runners() {
    stop_.request_stop();
    MutexLock lock(&mu_);
    closed_ = true;
    waiting_.clear();
    changed_.NotifyAll();
  }

  void Push(SweepCell cell) {
    MutexLock lock(&mu_);
    waiting_.push_back(std::move(cell));
    changed_.NotifyAll();
  }
  // Those that have ended since the last call; none after `timeout`.
  std::vector<Ended> Take(Duration timeout) {
    MutexLock lock(&mu_);
    (void)changed_.WaitUntil(&mu_, host_.clock, host_.clock->Now() + timeout,
                             [this]()
                                 ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !ended_.empty(); });
    return std::exchange(ended_, {});
  }

 private:
  void Work() {
    while (true) {
      std::optional<SweepCell> cell;
      {
        MutexLock lock(&mu_);
        while (!closed_ && waiting_.empty()) changed_.WaitFor(&mu_, kLookAgain);
        if (closed_) return;
        cell = std::move(waiting_.front());
        waiting_.pop_front();
      }
      Ended ended = RunOne(*std::move(cell));
      MutexLock lock(&mu_);
      ended_.push_back(std::move(ended));
      changed_.NotifyAll();
    }
  }

  Ended RunOne(SweepCell cell) {
    const CellGroup& group = spec_->groups[cell.group];
    Ended ended;
    CellOptions options{
        .task = group.task_options, .workers = group.workers, .accumulate = group.accumulate};
    options.task.init_seed = cell.seed;
    absl::StatusOr<ServerFlags> flags = ReadRunFlags(host_.fs, cell.flags, group.workers);
    ended.cell = std::move(cell);
    if (!flags.ok()) {
      ended.status = flags.status();
      return ended;
    }
    options.server = *std::move(flags);
    Curve curve(options.server.run.main_rounds_max);
    CellResult result;
    ended.status = RunCell(
        host_, options,
        [&](const LocalRound& round) {
          curve.Add(round);
          ended.last_stepsize = round.stepsize;
        },
        stop_.get_token(), &result);
    ended.report = std::move(result.report);
    ended.run_end = std::move(result.run_end);
    ended.curve = curve.Text();
    return ended;
  }

  // Constant after construction.
  const CellHost host_;
  const SweepSpec* const spec_;
  std::stop_source stop_;
  const std::stop_callback<std::function<void()>> stopped_;

  Mutex mu_;
  CondVar changed_;
  std::deque<SweepCell> waiting_ ABSL_GUARDED_BY(mu_);
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::jthread> threads_;  // last: they use those above
};

// Every flag of every group, so that a wrong one is told before hours of others. What is taken, and worth
// a word, goes to `warnings`.
absl::Status CheckGroups(const CellHost& host, const SweepSpec& spec, const std::string& file,
                         std::vector<std::string>* warnings) {
  std::set<std::string> made;  // tasks, each of which takes a while
  for (size_t k = 0; k < spec.groups.size(); ++k) {
    const SweepCell cell = CellOf(spec, k, spec.groups[k].seeds.front(), 0);
    const absl::StatusOr<ServerFlags> flags =
        ReadRunFlags(host.fs, cell.flags, spec.groups[k].workers);
    absl::Status status = flags.status();
    const TaskOptions& task = spec.groups[k].task_options;
    if (status.ok() &&
        made.insert(absl::StrCat(task.name, "\n", task.data, "\n", task.rows, "\n", task.task_seed))
            .second)
      status = MakeTask(host.fs, task, host.torch).status();
    if (status.ok()) {
      for (const std::string& warning : DirectionWarnings(flags->run.direction)) {
        if (std::find(warnings->begin(), warnings->end(), warning) == warnings->end())
          warnings->push_back(warning);
      }
      continue;
    }
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                            file, ": ", NameOf(spec, cell), ": ", std::string(status.message()))),
                        ExitCode::kUsage);
  }
  return absl::OkStatus();
}

class Sweep {
 public:
  Sweep(const CellHost& host, const SweepOptions& options, SweepSpec spec,
        std::vector<std::string> warnings)
      : host_(host), options_(options), spec_(std::move(spec)) {
    progress_.warnings = std::move(warnings);
  }

  absl::Status Run(const std::function<void(const SweepProgress&)>& tell,
                   const std::stop_token& stop) {
    SIGNVOTE_RETURN_IF_ERROR(
        host_.fs->MakeDirectories(absl::StrCat(options_.folder, "/curves"), kFolderMode));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<FileLock> lock, LockFolder());
    SIGNVOTE_ASSIGN_OR_RETURN(results_, ResultsFile::Open(host_.fs, ResultsPath(options_)));
    SweepPlan plan = PlanSweep(spec_, results_->losses());
    SIGNVOTE_RETURN_IF_ERROR(WriteCells(plan));
    Runners runners(host_, &spec_, options_.jobs, stop);
    while (true) {
      for (const SweepCell& cell : plan.next) {
        if (running_.size() >= options_.jobs) break;
        if (!running_.insert(cell.id).second) continue;
        runners.Push(cell);
      }
      progress_.done = plan.done;
      progress_.known = plan.done + plan.next.size();
      progress_.running = running_.size();
      progress_.seconds_left = SecondsLeft(plan);
      tell(progress_);
      if (running_.empty()) return absl::OkStatus();
      std::vector<Ended> ended = runners.Take(kTellEvery);
      // Of a run that was stopped the figures are of no whole run.
      if (!stop.stop_requested())
        for (const Ended& one : ended) SIGNVOTE_RETURN_IF_ERROR(Note(one));
      if (stop.stop_requested()) {
        return absl::CancelledError(absl::StrCat("stopped with ", plan.done, " of ",
                                                 plan.done + plan.next.size(),
                                                 " runs done; the same command goes on from here"));
      }
      if (ended.empty()) continue;
      const size_t known = plan.known.size();
      plan = PlanSweep(spec_, results_->losses());
      // Grids only grow.
      if (plan.known.size() != known) SIGNVOTE_RETURN_IF_ERROR(WriteCells(plan));
    }
  }

 private:
  absl::StatusOr<std::unique_ptr<FileLock>> LockFolder() const {
    absl::StatusOr<std::unique_ptr<FileLock>> lock = FileLock::Take(options_.folder + "/lock");
    if (!absl::IsFailedPrecondition(lock.status())) return lock;
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat(
            options_.folder,
            ": another sweep fills this folder; wait for its end, or give another --output")),
        ExitCode::kBadInput);
  }

  absl::Status WriteCells(const SweepPlan& plan) const {
    return WriteFileAtomically(host_.fs, options_.folder + "/cells.csv",
                               CellsCsv(spec_, plan.known), kFileMode);
  }

  absl::Status Note(const Ended& ended) {
    running_.erase(ended.cell.id);
    const std::optional<CellOutcome> outcome =
        OutcomeOf(ended.status, ended.run_end, ended.report.held_out_last);
    if (!outcome.has_value()) {
      return WithExitCode(WithContext(ended.status, NameOf(spec_, ended.cell)),
                          ExitCodeFor(ended.status));
    }
    const std::string curve = absl::StrCat(options_.folder, "/curves/", ended.cell.id, ".csv");
    SIGNVOTE_RETURN_IF_ERROR(WriteFileAtomically(host_.fs, curve, ended.curve, kFileMode));
    SIGNVOTE_RETURN_IF_ERROR(results_->Append(
        ResultsLine(spec_, ended.cell, ended.report, ended.last_stepsize, *outcome)));
    const bool good = *outcome == CellOutcome::kFinished;
    (*results_->mutable_losses())[ended.cell.id] =
        good ? ended.report.held_out_last->loss : std::numeric_limits<double>::infinity();
    progress_.last = absl::StrCat(NameOf(spec_, ended.cell), ": ",
                                  good ? absl::StrFormat("%.4f", ended.report.held_out_last->loss)
                                       : std::string(OutcomeWord(*outcome)));
    const double seconds = ended.report.seconds + ended.report.eval_seconds;
    std::pair<double, int>& took = took_[ended.cell.group];
    took.first += seconds;
    ++took.second;
    return absl::OkStatus();
  }

  // As long as the runs of the same group took, or as all others did.
  double SecondsLeft(const SweepPlan& plan) const {
    double all = 0;
    int count = 0;
    for (const auto& [group, took] : took_) {
      all += took.first;
      count += took.second;
    }
    if (count == 0) return 0;
    double left = 0;
    for (const SweepCell& cell : plan.next) {
      const auto found = took_.find(cell.group);
      left += found == took_.end() ? all / count : found->second.first / found->second.second;
    }
    return left / options_.jobs;
  }

  // Constant after construction.
  const CellHost host_;
  const SweepOptions options_;
  const SweepSpec spec_;

  std::unique_ptr<ResultsFile> results_;
  std::set<std::string> running_;                  // ids
  std::map<size_t, std::pair<double, int>> took_;  // by group: seconds, of so many runs
  SweepProgress progress_;
};

// Checked, and with what its runs are computed from.
absl::StatusOr<SweepSpec> ReadSpec(const CellHost& host, const std::string& file,
                                   std::vector<std::string>* warnings) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, host.fs->ReadFile(file, kSweepBytesMax));
  SIGNVOTE_ASSIGN_OR_RETURN(SweepSpec spec, ParseSweep(text, file));
  SIGNVOTE_RETURN_IF_ERROR(CheckGroups(host, spec, file, warnings));
  SIGNVOTE_RETURN_IF_ERROR(NameInputs(host.fs, &spec));
  return spec;
}

}  // namespace

absl::Status RunSweep(const CellHost& host, const SweepOptions& options,
                      const std::function<void(const SweepProgress&)>& tell,
                      const std::stop_token& stop) {
  std::vector<std::string> warnings;
  SIGNVOTE_ASSIGN_OR_RETURN(SweepSpec spec, ReadSpec(host, options.file, &warnings));
  return Sweep(host, options, std::move(spec), std::move(warnings)).Run(tell, stop);
}

absl::StatusOr<SweepListing> ListSweep(const CellHost& host, const SweepOptions& options) {
  std::vector<std::string> warnings;
  SIGNVOTE_ASSIGN_OR_RETURN(const SweepSpec spec, ReadSpec(host, options.file, &warnings));
  SIGNVOTE_ASSIGN_OR_RETURN(const LossesById losses, ReadResults(host.fs, ResultsPath(options)));
  const SweepPlan plan = PlanSweep(spec, losses);
  SweepListing listing{.done = plan.done};
  for (const SweepCell& cell : plan.next) {
    listing.missing.push_back(NameOf(spec, cell));
    listing.grids = listing.grids || spec.groups[cell.group].grid.has_value();
  }
  return listing;
}

}  // namespace signvote::lab
