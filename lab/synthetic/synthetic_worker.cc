#include "lab/synthetic/synthetic_worker.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/process.h"
#include "common/rng.h"
#include "common/status.h"
#include "lab/synthetic/ballot_log.h"
#include "worker/checkpoint/worker_checkpoints.h"
#include "worker/direction/worker_device.h"
#include "worker/session/session.h"
#include "worker/train/replica_saver.h"
#include "worker/vote/local_steps.h"
#include "worker/vote/voter.h"

namespace signvote {
namespace {

constexpr Duration kForever = std::chrono::hours(24 * 365);
constexpr uint64_t kTargetStream = 1, kStartStream = 2, kNoiseStream = 3, kBallotStream = 4;

// The initial parameters, coordinate by coordinate.
class StartValues {
 public:
  explicit StartValues(const SyntheticFlags& flags)
      : scale_(static_cast<float>(flags.scale)), values_(0, kStartStream) {}
  float Next() { return scale_ * static_cast<float>(4 * values_.Uniform() - 2); }

 private:
  const float scale_;
  Rng values_;
};

// A replica that is not kept: whatever comes is dropped, and it has no digest.
class DroppedReplica final : public ReplicaMemory {
 public:
  explicit DroppedReplica(uint64_t coordinates) : coordinates_(coordinates) {}
  uint64_t coordinates() const override { return coordinates_; }
  absl::Status Write(uint64_t, std::span<const float>) override { return absl::OkStatus(); }
  absl::Status Read(uint64_t, std::span<float> values) override {
    std::fill(values.begin(), values.end(), 0.0f);
    return absl::OkStatus();
  }
  absl::Status Apply(const Layout&, const StepArguments&, uint64_t, uint64_t,
                     const uint8_t*) override {
    return absl::OkStatus();
  }
  absl::Status ApplyCounts(const Layout&, const StepArguments&, uint64_t, uint64_t,
                           const CountsView&) override {
    return absl::OkStatus();
  }
  absl::Status ApplyDense(const Layout&, const StepArguments&, uint64_t, uint64_t,
                          const DenseView&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> Digest() override {
    return absl::FailedPreconditionError(
        "--no-replica: there is no replica to compare; start the server with --digest-every 0");
  }

 private:
  const uint64_t coordinates_;
};

class Problem {
 public:
  explicit Problem(const SyntheticFlags& flags)
      : scale_(static_cast<float>(flags.scale)), noise_(static_cast<float>(flags.noise)) {
    Rng target(0, kTargetStream);
    c_.resize(flags.coordinates);
    for (float& c : c_) c = static_cast<float>(target.Uniform() - 0.5);
  }
  // The loss at x; g becomes its gradient on the minibatch (seed, share, data_step).
  double Gradient(uint64_t seed, Share share, DataStep data_step, const std::vector<float>& x,
                  std::vector<float>* g) {
    Rng noise(Mix(seed, share.value(), data_step.value()), kNoiseStream);
    const float d = static_cast<float>(c_.size());
    double sum = 0;
    g->resize(c_.size());
    for (size_t i = 0; i < c_.size(); ++i) {
      const float difference = x[i] / scale_ - c_[i];
      sum += static_cast<double>(difference) * static_cast<double>(difference);
      const float n = noise_ * static_cast<float>(2 * noise.Uniform() - 1);
      (*g)[i] = (difference + n) / d / scale_;
    }
    return 0.5 * sum / static_cast<double>(c_.size());
  }

