#include "worker/vote/voter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "worker/codec/dense_chunk.h"

namespace signvote {
namespace {

constexpr double kCannotTell = std::numeric_limits<double>::quiet_NaN();

// What a run may ask for that no ballot here can be.
absl::Status CheckRun(const RunInfo& run, const BallotSource& source) {
  if (run.plan.coordinates() != run.layout.coordinates()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the run's chunks cover ", run.plan.coordinates(), " coordinates and its ",
                     "tensors ", run.layout.coordinates(), "; the server is at fault"));
  }
  if (run.clip_norm.has_value() && !source.clips()) {
    return absl::UnimplementedError(
        absl::StrCat("the run clips gradients to the norm ", *run.clip_norm,
                     ", which this worker's ballots are not made for; start the server without "
                     "--clip"));
  }
  const std::vector<StatePlane> carried = PlanesOf(run.direction, StatePlane::Holder::kSource);
  if (!carried.empty() &&
      !std::equal(carried.begin(), carried.end(), source.planes().begin(), source.planes().end())) {
    return absl::UnimplementedError(absl::StrCat(
        "the run signs ", std::string(DirectionName(run.direction.kind)),
        run.direction.error_feedback ? " with error feedback" : "",
        ", which this worker cannot make; use signvote-worker, or another --direction at the "
        "server"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Voter>> Voter::Make(const RunInfo& run, Session* session,
                                                   ReplicaMemory* replica, WorkerDevice* device,
                                                   BallotSource* source, Clock* clock,
                                                   VoterOptions options) {
  SIGNVOTE_RETURN_IF_ERROR(CheckRun(run, *source));
  if (replica->coordinates() != run.layout.coordinates()) {
    return absl::InvalidArgumentError(absl::StrCat("the replica has ", replica->coordinates(),
                                                   " coordinates and the run's model ",
                                                   run.layout.coordinates()));
  }
  auto voter = std::unique_ptr<Voter>(
      new Voter(run, session, replica, device, source, clock, std::move(options)));
  SIGNVOTE_ASSIGN_OR_RETURN(voter->packer_,
                            device->MakePacker(&voter->run_.layout, run.plan, run.direction));
  SIGNVOTE_RETURN_IF_ERROR(source->Bind(run, replica, voter->packer_.get()));
  return voter;
}

Voter::Voter(const RunInfo& run, Session* session, ReplicaMemory* replica, WorkerDevice* device,
             BallotSource* source, Clock* clock, VoterOptions options)
    : run_(run),
      session_(session),
      replica_(replica),
      device_(device),
      source_(source),
      clock_(clock),
      options_(std::move(options)),
      planes_(PlanesOf(run.direction)),
      waits_for_length_(run.clip_norm.has_value() &&
                        (LengthMatters(run.direction) || HasDense(run.layout))),
      whole_tensors_(source->needs_whole_tensors() || NeedsWholeTensors(run.direction)),
      buffers_(run.ballot_plan.TotalBytes(), device->host_memory()),
      ballot_(buffers_.Take()) {
  // Touched here, where nobody waits: fresh memory is slow.
  std::fill_n(ballot_.get(), run.ballot_plan.TotalBytes(), uint8_t{0});
}

Voter::~Voter() = default;

absl::Status Voter::Expect(bool in_order, const char* call) const {
  if (!in_order) {
    return absl::FailedPreconditionError(
        absl::StrCat(call, " is out of order; worker/vote/voter.h has the order of the calls"));
  }
  return stage_ == Stage::kOpen || stage_ == Stage::kGradient ? now_.status : absl::OkStatus();
}

absl::Status Voter::Begin(const RoundTicket& ticket) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kIdle, "Begin"));
  // Nothing has moved the replica since the state that was restored.
  const bool goes_on = earlier_.state_before == ticket.round && !ticket.rewound;
  const bool moved = ticket.replica_moved && !goes_on;
  if (moved || ticket.rewound) {
    earlier_.previous_valid = earlier_.gradient_valid = false;
    earlier_.verdict = nullptr;
  }
  settled_ = false;
  if (ticket.rewound) SIGNVOTE_RETURN_IF_ERROR(Forget());
  if (moved) SIGNVOTE_RETURN_IF_ERROR(source_->Missed());
  if (ticket.replica_moved) SIGNVOTE_RETURN_IF_ERROR(RefreshCopies());
  earlier_.state_before.reset();
  RoundTicket seen_by_source = ticket;
  seen_by_source.replica_moved = moved;
  SIGNVOTE_RETURN_IF_ERROR(source_->Begin(seen_by_source));
  SIGNVOTE_RETURN_IF_ERROR(packer_->Begin());

  const uint32_t gradients = source_->Gradients(ticket);
  if (gradients == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the source takes no gradient for round ",
                                                   ticket.round.value(), "; it must take one"));
  }
  ticket_ = ticket;
  steps_ = source_->takes_steps();
  gradients_ = gradients;
  gradient_ = 0;
  wants_probe_ = !steps_ && options_.can_probe && earlier_.previous_valid &&
                 (ticket.Wants(ScalarKind::kProbeL1) || ticket.Wants(ScalarKind::kProbeInner));
  // A round that wants both is told the probe.
  wants_change_ = !steps_ && !wants_probe_ && options_.can_keep_gradient &&
                  earlier_.gradient_valid && ticket.Wants(ScalarKind::kChangeL1);
  x0_sums_.reset();
  range_.reset();
  ballot_.reset();  // for the shelf, unless it is still being sent
  ballot_ = buffers_.Take();
  now_ = Ballot();
  now_.chunk_scalars.resize(run_.plan.chunks());
  const std::optional<AbstainReason> lost = std::exchange(earlier_.lost, std::nullopt);
  if (!source_->CanVote())
    now_.withdrawn = moved ? AbstainReason::kOther : lost.value_or(AbstainReason::kOther);
  stage_ = Stage::kOpen;
  return absl::OkStatus();
}

