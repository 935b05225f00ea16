#include "server/run/run_save.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "server/run/run_recovery.h"

namespace signvote::run {

std::string StateForSave(RunState state) {
  round::EngineState& engine = state.engine;
  engine.arrivals = {};
  engine.local = {};
  for (round::WorkerState& worker : engine.workers) {
    worker.arrivals = {};
    worker.local = {};
    worker.growth_noticed = false;
  }
  // Without a journal nobody has said it. Whoever has a replica of this server's commits may keep it.
  if (state.begun.empty()) state.begun = {{.epoch = state.epoch, .round = Round(0)}};
  v1::RunState out;
  FillProgress(state, &out);
  out.set_run_id(std::string(state.run_id.bytes()));
  out.set_epoch(state.epoch.value());
  out.set_x0_max_abs(state.x0_max_abs);
  return out.SerializeAsString();
}

absl::StatusOr<v1::JournalHead> HeadOf(const SavedRun& saved) {
  v1::JournalHead head;
  v1::RunState after;
  if (!head.ParseFromString(saved.head) || !after.ParseFromString(saved.after))
    return absl::DataLossError("what it says of the run are no messages of a run");
  const std::string_view run_id = saved.run_id.bytes();
  if (head.run().run_id() != run_id || after.run_id() != run_id)
    return absl::DataLossError("what it says of the run is of another run than the file");
  if (after.engine().round() != saved.round.value()) {
    return absl::DataLossError(absl::StrCat("what it says of the run is of round ",
                                            after.engine().round(), ", and its replica of round ",
                                            saved.round.value()));
  }
  journal::MoveOn(after, head.mutable_run());
  head.mutable_run()->set_epoch(after.epoch());
  head.mutable_run()->set_x0_max_abs(after.x0_max_abs());
  return head;
}

absl::StatusOr<RunState> TakeUpSave(v1::JournalHead head, Epoch epoch,
                                    std::shared_ptr<std::vector<float>> x,
                                    std::shared_ptr<std::vector<float>> x0) {
  journal::Recovered recovered;
  SIGNVOTE_ASSIGN_OR_RETURN(recovered.run_id, RunId::FromBytes(head.run().run_id()));
  recovered.begun = true;
  recovered.last_epoch = Epoch(std::max(head.run().epoch(), epoch.value() - 1));
  recovered.head = std::move(head);
  recovered.x = std::move(x);
  recovered.x0 = std::move(x0);
  return TakeUp(recovered, "what it says of the run");
}

}  // namespace signvote::run
