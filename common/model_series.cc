#include "common/model_series.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {
namespace {

// Nothing waits without a bound; who has nothing to do looks again after this time.
constexpr Duration kLookAgain = std::chrono::seconds(10);

}  // namespace

ModelSeries::ModelSeries(FileSystem* fs, Options options)
    : fs_(fs), options_(std::move(options)), thread_([this] { Run(); }) {
  SIGNVOTE_CHECK(options_.keep > 0);
}

ModelSeries::~ModelSeries() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

std::string ModelSeries::PathOf(const std::string& path, Round round) {
  // Wide enough that names sort as rounds do.
  return AddToName(path, absl::StrFormat(".round-%08d", round.value()));
}

bool ModelSeries::busy() {
  MutexLock lock(&mu_);
  return writing_;
}

void ModelSeries::TellBusy() const {
  LogWarning("no copy of the model is written: the one before is still on its way to the disk",
             {{"path", options_.path}});
}

void ModelSeries::Write(Take take) {
  MutexLock lock(&mu_);
  SIGNVOTE_CHECK(!writing_);
  writing_ = true;
  next_ = std::move(take);
  changed_.NotifyAll();
}

void ModelSeries::Finish() {
  Clock* const clock = Clock::System();
  MutexLock lock(&mu_);
  // For the disk, however long it takes.
  while (!changed_.WaitUntil(&mu_, clock, clock->Now() + kLookAgain,
                             [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !writing_; })) {
  }
}

void ModelSeries::Run() {
  Clock* const clock = Clock::System();
  while (true) {
    std::optional<Take> take;
    {
      MutexLock lock(&mu_);
      // For whoever wants a copy, or stops the series.
      (void)changed_.WaitUntil(
          &mu_, clock, clock->Now() + kLookAgain,
          [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return next_.has_value() || stopping_; });
      take.swap(next_);
      if (!take.has_value() && stopping_) return;
    }
    if (!take.has_value()) continue;
    TakeAndWrite(*take);
    take.reset();  // with what it holds, before anybody takes the copy to be done
    MutexLock lock(&mu_);
    writing_ = false;
    changed_.NotifyAll();
  }
}

void ModelSeries::TakeAndWrite(Take& take) {
  std::string path = options_.path;
  absl::Status status;
  Round round;
  if (absl::StatusOr<ModelCopy> copy = take(); !copy.ok()) {
    status = copy.status();
  } else {
    round = copy->round;
    path = PathOf(options_.path, round);
    status = WriteModel(fs_, path, options_.format, copy->layout, copy->x, copy->metadata,
                        copy->config_json);
  }
  if (absl::IsCancelled(status)) {
    LogInfo("a copy of the model is left out: the run is over", {{"path", path}});
    return;
  }
  if (!status.ok()) {
    LogError("a copy of the model is not written; the next one is tried when it is due",
             {{"path", path}, {"error", Describe(status)}});
    return;
  }
  LogInfo("a copy of the model is written", {{"path", path}, {"round", round.value()}});
  // One that was asked for twice in a round is one.
  std::erase(written_, path);
  written_.push_back(path);
  while (written_.size() > options_.keep) {
    if (const absl::Status removed = RemoveModel(fs_, written_.front());
        !removed.ok() && !absl::IsNotFound(removed)) {
      LogWarning("an old copy of the model stays", {{"error", Describe(removed)}});
    }
    written_.pop_front();
  }
}

}  // namespace signvote
