#include "worker/session/replica_moves.h"

namespace signvote {

void ReplicaMoves::Applied(CommitEvent commit, Duration took) {
  ++applied_;
  if (last_ && last_->slot != nullptr) release_(last_->slot);
  last_ = std::move(commit);
  last_->times.apply = took;
  if (last_->kind == CommitKind::kRewind) rewound_ = true;
}

void ReplicaMoves::Transferred() {
  Forget();
  transferred_ = true;
}

void ReplicaMoves::Forget() {
  applied_ = 0;
  transferred_ = false;
  rewound_ = false;
  if (last_ && last_->slot != nullptr) release_(last_->slot);
  last_.reset();
}

void ReplicaMoves::Tell(RoundTicket* ticket) {
  ticket->replica_moved = applied_ > 0 || transferred_;
  ticket->rewound = rewound_;
  Forget();
}

CommitOutcome ReplicaMoves::TakeOutcome(Round voted, Round next, const RoundTimes& ballot,
                                        bool finished) {
  CommitOutcome outcome;
  outcome.commits = std::exchange(applied_, 0);
  const bool transferred = std::exchange(transferred_, false);
  outcome.next_round = next;
  outcome.contiguous = outcome.commits == 1 && !transferred && last_->round == voted;
  outcome.finished = finished;
  outcome.rewound = std::exchange(rewound_, false);
  if (!last_) return outcome;
  const CommitEvent& commit = *last_;
  outcome.kind = commit.kind;
  outcome.stepsize = commit.stepsize;
  outcome.rho = commit.rho;
  outcome.decay_step = commit.decay_step;
  outcome.loss = commit.loss;
  outcome.voters = commit.voters;
  outcome.main_round = commit.main_round;
  outcome.next_data_step = commit.next_data_step;
  outcome.run_done = commit.run_done;
  outcome.reason = commit.reason;
  outcome.times = commit.times;
  if (commit.round == voted) {
    outcome.times.opened = ballot.opened;
    outcome.times.first_chunk = ballot.first_chunk;
    outcome.times.ballot_written = ballot.ballot_written;
  }
  if (commit.slot != nullptr) {
    outcome_slot_ = commit.slot;
    if (outcome_slot_->plan->OnlySigns()) outcome.verdict = outcome_slot_->bits.data();
  }
  last_.reset();
  return outcome;
}

void ReplicaMoves::ReleaseOutcome() {
  if (outcome_slot_ != nullptr) release_(std::exchange(outcome_slot_, nullptr));
}

}  // namespace signvote