absl::Status Voter::SetCompared(ConstTensorPointers other, std::string_view what) {
  if (other.size() != run_.layout.tensors().size()) {
    return absl::InvalidArgumentError(absl::StrCat("the ", ToAbsl(what), " has ", other.size(),
                                                   " tensors and the run's model ",
                                                   run_.layout.tensors().size()));
  }
  if (!now_.h.empty()) {
    return absl::FailedPreconditionError(
        "a round compares its gradient with one other: the probe's or the last round's");
  }
  now_.h.assign(other.begin(), other.end());
  return absl::OkStatus();
}

absl::Status Voter::SetProbe(ConstTensorPointers h) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kOpen && wants_probe_, "SetProbe"));
  SIGNVOTE_RETURN_IF_ERROR(SetCompared(h, "probe gradient"));
  if (!ticket_.Wants(ScalarKind::kProbeInner)) return absl::OkStatus();
  return now_.status = MeasureProbeInner();
}

absl::Status Voter::SetLastGradient(ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kOpen && wants_change_, "SetLastGradient"));
  return SetCompared(g, "last gradient");
}

absl::Status Voter::MeasureProbeInner() {
  const auto missing = std::find(now_.h.begin(), now_.h.end(), nullptr);
  if (earlier_.verdict == nullptr || missing != now_.h.end()) return absl::OkStatus();
  const Time start = clock_->Now();
  SIGNVOTE_ASSIGN_OR_RETURN(const ChunkScalars sums, packer_->Sums(now_.h, earlier_.verdict));
  now_.sent.packing += clock_->Now() - start;
  if (sums.nonfinite == 0 && std::isfinite(sums.prev_inner))
    now_.sent.probe_inner = sums.prev_inner;
  return absl::OkStatus();
}

