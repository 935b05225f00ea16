#include "common/payload_plan.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"

namespace signvote {
namespace {

constexpr size_t kHashedBytes = 16;  // of one chunk, in a payload's hash

}  // namespace

size_t PayloadBytes(PayloadKind kind, uint64_t coordinates, uint32_t ballots) {
  switch (kind) {
    case PayloadKind::kSigns:
      return BytesForBits(coordinates);
    case PayloadKind::kCounts:
      return CountPlanes(ballots) * BytesForBits(coordinates);
    case PayloadKind::kFp32:
      return coordinates * sizeof(float);
    case PayloadKind::kBf16:
      break;
  }
  return coordinates * sizeof(uint16_t);
}

PayloadPlan::PayloadPlan(ChunkPlan chunks)
    : PayloadPlan(chunks, {{.first = ChunkIndex(0), .chunks = chunks.chunks()}}, 0) {}

PayloadPlan::PayloadPlan(ChunkPlan chunks, std::vector<PayloadRange> ranges, uint32_t ballots_max)
    : chunks_(chunks), ranges_(std::move(ranges)), ballots_max_(ballots_max) {
  // Chunks have whole 64-byte lines of bits, so that every offset here is a whole line too.
  static_assert(kChunkCoordinatesMultiple % (8 * 64) == 0);
  for (const PayloadRange& range : ranges_) {
    offsets_.push_back(total_bytes_);
    const uint64_t end = std::min(chunks_.First(ChunkIndex(range.first.value() + range.chunks)),
                                  chunks_.coordinates());
    // A range's planes do not interleave with the next chunk's: chunk by chunk, all but the last of
    // the model of one size.
    const uint64_t last_first = chunks_.First(ChunkIndex(range.first.value() + range.chunks - 1));
    total_bytes_ +=
        (range.chunks - 1) * PayloadBytes(range.kind, chunks_.chunk_coordinates(), ballots_max_);
    total_bytes_ += PayloadBytes(range.kind, end - last_first, ballots_max_);
  }
}

absl::StatusOr<PayloadPlan> PayloadPlan::Make(ChunkPlan chunks, std::vector<PayloadRange> ranges,
                                              uint32_t ballots_max) {
  uint64_t next = 0;
  for (const PayloadRange& range : ranges) {
    if (range.first.value() != next || range.chunks == 0 || range.chunks > chunks.chunks() - next) {
      return absl::InvalidArgumentError(
          absl::StrCat("a payload range of ", range.chunks, " chunks from chunk ",
                       range.first.value(), " on, where chunk ", next, " of ", chunks.chunks(),
                       " is next: ranges must cover all chunks in order, each once"));
    }
    next += range.chunks;
  }
  if (next != chunks.chunks()) {
    return absl::InvalidArgumentError(absl::StrCat("payload ranges end at chunk ", next, " of ",
                                                   chunks.chunks(), ": they must cover all"));
  }
  return PayloadPlan(chunks, std::move(ranges), ballots_max);
}

size_t PayloadPlan::RangeIndex(ChunkIndex k) const {
  SIGNVOTE_CHECK(k.value() < chunks());
  const auto after =
      std::upper_bound(ranges_.begin(), ranges_.end(), k,
                       [](ChunkIndex at, const PayloadRange& range) { return at < range.first; });
  return static_cast<size_t>(after - ranges_.begin()) - 1;
}

bool PayloadPlan::Fits(ChunkIndex k, uint64_t bytes) const {
  if (kind(k) != PayloadKind::kCounts) return bytes == Bytes(k, 0);
  const size_t plane = BytesForBits(chunks_.Count(k));
  return bytes > 0 && bytes % plane == 0 && bytes / plane <= CountPlanes(ballots_max_);
}

bool PayloadPlan::OnlySigns() const {
  return std::all_of(ranges_.begin(), ranges_.end(),
                     [](const PayloadRange& range) { return range.kind == PayloadKind::kSigns; });
}

size_t PayloadPlan::Offset(ChunkIndex k) const {
  const size_t index = RangeIndex(k);
  const PayloadRange& range = ranges_[index];
  return offsets_[index] + (k.value() - range.first.value()) *
                               PayloadBytes(range.kind, chunks_.chunk_coordinates(), ballots_max_);
}

uint64_t PayloadHash(std::span<const ChunkSum> chunks) {
  static_assert(std::endian::native == std::endian::little, "numbers are hashed as they lie");
  Xxh3Stream hash;
  for (const ChunkSum& chunk : chunks) {
    const uint64_t numbers[] = {chunk.counted, chunk.checksum};
    static_assert(sizeof(numbers) == kHashedBytes);
    hash.Update(numbers, sizeof(numbers));
  }
  return hash.Digest();
}

}  // namespace signvote
