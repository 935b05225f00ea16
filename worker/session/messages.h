#pragma once
// Between the protocol's messages and the session's own types.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/session.h"

namespace signvote {

// What a welcome says of the run. FAILED_PRECONDITION: another protocol version, a direction that
// this version does not know, or chunks larger than either side's largest message.
// INVALID_ARGUMENT: malformed.
absl::StatusOr<RunInfo> RunFrom(const v1::Welcome& welcome, uint64_t coordinates,
                                uint64_t message_bytes_max);

// FAILED_PRECONDITION: a kind of commit that this version cannot apply. INVALID_ARGUMENT: its
// stepsize is no stepsize.
absl::Status CheckCommit(const v1::Commit& commit);

RoundTicket TicketFrom(const v1::RoundOpen& open);
void FillLayout(const Layout& layout, v1::Layout* out);

}  // namespace signvote
