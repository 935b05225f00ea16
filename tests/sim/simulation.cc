#include "tests/sim/simulation.h"

#include <array>
#include <memory>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/coin.h"
#include "common/status.h"
#include "tests/sim/sim_server.h"
#include "tests/sim/sim_worker.h"
#include "tests/sim/world.h"

namespace signvote::sim {
namespace {

constexpr double kHealAfterSeconds = 3000;  // at the latest, however few rounds are done
constexpr double kLimitSeconds = 20000;     // a run that is not done by then is stuck
constexpr uint64_t kEventsMax = 3'000'000;

class Simulation {
 public:
  Simulation(const SimOptions& options, const Model& model, SimCounters* counters)
      : world_(options, model, counters), server_(&world_) {
    world_.on_up = [this](size_t id, const ToServer& m) { server_.OnMessage(id, m); };
    world_.on_down = [this](size_t id, const ToWorker& m) {
      workers_[world_.stream(id).worker]->OnMessage(id, m);
    };
    world_.on_lost = [this](size_t id) { server_.OnStreamLost(id); };
    for (uint32_t w = 0; w < kWorkersMax; ++w) {
      workers_[w] = std::make_unique<SimWorker>(&world_, w);
      workers_[w]->may_abstain = [this](uint32_t worker, Round round) {
        return MayAbstain(worker, round);
      };
    }
    for (uint32_t w = 0; w < kWorkersFirst; ++w) {
      world_.After(world_.Uniform(0, 0.5), [this, w] { workers_[w]->Start(); });
    }
    ScheduleStrike();
  }

  SimResult Run() {
    Checker& checker = world_.checker;
    uint64_t events = 0;
    while (!server_.ended() && !checker.failure().has_value()) {
      if (!world_.healed &&
          (server_.commits() >= world_.options.heal_round || Seconds() > kHealAfterSeconds))
        Heal();
      if (!world_.RunOne()) checker.Fail("nothing will ever happen again");
      if (++events > kEventsMax || Seconds() > kLimitSeconds)
        checker.Fail("the run does not finish");
    }
    if (!checker.failure().has_value()) CheckEnd();
    SimResult result;
    result.failure = checker.failure();
    result.rounds = checker.commits();
    result.fingerprint = Mix(checker.digest(Round(checker.commits())),
                             static_cast<uint64_t>(world_.now().ns), events);
    Account();
    return result;
  }

 private:
  double Seconds() const { return ToSeconds(world_.now() - Time{}); }

  void Heal() {
    world_.healed = true;
    for (uint32_t w = 0; w < kWorkersMax; ++w) {
      workers_[w]->BeWell();
      // Damage this late may be found only by the final digests, when it is too late to be
      // re-synced.
      if (workers_[w]->damaged()) workers_[w]->Crash(1);
    }
  }

  // ---- what goes wrong
  // --------------------------------------------------------------------------------------------

  void ScheduleStrike() {
    world_.After(world_.options.fault_interval_s * world_.Uniform(0.2, 1.8), [this] {
      if (world_.healed) return;
      Strike();
      ScheduleStrike();
    });
  }

  // The worker's round must not lose it: another one relies on its ballot.
  bool Protected(uint32_t w) const { return relied_on_[w] == Round(server_.commits()); }

  bool Connected(uint32_t w) {
    const SimWorker& worker = *workers_[w];
    if (!worker.up() || worker.exited() || !worker.stream().has_value()) return false;
    const Stream& stream = world_.stream(*worker.stream());
    return stream.ready && stream.server_open && stream.worker_open && !stream.black_hole;
  }

  bool MayAbstain(uint32_t worker, Round round) {
    if (Protected(worker) || !server_.open().has_value() || server_.open()->round != round)
      return false;
    for (const round::Seat& seat : server_.open()->seats) {
      const uint32_t w = seat.worker.value();
      if (w == worker || seat.role != round::Role::kMember || !Connected(w) ||
          drain_asked_[w] == workers_[w]->stream() || workers_[w]->abstains(round) ||
          world_.stream(*workers_[w]->stream()).incarnation != seat.incarnation.value()) {
        continue;
      }
      relied_on_[w] = round;
      return true;
    }
    return false;
  }