absl::Status Voter::SetGradient(ConstTensorPointers g) {
  SIGNVOTE_RETURN_IF_ERROR(
      Expect(stage_ == Stage::kOpen && (!steps_ || TakesAnother()), "SetGradient"));
  if (g.size() != run_.layout.tensors().size()) {
    return absl::InvalidArgumentError(absl::StrCat("the gradient has ", g.size(),
                                                   " tensors and the run's model ",
                                                   run_.layout.tensors().size()));
  }
  now_.g.assign(g.begin(), g.end());
  now_.tensor_missing.clear();
  for (const TensorSpec& tensor : run_.layout.tensors())
    now_.tensor_missing.push_back(tensor.count);
  now_.chunk_missing.clear();
  for (uint32_t k = 0; k < run_.plan.chunks(); ++k) {
    const Range needs = NeedsOf(ChunkIndex(k));
    now_.chunk_missing.push_back(needs.end - needs.first);
  }
  stage_ = Stage::kGradient;
  return absl::OkStatus();
}

absl::Status Voter::GradientReady(uint64_t first, uint64_t count) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kGradient, "GradientReady"));
  const uint64_t d = run_.layout.coordinates();
  if (first > d || count > d - first) {
    return absl::InvalidArgumentError(absl::StrCat("coordinates [", first, ", ", first, " + ",
                                                   count, ") are beyond the model's ", d));
  }
  // Checked before anything is counted, so that a refused call changes nothing.
  absl::Status status;
  ForEachTensorRange(run_.layout, first, count, [&](const TensorRange& range) {
    if (range.count <= now_.tensor_missing[range.tensor]) return;
    status = absl::InvalidArgumentError(
        absl::StrCat("coordinates of tensor \"", run_.layout.tensors()[range.tensor].name,
                     "\" became ready twice in round ", ticket_.round.value()));
  });
  SIGNVOTE_RETURN_IF_ERROR(status);
  return MarkReady(first, count);
}

absl::Status Voter::MarkReady(uint64_t first, uint64_t count) {
  if (count == 0) return absl::OkStatus();
  ForEachTensorRange(run_.layout, first, count, [&](const TensorRange& range) {
    now_.tensor_missing[range.tensor] -= range.count;
  });
  const uint64_t size = run_.plan.chunk_coordinates();
  const uint64_t end = first + count;
  const uint64_t chunks_end = whole_tensors_ ? run_.plan.chunks() : (end - 1) / size + 1;
  const uint64_t chunks_first = whole_tensors_ ? 0 : first / size;
  // High chunks first: that is the order in which backward passes finish them.
  for (uint64_t k = chunks_end; k-- > chunks_first;) {
    const ChunkIndex chunk(static_cast<uint32_t>(k));
    const Range needs = NeedsOf(chunk);
    if (needs.first >= end || needs.end <= first) continue;
    now_.chunk_missing[k] -= std::min(end, needs.end) - std::max(first, needs.first);
    if (now_.chunk_missing[k] > 0 || steps_ || waits_for_length_) continue;
    now_.status = PackChunk(chunk);
    if (!now_.status.ok()) return now_.status;
  }
  return absl::OkStatus();
}

Voter::Range Voter::NeedsOf(ChunkIndex k) const {
  Range range{.first = run_.plan.First(k), .end = run_.plan.First(k) + run_.plan.Count(k)};
  if (!whole_tensors_) return range;
  const std::span<const TensorSpec> tensors = run_.layout.tensors();
  ForEachTensorRange(run_.layout, range.first, range.end - range.first,
                     [&, chunk = range](const TensorRange& part) {
                       const TensorSpec& t = tensors[part.tensor];
                       range.first = std::min(range.first, t.first);
                       range.end = std::max(chunk.end, t.first + t.count);
                     });
  return range;
}

double Voter::ClipFactor(double l2_squared) const {
  if (!run_.clip_norm.has_value()) return 1.0;
  const double norm = std::sqrt(l2_squared);
  return norm > *run_.clip_norm ? *run_.clip_norm / norm : 1.0;
}

