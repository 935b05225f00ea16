#include "tests/sim/simulation.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/coin.h"
#include "common/status.h"
#include "tests/sim/server_host.h"
#include "tests/sim/sim_worker.h"
#include "tests/sim/strangers.h"
#include "tests/sim/world.h"

namespace signvote::sim {
namespace {

constexpr double kHealAfterSeconds = 3000;  // at the latest, however few rounds are done
constexpr double kFinishSeconds = 600;      // from healing; a run that is not done by then is stuck
constexpr uint64_t kEventsMax = 4'000'000;
constexpr double kChangedMind = 25;  // seconds after which a slow server is quick again

class Simulation {
 public:
  Simulation(const SimOptions& options, Codec* codec, SimCounters* counters)
      : model_(options.coordinates, options.run.model.sizes.chunk_coordinates,
               options.run.model.weight_decay, run::AnyDense(options.run.model.tensor_rules)),
        world_(options, model_, codec, counters),
        server_(&world_),
        strangers_(&world_),
        server_faults_(options.seed, /*stream=*/0xD6) {
    for (size_t host = 0; host < options.workers; ++host) {
      workers_.push_back(std::make_unique<SimWorker>(&world_, &server_, host));
    }
    server_.Start();
    if (world_.on(Fault::kSlowTransfer) && timeline().OneIn(2)) {
      // Whoever brings the initial parameters takes its time, perhaps more than it is given.
      for (const auto& worker : workers_) worker->SlowTransfers(Seconds(10, 150));
    }
    for (size_t host = 0; host < options.workers_first; ++host) {
      timeline().After(timeline().Uniform(0, 0.5), [this, host] { workers_[host]->Start(); });
    }
    ScheduleStrike();
    if (world_.options.journal.mode.has_value()) ScheduleServerStrike();
  }

  SimResult Run() {
    Checker& checker = world_.checker;
    while (!server_.ended() && !checker.failure().has_value()) {
      if (!world_.healed && (checker.published().value() >= world_.options.heal_round ||
                             timeline().Seconds() > kHealAfterSeconds)) {
        Heal();
      }
      if (!timeline().RunOne()) checker.Fail("nothing will ever happen again");
      const bool stuck =
          healed_at_.has_value() && timeline().Seconds() > *healed_at_ + kFinishSeconds;
      if (timeline().events() > kEventsMax || stuck) {
        checker.Fail("the run does not finish");
      }
    }
    if (!checker.failure().has_value()) CheckEnd();
    SimResult result;
    result.failure = checker.failure();
    result.rounds = checker.published().value();
    if (!result.failure.has_value()) result.digest = checker.digest(checker.published());
    result.fingerprint =
        Mix(result.digest, static_cast<uint64_t>(timeline().Now().ns), timeline().events());
    Account();
    return result;
  }

 private:
  Timeline& timeline() { return world_.timeline; }

  void Heal() {
    world_.healed = true;
    healed_at_ = timeline().Seconds();
    world_.Trace("", "heals");
    world_.network.Heal();
    server_.DelayApplier(0);
    server_.DelayTally(0);
    server_.DelayDurable(0);
    if (server_.serving()) server_.Resume();
    for (const auto& worker : workers_) {
      worker->BeWell();
      // Damage this late may be found only by the final digests, when it is too late to fetch.
      if (worker->damaged()) worker->Crash(1);
    }
  }

  // ---- what goes wrong ----

  void ScheduleStrike() {
    timeline().After(world_.options.fault_interval_s * timeline().Uniform(0.2, 1.8), [this] {
      if (world_.healed) return;
      const auto fault =
          static_cast<Fault>(timeline().Below(static_cast<uint64_t>(kFirstOfJournal)));
      if (world_.on(fault) && Strike(fault)) {
        world_.Count(fault);
        world_.Trace("fault", FaultName(fault));
      }
      ScheduleStrike();
    });
  }

  // By a generator of its own, so that runs without a journal are what they were.
  void ScheduleServerStrike() {
    const double wait =
        world_.options.journal.fault_interval_s * (0.2 + 1.6 * server_faults_.Uniform());
    timeline().After(wait, [this] {
      if (world_.healed) return;
      constexpr auto kFirst = static_cast<uint64_t>(kFirstOfJournal);
      const auto fault = static_cast<Fault>(kFirst + server_faults_.Below(kFaultCount - kFirst));
      if (world_.on(fault) && StrikeServer(fault)) {
        world_.Count(fault);
        world_.Trace("fault", FaultName(fault));
      }
      ScheduleServerStrike();
    });
  }

  bool StrikeServer(Fault fault) {
    const double seconds = 0.1 + 5 * server_faults_.Uniform();
    switch (fault) {
      case Fault::kKilled:
        return server_.Kill(SimDisk::Restart::kProcess, /*in_write=*/false, seconds);
      case Fault::kKilledInWrite:
        return server_.Kill(SimDisk::Restart::kProcess, /*in_write=*/true, seconds);
      case Fault::kPowerCut:
        return server_.Kill(SimDisk::Restart::kPower, server_faults_.Below(2) == 0, seconds);
      case Fault::kDiskFails:
        return server_.BreakDisk({.write_fails = 0.2, .sync_fails = 0.2}, seconds);
      case Fault::kDiskFull:
        return server_.BreakDisk({.capacity = 0}, seconds);
      case Fault::kLostSync:
        return server_.BreakDisk({.sync_lost = 0.5}, seconds, SimDisk::Restart::kPower);
      default:
        return false;
    }
  }