  void Strike() {
    const auto fault = static_cast<Fault>(world_.Below(kFaultCount));
    if (!world_.options.on(fault)) return;
    const auto w = static_cast<uint32_t>(world_.Below(kWorkersMax));
    SimWorker& worker = *workers_[w];
    const bool struck = [&] {
      switch (fault) {
        case Fault::kCrash:
          if (!worker.up() || worker.exited() || Protected(w)) return false;
          worker.Crash(world_.Uniform(0.1, 10));
          return true;
        case Fault::kStreamLoss:
          if (!Connected(w) || Protected(w)) return false;
          worker.LoseStream(0);
          return true;
        case Fault::kBlackHole: {
          if (!Connected(w) || Protected(w)) return false;
          const size_t id = *worker.stream();
          world_.stream(id).black_hole = true;
          world_.After(world_.Uniform(3, 20), [this, id] { server_.OnStreamLost(id); });
          worker.LoseStream(world_.Uniform(3, 20));
          return true;
        }
        case Fault::kHang:
          if (!worker.up()) return false;
          worker.Hang(world_.Uniform(1, 20));
          return true;
        case Fault::kSlow:
          worker.SlowDown(static_cast<uint32_t>(1 + world_.Below(8)));
          return true;
        case Fault::kLateJoin:
          if (late_joined_) return false;
          late_joined_ = true;
          workers_[kWorkersMax - 1]->Start();
          return true;
        case Fault::kDrain:
          if (!Connected(w) || Protected(w)) return false;
          drain_asked_[w] = worker.stream();
          server_.Step(round::DrainRequested{round::WorkerId(w)});
          return true;
        case Fault::kEvict: {
          constexpr uint32_t kLate = kWorkersMax - 1;
          if (evicted_ || !Connected(kLate) || Protected(kLate)) return false;
          evicted_ = true;
          world_.checker.OnEvict(kLate);
          server_.Step(round::EvictRequested{round::WorkerId(kLate)});
          return true;
        }
        case Fault::kPause:
          server_.Step(round::PauseRequested{});
          world_.After(world_.Uniform(0.5, 5), [this] { server_.Step(round::ResumeRequested{}); });
          return true;
        case Fault::kAbstain:
          worker.AbstainNext();
          return false;  // counted when it does
        case Fault::kBadScalars:
          worker.BadScalarsNext();
          return false;
        case Fault::kDamage:
          for (const auto& other : workers_) {
            if (other->damaged()) return false;
          }
          return worker.Damage();
        case Fault::kDuplicate:
        case Fault::kReorder:
        case Fault::kGhost:
        case Fault::kVerdictLoss:
        case Fault::kCount:
          break;  // these befall messages
      }
      return false;
    }();
    if (struck) world_.Count(fault);
  }

  // ---- the end
  // -----------------------------------------------------------------------------------------------

  void CheckEnd() {
    Checker& checker = world_.checker;
    const uint64_t rounds = world_.options.engine.rounds_max;
    if (!server_.end().ok()) return checker.Fail("the run ended with " + Describe(server_.end()));
    checker.Require(checker.commits() == rounds, "the run ended before its last round");
    const round::EngineView view = server_.View();
    checker.Require(view.phase == round::Phase::kEnded,
                    "the run ended and the engine does not know");
    checker.Require(view.abstentions == checker.abstentions(),
                    "the engine counted other abstentions than it committed");
    uint32_t answered = 0;
    for (const round::MemberView& member : view.workers) {
      if (!member.final_digest.has_value()) continue;
      ++answered;
      if (*member.final_digest != checker.digest(Round(rounds))) {
        checker.Fail(absl::StrFormat("the final replica of %s differs", member.name));
      }
    }
    checker.Require(answered > 0, "the run ended without any final digest");
    for (const auto& worker : workers_) {
      if (!worker->has_replica() || worker->round() != Round(rounds)) continue;
      checker.Require(worker->ReplicaDigestNow() == checker.digest(Round(rounds)),
                      "final replicas differ");
    }
  }

  void Account() {
    SimCounters& c = *world_.counters;
    const round::EngineView view = server_.View();
    ++c.runs;
    c.rounds += world_.checker.commits();
    c.attempts_reopened += view.attempts_reopened;
    c.abstentions += view.abstentions;
    c.late_chunks += view.late_chunks;
    c.duplicate_chunks += view.duplicate_chunks;
    c.stale_messages += view.stale_messages;
    c.scalars_refused += view.scalars_refused;
  }

  World world_;
  SimServer server_;
  std::array<std::unique_ptr<SimWorker>, kWorkersMax> workers_;
  std::array<std::optional<Round>, kWorkersMax> relied_on_;
  std::array<std::optional<size_t>, kWorkersMax> drain_asked_;  // on this stream
  bool late_joined_ = false;
  bool evicted_ = false;
};

}  // namespace

SimResult RunSimulation(const SimOptions& options, const Model& model, SimCounters* counters) {
  return Simulation(options, model, counters).Run();
}

}  // namespace signvote::sim
