#include "lab/local/virtual_workers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote::lab {

VirtualWorkers::VirtualWorkers(LocalServer* server, Model* model, const Dataset* dataset,
                               Clock* clock, const VirtualWorkersOptions& options)
    : server_(server),
      model_(model),
      clock_(clock),
      options_(options),
      pass_(model, dataset, clock, options.accumulate) {
  SIGNVOTE_CHECK(options_.workers > 0);
  if (dataset->held_out_windows() > 0) held_out_.emplace(model, dataset, clock, options_.eval_rows);
}

VirtualWorkers::~VirtualWorkers() = default;

absl::Status VirtualWorkers::Run(const std::stop_token& stop) {
  SIGNVOTE_RETURN_IF_ERROR(Enter());
  began_ = clock_->Now();
  setup_ = server_->bytes();
  bool stopping = false;
  while (true) {
    if (stop.stop_requested() && !std::exchange(stopping, true)) server_->RequestStop();
    const absl::StatusOr<bool> goes_on = OneRound();
    // A stopped server closes every stream, and says to each that it may come again.
    if (!goes_on.ok() && stopping && server_->ended() && server_->end_status().ok()) break;
    // How the run ended says more than what its workers were told.
    if (!goes_on.ok() && server_->ended()) SIGNVOTE_RETURN_IF_ERROR(server_->end_status());
    SIGNVOTE_RETURN_IF_ERROR(goes_on.status());
    if (!*goes_on) break;
  }
  const std::optional<uint64_t>& planned = report_.run.main_rounds;
  report_.stopped = stopping && (!planned.has_value() || report_.main_rounds < *planned);
  return Close();
}

absl::Status VirtualWorkers::Enter() {
  std::optional<uint64_t> windows;
  if (held_out_) {
    SIGNVOTE_ASSIGN_OR_RETURN(windows, held_out_->WindowsHash());
  }
  for (uint32_t k = 0; k < options_.workers; ++k) {
    workers_.push_back(std::make_unique<Worker>(
        std::make_unique<LocalSession>(server_, &replica_, absl::StrCat("worker-", k))));
    Worker& worker = *workers_.back();
    SIGNVOTE_ASSIGN_OR_RETURN(const RunInfo run,
                              worker.session->Join(DescriptionOf(*model_, windows)));
    // The first brings the parameters, for which the others wait.
    if (k == 0) {
      report_.run = run;
      SIGNVOTE_RETURN_IF_ERROR(TakeMemory());
    }
    SIGNVOTE_RETURN_IF_ERROR(worker.session->Attach(memory_.get()));
    SIGNVOTE_RETURN_IF_ERROR(MakeVoter(&worker));
  }
  return absl::OkStatus();
}

absl::Status VirtualWorkers::TakeMemory() {
  const RunInfo& run = report_.run;
  SIGNVOTE_RETURN_IF_ERROR(pass_.Enter(run));
  SIGNVOTE_ASSIGN_OR_RETURN(
      memory_, workers_.front()->device.MakeReplica(&report_.run.layout, pass_.parameters()));
  if (run.probes) SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
  return pass_.WarmUp();
}

absl::Status VirtualWorkers::MakeVoter(Worker* worker) {
  const RunInfo& run = report_.run;
  SIGNVOTE_ASSIGN_OR_RETURN(worker->source, pass_.MakeSource(run));
  if (run.keeps_gradients) {
    worker->gradient.resize(model_->layout().coordinates());
    worker->gradient_pointers =
        PointersInto(model_->layout(), std::as_const(worker->gradient).data());
  }
  // By the server's clock, of which tickets say until when local steps may be taken: it stands still
  // meanwhile, and all are.
  SIGNVOTE_ASSIGN_OR_RETURN(
      worker->voter,
      Voter::Make(run, worker->session.get(), memory_.get(), &worker->device, worker->source.get(),
                  server_->clock(), {.can_probe = true, .can_keep_gradient = true}));
  return absl::OkStatus();
}

