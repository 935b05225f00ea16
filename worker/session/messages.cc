#include "worker/session/messages.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "proto/wire/wire.h"

namespace signvote {
namespace {

// Everything of a chunk's message but its payload.
constexpr uint64_t kChunkHeaderBytesMax = 256;

absl::StatusOr<DirectionConfig> DirectionFrom(const v1::Direction& direction) {
  DirectionConfig config;
  config.beta = direction.beta();
  config.beta2 = direction.beta2();
  switch (direction.kind()) {
    case v1::Direction::KIND_SIGNSGD:
      config.kind = DirectionKind::kSignSgd;
      return config;
    case v1::Direction::KIND_SIGNUM:
      config.kind = DirectionKind::kSignum;
      return config;
    case v1::Direction::KIND_NESTEROV_SIGNUM:
      config.kind = DirectionKind::kNesterovSignum;
      return config;
    case v1::Direction::KIND_LION:
      config.kind = DirectionKind::kLion;
      return config;
    default:
      break;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the server asks for direction ", static_cast<int>(direction.kind()),
                   ", which this version does not know; upgrade the worker"));
}

}  // namespace

absl::StatusOr<RunInfo> RunFrom(const v1::Welcome& welcome, uint64_t coordinates,
                                uint64_t message_bytes_max) {
  if (welcome.protocol() != wire::kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the server speaks protocol ",
                                                      welcome.protocol(), ", this worker ",
                                                      wire::kProtocolVersion));
  }
  RunInfo run;
  SIGNVOTE_ASSIGN_OR_RETURN(run.run_id, RunId::FromBytes(welcome.run_id()));
  run.seed = welcome.seed();
  run.rounds_max = welcome.rounds_max();
  run.digest_every = welcome.digest_every();
  const uint64_t chunk = welcome.chunk_coordinates();
  if (chunk == 0 || chunk % kChunkCoordinatesMultiple != 0 ||
      coordinates / chunk >= std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("the server's chunks have ", chunk,
                                                   " coordinates, which is no "
                                                   "multiple of ",
                                                   kChunkCoordinatesMultiple));
  }
  run.plan = ChunkPlan(coordinates, chunk);
  const uint64_t message_bytes = run.plan.Bytes(ChunkIndex(0)) + kChunkHeaderBytesMax;
  if (message_bytes > welcome.message_bytes_max() || message_bytes > message_bytes_max) {
    return absl::FailedPreconditionError(absl::StrCat(
        "chunks of ", message_bytes, " bytes exceed the largest message allowed (server ",
        welcome.message_bytes_max(), ", worker ", message_bytes_max, ")"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(run.direction, DirectionFrom(welcome.direction()));
  return run;
}

absl::Status CheckCommit(const v1::Commit& commit) {
  if (commit.kind() != v1::Commit::KIND_STEP || commit.rho() != 1.0f) {
    return absl::FailedPreconditionError(absl::StrCat(
        "commit ", commit.round(), " is of a kind (", static_cast<int>(commit.kind()), ", rho ",
        commit.rho(), ") that this version cannot apply; upgrade the worker"));
  }
  if (!std::isfinite(commit.stepsize()) || commit.stepsize() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("commit ", commit.round(), " has stepsize ", commit.stepsize()));
  }
  return absl::OkStatus();
}

RoundTicket TicketFrom(const v1::RoundOpen& open) {
  RoundTicket ticket;
  ticket.round = Round(open.round());
  ticket.data_step = DataStep(open.data_step());
  ticket.share = Share(open.share());
  ticket.probe = open.probe();
  ticket.observer = open.role() == v1::RoundOpen::ROLE_OBSERVER;
  ticket.members = open.members();
  return ticket;
}

void FillLayout(const Layout& layout, v1::Layout* out) {
  for (const TensorSpec& tensor : layout.tensors()) {
    v1::Tensor* const to = out->add_tensors();
    to->set_name(tensor.name);
    for (const uint64_t dimension : tensor.shape) to->add_shape(dimension);
    to->set_step_scale(tensor.step_scale);
    to->set_weight_decay(tensor.weight_decay);
  }
  out->set_digest(layout.digest());
}

}  // namespace signvote
