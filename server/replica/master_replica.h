#pragma once
// The server's own copy of the parameters. It moves only by commits, piece by piece, so that a
// state transfer can read it while it moves: every piece says at which round it stands.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "server/commit/commit_record.h"

namespace signvote {

// The planes of a replica; their numbers are the wire's (StateChunk.plane).
enum class Plane : uint8_t {
  kX = 0,   // the parameters
  kX0 = 1,  // the run's starting point, while the stepsize rule needs it
};

// x0 is not copied when the run starts: each of its pieces is, right before the first commit that
// moves that piece of x. Until then piece p of x0 is piece p of x.
//
// Threads:    thread-safe where not stated otherwise. Each piece has a lock of its own.
// Invariants: to whoever copies the pieces of x from the first to the last, beside any number of
//             commits, their rounds never fall: what follows the copy (worker/session/catch_up.h) has
//             then let go of no commit that a later piece lacks.
class MasterReplica {
 public:
  // Coordinates per piece; a multiple of kReplicaDigestBlock and of kChunkCoordinatesMultiple. 1
  // MiB of fp32.
  static constexpr uint64_t kPieceCoordinates = uint64_t{1} << 18;

  struct Options {
    Round start;            // rounds whose commits the parameters hold to begin with
    bool needs_x0 = false;  // keep x0 from `start` on
  };
  // All zeros. Costs address space only: a page is made when it is first written or read, by whoever
  // does that. RESOURCE_EXHAUSTED when there is none.
  static absl::StatusOr<std::unique_ptr<MasterReplica>> Create(Layout layout,
                                                               const Options& options);
  ~MasterReplica();

  const Layout& layout() const { return layout_; }
  uint64_t coordinates() const { return layout_.coordinates(); }
  uint64_t pieces() const { return pieces_.size(); }
  uint64_t First(uint64_t piece) const { return piece * kPieceCoordinates; }
  uint64_t Count(uint64_t piece) const;
  // Memory of `coordinates` coordinates, in bytes, when every page is there.
  static uint64_t BytesFor(uint64_t coordinates, bool needs_x0);

  // The parameters. REQUIRES: nobody calls Apply or CopyPiece meanwhile (before the first commit,
  // after the last).
  std::span<float> x() { return {x_, coordinates()}; }
  std::span<const float> x() const { return {x_, coordinates()}; }
  // x0, for a run that goes on from kept state: the caller fills all of it. REQUIRES: as x(), and
  // needs_x0 at Create().
  std::span<float> RestoreX0();

  // Does to every piece what the commit says. With record.digest_due returns the digest of the
  // replica after it, else 0. REQUIRES: one caller at a time, rounds in order; has_x0() for a rewind
  // or ρ ≠ 1.
  uint64_t Apply(const CommitRecord& record);
  // Copies piece `p` of `plane` into out[0, Count(p)); returns the round at which x stands there
  // (x0 always stands where the run started). FAILED_PRECONDITION: x0 is not kept, or no longer.
  absl::StatusOr<Round> CopyPiece(Plane plane, uint64_t p, float* out) const;
  // Gives the memory of x0 back, piece by piece. REQUIRES: no later commit needs x0; not beside
  // Apply().
  void DropX0();
  bool has_x0() const;
  // REQUIRES: as x().
  uint64_t Digest() const;

 private:
  struct Piece {
    mutable Mutex mu;
    Round round ABSL_GUARDED_BY(mu);
    bool x0_apart ABSL_GUARDED_BY(mu) = false;  // x0 has been copied and x has moved on
    bool x0_kept ABSL_GUARDED_BY(mu) = false;
  };

  MasterReplica(Layout layout, const Options& options, float* x, float* x0);
  // Moves piece p, which is `piece`.
  void MovePiece(const CommitRecord& record, uint64_t p, Piece* piece)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(piece->mu);

  // Constant after construction. Piece p of x_ and x0_ is guarded by pieces_[p].mu.
  const Layout layout_;
  float* const x_;
  float* const x0_;  // null: never kept

  std::vector<Piece> pieces_;
};

}  // namespace signvote
