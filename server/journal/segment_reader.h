#pragma once
// Reads the records of one segment, and says what its end is. Format: docs/journal_format.md.
//
// Where a record is not whole, one of three is true:
//   the end     nothing that this segment's writer wrote follows: zeros, or records of another segment
//   a torn tail nothing behind it was durable: the write that was under way when the server ended
//   damage      bytes that were durable are not what was written: DATA_LOSS, with the offset
// Which one, decides the `synced` of the records behind it. What was durable is also known where the
// next segment says where this one ends.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "server/journal/journal_format.h"

namespace signvote::journal {

// Ownership: views into the bytes that Open() was given.
// Threads:   not thread-safe.
class SegmentReader {
 public:
  struct Record {
    RecordType type = RecordType::kHead;
    Round round;
    uint64_t offset = 0;  // of its header
    std::span<const std::byte> payload;
  };
  struct End {
    uint64_t offset = 0;  // behind the last whole record
    bool torn = false;    // a part of a record follows
  };

  // `name`: for errors. `end`: where its records end, as the next segment says; nullopt: it is the
  // last one. Errors of ReadSegmentHeader(), with the name; DATA_LOSS: `end` is in the header.
  static absl::StatusOr<SegmentReader> Open(std::string name, std::span<const std::byte> bytes,
                                            std::optional<uint64_t> end);

  // The next record; nullopt: there is none, and end() is known. DATA_LOSS: damage. UNIMPLEMENTED: a
  // record of a later version, which may not be passed over.
  absl::StatusOr<std::optional<Record>> Next();

  const SegmentHeader& header() const { return header_; }
  uint64_t offset() const { return offset_; }  // of what Next() looks at
  const End& end() const { return end_; }

 private:
  SegmentReader(std::string name, std::span<const std::byte> bytes, std::optional<uint64_t> end,
                const SegmentHeader& header, uint64_t seed);
  absl::StatusOr<std::optional<Record>> AtBreak(std::string_view what);

  std::string name_;
  std::span<const std::byte> bytes_;
  std::optional<uint64_t> limit_;
  SegmentHeader header_;
  uint64_t seed_ = 0;
  uint64_t offset_ = 0;
  End end_;
};

}  // namespace signvote::journal
