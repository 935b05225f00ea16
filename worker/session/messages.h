#pragma once
// Between the protocol's messages and the session's own types; protobuf without gRPC.
//
// Threads: pure functions.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/types.h"

namespace signvote {

// The one version of the protocol that this side speaks.
inline constexpr uint32_t kSessionProtocol = 2;

// What a Join says of the software and the model.
void FillJoin(const ModelDescription& model, v1::Join* join);

// What a welcome says of the run. FAILED_PRECONDITION: another protocol version, a run that asks for
// something that this version does not know, tensors that are not the model's (the message names the
// first that differs), or chunks larger than the largest message. INVALID_ARGUMENT:
// malformed.
absl::StatusOr<RunInfo> RunFrom(const v1::Welcome& welcome, const ModelDescription& model);

// FAILED_PRECONDITION: a kind of commit or payload that this version cannot apply. INVALID_ARGUMENT:
// it does not fit the run, or its numbers are none.
absl::Status CheckCommit(const v1::Commit& commit, const RunInfo& run);

// INVALID_ARGUMENT: not a round that can be voted in. FAILED_PRECONDITION: a scalar that this
// version does not know.
absl::StatusOr<RoundTicket> TicketFrom(const v1::RoundOpen& open, Time now);

// INVALID_ARGUMENT: more wanted scalars than `ticket` wants, or displacement means that are not one
// per tensor.
absl::StatusOr<v1::Scalars> ScalarsFrom(const BallotScalars& scalars, const RoundTicket& ticket,
                                        size_t tensors);

v1::Abstain::Reason ToProto(AbstainReason reason);

}  // namespace signvote
