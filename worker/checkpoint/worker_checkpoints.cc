#include "worker/checkpoint/worker_checkpoints.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint32_t kFolderMode = 0700;
constexpr int kEarlierMax = 10'000;
// Nothing waits without a bound; who has nothing to do looks again after this time.
constexpr Duration kLookAgain = std::chrono::seconds(10);

void Tell(const std::string& path, const Resumed& resumed, const WorkerState& state) {
  const std::initializer_list<LogField> fields = {{"path", path},
                                                  {"round", resumed.round.value()},
                                                  {"age_rounds", resumed.age_rounds},
                                                  {"share", uint64_t{state.share.value()}}};
  switch (resumed.how) {
    case Resumed::How::kExactly:
      return LogInfo("goes on from its checkpoint, exactly", fields);
    case Resumed::How::kAsItWas:
      return LogWarning(
          "goes on from a checkpoint that is not the replica's: the direction's state is used as "
          "it "
          "is, error feedback begins anew",
          fields);
    case Resumed::How::kForgotten:
      return LogWarning(
          "the checkpoint is from before the first main round and not the replica's: the direction "
          "begins without it",
          fields);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerCheckpoints>> WorkerCheckpoints::Open(FileSystem* fs,
                                                                           Clock* clock,
                                                                           Options options) {
  const auto bad = [](const absl::Status& status) {
    return WithExitCode(WithContext(status, "--checkpoint"), ExitCode::kBadInput);
  };
  if (const absl::Status made = fs->MakeDirectories(options.folder, kFolderMode); !made.ok())
    return bad(made);
  std::unique_ptr<WorkerCheckpoints> out(new WorkerCheckpoints(fs, clock, std::move(options)));
  if (const absl::Status writable = RequireWritable(fs, out->path_); !writable.ok())
    return bad(writable);
  absl::StatusOr<WorkerState> found = ReadWorkerState(fs, out->path_);
  if (found.ok()) {
    out->found_ = *std::move(found);
  } else if (absl::IsResourceExhausted(found.status())) {
    return WithContext(found.status(), "--checkpoint");
  } else if (!absl::IsNotFound(found.status())) {
    return bad(
        absl::Status(found.status().code(),
                     absl::StrCat(found.status().message(),
                                  "; move it away to begin without this worker's momentum")));
  }
  if (out->found_.has_value() && out->found_->worker != out->options_.worker) {
    return bad(absl::FailedPreconditionError(
        absl::StrCat(out->path_, " is of worker ", out->found_->worker, ", and this is ",
                     out->options_.worker, "; give each worker its own name's file")));
  }
  return out;
}

WorkerCheckpoints::WorkerCheckpoints(FileSystem* fs, Clock* clock, Options options)
    : fs_(fs),
      clock_(clock),
      options_(std::move(options)),
      path_(absl::StrCat(options_.folder, "/", options_.worker, ".state")),
      thread_([this] { Run(); }) {}

WorkerCheckpoints::~WorkerCheckpoints() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

absl::Status WorkerCheckpoints::Resume(const StateOwner& owner, Round round, uint64_t main_round,
                                       const GivenBack& given_back) {
  schedule_.emplace(options_.every, round, clock_->Now());
  main_round_ = main_round;
  if (!found_.has_value()) return absl::OkStatus();
  const WorkerState state = *std::exchange(found_, std::nullopt);
  share_ = state.share;
  if (state.run_id != owner.run->run_id) return PutAside();
  const absl::StatusOr<Resumed> resumed = GiveWorkerState(state, owner, round, given_back);
  if (!resumed.ok()) {
    return WithExitCode(
        absl::Status(resumed.status().code(),
                     absl::StrCat("--checkpoint: ", path_, ": ", resumed.status().message(),
                                  "; move it away, or give another --checkpoint")),
        ExitCodeFor(resumed.status()));
  }
  Tell(path_, *resumed, state);
  untouched_ = true;
  MutexLock lock(&mu_);
  stats_.resumed = *resumed;
  return absl::OkStatus();
}

absl::Status WorkerCheckpoints::PutAside() {
  for (int n = 1; n <= kEarlierMax; ++n) {
    const std::string aside =
        absl::StrCat(options_.folder, "/", options_.worker, ".earlier-", n, ".state");
    const absl::Status called = fs_->AlsoCall(path_, aside);
    if (absl::IsAlreadyExists(called)) continue;
    SIGNVOTE_RETURN_IF_ERROR(WithContext(called, "--checkpoint"));
    LogWarning(
        "the checkpoint that was there is of another run: it is put aside, and this worker begins "
        "without one",
        {{"path", path_}, {"as", aside}});
    const absl::Status removed = fs_->Remove(path_);
    return absl::IsNotFound(removed) ? absl::OkStatus() : WithContext(removed, "--checkpoint");
  }
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                          "--checkpoint: ", path_, " is of another run, and there are ",
                          kEarlierMax, " earlier ones beside it; move them away")),
                      ExitCode::kBadInput);
}