absl::Status Voter::PackClipped() {
  SIGNVOTE_ASSIGN_OR_RETURN(const ChunkScalars sums, packer_->Sums(now_.g, nullptr));
  now_.clip = static_cast<float>(ClipFactor(sums.g_l2_squared));
  source_->SetClip(now_.clip);
  for (uint32_t k = run_.plan.chunks(); k-- > 0;)
    SIGNVOTE_RETURN_IF_ERROR(PackChunk(ChunkIndex(k)));
  return absl::OkStatus();
}

absl::Status Voter::CloseGradient() {
  const std::span<const TensorSpec> tensors = run_.layout.tensors();
  for (size_t t = 0; t < tensors.size(); ++t) {
    const uint64_t missing = now_.tensor_missing[t];
    if (missing == 0 || missing == tensors[t].count) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "the gradient of tensor \"", tensors[t].name, "\" is final on ", tensors[t].count - missing,
        " of its ", tensors[t].count, " coordinates; all or none of them must become ready"));
  }
  for (size_t t = tensors.size(); t-- > 0;) {
    if (now_.tensor_missing[t] == 0) continue;
    now_.g[t] = nullptr;
    SIGNVOTE_RETURN_IF_ERROR(MarkReady(tensors[t].first, tensors[t].count));
  }
  return absl::OkStatus();
}

absl::Status Voter::PackChunk(ChunkIndex k) {
  const Time start = clock_->Now();
  SIGNVOTE_RETURN_IF_ERROR(source_->MakeChunk(run_.plan.First(k), run_.plan.Count(k), now_.g));
  const Direction::ChunkInput input{.g = now_.g,
                                    .u = source_->u(),
                                    .h = now_.h,
                                    .prev_verdict = earlier_.verdict,
                                    .seed = run_.seed,
                                    .round = ticket_.round,
                                    .share = ticket_.share,
                                    .clip = now_.clip};
  // Packed even when it will not be sent: the direction's state follows every finite coordinate.
  SIGNVOTE_RETURN_IF_ERROR(packer_->Start(k, input, ballot_.get() + run_.ballot_plan.Offset(k)));
  now_.packing.push_back(k);
  const absl::Status status = SendChunks(Until::kAnyIsUnfinished);
  now_.sent.packing += clock_->Now() - start;
  return status;
}

absl::Status Voter::SendChunks(Until until) {
  while (!now_.packing.empty()) {
    const ChunkIndex k = now_.packing.front();
    if (until == Until::kAnyIsUnfinished) {
      SIGNVOTE_ASSIGN_OR_RETURN(const bool ready, packer_->Ready(k));
      if (!ready) return absl::OkStatus();
    }
    SIGNVOTE_ASSIGN_OR_RETURN(now_.chunk_scalars[k.value()], packer_->Finish(k));
    now_.packing.pop_front();
    if (now_.chunk_scalars[k.value()].nonfinite > 0)
      now_.withdrawn = AbstainReason::kNonFiniteGradient;
    if (now_.withdrawn.has_value()) continue;
    if (run_.ballot_plan.kind(k) != PayloadKind::kSigns) {
      SIGNVOTE_ASSIGN_OR_RETURN(std::vector<float> gradient, DenseGradient(k));
      if (!MakeDense(k, std::move(gradient))) {
        now_.withdrawn = AbstainReason::kNonFiniteGradient;
        continue;
      }
    }
    SIGNVOTE_RETURN_IF_ERROR(session_->SendChunk(
        k, std::shared_ptr<const uint8_t>(ballot_, ballot_.get() + run_.ballot_plan.Offset(k))));
    if (now_.sent.first_chunk.has_value()) continue;
    now_.sent.first_chunk = clock_->Now();
    if (options_.gradient_runs) {
      SIGNVOTE_ASSIGN_OR_RETURN(now_.sent.first_chunk_overlapped, options_.gradient_runs());
    } else {
      now_.sent.first_chunk_overlapped = until == Until::kAnyIsUnfinished;
    }
  }
  return absl::OkStatus();
}

