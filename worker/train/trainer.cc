#include "worker/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "worker/train/batch_view.h"

namespace signvote {
namespace {

// Without a probe in this many rounds the rule is taken for one that wants none, and x_{t−1} is no
// longer kept.
constexpr uint64_t kProbeWatchRounds = 64;

}  // namespace

Trainer::Trainer(Session* session, Model* model, WorkerDevice* device, ReplicaMemory* replica,
                 const Dataset* dataset, Clock* clock, const TrainerOptions& options)
    : session_(session),
      model_(model),
      device_(device),
      replica_(replica),
      dataset_(dataset),
      clock_(clock),
      options_(options),
      ballot_(device->host_memory()) {
  SIGNVOTE_CHECK(options_.accumulate > 0);
  if (options_.eval_batches > 0) held_out_.emplace(model, dataset, clock, options_.eval_batches);
}

Trainer::~Trainer() = default;

bool Trainer::KeepsPrevious() const {
  return probe_seen_ || report_.rounds_voted < kProbeWatchRounds;
}

absl::Status Trainer::Run() {
  const absl::Status status = JoinAndTrain();
  // The session sends the ballot again when it must, until it is told that there will be none.
  if (!status.ok()) (void)session_->Leave(Describe(status));  // `status` says more
  return status;
}

absl::Status Trainer::JoinAndTrain() {
  absl::StatusOr<RunInfo> joined = session_->Join(model_->layout(), replica_);
  if (!joined.ok()) {
    if (!session_->drained()) return joined.status();
    return session_->Leave("drained before it had joined");
  }
  run_ = *std::move(joined);
  report_.run = run_;
  if (!session_->replica_round().has_value()) {
    LogWarning("the run ended before this worker had its replica", {{"run", run_.run_id.ToText()}});
    SIGNVOTE_RETURN_IF_ERROR(session_->NextRound().status());
    return session_->Leave("finished");
  }
  SIGNVOTE_CHECK(run_.plan.coordinates() == model_->layout().coordinates());
  SIGNVOTE_ASSIGN_OR_RETURN(packer_,
                            device_->MakePacker(&model_->layout(), run_.plan, run_.direction));
  ballot_.assign(run_.plan.TotalBytes(), 0);
  chunk_missing_.resize(run_.plan.chunks());
  chunk_scalars_.resize(run_.plan.chunks());
  if (held_out_) SIGNVOTE_RETURN_IF_ERROR(held_out_->Begin(*session_->replica_round()));
  if (on_joined_) on_joined_(run_);

  SIGNVOTE_RETURN_IF_ERROR(Train());

  // Nobody waits for this worker any more.
  if (held_out_ && held_out_->running() && !report_.held_out_first.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const HeldOutLoss first, held_out_->Finish());
    report_.held_out_first = first.loss;
  }
  if (const std::optional<Round> round = session_->replica_round()) {
    report_.next_round = *round;
    SIGNVOTE_ASSIGN_OR_RETURN(report_.digest, replica_->Digest());
    if (held_out_) {
      SIGNVOTE_ASSIGN_OR_RETURN(report_.held_out_last, held_out_->Now());
    }
  } else {
    LogWarning("the run went on without this worker: a state transfer was not completed",
               {{"run", run_.run_id.ToText()}});
  }
  if (held_out_) report_.eval_seconds = held_out_->seconds();
  return session_->Leave(session_->finished() ? "finished" : "drained");
}

absl::Status Trainer::Train() {
  bool started = false;
  Time run_start;
  bool contiguous = false;  // the last commit applied was that of the round voted on
  while (true) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<RoundTicket> ticket, session_->NextRound());
    if (!ticket.has_value()) return absl::OkStatus();
    round_start_ = clock_->Now();
    if (!started) run_start = round_start_;
    started = true;
    // A round that does not follow the last commit here means that NextRound() moved the replica.
    if (!contiguous || ticket->round != previous_round_.next()) {
      previous_valid_ = false;
      prev_verdict_ = nullptr;
    }

    RoundReport round;
    round.round = ticket->round;
    round.data_step = ticket->data_step;
    round.share = ticket->share;
    round.members = ticket->members;
    round.observer = ticket->observer;
    SIGNVOTE_RETURN_IF_ERROR(Vote(*ticket, &round));

    previous_valid_ = false;
    if (KeepsPrevious()) {
      SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
      previous_valid_ = true;
    }
    previous_round_ = ticket->round;

    // Here, while the others vote: the slowest worker is the only one that a slice delays.
    if (held_out_ && held_out_->running()) {
      SIGNVOTE_ASSIGN_OR_RETURN(round.held_out, held_out_->Slice(SlicesOfAnEvaluation()));
      if (round.held_out && !report_.held_out_first) report_.held_out_first = round.held_out->loss;
    }

    const double wait_start = Elapsed();
    SIGNVOTE_ASSIGN_OR_RETURN(const CommitOutcome outcome, session_->WaitCommit());
    // The run or this worker's part in it has ended, or the state was fetched: NextRound() knows.
    if (outcome.commits == 0) {
      contiguous = false;
      continue;
    }
    contiguous = outcome.contiguous && outcome.commits == 1;
    prev_verdict_ = contiguous ? outcome.verdict : nullptr;
    round.apply_took_seconds = session_->Stats().last_apply_seconds;
    round.round_took_seconds = Elapsed();
    round.wait_took_seconds =
        std::max(0.0, round.round_took_seconds - wait_start - round.apply_took_seconds);
    round.stepsize = outcome.stepsize;
    round.run_loss = outcome.loss;
    round.voters = outcome.voters;

    report_.next_round = outcome.next_round;
    report_.seconds = ToSeconds(clock_->Now() - run_start);
    report_.compute_seconds += round.compute_took_seconds;
    report_.pack_seconds += round.pack_took_seconds;
    report_.wait_seconds += round.wait_took_seconds;
    report_.apply_seconds += round.apply_took_seconds;
    report_.targets += round.targets;
    if (round.abstained.has_value()) {
      ++report_.rounds_abstained;
    } else {
      ++report_.rounds_voted;
      report_.rounds_overlapped += round.first_chunk_overlapped ? 1 : 0;
      if (!report_.loss_first.has_value()) report_.loss_first = round.scalars.loss;
      report_.loss_last = round.scalars.loss;
    }
    if (held_out_) {
      report_.eval_seconds = held_out_->seconds();
      if (EvaluationIsDue(outcome.next_round) && !held_out_->running())
        SIGNVOTE_RETURN_IF_ERROR(held_out_->Begin(outcome.next_round));
    }
    if (on_round_) on_round_(round);
  }
}

