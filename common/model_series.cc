#include "common/model_series.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/log.h"
#include "common/model_file.h"
#include "common/status.h"

namespace signvote {

ModelSeries::ModelSeries(FileSystem* fs, Options options) : fs_(fs), options_(std::move(options)) {
  SIGNVOTE_CHECK(options_.keep > 0);
}

ModelSeries::~ModelSeries() { Finish(); }

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
  {
    MutexLock lock(&mu_);
    SIGNVOTE_CHECK(!writing_);
    writing_ = true;
  }
  Finish();  // at once: the thread before has said that it is done
  thread_ = std::thread([this, take = std::move(take)]() mutable {
    TakeAndWrite(take);
    MutexLock lock(&mu_);
    writing_ = false;
  });
}

void ModelSeries::Finish() {
  if (thread_.joinable()) thread_.join();
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
  // Also one of the same name, of a run before.
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
