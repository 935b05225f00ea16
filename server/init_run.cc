#include "server/init_run.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checkpoint.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/memory_reserve.h"
#include "common/saved_run.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "server/run/run_save.h"
#include "server/run/settings.h"

namespace signvote {
namespace {

using Plane = std::shared_ptr<std::vector<float>>;

// The file's parameters in the order of the layout.
absl::StatusOr<Plane> ReadPlane(FileSystem* fs, const std::string& path, const Layout& layout,
                                uint64_t digest, const std::function<bool()>& give_up) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> file, Checkpoint::Open(fs, path));
  SIGNVOTE_RETURN_IF_ERROR(file->CheckFits(layout));
  auto plane = std::make_shared<std::vector<float>>();
  SIGNVOTE_RETURN_IF_ERROR(TryResize(plane.get(), layout.coordinates()));
  SIGNVOTE_RETURN_IF_ERROR(file->CopyInto(layout, *plane, give_up));
  const uint64_t found = ReplicaDigest(plane->data(), 0, plane->size());
  if (found != digest) {
    return absl::DataLossError(
        absl::StrFormat("%s: its parameters have the digest %016x, and the run's replica had %016x",
                        path, found, digest));
  }
  return plane;
}

// `folder`: in which the file lies.
absl::StatusOr<run::RunState> TakeUp(FileSystem* fs, const Clock& clock, const ServerFlags& flags,
                                     const std::filesystem::path& folder, const SavedRun& saved,
                                     v1::JournalHead head, const std::function<bool()>& give_up) {
  SIGNVOTE_RETURN_IF_ERROR(run::CheckSettings(head, flags.run));
  SIGNVOTE_ASSIGN_OR_RETURN(const Layout layout, journal::LayoutFrom(head.run()));
  SIGNVOTE_ASSIGN_OR_RETURN(Plane x, ReadPlane(fs, flags.init_path, layout, saved.digest, give_up));
  Plane x0;
  if (saved.x0.has_value()) {
    const absl::StatusOr<Plane> read =
        ReadPlane(fs, folder / saved.x0->file, layout, saved.x0->digest, give_up);
    if (!read.ok()) return WithContext(read.status(), "the parameters that the run started with");
    x0 = *read;
  }
  // Servers that went on from an older file of this run may have come in between: no counter knows of
  // all of them.
  const auto seconds = static_cast<uint64_t>(std::max<int64_t>(clock.UnixMicros() / 1'000'000, 1));
  return run::TakeUpSave(std::move(head), Epoch(seconds), std::move(x), std::move(x0));
}

absl::Status WithRemedy(const ServerFlags& flags, const absl::Status& status) {
  if (absl::IsCancelled(status)) return status;
  return WithExitCode(
      WithContext(
          absl::FailedPreconditionError(absl::StrCat(
              status.message(), "; or begin a new run with these parameters (--init-as new)")),
          absl::StrCat("--init: ", flags.init_path, ": cannot go on with its run")),
      ExitCode::kBadInput);
}

}  // namespace

absl::StatusOr<std::optional<run::RunState>> TakeUpInitRun(FileSystem* fs, const Clock& clock,
                                                           const ServerFlags& flags,
                                                           const std::function<bool()>& give_up) {
  if (flags.init_path.empty() || flags.init_as == InitAs::kNew)
    return std::optional<run::RunState>();
  absl::StatusOr<std::unique_ptr<Checkpoint>> file = Checkpoint::Open(fs, flags.init_path);
  if (!file.ok()) return WithContext(file.status(), "--init");
  const absl::StatusOr<std::optional<SavedRun>> saved = SavedRunOf((*file)->metadata());
  if (!saved.ok()) return WithRemedy(flags, saved.status());
  if (!saved->has_value()) {
    if (flags.init_as == InitAs::kAuto) return std::optional<run::RunState>();
    return WithRemedy(
        flags, absl::NotFoundError("it carries none, which only a worker's --save in fp32 does, "
                                   "behind a commit of a server that is not older"));
  }
  absl::StatusOr<v1::JournalHead> head = run::HeadOf(**saved);
  if (!head.ok()) return WithRemedy(flags, head.status());
  if (flags.init_as == InitAs::kAuto && head->run().engine().run_done()) {
    LogInfo("the run of the initial parameters is over: they begin a new one",
            {{"init", flags.init_path}});
    return std::optional<run::RunState>();
  }
  const std::filesystem::path folder = std::filesystem::path((*file)->config_path()).parent_path();
  absl::StatusOr<run::RunState> state =
      TakeUp(fs, clock, flags, folder, **saved, *std::move(head), give_up);
  if (!state.ok()) return WithRemedy(flags, state.status());
  LogInfo("the run goes on from a worker's replica; --init-as new would begin another with it",
          {{"init", flags.init_path},
           {"run", state->run_id.ToText()},
           {"round", state->engine.round.value()},
           {"epoch", state->epoch.value()}});
  return std::optional<run::RunState>(*std::move(state));
}

}  // namespace signvote
