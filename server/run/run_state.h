#pragma once
// A run between two rounds, whole: what Run is made from and gives back.
//
// As bytes (docs/state_format.md, version 1; little-endian):
//   header   magic, version, sizes, XXH3-64 of the header
//   body     a v1::RunState message, XXH3-64 of the body
//   planes   x, then x0 if the run keeps it: d fp32 each, XXH3-64 behind each
//   optimizer  of dense tensors, if it has a state: fp32, XXH3-64 behind
// Planes and optimizer are raw parts: a state of 10^9 coordinates is written and read without a copy of them.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/vote_terms.h"
#include "server/commit/commit_record.h"
#include "server/round/state.h"
#include "server/run/roster.h"
#include "server/vote/open_vote.h"
#include "signvote/v1/state.pb.h"

namespace signvote::run {

// From which round on a server committed.
struct EpochBegun {
  Epoch epoch;
  Round round;
  bool operator==(const EpochBegun&) const = default;
};

// The numbers of a run that are not in the engine's state, and its planes. A fresh run is RunState{}
// with a run id: no layout, no planes, round 0.
struct RunState {
  RunId run_id;
  Epoch epoch{1};  // grows each time a server takes the run up
  round::EngineState
      engine;  // round, data_step, rule with the losses it holds, shares, roles, arrivals
  // Names with their ids, incarnations and evictions, those included that never became ready and that
  // the engine therefore does not know.
  Roster::Memory roster;
  bool paused = false;  // also before there is an engine

  Layout layout;            // in the run's order, with scales and decays; no tensors: not known yet
  std::string config_json;  // of the model; "" or a JSON object
  std::string identity_text;
  double x0_max_abs = 0;  // max |x_0,i|
  // What flags decide, and who takes the run up must not change.
  Aggregate aggregate = Aggregate::kVote;
  PayloadKind dense_wire = PayloadKind::kFp32;  // fp32 where no tensor is dense

  // The planes, shared so that a state is cheap to hand on. Empty while no parameters are complete;
  // else as many elements as the layout has coordinates. x0 is empty in runs that do not keep it.
  std::shared_ptr<const std::vector<float>> x, x0;
  // Of dense tensors; without a state in runs that have none.
  OpenVote::Optimizer optimizer;

  // The servers that took the run up, in order, this one included, as far as they are remembered: a
  // replica of an older one's commits is this run's up to the round where the next one began. Empty: of
  // older servers nothing is known.
  std::vector<EpochBegun> begun;
  // The last commits before engine.round, in order, for workers that lack a few. Not in the bytes.
  std::vector<std::shared_ptr<const CommitRecord>> recent;

  bool has_parameters() const { return x != nullptr && !x->empty(); }
};

// All of it but planes and what the optimizer keeps for each coordinate; of these the message has the
// number alone.
void FillBody(const RunState& state, v1::RunState* out);
// Of that, what commits change (JournalCommit.after).
void FillProgress(const RunState& state, v1::RunState* out);
// DATA_LOSS, INVALID_ARGUMENT: contents that no run has.
absl::StatusOr<RunState> FromBody(const v1::RunState& in);
v1::KnownName ToProto(const Roster::Remembered& name);

// The bytes of `state` in parts, to be written one after the other. Parts point into `state` and into
// `owned`: they are valid as long as both are.
struct StateParts {
  std::vector<std::span<const std::byte>> parts;
  std::vector<std::unique_ptr<std::string>> owned;
  uint64_t bytes = 0;  // of all parts
};
// REQUIRES: state is consistent (CheckState() returns OK).
StateParts EncodeState(const RunState& state);

// FAILED_PRECONDITION names the first thing that does not fit together: planes that are not as long as
// the layout, ids or names that are repeated, out of order or not below the next one, a worker of the
// engine that the roster does not know, shares that are repeated or nobody's.
absl::Status CheckState(const RunState& state);

// The state that the bytes hold. INVALID_ARGUMENT: not a state at all, shorter than a header or another
// magic. UNIMPLEMENTED: another version. DATA_LOSS: cut short, longer than they say, a checksum that is
// wrong, or contents that no run can have. Lengths are trusted only behind the header's checksum, and
// never beyond the bytes that are there.
absl::StatusOr<RunState> DecodeState(std::span<const std::byte> bytes);

}  // namespace signvote::run
