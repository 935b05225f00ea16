#pragma once
// The server's own copy of the parameters. It moves only by commits, piece by piece, so that a
// state transfer can read it while it moves: every piece says at which round it stands.

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "server/replica/commit_ring.h"

namespace signvote {

// Threads: thread-safe where not stated otherwise. Each piece has a lock of its own.
class MasterReplica {
 public:
  // Coordinates per piece; a multiple of kReplicaDigestBlock and of kChunkCoordinatesMultiple. 1
  // MiB of fp32.
  static constexpr uint64_t kPieceCoordinates = uint64_t{1} << 18;

  // All zeros, at round 0. RESOURCE_EXHAUSTED when there is no memory for it.
  static absl::StatusOr<std::unique_ptr<MasterReplica>> Create(Layout layout);

  const Layout& layout() const { return layout_; }
  uint64_t coordinates() const { return layout_.coordinates(); }
  uint64_t pieces() const { return rounds_.size(); }
  uint64_t First(uint64_t piece) const { return piece * kPieceCoordinates; }
  uint64_t Count(uint64_t piece) const;

  // The parameters. REQUIRES: nobody calls Apply or CopyPiece meanwhile (before the first commit,
  // after the last).
  std::span<float> x() { return {x_.get(), coordinates()}; }
  std::span<const float> x() const { return {x_.get(), coordinates()}; }

  // Applies the commit to every piece. With record.digest_due returns the digest of the replica
  // after it, else 0. REQUIRES: one caller at a time, rounds in order, record.rho == 1.
  uint64_t Apply(const CommitRecord& record);
  // Copies piece `p` into out[0, Count(p)); returns the round at which the copy stands.
  Round CopyPiece(uint64_t p, float* out) const;
  // REQUIRES: as x().
  uint64_t Digest() const;

 private:
  struct FreeDeleter {
    void operator()(float* p) const { std::free(p); }
  };

  MasterReplica(Layout layout, float* x);

  // Constant after construction.
  const Layout layout_;
  const std::unique_ptr<float[], FreeDeleter> x_;  // piece p guarded by locks_[p]

  mutable std::vector<Mutex> locks_;  // by piece
  std::vector<Round> rounds_;         // by piece, guarded by locks_[p]
};

// Writes `x` as PATH (safetensors, atomically) and, unless empty, `config_json` as config.json in
// the same folder.
absl::Status ExportReplica(FileSystem* fs, const std::string& path, const Layout& layout,
                           std::span<const float> x,
                           const std::map<std::string, std::string>& metadata,
                           const std::string& config_json);

}  // namespace signvote