absl::StatusOr<bool> Trainer::ProbePass(const RoundTicket& ticket) {
  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(ReplicaSlot::kPrevious));
  for (uint32_t micro = 0; micro < options_.accumulate; ++micro) {
    SIGNVOTE_RETURN_IF_ERROR(
        dataset_->TrainBatch({run_.seed, ticket.share, ticket.data_step, micro}, &batch_));
    SIGNVOTE_ASSIGN_OR_RETURN(const double loss,
                              model_->Forward(ReplicaSlot::kPrevious, ViewOf(batch_)));
    // Without a finite h there is no probe; the vote itself does not depend on it.
    if (!std::isfinite(loss)) return false;
    SIGNVOTE_RETURN_IF_ERROR(
        model_->Backward(1.0f / static_cast<float>(options_.accumulate), nullptr));
  }
  return true;
}

absl::Status Trainer::Vote(const RoundTicket& ticket, RoundReport* round) {
  for (uint32_t k = 0; k < run_.plan.chunks(); ++k)
    chunk_missing_[k] = run_.plan.Count(ChunkIndex(k));
  pack_status_ = absl::OkStatus();
  withdrawn_ = false;
  pack_seconds_ = 0;
  first_chunk_seconds_.reset();
  first_chunk_overlapped_ = false;
  probed_ = false;
  probe_seen_ = probe_seen_ || ticket.probe;
  if (ticket.probe && previous_valid_) {
    SIGNVOTE_ASSIGN_OR_RETURN(probed_, ProbePass(ticket));
  }
  round->probed = probed_;

  SIGNVOTE_RETURN_IF_ERROR(model_->BeginStep(ReplicaSlot::kCurrent));
  const float weight = 1.0f / static_cast<float>(options_.accumulate);
  double loss = 0;
  for (uint32_t micro = 0; micro < options_.accumulate; ++micro) {
    SIGNVOTE_RETURN_IF_ERROR(
        dataset_->TrainBatch({run_.seed, ticket.share, ticket.data_step, micro}, &batch_));
    SIGNVOTE_ASSIGN_OR_RETURN(const double micro_loss,
                              model_->Forward(ReplicaSlot::kCurrent, ViewOf(batch_)));
    loss += micro_loss / options_.accumulate;
    round->targets += batch_.targets_count();
    // Before the first chunk: a chunk that was sent stands.
    if (!std::isfinite(loss)) {
      round->scalars.loss = loss;
      round->abstained = AbstainReason::kNonFiniteLoss;
      LogWarning("abstained: loss is not finite",
                 {{"round", ticket.round.value()}, {"loss", loss}});
      round->compute_took_seconds = Elapsed();
      return session_->Abstain(AbstainReason::kNonFiniteLoss);
    }
    const bool last = micro + 1 == options_.accumulate;
    Model::GradientReady ready;
    if (last)
      ready = [&](uint64_t first, uint64_t count) { OnGradientReady(ticket, first, count); };
    backward_called_ = last;
    const absl::Status status = model_->Backward(weight, ready);
    backward_called_ = false;
    SIGNVOTE_RETURN_IF_ERROR(status);
  }
  round->backward_end_seconds = Elapsed();
  const double packed_in_backward = pack_seconds_;
  // What a GPU has queued is sent as it gets done; the last chunk is packed right behind the end of
  // the backward pass.
  if (pack_status_.ok() && !packing_.empty()) {
    pack_status_ = SendChunks(Until::kAllAreSent);
    round->backward_end_seconds = Elapsed();
  }
  round->first_chunk_seconds = first_chunk_seconds_.value_or(0);
  round->first_chunk_overlapped = first_chunk_overlapped_;
  round->pack_took_seconds = packed_in_backward;
  round->compute_took_seconds = round->backward_end_seconds - packed_in_backward;
  SIGNVOTE_RETURN_IF_ERROR(pack_status_);

  // In order of chunk, whatever the order they were finished in: the sums are the same on every
  // worker and device.
  ChunkScalars sum;
  for (const ChunkScalars& chunk : chunk_scalars_) {
    sum.g_l1 += chunk.g_l1;
    sum.g_l2_squared += chunk.g_l2_squared;
    sum.probe_l1 += chunk.probe_l1;
    sum.prev_inner += chunk.prev_inner;
    sum.nonfinite += chunk.nonfinite;
  }
  BallotScalars& scalars = round->scalars;
  scalars.loss = loss;
  scalars.g_l1 = sum.g_l1;
  scalars.g_l2_squared = sum.g_l2_squared;
  if (probed_) scalars.probe_l1 = sum.probe_l1;
  if (prev_verdict_ != nullptr) scalars.prev_inner = sum.prev_inner;
  scalars.nonfinite_coordinates = sum.nonfinite;
  scalars.samples = round->targets;
  if (withdrawn_) {
    round->abstained = AbstainReason::kNonFiniteGradient;
    LogWarning("abstained: gradient is not finite",
               {{"round", ticket.round.value()}, {"coordinates", sum.nonfinite}});
    return session_->Abstain(AbstainReason::kNonFiniteGradient);
  }
  return session_->SendScalars(scalars);
}