 private:
  const float scale_, noise_;
  std::vector<float> c_;
};

absl::Status WriteReport(const SyntheticFlags& flags, const Session& session,
                         const std::vector<float>& x, const WorkerCheckpoints* checkpoints) {
  if (flags.report.empty()) return absl::OkStatus();
  const SessionStats stats = session.Stats();
  float x0_max_abs = 0;
  StartValues start(flags);
  for (size_t i = 0; i < x.size(); ++i) x0_max_abs = std::max(x0_max_abs, std::fabs(start.Next()));
  // The keys of signvote-worker's report, as far as they apply (worker/train/report.h).
  nlohmann::ordered_json report = {
      {"name", flags.session.name},
      {"outcome", session.drained() ? "drained" : "finished"},
      {"next_round", session.replica_round().value_or(Round(0)).value()},
      {"rounds_voted", stats.rounds_voted},
      {"rounds_applied", stats.rounds_applied},
      {"x0_max_abs", x0_max_abs},
      {"wire",
       {{"sent_bytes", stats.wire_sent_bytes},
        {"received_bytes", stats.wire_received_bytes},
        {"setup_sent_bytes", stats.setup_sent_bytes},
        {"setup_received_bytes", stats.setup_received_bytes}}},
      {"incarnation", stats.incarnation},
      {"reconnects", stats.reconnects},
      {"state_transfers", stats.state_transfers},
      {"verdict_mismatches", stats.verdict_mismatches},
      {"join_seconds", stats.join_seconds},
  };
  if (checkpoints != nullptr) {
    report["checkpoint"] = {{"resumed", nullptr}};
    if (const auto resumed = checkpoints->stats().resumed; resumed.has_value()) {
      report["checkpoint"]["resumed"] = {{"how", std::string(Words(resumed->how))},
                                         {"round", resumed->round.value()},
                                         {"age_rounds", resumed->age_rounds}};
    }
  }
  if (!flags.no_replica) {
    report["digest"] = absl::StrFormat("%016x", ReplicaDigest(x.data(), 0, x.size()));
  }
  return WriteFileAtomically(FileSystem::Posix(), flags.report, report.dump(2) + "\n", 0644);
}

ModelDescription ModelOf(const SyntheticFlags& flags) {
  ModelDescription model;
  model.tensors = {TensorSpec{.name = flags.tensor, .shape = {flags.coordinates}}};
  model.config_json = flags.config_json;
  model.identity_text = flags.identity_text;
  model.can_probe = !flags.random_ballots;
  return model;
}

// The same random bits for every ballot of this worker.
std::shared_ptr<const std::vector<uint8_t>> RandomBallot(const SyntheticFlags& flags) {
  auto out = std::make_shared<std::vector<uint8_t>>(BytesForBits(flags.coordinates));
  std::vector<uint8_t>& ballot = *out;
  Rng bits(Xxh3(flags.session.name.data(), flags.session.name.size()), kBallotStream);
  for (uint8_t& byte : ballot) byte = static_cast<uint8_t>(bits.Next());
  if (flags.coordinates % 8 != 0)
    ballot.back() &= static_cast<uint8_t>((1u << (flags.coordinates % 8)) - 1);
  return out;
}

// The time that a gradient pretends to take.
class PretendedTime {
 public:
  explicit PretendedTime(const SyntheticFlags& flags)
      : file_(flags.compute_ms_file), ms_(flags.compute_ms) {}

  // Before each minibatch. What is no number leaves the time as it was: it is being written.
  void Begin() {
    if (file_.empty()) return;
    uint64_t ms = 0;
    const absl::StatusOr<std::string> text = FileSystem::Posix()->ReadFile(file_, kTextBytesMax);
    if (text.ok() && absl::SimpleAtoi(*text, &ms) && ms <= kMsMax) ms_ = ms;
  }
  // Before each of its chunks.
  void Spend(const ChunkPlan& plan) const {
    if (ms_ == 0) return;
    Clock::System()->SleepFor(std::chrono::microseconds(ms_ * 1000 / plan.chunks()));
  }

