#pragma once
// A run between two rounds as files beside the segments: the parameters, x0 while the run keeps it,
// and everything else. Format: docs/journal_format.md, "Snapshots", version 1.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/disk.h"
#include "common/ids.h"
#include "common/layout.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal {

struct SnapshotView {
  const v1::JournalHead* head = nullptr;  // run.engine.round is the snapshot's
  const Layout* layout = nullptr;
  std::span<const float> x, x0;      // x0 empty: not kept
  std::span<const float> optimizer;  // of dense tensors
};

struct Snapshot {
  v1::JournalHead head;
  Layout layout;
  std::shared_ptr<std::vector<float>> x, x0;  // x0 null: not kept
  std::vector<float> optimizer;
  uint64_t bytes = 0;  // of its files
};

// Asked now and then; true: the writer gives up.
using GiveUp = std::function<bool()>;

// Writes the planes, then the state that names them: a snapshot is there once its state is. When this
// returns OK it is durable, and was read again. CANCELLED: `give_up` said so. Leaves nothing behind
// that a reader would take for a snapshot when it fails.
absl::Status WriteSnapshot(Disk* disk, const SnapshotView& view, const GiveUp& give_up);

// NOT_FOUND: a file of it is missing. DATA_LOSS: a checksum, a size, or contents that no run has;
// the message names the file. UNIMPLEMENTED: another version.
absl::StatusOr<Snapshot> ReadSnapshot(Disk* disk, Round round);
// The same, without keeping the planes.
absl::Status CheckSnapshot(Disk* disk, Round round);

// Rounds of those whose state is there, the newest first.
absl::StatusOr<std::vector<Round>> ListSnapshots(Disk* disk);
// Its state first. What is not there is no error.
absl::Status RemoveSnapshot(Disk* disk, Round round);

// The state file as bytes, and read again. For tests and the fuzzer; ReadStateFile() as ReadSnapshot().
struct StateFile {
  v1::JournalSnapshot message;
  std::vector<float> optimizer;
};
std::string EncodeStateFile(const v1::JournalSnapshot& message, std::span<const float> optimizer);
absl::StatusOr<StateFile> DecodeStateFile(std::span<const std::byte> bytes);

}  // namespace signvote::journal
