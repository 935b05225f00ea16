#pragma once
// The bytes of a journal's segments, and the names of its files. docs/journal_format.md, version 1.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace signvote::journal {

static_assert(std::endian::native == std::endian::little);

inline constexpr char kSegmentMagic[8] = {'S', 'V', 'J', 'R', 'N', 'L', '\0', '\0'};
inline constexpr uint32_t kVersion = 1;

struct SegmentHeader {
  char magic[8];
  uint32_t version;
  uint32_t reserved;  // 0
  char run_id[16];
  uint64_t sequence;      // from 1, without gaps
  uint64_t epoch;         // of the server that wrote it
  uint64_t first_round;   // the next to commit when it was begun
  uint64_t previous_end;  // where the records of the segment before end; 0: it is the first
  uint64_t checksum;      // XXH3-64 of what stands before
};
static_assert(sizeof(SegmentHeader) == 72 && offsetof(SegmentHeader, checksum) == 64);
static_assert(std::is_trivially_copyable_v<SegmentHeader>);

enum class RecordType : uint8_t {
  kHead = 1,       // JournalHead
  kName = 2,       // JournalName
  kPause = 3,      // JournalPause
  kChunk = 4,      // ChunkHeader, then a chunk's payload
  kOptimizer = 5,  // fp32: the optimizer of dense tensors behind the commit that follows
  kCommit = 6,     // JournalCommit
};
std::string_view Words(RecordType type);

// In RecordHeader::flags: who does not know the type passes over the record.
inline constexpr uint8_t kSafeToSkip = 1;

struct RecordHeader {
  uint8_t type;
  uint8_t flags;
  uint16_t reserved;   // 0
  uint32_t reserved2;  // 0
  uint64_t payload_bytes;
  uint64_t round;             // of a chunk, an optimizer or a commit; else the next to commit
  uint64_t synced;            // bytes of this segment that were durable when it was written
  uint64_t payload_checksum;  // XXH3-64 with the segment's seed
  uint64_t checksum;          // of what stands before, likewise
};
static_assert(sizeof(RecordHeader) == 48 && offsetof(RecordHeader, checksum) == 40);
static_assert(std::is_trivially_copyable_v<RecordHeader>);

// Before the payload of a chunk.
struct ChunkHeader {
  uint32_t attempt;
  uint32_t chunk;
  uint32_t counted;
  uint32_t reserved;  // 0
};
static_assert(sizeof(ChunkHeader) == 16 && std::is_trivially_copyable_v<ChunkHeader>);

inline constexpr uint64_t kAlignment = 8;  // of every record
constexpr uint64_t Aligned(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
// What a record with this payload takes.
constexpr uint64_t RecordBytes(uint64_t payload_bytes) {
  return sizeof(RecordHeader) + Aligned(payload_bytes);
}

// Of the checksums of a segment's records: an old record of another segment, in a file that is used
// again, is none of this one's.
uint64_t SegmentSeed(const RunId& run_id, uint64_t sequence);

SegmentHeader MakeSegmentHeader(const RunId& run_id, uint64_t sequence, Epoch epoch,
                                Round first_round, uint64_t previous_end);
// INVALID_ARGUMENT: too short, or another magic. DATA_LOSS: checksum, or a value that no writer
// writes. UNIMPLEMENTED: another version.
absl::StatusOr<SegmentHeader> ReadSegmentHeader(std::span<const std::byte> bytes);

RecordHeader MakeRecordHeader(RecordType type, uint64_t round, uint64_t synced,
                              uint64_t payload_bytes, uint64_t payload_checksum, uint64_t seed);
// The header at the front of `bytes`, when it is whole and its checksum is right. Nothing is said of
// the payload.
std::optional<RecordHeader> ReadRecordHeader(std::span<const std::byte> bytes, uint64_t seed);

// ---- names --------------------------------------------------------------------------------------

inline constexpr char kLockName[] = "lock";
inline constexpr std::string_view kCutSuffix = ".cut";  // of what was put aside
std::string SegmentName(uint64_t sequence);             // segment-0000000000000001.journal
std::string SpareName(uint64_t number);                 // spare-0000000000000001.journal
std::string SnapshotStateName(Round round);             // snapshot-0000000000000128.state
std::string SnapshotXName(Round round);                 // snapshot-0000000000000128.safetensors
std::string SnapshotX0Name(Round round);                // snapshot-0000000000000128.x0.safetensors
std::optional<uint64_t> SegmentOf(std::string_view name);
std::optional<uint64_t> SpareOf(std::string_view name);
std::optional<Round> SnapshotStateOf(std::string_view name);
// Of any file of a snapshot, unfinished ones included.
std::optional<Round> SnapshotOf(std::string_view name);

}  // namespace signvote::journal
