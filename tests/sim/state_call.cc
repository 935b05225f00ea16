#include "tests/sim/state_call.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/checksum.h"
#include "server/replica/master_replica.h"

namespace signvote::sim {

SimCall::SimCall(World* world, Plan plan, Hooks hooks, CallEnd* end)
    : world_(world), plan_(std::move(plan)), hooks_(std::move(hooks)), end_(end) {}

void SimCall::Start(std::shared_ptr<MasterReplica> replica) {
  SIGNVOTE_CHECK(replica_ == nullptr && !over_);
  replica_ = std::move(replica);
  world_->timeline.After(0.0, [self = shared_from_this()] { self->Next(); });
}

void SimCall::End(absl::Status status) {
  if (over_) return;
  over_ = true;
  world_->timeline.After(
      0.0, [self = shared_from_this(), status = std::move(status)] { self->Finish(status); });
}

void SimCall::Abandon() {
  end_ = nullptr;
  if (over_) return;
  over_ = true;
  world_->timeline.After(world_->timeline.Uniform(0.001, 0.05), [self = shared_from_this()] {
    self->Finish(absl::CancelledError("the worker has gone"));
  });
}

void SimCall::Cut() {
  over_ = true;
  hooks_ = {};
  CallEnd* const end = std::exchange(end_, nullptr);
  if (end == nullptr) return;
  const uint64_t number = plan_.number;
  world_->timeline.At(world_->network.Arrival(plan_.host), [end, number] {
    end->OnCallEnded(number, absl::UnavailableError("the connection broke"));
  });
}

void SimCall::Next() {
  if (over_) return;
  if (plan_.kind == run::CallKind::kFetch) {
    FetchPart();
  } else {
    UploadPart();
  }
  if (over_) return;
  const double seconds = plan_.seconds_per_part * world_->timeline.Uniform(0.5, 1.5);
  const Time at =
      std::max(world_->timeline.Now() + FromSeconds(seconds), world_->network.Arrival(plan_.host));
  world_->timeline.At(at, [self = shared_from_this()] { self->Next(); });
}

void SimCall::FetchPart() {
  const uint64_t d = replica_->coordinates();
  const uint64_t piece = first_ / MasterReplica::kPieceCoordinates;
  piece_.resize(replica_->Count(piece));
  // As the transfers of the product do, each message looks at the replica as it stands by then.
  if (plane_ == 0 && first_ == 0) x0_follows_ = replica_->has_x0();
  const absl::StatusOr<Round> round =
      replica_->CopyPiece(static_cast<Plane>(plane_), piece, piece_.data());
  if (!round.ok()) {
    SIGNVOTE_CHECK(plane_ == 1);
    ++world_->counters->fetches_beside_x0_let_go;
    over_ = true;
    return Finish(round.status());
  }
  const uint64_t end = std::min(
      {d, first_ + world_->options.part_coordinates, replica_->First(piece) + piece_.size()});
  const auto begin = piece_.begin() + static_cast<ptrdiff_t>(first_ - replica_->First(piece));
  auto values =
      std::make_shared<std::vector<float>>(begin, begin + static_cast<ptrdiff_t>(end - first_));
  if (plane_ == 0) {
    lowest_ = std::min(lowest_.value_or(*round), *round);
    highest_ = std::max(highest_.value_or(*round), *round);
  }
  StateFrame frame{.round = *round,
                   .first = first_,
                   .plane = plane_,
                   .checksum = Xxh3(values->data(), values->size() * sizeof(float)),
                   .values = std::move(values)};
  first_ = end;
  moved_ += frame.values->size() * sizeof(float);
  hooks_.progress(moved_);
  if (over_) return;
  if (end_ != nullptr) {
    absl::StatusOr<StateFrame> passed = world_->codec->PassFetched(std::move(frame));
    SIGNVOTE_CHECK(passed.ok());  // the server's own encoding
    end_->OnState(plan_.number, *passed);
  }
  if (over_ || first_ < d) return;
  first_ = 0;
  if (plane_ == 0 && x0_follows_) {
    plane_ = 1;
    return;
  }
  if (world_->options.rule_used != RuleUsed::kOfFlags && !x0_follows_)
    ++world_->counters->fetches_without_x0;
  if (lowest_ != highest_) ++world_->counters->fetches_in_pieces;
  ++world_->counters->fetches;
  over_ = true;
  Finish(absl::OkStatus());
}

void SimCall::UploadPart() {
  const uint64_t d = replica_->coordinates();
  const uint64_t end = std::min(d, first_ + world_->options.part_coordinates);
  const auto begin = plan_.values->begin() + static_cast<ptrdiff_t>(first_);
  StateFrame frame{.first = first_,
                   .values = std::make_shared<std::vector<float>>(
                       begin, begin + static_cast<ptrdiff_t>(end - first_))};
  frame.checksum = Xxh3(frame.values->data(), frame.values->size() * sizeof(float));
  absl::StatusOr<StateFrame> passed = world_->codec->PassUploaded(std::move(frame));
  SIGNVOTE_CHECK(passed.ok());
  std::copy(passed->values->begin(), passed->values->end(),
            replica_->x().begin() + static_cast<ptrdiff_t>(first_));
  first_ = end;
  moved_ += passed->values->size() * sizeof(float);
  hooks_.progress(moved_);
  if (over_ || first_ < d) return;
  ++world_->counters->uploads;
  over_ = true;
  Finish(absl::OkStatus());
}

void SimCall::Finish(absl::Status status) {
  const bool fetch = plan_.kind == run::CallKind::kFetch;
  if (hooks_.ended) hooks_.ended(fetch ? 0 : moved_, fetch ? moved_ : 0);
  hooks_ = {};
  replica_.reset();
  CallEnd* const end = std::exchange(end_, nullptr);
  if (end == nullptr) return;
  // Behind the last message.
  world_->timeline.At(world_->network.Arrival(plan_.host),
                      [end, number = plan_.number, status = std::move(status)] {
                        end->OnCallEnded(number, status);
                      });
}

}  // namespace signvote::sim
