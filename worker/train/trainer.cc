#include "worker/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/log.h"
#include "common/status.h"
#include "worker/train/worker_memory.h"

namespace signvote {
namespace {

constexpr std::string_view kEmbeddingName = "embed_tokens.weight";  // Hugging Face's
constexpr uint64_t kNormBlock = 1 << 16;                            // coordinates read at a time
// An evaluation is done when so much of the time until the next is left, so that it is known by then
// though this worker misses some rounds.
constexpr uint64_t kLeftOfEvaluation = 4;  // a quarter

}  // namespace

Trainer::Trainer(Session* session, Model* model, WorkerDevice* device, const Dataset* dataset,
                 Clock* clock, const TrainerOptions& options)
    : session_(session),
      model_(model),
      device_(device),
      dataset_(dataset),
      clock_(clock),
      options_(options),
      pass_(model, dataset, clock, options.accumulate) {
  if (options_.evaluate != Evaluate::kOff && dataset->held_out_windows() > 0)
    held_out_.emplace(model, dataset, clock, options_.eval_rows);
}

Trainer::~Trainer() = default;

absl::Status Trainer::Run() {
  data_check_.emplace(dataset_);
  const absl::Status status = JoinAndTrain();
  if (status.ok()) return status;
  // The session sends the ballot again when it must, until it is told that there will be none.
  (void)session_->Leave(signvote::Describe(status));  // `status` says more
  // Whatever ended the training, only commits have moved the replica.
  if (const absl::Status closed = CloseReplica(); !closed.ok())
    LogWarning("the replica cannot be read any more", {{"error", signvote::Describe(closed)}});
  return status;
}

absl::Status Trainer::CloseReplica() {
  if (replica_ == nullptr || report_.digest.has_value()) return absl::OkStatus();
  const std::optional<Round> round = session_->replica_round();
  if (!round.has_value()) return absl::OkStatus();
  report_.next_round = *round;
  SIGNVOTE_ASSIGN_OR_RETURN(report_.digest, replica_->Digest());
  if (on_final_replica_) on_final_replica_();
  return absl::OkStatus();
}

absl::Status Trainer::JoinAndTrain() {
  std::optional<uint64_t> windows;
  if (held_out_) {
    SIGNVOTE_ASSIGN_OR_RETURN(windows, held_out_->WindowsHash());
  }
  absl::StatusOr<RunInfo> joined = session_->Join(DescriptionOf(*model_, windows));
  absl::Status entered = joined.status();
  if (joined.ok()) entered = Enter(*joined);
  if (!entered.ok()) {
    if (!session_->drained()) return entered;
    return session_->Leave("drained before it had joined");
  }
  if (!session_->replica_round().has_value()) {
    LogWarning("the run ended before this worker had its replica", {{"run", run_.run_id.ToText()}});
    SIGNVOTE_RETURN_IF_ERROR(session_->NextRound().status());
    return session_->Leave("finished");
  }
  if (checkpoints_ != nullptr) SIGNVOTE_RETURN_IF_ERROR(Resume());
  if (held_out_ && options_.evaluate == Evaluate::kOnItsOwnToo) {
    SIGNVOTE_RETURN_IF_ERROR(BeginEvaluation(*session_->replica_round(), options_.eval_every));
  }
  if (on_joined_) on_joined_(run_);

  SIGNVOTE_RETURN_IF_ERROR(Train());
  SIGNVOTE_RETURN_IF_ERROR(FinishReport());
  return session_->Leave(session_->finished() ? "finished" : "drained");
}

// Takes all memory that a round will need, and hands the replica over.
absl::Status Trainer::Enter(const RunInfo& run) {
  run_ = run;
  report_.run = run;
  report_.main_rounds = run_.main_round;
  SIGNVOTE_RETURN_IF_ERROR(pass_.Enter(run_));
  SIGNVOTE_RETURN_IF_ERROR(TakeMemory());
  SIGNVOTE_RETURN_IF_ERROR(pass_.WarmUp());
  return session_->Attach(replica_.get());
}

// All that a round will need but what a pass of the model takes by itself.
absl::Status Trainer::TakeMemory() {
  if (memory_left_) {
    SIGNVOTE_RETURN_IF_ERROR(CheckRunMemory(run_,
                                            {.evaluates = held_out_.has_value(),
                                             .writes_copies = options_.copied_meanwhile,
                                             .checkpoints = checkpoints_ != nullptr},
                                            memory_left_()));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(replica_, device_->MakeReplica(&run_.layout, pass_.parameters()));
  if (run_.needs_x0) SIGNVOTE_RETURN_IF_ERROR(replica_->KeepX0());
  if (run_.probes) SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
  if (run_.keeps_gradients) SIGNVOTE_RETURN_IF_ERROR(model_->KeepGradient());
  if (held_out_) SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kSnapshot));
  SIGNVOTE_ASSIGN_OR_RETURN(source_, pass_.MakeSource(run_));
  SIGNVOTE_ASSIGN_OR_RETURN(
      voter_, Voter::Make(run_, session_, replica_.get(), device_, source_.get(), clock_,
                          {.can_probe = true, .can_keep_gradient = true, .gradient_runs = [this] {
                             return pass_.GradientRuns();
                           }}));
  return absl::OkStatus();
}

