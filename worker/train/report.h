#pragma once
// What a worker leaves behind: report.json at the end, and one JSON line per round.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/file_system.h"
#include "worker/checkpoint/worker_checkpoints.h"
#include "worker/session/session.h"
#include "worker/train/trainer.h"

namespace signvote {

struct ReportContext {
  std::string name;   // of the worker
  std::string model;  // as given to --model
  std::string device;
  std::string data;         // one line
  std::string target_unit;  // what losses are per: byte, token, sample
  uint64_t coordinates = 0;
  std::string outcome;  // "finished", "drained", or the status that ended the run
  std::optional<WorkerCheckpoints::Stats> checkpoints;  // nullopt: no --checkpoint
};

// Keys: name, model, device, data, target_unit, outcome, run_id, coordinates, next_round,
// rounds_voted, rounds_abstained, rounds_applied, loss {first, last} (nats per target), held_out
// {first, last}, each null (not measured) or {loss, error (its standard error over the windows),
// perplexity (null unless of tokens), round, windows (hash, hex)}, wire {sent_bytes, received_bytes,
// setup_sent_bytes, setup_received_bytes, fp32_bytes, sent_bytes_per_round,
// received_bytes_per_round, fp32_bytes_per_round} (per direction for the last), digest (hex; null:
// the replica never was the run's), incarnation, reconnects, state_transfers, verdict_mismatches,
// join_seconds, seconds, minibatches, targets, targets_per_second, first_chunk_overlap_ratio (of voted
// rounds), time_split {compute, pack, wait, apply, evaluate} (s), checkpoint, null (no --checkpoint) or
// {written (round of the file, null: none), written_total, failed_total, resumed, null (it began without
// one) or {how (exactly, as it was, forgotten), round, age_rounds}}.
std::string ReportJson(const ReportContext& context, const TrainerReport& report,
                       const SessionStats& stats);

// Keys: round, data_step, share, members, voters, observer, abstained, loss, run_loss, held_out (as in
// the report, and own: the server had not asked for it; it became known in this round, of the replica
// that held all commits before its own), commit (step, rewind, none), main_round, stepsize, g_l1,
// g_l2_squared, probe_l1, prev_inner, minibatches, targets, first_chunk_ms, backward_end_ms, compute_ms,
// pack_ms, wait_ms, apply_ms, round_ms, first_chunk_overlapped. No line break inside or at the end. What has
// no value is null.
std::string RoundLogLine(const RoundReport& round);

}  // namespace signvote
