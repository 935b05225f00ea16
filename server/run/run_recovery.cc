#include "server/run/run_recovery.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::run {

absl::StatusOr<RunState> TakeUp(journal::Recovered& recovered, std::string_view whose) {
  SIGNVOTE_CHECK(recovered.run_id.has_value());
  const auto damaged = [whose](const absl::Status& status) {
    return WithExitCode(absl::DataLossError(absl::StrCat(ToAbsl(whose), ": ", status.message())),
                        ExitCode::kBadInput);
  };
  absl::StatusOr<RunState> state = FromBody(recovered.head.run());
  if (!state.ok()) return damaged(state.status());
  if (recovered.head.run().optimizer_numbers() != recovered.optimizer.size())
    return damaged(absl::DataLossError("the optimizer's state is of another size"));
  state->epoch = recovered.last_epoch.next();
  state->begun.push_back({.epoch = state->epoch, .round = state->engine.round});
  if (state->begun.size() > kEpochsKept) state->begun.erase(state->begun.begin());
  state->x = std::move(recovered.x);
  state->x0 = std::move(recovered.x0);
  state->optimizer.state = std::move(recovered.optimizer);
  state->recent = std::move(recovered.recent);
  if (const absl::Status status = CheckState(*state); !status.ok()) return damaged(status);
  return state;
}

}  // namespace signvote::run
