#pragma once
// The commands that read a journal's folder, without a server.

#include "absl/status/status.h"
#include "ctl/commands.h"
#include "ctl/flags.h"

namespace signvote::ctl {

// `signvote journal …`. REQUIRES: the command is one of them.
absl::Status LookAfterJournal(const CtlFlags& flags, const CommandHost& host);

// `signvote export --journal`: the model behind flags.round rounds. NOT_FOUND: the journal does not
// cover that round.
absl::Status ExportFromJournal(const CtlFlags& flags, const CommandHost& host);

}  // namespace signvote::ctl
