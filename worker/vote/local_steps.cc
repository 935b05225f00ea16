#include "worker/vote/local_steps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/local_direction.h"
#include "common/local_steps.h"
#include "common/status.h"
#include "worker/codec/pack.h"
#include "worker/direction/checks.h"

namespace signvote {
namespace {

constexpr uint64_t kBlock = 1 << 14;  // coordinates at a time; two of them stay in the cache
constexpr size_t kLanes = 8;

// Σ|x_i − y_i|, the differences rounded to fp32; in fp64, in lanes so that the additions need not wait
// for each other.
double SizeOf(std::span<const float> x, std::span<const float> y) {
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l)
      lanes[l] += static_cast<double>(std::fabs(x[i + l] - y[i + l]));
  }
  double size = 0;
  for (const double lane : lanes) size += lane;
  for (; i < x.size(); ++i) size += static_cast<double>(std::fabs(x[i] - y[i]));
  return size;
}

}  // namespace

LocalStepSource::LocalStepSource(TensorPointers y) : y_(y.begin(), y.end()) {}

absl::Status LocalStepSource::Bind(const RunInfo& run, ReplicaMemory* replica,
                                   BallotPacker* packer) {
  SIGNVOTE_RETURN_IF_ERROR(CheckStepDirection(run.direction));
  const std::span<const TensorSpec> tensors = run.layout.tensors();
  const bool voted = !std::all_of(tensors.begin(), tensors.end(),
                                  [](const TensorSpec& tensor) { return tensor.dense; });
  if (voted && LocalStepsByUpdate(run.direction)) {
    return absl::UnimplementedError(absl::StrCat(
        "local steps of ", std::string(DirectionName(run.direction.kind)),
        " are as long as its updates, which no vote can say; start the server with --dense '*', or "
        "with --direction signsgd, signum, nesterov or lion"));
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(run.layout, y_.size()));
  run_ = run;
  replica_ = replica;
  packer_ = packer;
  aside_.assign(run.layout.coordinates(), 0.0f);
  block_.resize(kBlock);
  return absl::OkStatus();
}

absl::Status LocalStepSource::Begin(const RoundTicket& ticket) {
  if (ticket.local_steps > run_.local_steps_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "round ", ticket.round.value(), " asks for ", ticket.local_steps, " local steps, of which ",
        run_.local_steps_max, " are the run's most; the server is at fault"));
  }
  const std::optional<Round> y_of = std::exchange(y_of_, std::nullopt);
  ticket_ = ticket;
  takes_steps_ = ticket.local_steps > 1 || ticket.start != BallotStart::kReplica;
  can_vote_ = true;
  wants_sums_ = ticket.Wants(ScalarKind::kLocalInner) || ticket.Wants(ScalarKind::kLocalProduct);
  inner_ = product_ = 0;
  means_.clear();
  if (!takes_steps_) return absl::OkStatus();
  switch (ticket.start) {
    case BallotStart::kContinue:
      can_vote_ = y_of.has_value() && y_of->next() == ticket.round && !ticket.replica_moved &&
                  !ticket.rewound;
      return can_vote_ ? ChangePlaces() : absl::OkStatus();
    case BallotStart::kReplica:
      SIGNVOTE_RETURN_IF_ERROR(replica_->Read(0, aside_));
      at_y_ = true;
      return absl::OkStatus();
    case BallotStart::kX0:
      SIGNVOTE_RETURN_IF_ERROR(RequireX0(*replica_));
      SIGNVOTE_RETURN_IF_ERROR(replica_->Read(0, aside_));
      at_y_ = true;
      SIGNVOTE_RETURN_IF_ERROR(replica_->Rewind(0, run_.layout.coordinates()));
      return packer_->Reset();
  }
  return absl::OkStatus();
}

