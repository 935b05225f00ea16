#include "worker/session/state_mover.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {

// Again, though no round has opened since the last one: says what happened and what would help, and
// gives the server time.
absl::Status StateMover::BeforeAnother(const StateEvent& state) {
  if (retries_.in_vain() == 0) return absl::OkStatus();
  if (const std::optional<TransferRetries::Fetched>& last = retries_.fell_behind()) {
    const uint64_t bytes = (last->rounds + 1) * options_.verdict_bytes;
    (*log_)(LogLevel::kWarning,
            "the state that was fetched fell behind the commits that the server keeps; it is "
            "fetched again. A server with a larger --catch-up-bytes, or a faster network, would "
            "help",
            {{"took_seconds", last->seconds},
             {"rounds_meanwhile", last->rounds},
             {"catch_up_bytes_at_least", bytes},
             {"in_vain", static_cast<int64_t>(retries_.in_vain())}});
    if (retries_.hopeless()) {
      return absl::UnavailableError(absl::StrCat(
          "the state of the run was fetched ", retries_.in_vain(),
          " times in a row and fell behind each time (", last->seconds, " s for ", last->rounds,
          " rounds); start the server with --catch-up-bytes of at least ", bytes,
          ", or come over a faster network"));
    }
  }
  return line_->PauseBeforeTransfer(state.connection, retries_.Pause());
}

absl::StatusOr<StateMover::Moved> StateMover::Move(const StateEvent& state) {
  const bool upload = state.kind == TransferAction::Kind::kUpload;
  if (upload && !untouched_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "server ", options_.server,
        " asks this worker for initial parameters, but training has begun here already"));
  }
  const absl::Status before = BeforeAnother(state);
  if (absl::IsCancelled(before)) return Moved::kPutOff;
  SIGNVOTE_RETURN_IF_ERROR(before);
  const std::shared_ptr<TransferStop> stop = line_->BeginTransfer(state.connection);
  // That connection is over, and the next one asks again; or this worker leaves.
  if (stop == nullptr) return Moved::kDone;
  session_.begins();
  retries_.Begins();
  absl::Status status;
  if (upload) {
    wire::SocketBytes moved;
    status = line_->Upload(state, stop.get(), memory_, &moved);
    if (status.ok()) status = replica_->BeginHere();
  } else {
    status = Fetch(state, stop.get());
  }
  if (status.ok()) {
    // A server that is killed before anything of its run is on the disk may ask anybody for what it starts
    // with.
    untouched_ = untouched_ || (replica_->level() && replica_->round() == Round(0));
    line_->TransferSucceeded(state.connection, replica_->round());
    return Moved::kDone;
  }
  replica_->Clear();
  retries_.Failed();
  // Over a connection that is left alone the goodbye is said.
  if (line_->Leaving()) return Moved::kDone;
  line_->TransferFailed(
      state.connection,
      absl::AbortedError(absl::StrCat("state transfer failed: ", std::string(status.message()))));
  if (stop->interrupted()) {
    retries_.Withdrawn();
    return absl::CancelledError("interrupted during a state transfer");
  }
  (*log_)(LogLevel::kWarning, "state transfer failed",
          {{"server", options_.server}, {"reason", Describe(status)}});
  if (!retries_.hopeless()) return Moved::kDone;
  return WithContext(status, absl::StrCat("state transfer with ", options_.server, " failed ",
                                          retries_.in_vain(), " times in a row"));
}

absl::Status StateMover::Fetch(const StateEvent& state, TransferStop* stop) {
  untouched_ = false;
  replica_->Clear();
  SIGNVOTE_RETURN_IF_ERROR(replica_->ExpectX0());
  const Time start = clock_->Now();
  std::optional<Round> first, last;  // of the replica's parts
  wire::SocketBytes moved;
  catch_up_ = std::make_unique<CatchUp>(session_.apply, session_.let_go);
  absl::Status status = line_->Fetch(
      state, stop, replica_->needs_x0(), memory_,
      [&](const FetchedPart& part) {
        if (!part.x0) {
          if (!first) first = part.round;
          last = part.round;
        }
        return AddPart(part);
      },
      &moved);
  if (status.ok()) status = session_.take_arrived();
  // The server had let go of it: no commit behind what it sent wants it.
  if (status.ok() && replica_->received_x0() == 0) replica_->LetGoOfX0();
  if (status.ok()) status = catch_up_->FollowAll();
  catch_up_.reset();
  SIGNVOTE_RETURN_IF_ERROR(status);
  const TransferRetries::Fetched fetched{
      .seconds = ToSeconds(clock_->Now() - start),
      .rounds = last->value() - std::min(first->value(), last->value())};
  retries_.Succeeded(fetched);
  (*log_)(LogLevel::kInfo, "fetched the state of the run",
          {{"seconds", fetched.seconds},
           {"bytes", moved.received},
           {"rounds_meanwhile", fetched.rounds},
           {"round", replica_->round().value()}});
  return absl::OkStatus();
}

absl::Status StateMover::AddPart(const FetchedPart& part) {
  SIGNVOTE_RETURN_IF_ERROR(session_.take_arrived());
  if (part.x0) return replica_->AddX0Part(part.first, part.count);
  SIGNVOTE_RETURN_IF_ERROR(catch_up_->FollowTo(part.round));
  return replica_->AddPart(part.round, part.first, part.count);
}

}  // namespace signvote