 private:
  static constexpr uint64_t kTextBytesMax = 32, kMsMax = 3'600'000;
  const std::string file_;
  uint64_t ms_;
};

absl::Status SendRandomBallot(const PretendedTime& time, Session* session, const ChunkPlan& plan,
                              const std::shared_ptr<const std::vector<uint8_t>>& ballot) {
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    time.Spend(plan);
    SIGNVOTE_RETURN_IF_ERROR(session->SendChunk(
        ChunkIndex(k),
        std::shared_ptr<const uint8_t>(ballot, ballot->data() + plan.ByteOffset(ChunkIndex(k)))));
  }
  return session->SendScalars({.loss = 1, .g_l1 = 1, .g_l2_squared = 1});
}

// One worker's rounds: the objective, and what of it lasts from round to round.
class SyntheticWorker {
 public:
  SyntheticWorker(const SyntheticFlags& flags, Session* session, WorkerCheckpoints* checkpoints,
                  std::vector<float>* x)
      : flags_(flags),
        session_(session),
        checkpoints_(checkpoints),
        x_(*x),
        time_(flags),
        saver_(FileSystem::Posix(), Clock::System(),
               {.path = flags.save, .config_json = flags.config_json, .run_state = [session] {
                  return session->run_state();
                }}) {}

  absl::Status Join() {
    // What takes time with a large model comes before the join, which is timed.
    if (flags_.random_ballots) {
      random_ballot_ = RandomBallot(flags_);
    } else {
      problem_ = std::make_unique<Problem>(flags_);
    }
    if (!flags_.no_replica) {
      StartValues start(flags_);
      x_.resize(flags_.coordinates);
      for (float& value : x_) value = start.Next();
    }
    if (!flags_.start_fifo.empty()) {
      LogInfo("ready to join");
      // Opened when somebody opens it for writing.
      std::ifstream{flags_.start_fifo};  // tidy: allow(file) a FIFO is no file
    }
    SIGNVOTE_ASSIGN_OR_RETURN(run_, session_->Join(ModelOf(flags_)));
    if (flags_.random_ballots && !run_.ballot_plan.OnlySigns()) {
      return absl::FailedPreconditionError(
          "--random-ballots are signs, and this run has dense tensors; start the server without "
          "--dense");
    }
    if (flags_.random_ballots && run_.local_steps_max > 1) {
      return absl::FailedPreconditionError(
          "--random-ballots are of no minibatches, and this run takes local steps; start the "
          "server "
          "without --local-steps");
    }
    if (flags_.no_replica) {
      replica_ = std::make_unique<DroppedReplica>(run_.layout.coordinates());
    } else {
      float* const x = x_.data();
      SIGNVOTE_ASSIGN_OR_RETURN(replica_, device_.MakeReplica(&run_.layout, {&x, 1}));
    }
    SIGNVOTE_RETURN_IF_ERROR(session_->Attach(replica_.get()));
    if (!flags_.random_ballots) {
      float* const y = x_.data();
      if (run_.local_steps_max > 1) {
        source_ = std::make_unique<LocalStepSource>(TensorPointers(&y, 1));
      } else {
        source_ = std::make_unique<GradientSource>();
      }
      SIGNVOTE_ASSIGN_OR_RETURN(voter_,
                                Voter::Make(run_, session_, replica_.get(), &device_, source_.get(),
                                            Clock::System(), {.can_probe = true}));
    }
    if (checkpoints_ != nullptr && session_->replica_round().has_value()) {
      SIGNVOTE_RETURN_IF_ERROR(
          checkpoints_->Resume(Owner(), *session_->replica_round(), run_.main_round,
                               {.previous =
                                    [this](std::span<const float> values) {
                                      previous_x_.assign(values.begin(), values.end());
                                      return absl::OkStatus();
                                    },
                                .gradient = {}}));
    }
    LogInfo("joined", {{"worker", flags_.session.name}});
    if (!flags_.round_log.empty()) {
      SIGNVOTE_ASSIGN_OR_RETURN(log_, FileSystem::Posix()->OpenLog(flags_.round_log, 0644));
    }
    return absl::OkStatus();
  }

