#include "tests/sim/options.h"

#include "absl/strings/str_format.h"
#include "common/rng.h"

namespace signvote::sim {

const char* FaultName(Fault fault) {
  static constexpr const char* kNames[] = {
#define SIGNVOTE_SIM_NAME(id, name) name,
      SIGNVOTE_SIM_FAULTS(SIGNVOTE_SIM_NAME)
#undef SIGNVOTE_SIM_NAME
  };
  return kNames[static_cast<size_t>(fault)];
}

SimOptions DrawOptions(uint64_t seed) {
  Rng rng(seed, /*stream=*/1);
  SimOptions o;
  o.seed = seed;
  for (bool& enabled : o.enabled) enabled = rng.Below(2) == 0;
  o.fault_interval_s = 0.3 + 4 * rng.Uniform();
  o.message_fault_rate = 0.002 + 0.05 * rng.Uniform();
  o.compute_s = 0.05 + 0.5 * rng.Uniform();

  round::EngineConfig& e = o.engine;
  e.coordinates = kCoordinates;
  e.chunks = kChunks;
  e.rounds_max = kRoundsMin + rng.Below(33);
  e.workers_min = 1 + static_cast<uint32_t>(rng.Below(kWorkersFirst));
  e.workers_max = kWorkersMax;
  e.quorum = static_cast<uint32_t>(rng.Below(4));
  e.deadline.enabled = rng.Below(8) != 0;
  e.deadline.initial = std::chrono::seconds(5);
  e.observer_after = 2 + static_cast<uint32_t>(rng.Below(4));
  e.share_hold_rounds = rng.Below(20);
  e.digest_every = 4 + rng.Below(5);
  o.heal_round = e.rounds_max - 2 * e.digest_every - 2;

  o.rule.rule = rng.Below(4) == 0 ? "fixed" : "alias";
  o.rule.schedule = "linear";
  o.rule.alias_option = rng.Below(2) == 0 ? "I" : "II";
  o.rule.alias_probe_every = 1 + rng.Below(3);
  return o;
}

std::string SimOptions::Describe() const {
  std::string faults;
  for (size_t i = 0; i < kFaultCount; ++i) {
    if (enabled[i]) faults += std::string(" ") + FaultName(static_cast<Fault>(i));
  }
  return absl::StrFormat(
      "seed=%d rounds=%d heal_round=%d workers_min=%d quorum=%d deadline=%s observer_after=%d "
      "share_hold=%d "
      "digest_every=%d rule=%s option=%s probe_every=%d fault_interval_s=%.3g "
      "message_fault_rate=%.3g "
      "compute_s=%.3g faults:%s",
      seed, engine.rounds_max, heal_round, engine.workers_min, engine.quorum,
      engine.deadline.enabled ? "on" : "off", engine.observer_after, engine.share_hold_rounds,
      engine.digest_every, rule.rule, rule.alias_option, rule.alias_probe_every, fault_interval_s,
      message_fault_rate, compute_s, faults);
}

std::string SimCounters::Describe() const {
  std::string text = absl::StrFormat(
      "runs=%d rounds=%d events=%d attempts_reopened=%d abstentions=%d late_chunks=%d "
      "duplicate_chunks=%d "
      "stale_messages=%d observers=%d members_again=%d resyncs=%d scalars_refused=%d snapshots=%d "
      "catch_ups=%d "
      "fetches=%d partial_commits=%d\nfaults:",
      runs, rounds, events, attempts_reopened, abstentions, late_chunks, duplicate_chunks,
      stale_messages, observers, members_again, resyncs, scalars_refused, snapshots, catch_ups,
      fetches, partial_commits);
  for (size_t i = 0; i < kFaultCount; ++i) {
    text += absl::StrFormat(" %s=%d", FaultName(static_cast<Fault>(i)), struck[i]);
  }
  return text;
}

}  // namespace signvote::sim