bool Voter::MakeDense(ChunkIndex k, std::vector<float> values) {
  uint8_t* const payload = ballot_.get() + run_.ballot_plan.Offset(k);
  const std::vector<uint8_t> bits(payload, payload + run_.plan.Bytes(k));
  return MakeDenseChunk(run_.layout, run_.ballot_plan.kind(k), run_.plan.First(k), bits.data(),
                        values, payload);
}

absl::StatusOr<std::vector<float>> Voter::DenseGradient(ChunkIndex k) {
  const uint64_t chunk_first = run_.plan.First(k);
  std::vector<float> values(run_.plan.Count(k));
  absl::Status status;
  ForEachTensorRange(run_.layout, chunk_first, values.size(), [&](const TensorRange& range) {
    const float* const g = now_.g[range.tensor];
    if (!run_.layout.tensors()[range.tensor].dense || g == nullptr || !status.ok()) return;
    status = device_->CopyToHost(g + range.offset,
                                 std::span(values).subspan(range.first - chunk_first, range.count));
  });
  SIGNVOTE_RETURN_IF_ERROR(status);
  if (now_.clip != 1.0f) {
    for (float& value : values) value *= now_.clip;
  }
  return values;
}

absl::StatusOr<double> Voter::Wanted(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kProbeL1:
      return now_.sent.probe_l1.value_or(kCannotTell);
    case ScalarKind::kProbeInner:
      return now_.sent.probe_inner.value_or(kCannotTell);
    case ScalarKind::kChangeL1:
      return now_.sent.change_l1.value_or(kCannotTell);
    case ScalarKind::kGradientMax:
    case ScalarKind::kGradientMin:
      if (!range_.has_value()) {
        SIGNVOTE_ASSIGN_OR_RETURN(range_, replica_->RangeOf(run_.layout, now_.g));
      }
      return now_.clip_of_sums *
             double{kind == ScalarKind::kGradientMax ? range_->max : range_->min};
    case ScalarKind::kPrevInner:
      return now_.sent.prev_inner.value_or(kCannotTell);
    case ScalarKind::kX0Inner:
    case ScalarKind::kX0Distance:
      if (!replica_->keeps_x0()) return kCannotTell;
      if (!x0_sums_.has_value()) {
        SIGNVOTE_ASSIGN_OR_RETURN(x0_sums_, replica_->SumsAboutX0(run_.layout, now_.g));
      }
      return kind == ScalarKind::kX0Inner ? x0_sums_->inner : std::sqrt(x0_sums_->distance_squared);
    case ScalarKind::kLocalInner:
    case ScalarKind::kLocalProduct:
      break;
  }
  return source_->Scalar(kind);
}

