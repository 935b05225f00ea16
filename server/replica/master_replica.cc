#include "server/replica/master_replica.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "server/replica/move_parameters.h"

namespace signvote {
namespace {

static_assert(MasterReplica::kPieceCoordinates % kReplicaDigestBlock == 0);
static_assert(MasterReplica::kPieceCoordinates % kChunkCoordinatesMultiple == 0);

constexpr uint64_t kPieceBytes = MasterReplica::kPieceCoordinates * sizeof(float);

// Address space of whole pieces, so that each piece begins a page. Null when there is none.
float* MapPlane(uint64_t pieces) {
  void* memory = ::mmap(nullptr, pieces * kPieceBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<float*>(memory);
}

void UnmapPlane(float* plane, uint64_t pieces) {
  if (plane != nullptr) SIGNVOTE_CHECK(::munmap(plane, pieces * kPieceBytes) == 0);
}

uint64_t PiecesOf(uint64_t coordinates) {
  return (coordinates + MasterReplica::kPieceCoordinates - 1) / MasterReplica::kPieceCoordinates;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MasterReplica>> MasterReplica::Create(Layout layout,
                                                                     const Options& options) {
  SIGNVOTE_CHECK(layout.coordinates() > 0);
  const uint64_t pieces = PiecesOf(layout.coordinates());
  float* const x = MapPlane(pieces);
  float* const x0 = x != nullptr && options.needs_x0 ? MapPlane(pieces) : nullptr;
  if (x == nullptr || (options.needs_x0 && x0 == nullptr)) {
    UnmapPlane(x, pieces);
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a replica of ", layout.coordinates(), " coordinates (",
                     BytesFor(layout.coordinates(), options.needs_x0), " bytes)"));
  }
  return std::unique_ptr<MasterReplica>(new MasterReplica(std::move(layout), options, x, x0));
}

MasterReplica::MasterReplica(Layout layout, const Options& options, float* x, float* x0)
    : layout_(std::move(layout)), x_(x), x0_(x0), pieces_(PiecesOf(layout_.coordinates())) {
  for (Piece& piece : pieces_) {
    MutexLock lock(&piece.mu);
    piece.round = options.start;
    piece.x0_kept = x0 != nullptr;
  }
}

MasterReplica::~MasterReplica() {
  UnmapPlane(x_, pieces());
  UnmapPlane(x0_, pieces());
}

uint64_t MasterReplica::Count(uint64_t piece) const {
  return std::min(kPieceCoordinates, coordinates() - First(piece));
}

uint64_t MasterReplica::BytesFor(uint64_t coordinates, bool needs_x0) {
  return coordinates * sizeof(float) * (needs_x0 ? 2 : 1);
}

std::span<float> MasterReplica::RestoreX0() {
  SIGNVOTE_CHECK(x0_ != nullptr);
  for (Piece& piece : pieces_) {
    MutexLock lock(&piece.mu);
    SIGNVOTE_CHECK(piece.x0_kept);
    piece.x0_apart = true;
  }
  return {x0_, coordinates()};
}

uint64_t MasterReplica::Apply(const CommitRecord& record) {
  uint64_t digest = 0;
  // From the last to the first: whoever reads the other way cannot overtake and meet an older piece
  // behind a newer one.
  for (uint64_t p = pieces(); p-- > 0;) {
    Piece& piece = pieces_[p];
    MutexLock lock(&piece.mu);
    SIGNVOTE_CHECK(piece.round == record.round);
    if (record.kind != CommitKind::kNone) MovePiece(record, p, &piece);
    piece.round = record.round.next();
    if (record.digest_due) digest += ReplicaDigest(x_ + First(p), First(p), Count(p));
  }
  return digest;
}

void MasterReplica::MovePiece(const CommitRecord& record, uint64_t p, Piece* piece) {
  const uint64_t first = First(p), count = Count(p);
  float* const x = x_ + first;
  float* const x0 = x0_ == nullptr ? nullptr : x0_ + first;
  const bool rewind = record.kind == CommitKind::kRewind;
  SIGNVOTE_CHECK(piece->x0_kept || (!rewind && record.rho == 1.0f));
  if (piece->x0_kept && !piece->x0_apart) {
    if (rewind) return;  // x has not moved
    std::memcpy(x0, x, count * sizeof(float));
    piece->x0_apart = true;
  }
  MoveParameters(layout_, record, first, first + count, piece->x0_kept ? x0 : nullptr, x);
}

absl::StatusOr<Round> MasterReplica::CopyPiece(Plane plane, uint64_t p, float* out) const {
  const Piece& piece = pieces_[p];
  MutexLock lock(&piece.mu);
  const float* from = x_;
  if (plane == Plane::kX0) {
    if (!piece.x0_kept) {
      return absl::FailedPreconditionError(
          "the run's starting point is not kept, or no longer: the stepsize rule does without");
    }
    if (piece.x0_apart) from = x0_;
  }
  std::memcpy(out, from + First(p), Count(p) * sizeof(float));
  return piece.round;
}

void MasterReplica::DropX0() {
  for (uint64_t p = 0; p < pieces(); ++p) {
    Piece& piece = pieces_[p];
    MutexLock lock(&piece.mu);
    if (!piece.x0_kept) return;
    piece.x0_kept = false;
    SIGNVOTE_CHECK(::madvise(x0_ + First(p), kPieceBytes, MADV_DONTNEED) == 0);
  }
}

bool MasterReplica::has_x0() const {
  const Piece& last = pieces_.back();
  MutexLock lock(&last.mu);
  return last.x0_kept;
}

uint64_t MasterReplica::Digest() const { return ReplicaDigest(x_, 0, coordinates()); }

}  // namespace signvote