absl::Status Trainer::Train() {
  bool started = false;
  Time run_start;
  while (true) {
    SIGNVOTE_RETURN_IF_ERROR(data_check_->found());
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<RoundTicket> ticket, session_->NextRound());
    if (!ticket.has_value()) return absl::OkStatus();
    round_start_ = clock_->Now();
    if (!started) run_start = round_start_;
    started = true;
    // The server names one worker to measure what the run is to know.
    if (held_out_ && ticket->evaluate) {
      asked_round_ = ticket->round;
      SIGNVOTE_RETURN_IF_ERROR(BeginEvaluation(ticket->round, run_.evaluate_every));
    }

    RoundReport round;
    round.round = ticket->round;
    round.data_step = ticket->data_step;
    round.share = ticket->share;
    round.members = ticket->members;
    round.observer = ticket->observer;
    SIGNVOTE_RETURN_IF_ERROR(Vote(*ticket, &round));
    if (voter_->keeps_previous()) {
      SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
      SIGNVOTE_RETURN_IF_ERROR(voter_->PreviousKept());
    }
    if (voter_->keeps_gradient()) {
      SIGNVOTE_RETURN_IF_ERROR(model_->KeepGradient());
      SIGNVOTE_RETURN_IF_ERROR(voter_->GradientKept());
    }
    // Here, while the others vote: the slowest worker is the only one that a slice delays.
    if (held_out_ && held_out_->running()) SIGNVOTE_RETURN_IF_ERROR(SliceOfEvaluation(&round));

    const double wait_start = Elapsed();
    SIGNVOTE_ASSIGN_OR_RETURN(const CommitOutcome outcome, voter_->Wait());
    // The run or this worker's part in it has ended, or the state was fetched: NextRound() knows.
    if (outcome.commits == 0) continue;
    report_.seconds = ToSeconds(clock_->Now() - run_start);
    SIGNVOTE_RETURN_IF_ERROR(AddUp(outcome, wait_start, &round));
    if (checkpoints_ != nullptr) SIGNVOTE_RETURN_IF_ERROR(Checkpoint(*ticket, outcome));
    if (on_round_) on_round_(round);
  }
}

template <typename Use>
absl::Status Trainer::WithState(const Use& use) {
  std::vector<const float*> previous, gradient;
  if (run_.probes) previous = pass_.InRunOrder(model_->previous_parameters());
  if (run_.keeps_gradients) gradient = pass_.InRunOrder(model_->kept_gradient());
  return use(
      StateOwner{.run = &run_, .replica = replica_.get(), .device = device_, .voter = voter_.get()},
      KeptByCaller{.previous = previous, .gradient = gradient});
}

absl::Status Trainer::Resume() {
  const auto back = [this](Model::Kept what) {
    return [this, what](std::span<const float> values) {
      return model_->PutBack(what, pass_.InModelOrder(values));
    };
  };
  GivenBack given_back;
  if (run_.probes) given_back.previous = back(Model::Kept::kPrevious);
  if (run_.keeps_gradients) given_back.gradient = back(Model::Kept::kGradient);
  return WithState([&](const StateOwner& owner, const KeptByCaller&) {
    return checkpoints_->Resume(owner, *session_->replica_round(), run_.main_round, given_back);
  });
}

absl::Status Trainer::Checkpoint(const RoundTicket& ticket, const CommitOutcome& outcome) {
  checkpoints_->Note(ticket.share, outcome.main_round);
  const std::optional<Round> round = session_->replica_round();
  if (!round.has_value()) return absl::OkStatus();
  return WithState([&](const StateOwner& owner, const KeptByCaller& kept) {
    return checkpoints_->AfterRound(owner, kept, *round);
  });
}

absl::Status Trainer::SaveState() {
  if (checkpoints_ == nullptr || voter_ == nullptr) return absl::OkStatus();
  return WithState([&](const StateOwner& owner, const KeptByCaller& kept) {
    return checkpoints_->Final(owner, kept, report_.next_round);
  });
}

absl::Status Trainer::AddUp(const CommitOutcome& outcome, double wait_start, RoundReport* round) {
  round->apply_took_seconds = ToSeconds(outcome.times.apply);
  round->round_took_seconds = Elapsed();
  round->wait_took_seconds =
      std::max(0.0, round->round_took_seconds - wait_start - round->apply_took_seconds);
  round->kind = outcome.kind;
  round->main_round = outcome.main_round;
  round->run_done = outcome.run_done;
  round->stepsize = outcome.stepsize;
  round->run_loss = outcome.loss;
  round->voters = outcome.voters;

  report_.next_round = outcome.next_round;
  report_.main_rounds = outcome.main_round;
  report_.compute_seconds += round->compute_took_seconds;
  report_.pack_seconds += round->pack_took_seconds;
  report_.wait_seconds += round->wait_took_seconds;
  report_.apply_seconds += round->apply_took_seconds;
  report_.minibatches += round->minibatches;
  report_.targets += round->targets;
  if (round->abstained.has_value()) {
    ++report_.rounds_abstained;
  } else {
    ++report_.rounds_voted;
    report_.rounds_overlapped += round->first_chunk_overlapped ? 1 : 0;
    if (!report_.loss_first.has_value()) report_.loss_first = round->scalars.loss;
    report_.loss_last = round->scalars.loss;
  }
  if (!held_out_) return absl::OkStatus();
  report_.eval_seconds = held_out_->seconds();
  if (!OwnEvaluationIsDue(outcome) || held_out_->running()) return absl::OkStatus();
  return BeginEvaluation(outcome.next_round, options_.eval_every);
}

