#include "server/run/run_thread.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "common/may_wait.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote::run {
namespace {

// Nothing waits without a bound; waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);
constexpr Duration kGiveUpEvery = std::chrono::milliseconds(100);
constexpr Duration kTellEvery = std::chrono::seconds(10);
// The applier lets verdicts leave first, and is otherwise some commits behind at most.
constexpr Duration kLevelPatience = std::chrono::seconds(2);
// The applier begins when a commit's verdict has left and its workers have had a moment to take it: of
// a machine that they share it then takes nothing that they wait for (docs/performance.md).
constexpr Duration kQuiet = std::chrono::milliseconds(10);
// How long it waits for that: about as long as the verdict of 25 M coordinates takes to four workers at
// 1 Gbit/s. A worker that does not read delays each commit's application by this much.
constexpr Duration kGiveWayMax = std::chrono::milliseconds(100);

// How long a snapshot waits for the commit that is being applied.
constexpr Duration kSnapshotPatience = std::chrono::minutes(1);

absl::Status NoParameters() {
  return absl::FailedPreconditionError("there are no parameters yet: no worker brought any");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunThread>> RunThread::Create(RunThreadOptions options,
                                                             RunParts parts, Clock* clock) {
  std::unique_ptr<RunThread> thread(new RunThread(options, clock));
  parts.clock = clock;
  parts.host = thread.get();
  parts.tally = &thread->tally_;
  RunThread* const self = thread.get();
  if (journal::Journal* const journal = options.journal.journal; journal != nullptr) {
    parts.durability = journal;
    // False, here and below: nobody decides any more.
    journal->Start([self](Round round) { (void)self->Post(DurableIn{round}); },
                   [self](const absl::Status& status) {
                     LogError(
                         "the journal cannot be written: no further commit is told to anybody "
                         "until its disk is mended and the server is started again",
                         {{"error", Describe(status)}});
                     (void)self->Post(JournalFailed{status});
                   });
  }
  const float stepsize = options.state.engine.course.gamma;
  SIGNVOTE_ASSIGN_OR_RETURN(thread->run_, Run::Create(std::move(options.run), std::move(parts),
                                                      std::move(options.state), clock->Now()));
  thread->origin_.stepsize =
      stepsize > 0 ? std::optional(stepsize) : thread->run_->resumed_stepsize();
  return thread;
}

RunThread::RunThread(const RunThreadOptions& options, Clock* clock)
    : clock_(clock),
      epoch_(options.state.epoch),
      applier_options_(
          {.delay = options.test_applier_delay,
           .delayed = options.test_applier_delayed,
           .on_applied =
               [this](const Applied& applied) {
                 if (journal_.journal != nullptr) {
                   journal_.journal->states()->OnApplied(applied.next_round, applied.took);
                   journal_.snapshotter->OnApplied();
                 }
                 (void)Post(applied);  // false: nobody counts any more
               },
           // In time or not, the commit is applied.
           .give_way = [this] { (void)outbound_.WaitUntilQuiet(kQuiet, kGiveWayMax); }}),
      journal_(options.journal),
      origin_{.run_id = options.state.run_id, .rule = options.run.rule.rule},
      // The system's clock: the run's may stand still.
      outbound_(Clock::System()),
      tally_(std::max<size_t>(1, options.tally_threads), clock, [this](ChunkTallied tallied) {
        (void)Post(std::move(tallied));  // likewise
      }) {}

RunThread::~RunThread() { Stop(); }

void RunThread::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void RunThread::Stop() {
  stopping_ = true;
  inbox_.Close();
  if (thread_.joinable()) thread_.join();
  if (loader_.joinable()) loader_.join();
  tally_.Stop();
  if (journal_.journal != nullptr) {
    journal_.snapshotter->Stop();
    journal_.journal->Stop();
  }
  ApplierThread* applier = nullptr;
  {
    MutexLock lock(&mu_);
    applier = applier_thread_.get();
  }
  if (applier != nullptr) applier->Stop();
}

bool RunThread::Post(Input input) { return inbox_.Push(std::move(input)); }

bool RunThread::Call(RunCall call) { return inbox_.Push(std::move(call)); }

void RunThread::RequestStop() {
  (void)Call([](Run& run, Time now) { run.RequestStop(now); });  // false: stopped already
}

bool RunThread::WaitUntilEnded(Duration timeout) {
  MutexLock lock(&mu_);
  return changed_.WaitUntil(&mu_, clock_, clock_->Now() + timeout,
                            [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return public_.ended; });
}

absl::Status RunThread::end_status() const {
  MutexLock lock(&mu_);
  SIGNVOTE_CHECK(public_.ended);
  return public_.end_status;
}

void RunThread::CloseStreams(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  // The answer comes behind everything that was said before: then the count is the last word.
  const auto asked = Ask<bool>(timeout, [](Run& run, Time now) {
    run.CloseStreams(now);
    return true;
  });
  if (!asked.ok()) return;
  MutexLock lock(&mu_);
  (void)changed_.WaitUntil(&mu_, clock_, until, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return public_.streams == 0;
  });
}

template <typename T>
absl::StatusOr<T> RunThread::Ask(Duration timeout, std::function<T(Run& run, Time now)> question) {
  struct Answer {
    Mutex mu;
    CondVar cv;
    std::optional<T> value ABSL_GUARDED_BY(mu);
  };
  // Shared: the answer may come after this call has given up.
  const auto answer = std::make_shared<Answer>();
  const bool posted = Call([answer, question = std::move(question)](Run& run, Time now) {
    T value = question(run, now);
    MutexLock lock(&answer->mu);
    answer->value = std::move(value);
    answer->cv.NotifyAll();
  });
  if (!posted) return absl::UnavailableError("the server stops");
  MutexLock lock(&answer->mu);
  const bool answered = answer->cv.WaitUntil(
      &answer->mu, clock_, clock_->Now() + timeout,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(answer->mu) { return answer->value.has_value(); });
  if (!answered) return absl::DeadlineExceededError("the run's thread does not answer");
  return *std::move(answer->value);
}

absl::StatusOr<Health> RunThread::HealthNow(Duration timeout) {
  return Ask<Health>(timeout, [](Run& run, Time) { return run.HealthNow(); });
}

absl::StatusOr<StatusPage> RunThread::Snapshot(Duration timeout) {
  SIGNVOTE_ASSIGN_OR_RETURN(StatusPage page, Ask<StatusPage>(timeout, [](Run& run, Time now) {
                              return run.Snapshot(now);
                            }));
  page.resident_bytes = ResidentBytes();
  page.log_lines_dropped += DroppedLogLines();
  return page;
}

ExportOrigin RunThread::OriginAt(Round round, std::optional<float> stepsize) const {
  ExportOrigin origin = origin_;
  origin.round = round;
  if (stepsize.has_value()) origin.stepsize = stepsize;
  return origin;
}

absl::StatusOr<RunThread::Exported> RunThread::CopyReplica(CopyOf what, Duration timeout,
                                                           const std::function<bool()>& give_up) {
  Exported out;
  Applier* applier = nullptr;
  {
    MutexLock lock(&mu_);
    if (public_.replica == nullptr) return NoParameters();
    out.layout = public_.replica->layout();
    out.config_json = public_.config_json;
    applier = applier_.get();
  }
  const auto unwanted = [&] { return copies_ended_.load() || (give_up && give_up()); };
  const Time until = clock_->Now() + timeout;
  if (what == CopyOf::kCommitted) {
    (void)applier->WaitUntilApplied(applier->pushed(), std::min(timeout, kLevelPatience), unwanted);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(
      Applier::Snapshot snapshot,
      applier->TakeSnapshot(Applier::WithX0::kNo, until - clock_->Now(), unwanted));
  out.origin = OriginAt(snapshot.round, snapshot.stepsize);
  out.x = std::move(snapshot.x);
  return out;
}

void RunThread::AskCopiesAgain() {
  MutexLock lock(&mu_);
  if (applier_ != nullptr) applier_->AskAgain();
}

void RunThread::EndCopies() {
  copies_ended_ = true;
  AskCopiesAgain();
}

absl::StatusOr<RunThread::Final> RunThread::FinalReplica(const std::function<bool()>& give_up) {
  Final out;
  Round round;
  Applier* applier = nullptr;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_CHECK(public_.ended);
    if (public_.replica == nullptr) return NoParameters();
    out.replica = public_.replica;
    out.config_json = public_.config_json;
    round = public_.committed;
    applier = applier_.get();
  }
  Time tell = clock_->Now() + kTellEvery;
  while (!applier->WaitUntilIdle(kGiveUpEvery)) {
    if (give_up()) return absl::CancelledError("stopped while the master replica was behind");
    if (clock_->Now() < tell) continue;
    tell = clock_->Now() + kTellEvery;
    LogWarning("the export waits for the master replica",
               {{"rounds", uint64_t{applier->backlog()}}});
  }
  out.origin = OriginAt(round, applier->stepsize());
  return out;
}

std::optional<Round> RunThread::committed() const {
  MutexLock lock(&mu_);
  return public_.replica != nullptr ? std::optional(public_.committed) : std::nullopt;
}

CommitConsumer* RunThread::StartApplier(const std::shared_ptr<MasterReplica>& replica,
                                        size_t backlog_max) {
  MutexLock lock(&mu_);
  SIGNVOTE_CHECK(applier_ == nullptr);
  public_.replica = replica;
  applier_ = std::make_unique<Applier>(replica.get(), clock_, backlog_max);
  applier_thread_ = std::make_unique<ApplierThread>(applier_.get(), clock_, applier_options_);
  if (journal_.snapshotter != nullptr) {
    journal_.snapshotter->Start([applier = applier_.get()](const journal::GiveUp& give_up)
                                    -> absl::StatusOr<journal::Snapshotter::Copied> {
      SIGNVOTE_ASSIGN_OR_RETURN(
          Applier::Snapshot copy,
          applier->TakeSnapshot(Applier::WithX0::kYes, kSnapshotPatience, give_up));
      return journal::Snapshotter::Copied{
          .round = copy.round, .x = std::move(copy.x), .x0 = std::move(copy.x0)};
    });
  }
  return applier_.get();
}

void RunThread::DropX0From(Round round) {
  MutexLock lock(&mu_);
  applier_->DropX0From(round);
}

void RunThread::LoadInitial(std::unique_ptr<InitialParameters> init,
                            std::shared_ptr<MasterReplica> replica) {
  loader_ = std::thread([this, init = std::move(init), replica = std::move(replica)]() mutable {
    InitLoaded loaded = run::LoadInitial(*init, *replica, [this] { return stopping_.load(); });
    init.reset();
    replica.reset();
    (void)Post(std::move(loaded));  // false: nobody trains any more
  });
}

void RunThread::Tell() {
  MutexLock lock(&mu_);
  // Who waits, waits for these two; waking it for every input would cost rounds.
  const bool changed = public_.streams != run_->streams() || (run_->ended() && !public_.ended);
  public_.streams = run_->streams();
  public_.committed = run_->committed();
  if (public_.replica != nullptr && public_.config_json.empty()) {
    public_.config_json = run_->model().config_json();
  }
  if (run_->ended() && !public_.ended) {
    public_.ended = true;
    public_.end_status = run_->end_status();
  }
  if (changed) changed_.NotifyAll();
}

void RunThread::Loop() {
  std::vector<Item> items;
  while (true) {
    const std::optional<Time> tick = run_->NextTick();
    const Time wake = tick.value_or(clock_->Now() + kLookAgain);
    const bool open = inbox_.TakeAll(wake - clock_->Now(), &items);
    {
      // From here on others wait for this thread.
      const NoWaitScope no_wait;
      for (Item& item : items) {
        if (auto* call = std::get_if<RunCall>(&item)) {
          (*call)(*run_, clock_->Now());
        } else if (open) {
          run_->Handle(clock_->Now(), std::move(std::get<Input>(item)));
        }
      }
      items.clear();
      // Ticks come after what lay in the inbox: ballots that are here are in time.
      const std::optional<Time> due = run_->NextTick();
      if (open && due.has_value() && clock_->Now() >= *due) run_->Handle(clock_->Now(), TickIn{});
    }
    Tell();
    if (!open) break;
  }
  run_->RefuseWatchers(absl::UnavailableError("the server stops"));
  run_.reset();
}

}  // namespace signvote::run
