#include "tests/sim/options.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/rng.h"
#include "server/run/tensor_rules.h"

namespace signvote::sim {

const char* FaultName(Fault fault) {
  static constexpr const char* kNames[] = {
#define SIGNVOTE_SIM_NAME(id, name) name,
      SIGNVOTE_SIM_FAULTS(SIGNVOTE_SIM_NAME)
#undef SIGNVOTE_SIM_NAME
  };
  return kNames[static_cast<size_t>(fault)];
}

namespace {

// In place of what the flags say already, in half of the draws.
void DrawRule(Rng& rng, SimOptions* o) {
  RuleFlags& flags = o->run.rule;
  flags.lever_start = rng.Below(2) == 0 ? 1e-4 : 3e-2;
  const char* const probes[] = {"same", "directional", "previous", "extrema"};
  const uint64_t probe = rng.Below(4);
  flags.alias_probe = probes[probe];
  if (probe > 1) flags.alias_probe_every = 1;  // there is no second gradient
  switch (rng.Below(8)) {
    case 0:
    case 1:
      o->rule_used = rng.Below(2) == 0 ? RuleUsed::kRace : RuleUsed::kRaceLite;
      return;
    case 4:
      o->rule_used = RuleUsed::kSos;
      return;
    case 2:
      flags.rule = "prodigy";
      return;
    case 3:
      flags.rule = "mechanic";
      return;
    default:
      return;
  }
}

// From a stream of its own, so that a seed's other draws stay what they are.
void DrawOptimizer(bool sgd, SimOptions* o) {
  using Kind = DenseOptimizer::Kind;
  Rng rng(o->run.seed, /*stream=*/0xD2);
  DenseOptimizer& optimizer = o->run.model.sizes.dense.optimizer;
  if (sgd) {
    optimizer.kind = Kind::kSgd;
    optimizer.momentum = rng.Below(2) == 0 ? 0.0f : 0.5f;
    optimizer.nesterov = optimizer.momentum > 0 && rng.Below(2) == 0;
    return;
  }
  constexpr Kind kKinds[] = {Kind::kAdamW, Kind::kNadamW, Kind::kScheduleFree, Kind::kAliasAdam};
  optimizer.kind = kKinds[rng.Below(std::size(kKinds))];
  if (optimizer.kind != Kind::kScheduleFree) return;
  o->run.rule.rule = "fixed";
  o->run.rule.schedule = "constant";
  o->run.rule.warmup_rounds = optimizer.warmup_steps = rng.Below(8);
  o->run.model.weight_decay = 0;
  optimizer.last_step = o->run.main_rounds_max;
}

// In a quarter of the draws. The catch-up budget follows.
void DrawDense(Rng& rng, SimOptions* o) {
  run::ModelSizes& sizes = o->run.model.sizes;
  uint64_t commit_bytes = run::CommitBytes(o->coordinates, sizes);
  if (rng.Below(4) == 0) {
    // The last chunk: tensor c begins in it.
    o->run.model.tensor_rules.push_back(run::ParseDense("c")->front());
    sizes.dense.wire = rng.Below(2) == 0 ? PayloadKind::kFp32 : PayloadKind::kBf16;
    const bool sgd = rng.Below(2) == 0;
    commit_bytes = run::CommitBytes(o->coordinates - sizes.chunk_coordinates, sizes) +
                   PayloadBytes(sizes.dense.wire, sizes.chunk_coordinates, 1);
    // The others go by the length of a step.
    if (o->run.rule.rule != "mechanic") o->run.rule.rule = "fixed";
    DrawOptimizer(sgd, o);
  }
  sizes.catch_up_bytes = o->ring_rounds * commit_bytes;
}

// In place of a linear direction, in half of the seeds: what a Direction alone signs, which leaves
// out Muon and error feedback. From a stream of its own, so that a seed's other draws stay what
// they are.
void DrawDirection(uint64_t seed, run::RunOptions* r) {
  Rng rng(seed, /*stream=*/0xD1);
  if (rng.Below(2) == 0) return;
  constexpr DirectionKind kKinds[] = {DirectionKind::kSignum, DirectionKind::kLion,
                                      DirectionKind::kStoSign, DirectionKind::kAdam,
                                      DirectionKind::kMomentumSgd};
  constexpr Envelope kEnvelopes[] = {Envelope::kNone, Envelope::kCoordinate, Envelope::kTensor,
                                     Envelope::kOne};
  r->direction.kind = kKinds[rng.Below(std::size(kKinds))];
  r->direction.envelope = kEnvelopes[rng.Below(std::size(kEnvelopes))];
  if (rng.Below(2) == 0) {
    r->direction.state_dtype = StateDtype::kBf16;
  } else if (r->direction.envelope == Envelope::kCoordinate) {
    r->direction.envelope_decay = 0.9;
  }
  SIGNVOTE_CHECK(CheckDirection(r->direction).ok());
  if (rng.Below(2) == 0) r->model.tensor_rules = run::ParseTensorTreatments("b=sparse").value();
}

// In a quarter of the seeds whose other draws go with it. From a stream of its own, as above.
void DrawLocalSteps(SimOptions* o) {
  run::RunOptions& r = o->run;
  Rng rng(r.seed, /*stream=*/0xD3);
  if (rng.Below(4) != 0) return;
  // Their updates are then of displacements, which only SGD takes.
  const bool dense = run::AnyDense(r.model.tensor_rules);
  if (dense && r.model.sizes.dense.optimizer.kind != DenseOptimizer::Kind::kSgd) return;
  if (o->rule_used == RuleUsed::kTurns || o->rule_used == RuleUsed::kSos) return;
  constexpr const char* kSchedules[] = {"4", "8", "3,9@40", "2,6@25"};
  r.local_steps =
      LocalSchedule::Parse(kSchedules[rng.Below(std::size(kSchedules))], r.main_rounds_max).value();
  constexpr DirectionKind kKinds[] = {DirectionKind::kSignSgd, DirectionKind::kSignum,
                                      DirectionKind::kNesterovSignum, DirectionKind::kLion};
  r.direction = {.kind = kKinds[rng.Below(std::size(kKinds))],
                 .state_dtype = r.direction.state_dtype};
  r.model.tensor_rules.clear();
  if (dense) {
    r.model.tensor_rules.push_back(run::ParseDense("c")->front());
    r.model.sizes.dense.stepsize = 0.7f;
    o->rule_used = RuleUsed::kOfFlags;
  }
  if (o->rule_used == RuleUsed::kOfFlags) r.rule.rule = "fixed";
  if (rng.Below(4) != 0) r.model.sizes.aggregate = Aggregate::kAverage;
  if (rng.Below(2) == 0) r.warm_in_rounds = 1;
}

// In half of the seeds. From a stream of its own, as above.
void DrawJournal(SimOptions* o) {
  Rng rng(o->seed, /*stream=*/0xD5);
  if (rng.Below(2) == 0) return;
  JournalUsed& journal = o->journal;
  journal.mode =
      rng.Below(4) == 0 ? journal::DurabilityMode::kGroup : journal::DurabilityMode::kSync;
  journal.segment_bytes = uint64_t{8192} << rng.Below(4);
  journal.snapshot_every = 2 + rng.Below(12);
  journal.snapshots_kept = 1 + rng.Below(2);
  journal.sync_s = rng.Below(2) == 0 ? 0.002 : 0.2 * rng.Uniform();
  journal.fault_interval_s = 2 + 15 * rng.Uniform();
  for (size_t i = static_cast<size_t>(kFirstOfJournal); i < kFaultCount; ++i)
    o->enabled[i] = rng.Below(2) == 0;
  // A power cut may take from it what was told.
  if (journal.mode == journal::DurabilityMode::kGroup)
    o->enabled[static_cast<size_t>(Fault::kPowerCut)] = false;
  // Nor does a disk that lies keep what it promises: in runs of their own, so that all others are strict.
  o->enabled[static_cast<size_t>(Fault::kLostSync)] = rng.Below(8) == 0;
  o->durability = true;
  o->run.return_wait = std::chrono::seconds(rng.Below(6));
}

const char* RuleName(const SimOptions& o) {
  switch (o.rule_used) {
    case RuleUsed::kOfFlags:
      return o.run.rule.rule.c_str();
    case RuleUsed::kTurns:
      return "turns";
    case RuleUsed::kRace:
      return "race";
    case RuleUsed::kSos:
      return "sos";
    case RuleUsed::kRaceLite:
      break;
  }
  return "race-lite";
}

}  // namespace

SimOptions DrawOptions(uint64_t seed) {
  Rng rng(seed, /*stream=*/1);
  SimOptions o;
  o.seed = seed;
  for (size_t i = 0; i < static_cast<size_t>(kFirstOfJournal); ++i)
    o.enabled[i] = rng.Below(2) == 0;
  o.fault_interval_s = 0.3 + 4 * rng.Uniform();
  o.message_fault_rate = 0.002 + 0.05 * rng.Uniform();
  o.compute_s = 0.05 + 0.5 * rng.Uniform();
  o.resume_s = rng.Below(2) == 0 ? 0 : 5 * rng.Uniform();
  o.ring_rounds = 4 + rng.Below(13);
  o.durability = rng.Below(2) == 0;
  if (rng.Below(4) == 0) o.rule_used = RuleUsed::kTurns;
  if (rng.Below(20) == 0) {
    o.workers_first = 4 + static_cast<uint32_t>(rng.Below(12));
    o.workers = o.workers_first + 1;
  }

  run::RunOptions& r = o.run;
  r.seed = seed;
  r.main_rounds_max = 64 + rng.Below(17);
  r.workers_min = 1 + static_cast<uint32_t>(rng.Below(o.workers_first));
  r.quorum = static_cast<uint32_t>(rng.Below(o.workers_first + 1));
  r.deadline.enabled = rng.Below(8) != 0;
  r.deadline.initial = std::chrono::seconds(5);
  r.observer_after = 2 + static_cast<uint32_t>(rng.Below(4));
  r.share_hold_rounds = rng.Below(20);
  r.digest_every = 4 + rng.Below(5);
  r.model.sizes.chunk_coordinates = 512;
  r.model.sizes.workers_max = o.workers + 1;
  r.model.weight_decay = 0.01f;
  r.direction.kind = static_cast<DirectionKind>(rng.Below(4));
  o.heal_round = r.main_rounds_max - 2 * r.digest_every - 2;

  r.rule.rule = rng.Below(4) == 0 ? "fixed" : "alias";
  r.rule.schedule = "linear";
  r.rule.alias_option = rng.Below(2) == 0 ? "I" : "II";
  r.rule.alias_probe_every = 1 + rng.Below(3);
  r.rule.alias_resumed_stepsize = rng.Below(4) == 0 ? 1e-3f : 0.0f;
  r.evaluate_every = rng.Below(8) == 0 ? 0 : 1 + rng.Below(12);
  o.able = static_cast<uint32_t>(rng.Below(o.workers + 1));
  o.other_windows = rng.Below(4) == 0;
  if (o.rule_used == RuleUsed::kOfFlags) DrawRule(rng, &o);
  DrawDirection(seed, &r);
  r.model.sizes.aggregate = rng.Below(3) == 0 ? Aggregate::kAverage : Aggregate::kVote;
  r.warm_in_rounds = rng.Below(2) == 0 ? 0 : static_cast<uint32_t>(rng.Below(6));
  DrawDense(rng, &o);
  DrawLocalSteps(&o);
  DrawJournal(&o);
  if (r.model.sizes.aggregate == Aggregate::kAverage) {
    // These need the signs that a step moved by.
    r.rule.alias_option = "II";
    if (r.rule.alias_probe == "directional") r.rule.alias_probe = "same";
  }
  return o;
}

std::string SimOptions::Describe() const {
  std::string faults;
  for (size_t i = 0; i < kFaultCount; ++i) {
    if (enabled[i]) faults += std::string(" ") + FaultName(static_cast<Fault>(i));
  }
  return absl::StrFormat(
      "seed=%d workers=%d+%d main_rounds=%d heal_round=%d workers_min=%d quorum=%d deadline=%s "
      "observer_after=%d share_hold=%d digest_every=%d ring=%d rule=%s direction=%s noise=%s "
      "durability=%s "
      "fault_interval_s=%.3g message_fault_rate=%.3g compute_s=%.3g evaluate_every=%d able=%d "
      "other_windows=%d aggregate=%s warm_in=%d dense=%d local_steps=%s journal=%s "
      "faults:%s",
      seed, workers_first, workers - workers_first, run.main_rounds_max, heal_round,
      run.workers_min, run.quorum, run.deadline.enabled ? "on" : "off", run.observer_after,
      run.share_hold_rounds, run.digest_every, ring_rounds, RuleName(*this),
      std::string(DirectionName(run.direction.kind)),
      std::string(EnvelopeWord(run.direction.envelope)), durability ? "late" : "none",
      fault_interval_s, message_fault_rate, compute_s, run.evaluate_every, able,
      other_windows ? 1 : 0, std::string(Words(run.model.sizes.aggregate)), run.warm_in_rounds,
      run::AnyDense(run.model.tensor_rules) ? 1 : 0, run.local_steps.text(),
      journal.mode.has_value() ? std::string(journal::Words(*journal.mode)) : "none", faults);
}

std::vector<std::pair<std::string, uint64_t>> SimCounters::Outcomes() const {
  return {{"rewinds", rewinds},
          {"races", races},
          {"fetches_without_x0", fetches_without_x0},
          {"rounds_without_step", rounds_without_step},
          {"attempts_reopened", attempts_reopened},
          {"abstentions", abstentions},
          {"late_chunks", late_chunks},
          {"duplicate_chunks", duplicate_chunks},
          {"stale_messages", stale_messages},
          {"scalars_refused", scalars_refused},
          {"digest_mismatches", digest_mismatches},
          {"partial_commits", partial_commits},
          {"uploads_failed", uploads_failed},
          {"fetches", fetches},
          {"fetches_in_pieces", fetches_in_pieces},
          {"mismatches", mismatches},
          {"refused_joins", refused_joins},
          {"second_sessions", second_sessions},
          {"ended_by_server", ended_by_server},
          {"restarts", epochs - std::min(epochs, runs)},
          {"backlogs_full", backlogs_full},
          {"evaluations", evaluations},
          {"evaluators_changed", evaluators_changed},
          {"windows_changed", windows_changed},
          {"averages", averages},
          {"dense", dense},
          {"uncounted", uncounted},
          {"local_ballots", local_ballots},
          {"steps_cut_short", steps_cut_short},
          {"silent_rounds", silent_rounds},
          {"snapshots", snapshots},
          {"recoveries", recoveries},
          {"torn_writes", torn_writes},
          {"lost_writes", lost_writes},
          {"commits_lost", commits_lost},
          {"workers_ahead", workers_ahead},
          {"journals_cut", journals_cut}};
}

std::string SimCounters::Describe() const {
  std::string text = absl::StrFormat(
      "runs=%d rounds=%d events=%d steps=%d diverged=%d uploads=%d fetches_beside_x0_let_go=%d",
      runs, rounds, events, steps, diverged, uploads, fetches_beside_x0_let_go);
  for (const auto& [what, count] : Outcomes()) text += absl::StrFormat(" %s=%d", what, count);
  text += "\nfaults:";
  for (size_t i = 0; i < kFaultCount; ++i) {
    text += absl::StrFormat(" %s=%d", FaultName(static_cast<Fault>(i)), struck[i]);
  }
  return text;
}

}  // namespace signvote::sim