  // Until the run is over or this worker drained.
  absl::Status Rounds() {
    while (true) {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<RoundTicket> ticket, session_->NextRound());
      if (!ticket) break;
      time_.Begin();
      double loss = 1;
      SIGNVOTE_RETURN_IF_ERROR(flags_.random_ballots
                                   ? SendRandomBallot(time_, session_, run_.plan, random_ballot_)
                                   : Vote(*ticket, &loss));
      SIGNVOTE_ASSIGN_OR_RETURN(const CommitOutcome outcome,
                                flags_.random_ballots ? session_->WaitCommit() : voter_->Wait());
      SIGNVOTE_RETURN_IF_ERROR(Log(*ticket, outcome, loss));
      if (checkpoints_ == nullptr || outcome.commits == 0) continue;
      checkpoints_->Note(ticket->share, outcome.main_round);
      SIGNVOTE_RETURN_IF_ERROR(
          checkpoints_->AfterRound(Owner(), {.previous = Previous()}, outcome.next_round));
    }
    return session_->finished() ? absl::OkStatus() : session_->Leave("drained");
  }

  // However the rounds ended.
  absl::Status SaveState() {
    const std::optional<Round> round = session_->replica_round();
    if (!flags_.save.empty() && round.has_value()) {
      SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica_->Digest());
      SIGNVOTE_RETURN_IF_ERROR(
          WithContext(saver_.Final(run_, replica_.get(), *round, digest), "--save"));
    }
    if (checkpoints_ == nullptr || voter_ == nullptr || !round.has_value()) return absl::OkStatus();
    return checkpoints_->Final(Owner(), {.previous = Previous()}, *round);
  }

 private:
  StateOwner Owner() {
    return {.run = &run_, .replica = replica_.get(), .device = &device_, .voter = voter_.get()};
  }
  ConstTensorPointers Previous() {
    previous_pointer_ = previous_x_.data();
    return previous_x_.empty() ? ConstTensorPointers() : ConstTensorPointers(&previous_pointer_, 1);
  }

  // x is moved by each step, and as it was behind them.
  absl::Status TakeSteps(const RoundTicket& ticket, double* loss) {
    for (DataStep step = ticket.data_step; voter_->wants_gradient(); ++step) {
      if (step != ticket.data_step) time_.Begin();
      *loss = problem_->Gradient(run_.seed, ticket.share, step, x_, &g_);
      const float* const g = g_.data();
      SIGNVOTE_RETURN_IF_ERROR(voter_->SetGradient({&g, 1}));
      for (uint32_t k = 0; k < run_.plan.chunks(); ++k) time_.Spend(run_.plan);
      SIGNVOTE_RETURN_IF_ERROR(voter_->GradientReady(0, run_.layout.coordinates()));
      SIGNVOTE_RETURN_IF_ERROR(voter_->EndGradient(*loss, 1));
    }
    return voter_->FinishSteps().status();
  }

  absl::Status Vote(const RoundTicket& ticket, double* loss) {
    SIGNVOTE_RETURN_IF_ERROR(voter_->Begin(ticket));
    if (voter_->takes_steps()) return TakeSteps(ticket, loss);
    *loss = problem_->Gradient(run_.seed, ticket.share, ticket.data_step, x_, &g_);
    if (flags_.nonfinite_from >= 0 &&
        ticket.round.value() >= static_cast<uint64_t>(flags_.nonfinite_from)) {
      return voter_->Abstain(AbstainReason::kNonFiniteLoss).status();
    }
    if (voter_->wants_probe()) {
      (void)problem_->Gradient(run_.seed, ticket.share, ticket.data_step, previous_x_, &h_);
      const float* const h = h_.data();
      SIGNVOTE_RETURN_IF_ERROR(voter_->SetProbe({&h, 1}));
    }
    const float* const g = g_.data();
    SIGNVOTE_RETURN_IF_ERROR(voter_->SetGradient({&g, 1}));
    for (uint32_t k = 0; k < run_.plan.chunks(); ++k) {
      time_.Spend(run_.plan);
      SIGNVOTE_RETURN_IF_ERROR(
          voter_->GradientReady(run_.plan.First(ChunkIndex(k)), run_.plan.Count(ChunkIndex(k))));
    }
    SIGNVOTE_RETURN_IF_ERROR(voter_->Finish(*loss, 1).status());
    if (!voter_->keeps_previous()) return absl::OkStatus();
    previous_x_ = x_;
    return voter_->PreviousKept();
  }