absl::StatusOr<SentBallot> Voter::Finish(double loss, uint64_t samples,
                                         std::optional<HeldOutReport> held_out) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kGradient && !steps_, "Finish"));
  SIGNVOTE_RETURN_IF_ERROR(CloseGradient());
  if (waits_for_length_) {
    now_.status = PackClipped();
    SIGNVOTE_RETURN_IF_ERROR(now_.status);
  }
  // What a GPU has queued is sent as it gets done.
  if (!now_.packing.empty()) {
    now_.status = SendChunks(Until::kAllAreSent);
    SIGNVOTE_RETURN_IF_ERROR(now_.status);
    now_.sent.queue_done = clock_->Now();
  }

  // In order of chunk, whatever the order they were finished in: the sums are the same on every
  // worker and device.
  ChunkScalars sum;
  for (const ChunkScalars& chunk : now_.chunk_scalars) {
    sum.g_l1 += chunk.g_l1;
    sum.g_l2_squared += chunk.g_l2_squared;
    sum.probe_l1 += chunk.probe_l1;
    sum.prev_inner += chunk.prev_inner;
    sum.nonfinite += chunk.nonfinite;
  }
  BallotScalars& scalars = now_.sent.scalars;
  scalars.loss = loss;
  scalars.g_l1 = sum.g_l1;
  scalars.g_l2_squared = sum.g_l2_squared;
  scalars.nonfinite_coordinates = sum.nonfinite;
  scalars.samples = samples;
  scalars.held_out = std::move(held_out);
  const double clip = now_.clip_of_sums = ClipFactor(sum.g_l2_squared);
  // A probe that went wrong says nothing of the ballot.
  if (!now_.h.empty() && std::isfinite(sum.probe_l1)) {
    if (wants_change_) {
      now_.sent.change_l1 = std::min(clip, earlier_.clip) * sum.probe_l1;
    } else {
      now_.sent.probe_l1 = clip * sum.probe_l1;
    }
  }
  if (now_.sent.probe_inner.has_value()) *now_.sent.probe_inner *= clip;
  if (earlier_.verdict != nullptr) now_.sent.prev_inner = clip * sum.prev_inner;
  if (!std::isfinite(scalars.loss)) return Withdraw(AbstainReason::kNonFiniteLoss);
  if (now_.withdrawn.has_value()) return Withdraw(*now_.withdrawn);
  return SendScalars();
}

absl::StatusOr<SentBallot> Voter::SendScalars() {
  BallotScalars& scalars = now_.sent.scalars;
  for (const ScalarKind kind : ticket_.wanted) {
    absl::StatusOr<double> value = steps_ ? WantedOfSteps(kind) : Wanted(kind);
    if (!value.ok()) return now_.status = value.status();
    scalars.wanted.push_back(*value);
  }
  const std::span<const float> means = source_->displacement_mean();
  scalars.displacement_mean.assign(means.begin(), means.end());
  now_.status = session_->SendScalars(scalars);
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  stage_ = Stage::kSent;
  return now_.sent;
}

absl::StatusOr<SentBallot> Voter::Abstain(AbstainReason reason) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kOpen || stage_ == Stage::kGradient, "Abstain"));
  // Chunks in flight write to the ballot, and the next one must find none.
  now_.status = SendChunks(Until::kAllAreSent);
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  return Withdraw(reason);
}

absl::StatusOr<SentBallot> Voter::Withdraw(AbstainReason reason) {
  now_.sent.abstained = reason;
  now_.status = source_->EndSteps();
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  now_.status = session_->Abstain(reason);
  SIGNVOTE_RETURN_IF_ERROR(now_.status);
  stage_ = Stage::kSent;
  return now_.sent;
}

absl::Status Voter::PreviousKept() {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kSent && keeps_previous(), "PreviousKept"));
  now_.kept = true;
  return absl::OkStatus();
}

absl::Status Voter::GradientKept() {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kSent && keeps_gradient(), "GradientKept"));
  // Of a ballot that was withdrawn not every coordinate need be there.
  now_.gradient_kept = !now_.sent.abstained.has_value();
  return absl::OkStatus();
}