void VirtualWorkers::KeepGradientOf(Worker* worker) const {
  const ConstTensorPointers gradient = model_->gradient();
  const std::span<const TensorSpec> tensors = model_->layout().tensors();
  for (size_t k = 0; k < tensors.size(); ++k)
    std::copy_n(gradient[k], tensors[k].count, worker->gradient.data() + tensors[k].first);
}

absl::StatusOr<bool> VirtualWorkers::OneRound() {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<RoundTicket> ticket,
                              worker->session->NextRound());
    if (!ticket.has_value()) return false;
    worker->ticket = *ticket;
  }
  LocalRound round{.round = workers_.front()->ticket.round};
  for (const std::unique_ptr<Worker>& worker : workers_) {
    std::optional<HeldOutReport> report;
    if (held_out_ && worker->ticket.evaluate) {
      SIGNVOTE_ASSIGN_OR_RETURN(round.held_out, held_out_->Now(round.round));
      if (!report_.held_out_first.has_value()) report_.held_out_first = round.held_out;
      report = HeldOutReport{.loss = round.held_out->loss,
                             .error = round.held_out->error,
                             .round = round.round,
                             .windows = round.held_out->windows};
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const BallotMade made,
                              pass_.Make(worker->voter.get(), worker->ticket,
                                         worker->gradient_pointers, std::move(report)));
    report_.minibatches += made.minibatches;
    report_.targets += made.targets;
    // The next worker's takes its place in the model.
    if (worker->voter->keeps_gradient()) {
      KeepGradientOf(worker.get());
      SIGNVOTE_RETURN_IF_ERROR(worker->voter->GradientKept());
    }
  }
  // Behind all ballots: the probes of this round were taken at the one that is kept.
  if (workers_.front()->voter->keeps_previous())
    SIGNVOTE_RETURN_IF_ERROR(model_->Keep(ReplicaSlot::kPrevious));
  std::optional<CommitOutcome> last;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->voter->keeps_previous()) SIGNVOTE_RETURN_IF_ERROR(worker->voter->PreviousKept());
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    SIGNVOTE_ASSIGN_OR_RETURN(last, worker->voter->Wait());
  }
  // The run has ended in this round: NextRound() knows.
  if (last->commits == 0) return true;
  ++report_.rounds;
  report_.main_rounds = last->main_round;
  const double eval_seconds = held_out_ ? held_out_->seconds() : 0;
  const run::PeerBytes bytes = server_->bytes();
  round.kind = last->kind;
  round.main_round = last->main_round;
  // With local steps that of the commit is 1: lengths stand in its scales.
  const RoundTicket& ticket = workers_.front()->ticket;
  round.stepsize = ticket.local_steps > 1 ? ticket.eta_first : last->stepsize;
  round.rho = last->rho;
  round.loss = last->loss;
  round.seconds = ToSeconds(clock_->Now() - *began_) - eval_seconds;
  round.bytes_up = bytes.received - setup_.received;
  round.bytes_down = bytes.sent - setup_.sent;
  report_.seconds = round.seconds;
  report_.bytes_up = round.bytes_up;
  report_.bytes_down = round.bytes_down;
  if (on_round_) on_round_(round);
  return true;
}

absl::Status VirtualWorkers::Close() {
  // Every worker hears that the run is over, and says what its replica is.
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (server_->ended()) break;
    SIGNVOTE_RETURN_IF_ERROR(worker->session->NextRound().status());
  }
  while (!server_->ended()) {
    if (!server_->Turn()) {
      return absl::InternalError("the run waits for its end, and nothing is left that it would do");
    }
  }
  SIGNVOTE_ASSIGN_OR_RETURN(report_.digest, memory_->Digest());
  SIGNVOTE_RETURN_IF_ERROR(server_->end_status());
  if (held_out_) {
    SIGNVOTE_ASSIGN_OR_RETURN(report_.held_out_last,
                              held_out_->Now(*workers_.front()->session->replica_round()));
    report_.eval_seconds = held_out_->seconds();
  }
  return absl::OkStatus();
}

}  // namespace signvote::lab