void Trainer::OnGradientReady(const RoundTicket& ticket, uint64_t first, uint64_t count) {
  const uint64_t size = run_.plan.chunk_coordinates();
  const uint64_t end = first + count;
  // High chunks first: that is the order in which backward finishes them.
  for (uint64_t k = (end - 1) / size + 1; k-- > first / size;) {
    const ChunkIndex chunk(static_cast<uint32_t>(k));
    const uint64_t begin = run_.plan.First(chunk);
    const uint64_t overlap = std::min(end, begin + run_.plan.Count(chunk)) - std::max(first, begin);
    SIGNVOTE_CHECK(overlap <= chunk_missing_[k]);
    chunk_missing_[k] -= overlap;
    if (chunk_missing_[k] == 0 && pack_status_.ok()) pack_status_ = PackChunk(ticket, chunk);
  }
}

absl::Status Trainer::PackChunk(const RoundTicket& ticket, ChunkIndex k) {
  const Time start = clock_->Now();
  Direction::ChunkInput input;
  input.g = model_->gradient().data();
  input.h = probed_ ? model_->previous_gradient().data() : nullptr;
  input.prev_verdict = prev_verdict_;
  input.seed = run_.seed;
  input.round = ticket.round;
  input.share = ticket.share;
  // Packed even when it will not be sent: the direction's state follows every finite coordinate.
  SIGNVOTE_RETURN_IF_ERROR(packer_->Start(k, input, ballot_.data() + run_.plan.ByteOffset(k)));
  packing_.push_back(k);
  const absl::Status status = SendChunks(Until::kAnyIsUnfinished);
  pack_seconds_ += ToSeconds(clock_->Now() - start);
  return status;
}

absl::Status Trainer::SendChunks(Until until) {
  while (!packing_.empty()) {
    const ChunkIndex k = packing_.front();
    if (until == Until::kAnyIsUnfinished) {
      SIGNVOTE_ASSIGN_OR_RETURN(const bool ready, packer_->Ready(k));
      if (!ready) return absl::OkStatus();
    }
    SIGNVOTE_ASSIGN_OR_RETURN(chunk_scalars_[k.value()], packer_->Finish(k));
    packing_.pop_front();
    if (chunk_scalars_[k.value()].nonfinite > 0) withdrawn_ = true;
    if (withdrawn_) continue;
    SIGNVOTE_RETURN_IF_ERROR(session_->SendChunk(k, ballot_.data() + run_.plan.ByteOffset(k)));
    if (!first_chunk_seconds_.has_value()) {
      first_chunk_seconds_ = Elapsed();
      SIGNVOTE_ASSIGN_OR_RETURN(first_chunk_overlapped_, BackwardRuns());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Trainer::BackwardRuns() {
  if (backward_called_) return true;
  return model_->BackwardRunning();
}

uint64_t Trainer::SlicesOfAnEvaluation() const {
  // Done when the next one is due; without a next one as slowly as can be.
  return options_.eval_every > 0 ? options_.eval_every : std::numeric_limits<uint64_t>::max();
}

bool Trainer::EvaluationIsDue(Round next_round) const {
  const uint64_t every = options_.eval_every;
  // Not only at the multiples: catching up goes past them.
  return every > 0 && next_round.value() < run_.rounds_max &&
         next_round.value() / every > held_out_->round().value() / every;
}

}  // namespace signvote
