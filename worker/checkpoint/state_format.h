#pragma once
// One worker's own state between two rounds as bytes: what the server does not have and the next ballot
// goes on from. Format: docs/worker_state_format.md, version 1.
//
// Threads: plain values and pure functions, but for what reads and writes files.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/direction_config.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "common/vote_terms.h"

namespace signvote {

// What one section of the file is; the numbers are the file's.
enum class SectionKind : uint32_t {
  kMomentum = 1,  // the planes of the direction, StatePlane::Kind
  kSquares = 2,
  kEnvelope = 3,
  kSteps = 4,
  kResidual = 5,
  kStepsize = 6,
  kVerdict = 16,          // packed bits of the last commit, a step of signs
  kPreviousReplica = 17,  // fp32: x before that step
  kLastGradient = 18,     // fp32: of the last ballot
  kContinuation = 19,     // fp32: where the local steps of a trial ended
};
SectionKind SectionOf(StatePlane::Kind kind);
std::string_view Words(SectionKind kind);

struct Section {
  SectionKind kind = SectionKind::kMomentum;
  uint32_t element_bytes = 4;
  uint64_t elements = 0;
  std::vector<float> memory;  // at least its bytes

  // RESOURCE_EXHAUSTED: there is no memory for so many elements; the section is empty then.
  absl::Status Take(uint64_t count);
  uint64_t size() const { return elements * element_bytes; }
  std::span<std::byte> bytes();
  std::span<const std::byte> bytes() const;
};

struct WorkerState {
  RunId run_id;
  std::string worker;  // its name
  Round round;         // its replica holds all commits before it
  // It has the ballot of `round` in it, whose commit this worker did not see.
  bool unsettled = false;
  Share share;
  uint64_t main_round = 0;  // main rounds committed before `round`
  uint64_t layout_digest = 0, coordinates = 0;
  uint64_t replica_digest = 0;        // of the replica that it belongs to
  double clip = 1.0;                  // of the last gradient, (0, 1]
  std::optional<AbstainReason> lost;  // Voter::Carried::lost
  DirectionConfig direction;
  std::vector<Section> sections;  // each kind once; those of the direction's planes all

  const Section* Find(SectionKind kind) const;
  // Plane k of PlanesOf(direction). REQUIRES: it is there, as in every state that was read.
  const Section& plane(size_t k) const;
};

// The whole file. REQUIRES: the state is one that DecodeWorkerState() would return.
std::string EncodeWorkerState(const WorkerState& state);
// INVALID_ARGUMENT: no worker's state at all. UNIMPLEMENTED: another version. DATA_LOSS: a wrong
// checksum, or what no worker has. RESOURCE_EXHAUSTED: no memory. All with exit code kBadInput but the
// last.
absl::StatusOr<WorkerState> DecodeWorkerState(std::span<const std::byte> bytes);

// Replaces the file at `path`, or leaves it as it was.
absl::Status WriteWorkerState(FileSystem* fs, const std::string& path, const WorkerState& state);
// NOT_FOUND: there is none. Others as DecodeWorkerState(), with the path.
absl::StatusOr<WorkerState> ReadWorkerState(FileSystem* fs, const std::string& path);

}  // namespace signvote