absl::StatusOr<CommitOutcome> Voter::Wait() {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kSent, "Wait"));
  // What lay in the session's memory is gone with the wait, and the caller's copies take the place of
  // older ones, whatever comes of the round.
  earlier_.previous_valid = earlier_.gradient_valid = false;
  earlier_.verdict = nullptr;
  stage_ = Stage::kIdle;
  SIGNVOTE_ASSIGN_OR_RETURN(CommitOutcome outcome, session_->WaitCommit());
  const bool alone = outcome.contiguous && outcome.commits == 1 && !outcome.rewound;
  SIGNVOTE_RETURN_IF_ERROR(source_->Settle(FateOf(outcome, alone)));
  settled_ = outcome.next_round > ticket_.round;
  if (outcome.rewound) SIGNVOTE_RETURN_IF_ERROR(Forget());
  if (!outcome.contiguous || outcome.commits > 1) SIGNVOTE_RETURN_IF_ERROR(source_->Missed());
  if (outcome.commits > 0 && outcome.kind != CommitKind::kRewind)
    source_->SetStepsize(outcome.decay_step);
  if (alone && outcome.kind == CommitKind::kStep) {
    earlier_.previous_valid = now_.kept;
    earlier_.gradient_valid = now_.gradient_kept && !steps_;
    earlier_.clip = now_.clip_of_sums;
    earlier_.verdict = outcome.verdict;
  }
  if (alone && outcome.kind == CommitKind::kNone && steps_) earlier_.lost = now_.sent.abstained;
  if (!alone || outcome.kind != CommitKind::kNone) SIGNVOTE_RETURN_IF_ERROR(RefreshCopies());
  return outcome;
}

BallotFate Voter::FateOf(const CommitOutcome& outcome, bool alone) const {
  if (now_.sent.abstained.has_value()) return BallotFate::kWithdrawn;
  const bool stepped = alone && outcome.kind == CommitKind::kStep && !ticket_.uncounted;
  return stepped ? BallotFate::kApplied : BallotFate::kNotApplied;
}

absl::Status Voter::SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) {
  const size_t carried = source_->planes().size();
  return plane < carried ? source_->SaveState(plane, first, bytes)
                         : packer_->SaveState(plane - carried, first, bytes);
}

absl::Status Voter::RestoreState(size_t plane, uint64_t first, std::span<const std::byte> bytes) {
  const size_t carried = source_->planes().size();
  return plane < carried ? source_->RestoreState(plane, first, bytes)
                         : packer_->RestoreState(plane - carried, first, bytes);
}

Voter::Carried Voter::carried() const {
  Carried carried{.previous = earlier_.previous_valid,
                  .gradient = earlier_.gradient_valid,
                  .clip = earlier_.clip,
                  .lost = earlier_.lost,
                  .verdict = {},
                  .continuation = source_->continuation()};
  if (earlier_.verdict != nullptr)
    carried.verdict = std::span(earlier_.verdict, run_.commit_plan.TotalBytes());
  return carried;
}

absl::Status Voter::GoOnFrom(Round round, const Carried& carried) {
  SIGNVOTE_RETURN_IF_ERROR(Expect(stage_ == Stage::kIdle, "GoOnFrom"));
  const size_t verdict_bytes = run_.commit_plan.TotalBytes();
  if (!carried.verdict.empty() &&
      (carried.verdict.size() != verdict_bytes || !run_.commit_plan.OnlySigns())) {
    return absl::InvalidArgumentError(absl::StrCat("the last verdict has ", carried.verdict.size(),
                                                   " bytes, and the run's have ", verdict_bytes));
  }
  if (!carried.continuation.empty())
    SIGNVOTE_RETURN_IF_ERROR(source_->RestoreContinuation(round, carried.continuation));
  earlier_.previous_valid = carried.previous;
  earlier_.gradient_valid = carried.gradient;
  earlier_.clip = carried.clip;
  earlier_.lost = carried.lost;
  earlier_.verdict = nullptr;
  if (!carried.verdict.empty() && device_->takes_host_verdicts()) {
    earlier_.restored_verdict.assign(carried.verdict.begin(), carried.verdict.end());
    earlier_.verdict = earlier_.restored_verdict.data();
  }
  StateIsBefore(round);
  return absl::OkStatus();
}

absl::Status Voter::Forget() {
  SIGNVOTE_RETURN_IF_ERROR(packer_->Reset());
  return source_->Reset();
}

absl::Status Voter::RefreshCopies() {
  for (ReplicaCopy* const copy : options_.copies)
    SIGNVOTE_RETURN_IF_ERROR(copy->Refresh(replica_, 0, run_.layout.coordinates()));
  return absl::OkStatus();
}

}  // namespace signvote