  double Seconds(double low, double high) { return timeline().Uniform(low, high); }

  // Of most workers something stays: with all of them gone nothing is left to be safe.
  SimWorker& AnyWorker() { return *workers_[timeline().Below(workers_.size())]; }

  // True: it struck, now. What strikes later is counted where it does.
  bool Strike(Fault fault) {
    SimWorker& worker = AnyWorker();
    switch (fault) {
      case Fault::kCrash:
        if (!worker.up()) return false;
        worker.Crash(Seconds(0.1, 10));
        return true;
      case Fault::kHang:
        if (!worker.up()) return false;
        worker.Hang(Seconds(1, 20));
        return true;
      case Fault::kSlow:
        worker.SlowDown(Seconds(5, 40));
        return true;
      case Fault::kLateChunk:
        worker.DelayOneChunk(Seconds(10, 60));
        return false;
      case Fault::kNoScalars:
        worker.KeepScalars(Seconds(5, 30));
        return false;
      case Fault::kNonFiniteLoss:
        return Abstain(worker, AbstainReason::kNonFiniteLoss);
      case Fault::kNonFiniteGradient:
        return Abstain(worker, AbstainReason::kNonFiniteGradient);
      case Fault::kDeviceFails:
        return Abstain(worker, AbstainReason::kOther);
      case Fault::kAllAbstain: {
        const auto reason = static_cast<AbstainReason>(timeline().Below(3));
        for (const auto& each : workers_) each->AbstainNext(reason);
        return true;
      }
      case Fault::kDamage:
        if (AnybodyDamaged()) return false;
        return worker.Damage();
      case Fault::kLateJoin:
        if (std::exchange(late_joined_, true)) return false;
        workers_.back()->Start();
        return true;
      case Fault::kLyingScalars:
        worker.LieInScalars(Seconds(2, 20));
        return false;
      case Fault::kLyingDigest:
        worker.LieInNextDigest();
        return false;
      case Fault::kSecondBallot:
        worker.VoteTwice(Seconds(2, 20));
        return false;
      case Fault::kLyingReady:
        return worker.SayReadyAgain();
      case Fault::kBrokenProtocol:
        return worker.BreakProtocol();
      case Fault::kSecondSession:
        strangers_.JoinAs(worker.name());
        return true;
      case Fault::kStranger:
        strangers_.Come();
        return true;
      case Fault::kFetchAgain:
        return worker.FetchAgain();
      case Fault::kDisconnect:
        if (!worker.connection().has_value()) return false;
        world_.network.Break(*worker.connection());
        return true;
      case Fault::kBlackHole:
        if (!worker.connection().has_value()) return false;
        world_.network.Silence(*worker.connection());
        return true;
      case Fault::kPartition: {
        const Time until = timeline().Now() + FromSeconds(Seconds(0.5, 15));
        for (size_t host = 0; host < workers_.size(); ++host) {
          if (timeline().OneIn(2)) world_.network.Stall(host, until);
        }
        return true;
      }
      case Fault::kSlowTransfer:
        worker.SlowTransfers(Seconds(20, 100));
        if (worker.up() && timeline().OneIn(2)) worker.Crash(0.1);  // so that it fetches
        return false;
      case Fault::kOrphanCall:
        worker.KeepCallsAlive(60);
        if (worker.fetching() && worker.connection().has_value()) {
          world_.network.Break(*worker.connection());
        }
        return false;
      case Fault::kSlowApplier:
        server_.DelayApplier(Seconds(0.5, 4));
        timeline().After(kChangedMind, [this] { server_.DelayApplier(0); });
        return true;
      case Fault::kSlowTally:
        server_.DelayTally(Seconds(0.01, 1));
        timeline().After(kChangedMind, [this] { server_.DelayTally(0); });
        return true;
      case Fault::kLateDurable:
        if (!world_.options.durability) return false;
        server_.DelayDurable(Seconds(0.01, 2));
        timeline().After(kChangedMind, [this] { server_.DelayDurable(0); });
        return true;
      case Fault::kRestart:
        return server_.AskForRestart(ServerHost::Restart::kBetweenRounds, Seconds(0.1, 20));
      case Fault::kStop:
        return server_.AskForRestart(ServerHost::Restart::kAfterStop, Seconds(0.1, 20));
      case Fault::kPause:
        if (!server_.serving()) return false;
        server_.Pause();
        timeline().After(Seconds(0.5, 5), [this] {
          if (server_.serving()) server_.Resume();
        });
        return true;
      case Fault::kDrain:
        return server_.serving() && server_.Drain(worker.name()).ok();
      case Fault::kEvict: {
        // The one that came late, and only while others are there to go on.
        if (evicted_ || !server_.serving()) return false;
        evicted_ = server_.Evict(workers_.back()->name()).ok();
        return evicted_;
      }
      case Fault::kDelay:
      case Fault::kGarbled:
        break;  // these befall messages
      case Fault::kKilled:
      case Fault::kKilledInWrite:
      case Fault::kPowerCut:
      case Fault::kDiskFails:
      case Fault::kDiskFull:
      case Fault::kLostSync:
      case Fault::kCount:
        break;  // and these the server: StrikeServer()
    }
    return false;
  }

