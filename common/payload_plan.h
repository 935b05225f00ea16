#pragma once
// What a round's payload is, chunk by chunk, and where each chunk's bytes lie: the one place that
// knows the size of a verdict, of count planes, of dense ranges and of per-tensor scales.
//
// Sizes, for a chunk of c coordinates (packed bits are those of common/bits.h):
//   signs   ⌈c/8⌉
//   counts  ⌈log2(n + 1)⌉ planes of ⌈c/8⌉, the plane of weight 1 first; n: ballots counted
//   fp32    4·c
//   bf16    2·c

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/vote_terms.h"

namespace signvote {

// Consecutive chunks whose payload is of one kind.
struct PayloadRange {
  ChunkIndex first;
  uint32_t chunks = 0;
  PayloadKind kind = PayloadKind::kSigns;

  bool operator==(const PayloadRange&) const = default;
};

// The most ballots that are ever counted together.
inline constexpr uint32_t kBallotsMax = 1024;

// Planes that a number between 0 and `ballots` needs: ⌈log2(ballots + 1)⌉.
constexpr uint32_t CountPlanes(uint32_t ballots) {
  uint32_t planes = 0;
  for (; ballots != 0; ballots >>= 1) ++planes;
  return planes;
}

// Bytes of `coordinates` coordinates of a payload. `ballots` matters to counts alone.
size_t PayloadBytes(PayloadKind kind, uint64_t coordinates, uint32_t ballots);

// Immutable once made. Threads: thread-compatible.
class PayloadPlan {
 public:
  PayloadPlan() = default;
  // Every chunk is signs.
  explicit PayloadPlan(ChunkPlan chunks);
  // INVALID_ARGUMENT unless the ranges cover all chunks in order, each once; the message names the
  // range. `ballots_max`: the most ballots of one chunk, which decides the room for counts.
  static absl::StatusOr<PayloadPlan> Make(ChunkPlan chunks, std::vector<PayloadRange> ranges,
                                          uint32_t ballots_max);

  const ChunkPlan& chunk_plan() const { return chunks_; }
  uint32_t chunks() const { return chunks_.chunks(); }
  std::span<const PayloadRange> ranges() const { return ranges_; }
  // REQUIRES: k < chunks(), here and below.
  PayloadKind kind(ChunkIndex k) const { return RangeOf(k).kind; }

  // Bytes of chunk k when `ballots` were counted.
  size_t Bytes(ChunkIndex k, uint32_t ballots) const {
    return PayloadBytes(kind(k), chunks_.Count(k), ballots);
  }
  // Room for chunk k in a buffer of the whole payload: its bytes at ballots_max.
  size_t Room(ChunkIndex k) const { return Bytes(k, ballots_max_); }
  // Where that room begins; a multiple of 64.
  size_t Offset(ChunkIndex k) const;
  // Bytes of such a buffer: the largest payload of one round, scales apart.
  size_t TotalBytes() const { return total_bytes_; }
  uint32_t ballots_max() const { return ballots_max_; }
  // Whether chunk k can have so many bytes: those of its kind, for counts those of some number of
  // ballots up to ballots_max().
  bool Fits(ChunkIndex k, uint64_t bytes) const;
  // Every chunk is signs.
  bool OnlySigns() const;

  // Bytes of the per-tensor scales of a commit that has them.
  static size_t ScaleBytes(size_t tensors) { return tensors * sizeof(float); }

 private:
  PayloadPlan(ChunkPlan chunks, std::vector<PayloadRange> ranges, uint32_t ballots_max);
  size_t RangeIndex(ChunkIndex k) const;
  const PayloadRange& RangeOf(ChunkIndex k) const { return ranges_[RangeIndex(k)]; }

  ChunkPlan chunks_;
  std::vector<PayloadRange> ranges_;
  std::vector<size_t> offsets_;  // of the ranges
  uint32_t ballots_max_ = 0;
  size_t total_bytes_ = 0;
};

// What is known of a chunk's payload when it has been counted.
struct ChunkSum {
  uint32_t counted = 0;   // ballots
  uint64_t checksum = 0;  // XXH3-64 of the chunk's payload

  bool operator==(const ChunkSum&) const = default;
};

// The hash of a commit's payload (docs/wire_format.md, "Hash of a commit's payload"): XXH3-64 over,
// for the chunks in order, `counted` and then `checksum`, each as 8 bytes little-endian. It needs
// no payload byte: whoever has seen the chunks' checksums can make it, in any order of arrival.
uint64_t PayloadHash(std::span<const ChunkSum> chunks);

}  // namespace signvote
