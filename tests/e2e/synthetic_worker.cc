// A worker without LibTorch: worker/session, worker/direction and a quadratic objective, so that
// process tests also run in builds that have no LibTorch. Everything but the gradient is the code
// of signvote-worker.
//
//   f(x) = 1/2 · mean_i (x_i/s − c_i)²        x_0,i = s · p_i        c, p seeded, the same at every
//                                             worker
//   g_i  = (x_i/s − c_i + noise_i) / (s·d)    noise = a function of (seed, share, data_step)
//
// All of it scales exactly for s a power of two. With --random-ballots there is no objective: a
// worker votes the same random bits every round, all chunks at once, so that a round takes what the
// network takes.

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/process.h"
#include "common/rng.h"
#include "common/status.h"
#include "worker/direction/direction.h"
#include "worker/session/session.h"

namespace signvote {
namespace {

struct Flags {
  SessionOptions session;
  double server_timeout_seconds = 600, connect_timeout_seconds = 20;
  uint64_t coordinates = 100'000;
  std::string tensor = "x";
  double scale = 1;
  double noise = 0.1;
  uint64_t compute_ms = 0;
  bool random_ballots = false;
  int64_t nonfinite_from = -1;
  std::string report, round_log;
};

constexpr uint64_t kTargetStream = 1, kStartStream = 2, kNoiseStream = 3, kBallotStream = 4;

class Problem {
 public:
  Problem(const Flags& flags)
      : scale_(static_cast<float>(flags.scale)), noise_(static_cast<float>(flags.noise)) {
    Rng target(0, kTargetStream);
    c_.resize(flags.coordinates);
    for (float& c : c_) c = static_cast<float>(target.Uniform() - 0.5);
  }
  std::vector<float> Start() const {
    Rng start(0, kStartStream);
    std::vector<float> x(c_.size());
    for (float& v : x) v = scale_ * static_cast<float>(4 * start.Uniform() - 2);
    return x;
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

absl::Status WriteReport(const Flags& flags, const Session& session, const std::vector<float>& x,
                         uint64_t rounds) {
  if (flags.report.empty()) return absl::OkStatus();
  const SessionStats stats = session.Stats();
  // The keys of signvote-worker's report, as far as they apply (worker/train/report.h).
  const nlohmann::ordered_json report = {
      {"name", flags.session.name},
      {"outcome", session.drained() ? "drained" : "finished"},
      {"next_round", rounds},
      {"rounds_voted", stats.rounds_voted},
      {"rounds_applied", stats.rounds_applied},
      {"x0_max_abs", MaxAbs(Problem(flags).Start())},
      {"wire",
       {{"sent_bytes", stats.wire_sent_bytes},
        {"received_bytes", stats.wire_received_bytes},
        {"setup_sent_bytes", stats.setup_sent_bytes},
        {"setup_received_bytes", stats.setup_received_bytes}}},
      {"digest", absl::StrFormat("%016x", ReplicaDigest(x.data(), 0, x.size()))},
      {"incarnation", stats.incarnation},
      {"reconnects", stats.reconnects},
      {"state_transfers", stats.state_transfers},
      {"verdict_mismatches", stats.verdict_mismatches},
      {"join_seconds", stats.join_seconds},
  };
  return WriteFileAtomically(FileSystem::Posix(), flags.report, report.dump(2) + "\n", 0644);
}

absl::Status Work(const Flags& flags, Session* session, const Layout& layout, std::vector<float>* x,
                  uint64_t* rounds) {
  Problem problem(flags);
  *x = problem.Start();
  HostReplicaMemory replica(*x);
  SIGNVOTE_ASSIGN_OR_RETURN(const RunInfo run, session->Join(layout, &replica));
  LogInfo("joined", {{"worker", flags.session.name}});

  Direction direction(&layout, run.plan, run.direction);
  std::vector<uint8_t> ballot(run.plan.TotalBytes()), previous_verdict;
  std::vector<float> g, h, previous_x;
  bool previous_known = false;
  if (flags.random_ballots) {
    Rng bits(Xxh3(flags.session.name.data(), flags.session.name.size()), kBallotStream);
    for (uint8_t& byte : ballot) byte = static_cast<uint8_t>(bits.Next());
    if (flags.coordinates % 8 != 0)
      ballot.back() &= static_cast<uint8_t>((1u << (flags.coordinates % 8)) - 1);
  }
  std::unique_ptr<LogFile> log;
  if (!flags.round_log.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(log, FileSystem::Posix()->OpenLog(flags.round_log, 0644));
  }
  while (true) {
    if (StopRequested()) session->RequestDrain("SIGTERM");
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<RoundTicket> ticket, session->NextRound());
    if (!ticket) break;
    const bool abstain = flags.nonfinite_from >= 0 &&
                         ticket->round.value() >= static_cast<uint64_t>(flags.nonfinite_from);
    const double loss = flags.random_ballots
                            ? 1
                            : problem.Gradient(run.seed, ticket->share, ticket->data_step, *x, &g);
    const bool probe = ticket->probe && previous_known && !flags.random_ballots;
    if (probe) (void)problem.Gradient(run.seed, ticket->share, ticket->data_step, previous_x, &h);
    if (abstain) {
      SIGNVOTE_RETURN_IF_ERROR(session->Abstain(AbstainReason::kNonFiniteLoss));
    } else if (flags.random_ballots) {
      for (uint32_t k = 0; k < run.plan.chunks(); ++k) {
        SIGNVOTE_RETURN_IF_ERROR(
            session->SendChunk(ChunkIndex(k), ballot.data() + run.plan.ByteOffset(ChunkIndex(k))));
      }
      SIGNVOTE_RETURN_IF_ERROR(session->SendScalars({.loss = loss, .g_l1 = 1, .g_l2_squared = 1}));
    } else {
      BallotScalars scalars{.loss = loss};
      double probe_l1 = 0, prev_inner = 0;
      for (uint32_t k = 0; k < run.plan.chunks(); ++k) {
        if (flags.compute_ms > 0) {
          Clock::System()->SleepFor(
              std::chrono::microseconds(flags.compute_ms * 1000 / run.plan.chunks()));
        }
        uint8_t* const bits = ballot.data() + run.plan.ByteOffset(ChunkIndex(k));
        const ChunkScalars chunk =
            direction.PackChunk(ChunkIndex(k),
                                {.g = g.data(),
                                 .h = probe ? h.data() : nullptr,
                                 .prev_verdict = previous_known ? previous_verdict.data() : nullptr,
                                 .seed = run.seed,
                                 .round = ticket->round,
                                 .share = ticket->share},
                                bits);
        SIGNVOTE_RETURN_IF_ERROR(session->SendChunk(ChunkIndex(k), bits));
        scalars.g_l1 += chunk.g_l1;
        scalars.g_l2_squared += chunk.g_l2_squared;
        probe_l1 += chunk.probe_l1;
        prev_inner += chunk.prev_inner;
        scalars.nonfinite_coordinates += chunk.nonfinite;
      }
      if (probe) scalars.probe_l1 = probe_l1;
      if (previous_known) scalars.prev_inner = prev_inner;
      scalars.samples = 1;
      SIGNVOTE_RETURN_IF_ERROR(session->SendScalars(scalars));
    }
    if (!flags.random_ballots) previous_x = *x;
    SIGNVOTE_ASSIGN_OR_RETURN(const CommitOutcome outcome, session->WaitCommit());
    previous_known = outcome.commits == 1 && outcome.contiguous && outcome.verdict != nullptr;
    if (previous_known)
      previous_verdict.assign(outcome.verdict, outcome.verdict + run.plan.TotalBytes());
    *rounds = outcome.next_round.value();
    if (log != nullptr) {
      const SessionStats stats = session->Stats();
      // The times are those of one machine's monotonic clock: comparable between processes.
      const nlohmann::ordered_json line = {{"round", ticket->round.value()},
                                           {"share", ticket->share.value()},
                                           {"loss", loss},
                                           {"stepsize", outcome.stepsize},
                                           {"observer", ticket->observer},
                                           {"incarnation", stats.incarnation},
                                           {"sent_bytes", stats.wire_sent_bytes},
                                           {"received_bytes", stats.wire_received_bytes},
                                           {"opened_ns", outcome.times.opened.ns},
                                           {"first_chunk_ns", outcome.times.first_chunk.ns},
                                           {"ballot_written_ns", outcome.times.ballot_written.ns},
                                           {"first_verdict_ns", outcome.times.first_verdict.ns},
                                           {"committed_ns", outcome.times.committed.ns}};
      SIGNVOTE_RETURN_IF_ERROR(log->Append(line.dump() + "\n"));
    }
  }
  return session->finished() ? absl::OkStatus() : session->Leave("drained");
}

absl::Status Run(Flags& flags) {
  flags.session.server_timeout = FromSeconds(flags.server_timeout_seconds);
  flags.session.connect_timeout = FromSeconds(flags.connect_timeout_seconds);
  SIGNVOTE_ASSIGN_OR_RETURN(
      const Layout layout,
      Layout::Make({TensorSpec{.name = flags.tensor, .shape = {flags.coordinates}}}));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            Session::Create(flags.session, Clock::System()));
  std::vector<float> x;
  uint64_t rounds = 0;
  SIGNVOTE_RETURN_IF_ERROR(Work(flags, session.get(), layout, &x, &rounds));
  return WriteReport(flags, *session, x, rounds);
}

int Main(int argc, char** argv) {
  TuneMalloc();
  InstallStopSignals();
  InitLogging({});
  Flags flags;
  CLI::App app("A worker with a quadratic objective, for tests.", "synthetic_worker");
  app.add_option("--server", flags.session.server)->required();
  app.add_option("--name", flags.session.name);
  app.add_option("--token-file", flags.session.token_file);
  app.add_option("--tls-ca", flags.session.tls_ca);
  app.add_option("--tls-certificate", flags.session.tls_certificate);
  app.add_option("--tls-key", flags.session.tls_key);
  app.add_flag("--insecure", flags.session.insecure);
  app.add_option("--server-timeout", flags.server_timeout_seconds, "seconds");
  app.add_option("--connect-timeout", flags.connect_timeout_seconds, "seconds");
  app.add_option("--coordinates", flags.coordinates, "d");
  app.add_option("--tensor", flags.tensor,
                 "name of the one tensor; another name is another layout");
  app.add_option("--scale", flags.scale, "s; a power of two scales exactly");
  app.add_option("--noise", flags.noise, "amplitude of the minibatch noise");
  app.add_option("--compute-ms", flags.compute_ms,
                 "time that a gradient pretends to take, spread over the chunks");
  app.add_flag("--random-ballots", flags.random_ballots,
               "no objective: the same random bits every round, at once");
  app.add_option("--nonfinite-from", flags.nonfinite_from,
                 "from this round on the loss is not finite");
  app.add_option("--report", flags.report, "JSON file, written at the end");
  app.add_option("--round-log", flags.round_log, "JSON lines, one per round");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kUsage);
  }
  const absl::Status status = Run(flags);
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