  bool Abstain(SimWorker& worker, AbstainReason reason) {
    if (!worker.up()) return false;
    worker.AbstainNext(reason);
    return true;
  }

  bool AnybodyDamaged() const {
    return std::any_of(workers_.begin(), workers_.end(),
                       [](const auto& worker) { return worker->damaged(); });
  }

  // ---- the end ----

  void CheckEnd() {
    Checker& checker = world_.checker;
    const run::RunOptions& o = world_.options.run;
    if (server_.journal_is_lost()) return;
    if (absl::IsAborted(server_.end())) {
      ++world_.counters->diverged;
      // A trial that two faults befell is lost, and with local steps it is of four rounds.
      const bool race_lost = server_.end().message().find("stepsize race") != std::string::npos &&
                             checker.silent_reopened() >= 2;
      return checker.Require(race_lost || checker.nonfinite_in_a_row() >= o.nonfinite_rounds,
                             "the run is given up as diverged although losses were finite");
    }
    if (!server_.end().ok()) return checker.Fail("the run ended with " + Describe(server_.end()));
    const run::StatusPage page = server_.Page();
    checker.Require(page.main_round == o.main_rounds_max, "the run ended before its last round");
    checker.Require(page.round == checker.published(),
                    "the run counts other commits than it told its workers of");
    const uint64_t digest = checker.digest(checker.published());
    uint32_t answered = 0;
    for (const run::WorkerPage& worker : page.workers) {
      if (!worker.final_digest.has_value()) continue;
      ++answered;
      if (*worker.final_digest != digest) {
        checker.Fail(absl::StrFormat("the final replica of %s differs", worker.name));
      }
    }
    checker.Require(answered > 0, "the run ended without any final digest");
    // Everybody is sent home in good order.
    const double since = timeline().Seconds();
    while (timeline().Seconds() < since + 60 && timeline().RunOne()) {
    }
    checker.Require(strangers_.here() == 0, "a stranger's stream outlives the run");
    for (const auto& worker : workers_) {
      if (worker->round() != checker.published()) continue;
      checker.Require(worker->finished() || !worker->up() || !worker->welcomed(),
                      "a worker that has everything is not sent home");
    }
  }

  void Account() {
    SimCounters& c = *world_.counters;
    const Checker& checker = world_.checker;
    ++c.runs;
    c.rounds += checker.published().value();
    c.events += timeline().events();
    c.steps += checker.steps();
    c.rewinds += checker.rewinds();
    c.races += checker.races();
    c.rounds_without_step += checker.rounds_without_step();
    c.partial_commits += checker.partial_commits();
    c.attempts_reopened += checker.reopenings();
    c.averages += checker.averages();
    c.silent_rounds += checker.silent();
    c.dense += checker.dense();
    c.uncounted += checker.uncounted();
    c.evaluators_changed += checker.evaluators_changed();
    if (const SimJournal* const journal = server_.journal(); journal != nullptr) {
      c.snapshots += journal->snapshots();
      c.recoveries += journal->recoveries();
      c.torn_writes += journal->disk().strikes().writes_torn;
      c.lost_writes += journal->disk().strikes().writes_lost;
    }
    if (!server_.serving()) return;
    const run::StatusPage page = server_.Page();
    c.abstentions += page.abstentions;
    c.late_chunks += page.late_chunks;
    c.duplicate_chunks += page.duplicate_chunks;
    c.stale_messages += page.stale_messages;
    c.scalars_refused += page.scalars_refused;
    c.digest_mismatches += page.digest_mismatches;
    c.workers_ahead += page.ahead;
  }

  const Model model_;
  World world_;
  ServerHost server_;
  Strangers strangers_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::optional<double> healed_at_;
  Rng server_faults_;
  bool late_joined_ = false;
  bool evicted_ = false;
};

}  // namespace

SimResult RunSimulation(const SimOptions& options, Codec* codec, SimCounters* counters) {
  return Simulation(options, codec, counters).Run();
}

std::optional<std::string> RunSeeds(const SeedRange& seeds, Codec* codec, SimCounters* counters) {
  for (uint64_t seed = seeds.first; seed < seeds.last; seed += seeds.step) {
    SimOptions options = DrawOptions(seed);
    options.trace = seeds.trace;
    const SimResult result = RunSimulation(options, codec, counters);
    if (result.failure.has_value()) {
      return absl::StrCat(*result.failure, "\n  again with --seed=", seed, "\n  ",
                          options.Describe());
    }
  }
  absl::PrintF("%s\n", counters->Describe());
  return std::nullopt;
}

}  // namespace signvote::sim