  absl::Status Log(const RoundTicket& ticket, const CommitOutcome& outcome, double loss) {
    if (log_ == nullptr) return absl::OkStatus();
    const SessionStats stats = session_->Stats();
    // The times are those of one machine's monotonic clock: comparable between processes.
    const nlohmann::ordered_json line = {{"round", ticket.round.value()},
                                         {"data_step", ticket.data_step.value()},
                                         {"share", ticket.share.value()},
                                         {"loss", loss},
                                         {"kind", Words(outcome.kind)},
                                         {"stepsize", outcome.stepsize},
                                         {"observer", ticket.observer},
                                         {"incarnation", stats.incarnation},
                                         {"sent_bytes", stats.wire_sent_bytes},
                                         {"received_bytes", stats.wire_received_bytes},
                                         {"opened_ns", outcome.times.opened.ns},
                                         {"first_chunk_ns", outcome.times.first_chunk.ns},
                                         {"ballot_written_ns", outcome.times.ballot_written.ns},
                                         {"first_verdict_ns", outcome.times.first_verdict.ns},
                                         {"committed_ns", outcome.times.committed.ns}};
    return log_->Append(line.dump() + "\n");
  }

  const SyntheticFlags& flags_;
  Session* const session_;
  WorkerCheckpoints* const checkpoints_;  // or null
  std::vector<float>& x_;
  PretendedTime time_;
  ReplicaSaver saver_;
  std::unique_ptr<Problem> problem_;  // null with random ballots, and so is voter_
  RunInfo run_;
  HostDevice device_;
  std::unique_ptr<ReplicaMemory> replica_;
  std::unique_ptr<BallotSource> source_;
  std::unique_ptr<Voter> voter_;  // after all that it refers to
  std::shared_ptr<const std::vector<uint8_t>> random_ballot_;
  std::vector<float> g_, h_, previous_x_;
  const float* previous_pointer_ = nullptr;
  std::unique_ptr<LogFile> log_;
};

// Null where no --checkpoint is given.
absl::StatusOr<std::unique_ptr<WorkerCheckpoints>> OpenCheckpoints(const SyntheticFlags& flags) {
  if (flags.checkpoint.empty()) return std::unique_ptr<WorkerCheckpoints>();
  return WorkerCheckpoints::Open(
      FileSystem::Posix(), Clock::System(),
      {.folder = flags.checkpoint, .worker = flags.session.name, .every = flags.checkpoint_every});
}

}  // namespace

absl::Status RunSyntheticWorker(SyntheticFlags flags) {
  flags.session.server_timeout = FromSeconds(flags.server_timeout_seconds);
  flags.session.connect_timeout = FromSeconds(flags.connect_timeout_seconds);
  flags.session.wants_run_state = !flags.save.empty();
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                            Session::Create(flags.session, Clock::System()));
  if (!flags.ballots.empty()) {
    const std::string worker = session->name();
    SIGNVOTE_ASSIGN_OR_RETURN(session, RecordBallots(std::move(session), flags.ballots, worker));
  }
  std::vector<float> x;
  // The session reads the worker's replica for as long as it is asked anything.
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerCheckpoints> checkpoints,
                            OpenCheckpoints(flags));
  SyntheticWorker worker(flags, session.get(), checkpoints.get(), &x);
  absl::Status ended;
  {
    // It may wait for a round for long.
    const std::jthread drain([&session] {
      if (WaitForStop(kForever)) session->RequestDrain("stop signal");
    });
    ended = worker.Join();
    if (ended.ok()) ended = worker.Rounds();
    RequestStop();  // wakes the thread
  }
  // A stop that came before it could take part.
  if (absl::IsCancelled(ended) && session->drained()) ended = absl::OkStatus();
  const absl::Status saved = worker.SaveState();
  SIGNVOTE_RETURN_IF_ERROR(ended);
  SIGNVOTE_RETURN_IF_ERROR(saved);
  return WriteReport(flags, *session, x, checkpoints.get());
}

}  // namespace signvote