void WorkerCheckpoints::Note(Share share, uint64_t main_round) {
  share_ = share;
  main_round_ = main_round;
  untouched_ = false;
}

absl::StatusOr<WorkerState> WorkerCheckpoints::Take(const StateOwner& owner,
                                                    const KeptByCaller& kept, Round round) const {
  return TakeWorkerState(
      owner, kept,
      {.worker = options_.worker, .round = round, .share = share_, .main_round = main_round_});
}

absl::Status WorkerCheckpoints::AfterRound(const StateOwner& owner, const KeptByCaller& kept,
                                           Round round) {
  if (!schedule_.has_value() || !schedule_->Due(round, clock_->Now())) return absl::OkStatus();
  {
    MutexLock lock(&mu_);
    if (writing_) {
      LogWarning("no checkpoint is written: the one before is still on its way to the disk",
                 {{"path", path_}});
      return absl::OkStatus();
    }
  }
  absl::StatusOr<WorkerState> state = Take(owner, kept, round);
  if (absl::IsResourceExhausted(state.status())) {
    LogError("no checkpoint is written; the next one is tried when it is due",
             {{"path", path_}, {"error", Describe(state.status())}});
    return absl::OkStatus();
  }
  SIGNVOTE_RETURN_IF_ERROR(state.status());
  MutexLock lock(&mu_);
  next_ = std::make_unique<WorkerState>(*std::move(state));
  writing_ = true;
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status WorkerCheckpoints::Final(const StateOwner& owner, const KeptByCaller& kept,
                                      Round round) {
  WaitForWriter();
  // It has not come to its first round; or to none since it went on from what the file says better.
  if (!schedule_.has_value() || untouched_) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(WorkerState state, Take(owner, kept, round));
  final_ = std::make_unique<WorkerState>(std::move(state));
  return WriteFinal();
}

absl::Status WorkerCheckpoints::WriteFinal() {
  if (final_ == nullptr) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(WithContext(
      Write(*final_),
      absl::StrCat("--checkpoint: the state of round ", final_->round.value(), " is not written")));
  LogInfo("the worker's state is saved", {{"path", path_},
                                          {"round", final_->round.value()},
                                          {"ballot_open", uint64_t{final_->unsettled}}});
  final_.reset();
  return absl::OkStatus();
}

absl::Status WorkerCheckpoints::Write(const WorkerState& state) {
  const absl::Status status =
      WithExitCode(WriteWorkerState(fs_, path_, state), ExitCode::kBadInput);
  MutexLock lock(&mu_);
  if (status.ok()) {
    stats_.written = state.round;
    ++stats_.written_total;
  } else {
    ++stats_.failed_total;
  }
  return status;
}

void WorkerCheckpoints::WaitForWriter() {
  MutexLock lock(&mu_);
  // For the disk, however long it takes.
  while (!changed_.WaitUntil(&mu_, Clock::System(), Clock::System()->Now() + kLookAgain,
                             [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !writing_; })) {
  }
}

WorkerCheckpoints::Stats WorkerCheckpoints::stats() const {
  MutexLock lock(&mu_);
  return stats_;
}

void WorkerCheckpoints::Run() {
  Clock* const clock = Clock::System();
  while (true) {
    std::unique_ptr<WorkerState> state;
    {
      MutexLock lock(&mu_);
      (void)changed_.WaitUntil(
          &mu_, clock, clock->Now() + kLookAgain,
          [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return next_ != nullptr || stopping_; });
      state = std::move(next_);
      if (state == nullptr && stopping_) return;
    }
    if (state == nullptr) continue;
    if (const absl::Status written = Write(*state); !written.ok()) {
      LogError("a checkpoint is not written; the next one is tried when it is due",
               {{"path", path_}, {"error", Describe(written)}});
    }
    state.reset();  // before anybody takes it to be done
    MutexLock lock(&mu_);
    writing_ = false;
    changed_.NotifyAll();
  }
}

}  // namespace signvote