absl::Status LocalStepSource::ChangePlaces() {
  at_y_ = !at_y_;
  means_.clear();
  for (const TensorSpec& tensor : run_.layout.tensors()) {
    double size = 0;
    for (uint64_t i = 0; i < tensor.count; i += kBlock) {
      const uint64_t first = tensor.first + i;
      const std::span<float> aside =
          std::span(aside_).subspan(first, std::min(kBlock, tensor.count - i));
      const std::span<float> here = std::span(block_).first(aside.size());
      SIGNVOTE_RETURN_IF_ERROR(replica_->Read(first, here));
      SIGNVOTE_RETURN_IF_ERROR(replica_->Write(first, aside));
      size += SizeOf(aside, here);
      std::copy(here.begin(), here.end(), aside.begin());
    }
    means_.push_back(static_cast<float>(size / static_cast<double>(tensor.count)));
  }
  return absl::OkStatus();
}

absl::Status LocalStepSource::TakeGradient(uint32_t index, const WholeGradient& gradient) {
  if (wants_sums_ && replica_->keeps_x0()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const X0Sums sums, replica_->SumsAboutX0(run_.layout, gradient.g));
    inner_ += sums.inner;
    product_ += std::sqrt(gradient.l2_squared) * std::sqrt(sums.distance_squared);
  }
  return packer_->Step({.g = gradient.g,
                        .y = y_,
                        .eta = InnerStepsize({.steps = ticket_.local_steps,
                                              .eta_first = ticket_.eta_first,
                                              .eta_last = ticket_.eta_last},
                                             index),
                        .clip = gradient.clip});
}

absl::Status LocalStepSource::EndSteps() { return at_y_ ? ChangePlaces() : absl::OkStatus(); }

absl::Status LocalStepSource::PackChunk(ChunkIndex k, uint8_t* ballot) {
  ballot[run_.plan.Bytes(k) - 1] = 0;
  const uint64_t chunk_first = run_.plan.First(k), count = run_.plan.Count(k);
  const PackContext context{.seed = run_.seed, .round = ticket_.round, .share = ticket_.share};
  for (uint64_t i = 0; i < count; i += kBlock) {
    const uint64_t first = chunk_first + i;
    const std::span<float> d = std::span(block_).first(std::min(kBlock, count - i));
    SIGNVOTE_RETURN_IF_ERROR(Displacement(first, d));
    Pack(context, {.g = d.data(),
                   .bits = ballot,
                   .bits_first = chunk_first,
                   .first = first,
                   .count = d.size()});
  }
  return absl::OkStatus();
}

absl::Status LocalStepSource::Displacement(uint64_t first, std::span<float> out) {
  SIGNVOTE_RETURN_IF_ERROR(replica_->Read(first, out));
  for (size_t j = 0; j < out.size(); ++j) out[j] -= aside_[first + j];
  return absl::OkStatus();
}

absl::Status LocalStepSource::Settle(BallotFate fate) {
  if (takes_steps_ && fate == BallotFate::kNotApplied) y_of_ = ticket_.round;
  return absl::OkStatus();
}

absl::Status LocalStepSource::Missed() { return Reset(); }

absl::Status LocalStepSource::Reset() {
  y_of_.reset();
  return absl::OkStatus();
}

std::span<const float> LocalStepSource::continuation() const {
  return y_of_.has_value() ? std::span<const float>(aside_) : std::span<const float>();
}

absl::Status LocalStepSource::RestoreContinuation(Round round, std::span<const float> y) {
  if (y.size() != aside_.size() || round == Round(0)) {
    return absl::InvalidArgumentError(absl::StrCat("steps that ended at ", y.size(),
                                                   " coordinates before round ", round.value(),
                                                   ", and the model has ", aside_.size()));
  }
  std::copy(y.begin(), y.end(), aside_.begin());
  y_of_ = Round(round.value() - 1);
  return absl::OkStatus();
}

double LocalStepSource::Scalar(ScalarKind kind) const {
  if (takes_steps_ && replica_->keeps_x0()) {
    if (kind == ScalarKind::kLocalInner) return inner_;
    if (kind == ScalarKind::kLocalProduct) return product_;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace signvote