// When nobody waits for this worker any more.
absl::Status Trainer::FinishReport() {
  SIGNVOTE_RETURN_IF_ERROR(CloseReplica());
  if (held_out_ && held_out_->running() && !report_.held_out_first.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(report_.held_out_first, held_out_->Finish());
  }
  if (report_.digest.has_value()) {
    // One that was never asked leaves the last to the one that was.
    if (held_out_ && (asked_round_.has_value() || options_.evaluate == Evaluate::kOnItsOwnToo)) {
      SIGNVOTE_ASSIGN_OR_RETURN(report_.held_out_last, held_out_->Now(report_.next_round));
    }
  } else {
    LogWarning("the run went on without this worker: a state transfer was not completed",
               {{"run", run_.run_id.ToText()}});
  }
  if (held_out_) report_.eval_seconds = held_out_->seconds();
  return absl::OkStatus();
}

absl::Status Trainer::Vote(const RoundTicket& ticket, RoundReport* round) {
  SIGNVOTE_ASSIGN_OR_RETURN(
      const BallotMade made,
      pass_.Make(voter_.get(), ticket, model_->kept_gradient(), held_out_unsent_));
  const SentBallot& sent = made.sent;
  if (!sent.abstained.has_value()) held_out_unsent_.reset();
  round->probed = made.probed;
  round->minibatches = made.minibatches;
  round->targets = made.targets;
  round->scalars = sent.scalars;
  round->abstained = sent.abstained;
  if (!made.backward_done.has_value()) {
    round->compute_took_seconds = Elapsed();
    return absl::OkStatus();
  }
  round->backward_end_seconds = ToSeconds(*made.backward_done - round_start_);
  round->pack_took_seconds = ToSeconds(sent.packing);
  round->compute_took_seconds =
      std::max(0.0, round->backward_end_seconds - round->pack_took_seconds);
  if (sent.first_chunk) round->first_chunk_seconds = ToSeconds(*sent.first_chunk - round_start_);
  round->first_chunk_overlapped = sent.first_chunk_overlapped;
  round->probe_l1 = sent.probe_l1;
  round->prev_inner = sent.prev_inner;
  return absl::OkStatus();
}

// Of the model's tokens, most rows of which get no gradient in a round.
absl::StatusOr<std::optional<double>> Trainer::EmbeddingNorm() {
  for (const TensorSpec& tensor : run_.layout.tensors()) {
    if (!tensor.name.ends_with(kEmbeddingName)) continue;
    double squares = 0;
    std::vector<float> block;
    for (uint64_t i = 0; i < tensor.count; i += block.size()) {
      block.resize(std::min(kNormBlock, tensor.count - i));
      SIGNVOTE_RETURN_IF_ERROR(replica_->Read(tensor.first + i, block));
      for (const float x : block) squares += static_cast<double>(x) * static_cast<double>(x);
    }
    return std::sqrt(squares);
  }
  return std::optional<double>();
}

absl::Status Trainer::BeginEvaluation(Round round, uint64_t every) {
  // Without a next one as slowly as can be.
  const uint64_t slices =
      every > 0 ? every - every / kLeftOfEvaluation : std::numeric_limits<uint64_t>::max();
  return held_out_->Begin(round, slices);
}

absl::Status Trainer::SliceOfEvaluation(RoundReport* round) {
  SIGNVOTE_ASSIGN_OR_RETURN(round->held_out, held_out_->Slice());
  if (!round->held_out.has_value()) return absl::OkStatus();
  round->held_out_own = round->held_out->round != asked_round_;
  if (!report_.held_out_first.has_value()) report_.held_out_first = round->held_out;
  held_out_unsent_ = HeldOutReport{.loss = round->held_out->loss,
                                   .error = round->held_out->error,
                                   .round = round->held_out->round,
                                   .windows = round->held_out->windows};
  SIGNVOTE_ASSIGN_OR_RETURN(round->embedding_norm, EmbeddingNorm());
  return absl::OkStatus();
}

bool Trainer::OwnEvaluationIsDue(const CommitOutcome& outcome) const {
  const uint64_t every = options_.eval_every;
  // Not only at the multiples: catching up goes past them.
  return options_.evaluate == Evaluate::kOnItsOwnToo && every > 0 && !outcome.run_done &&
         outcome.next_round.value() / every > held_out_->round().value() / every;
}

}  // namespace signvote
