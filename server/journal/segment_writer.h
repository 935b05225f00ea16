#pragma once
// Writes the records of one segment, one behind the other. Format: docs/journal_format.md, version 1.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/disk.h"
#include "server/journal/journal_format.h"

namespace signvote::journal {

// Threads:    not thread-safe.
// Durability: Append() OK means that the record is with the operating system; Sync() OK makes all
//             records before it survive a power cut.
// Failure:    after any status that is not OK nobody knows the segment's tail: every later call
//             returns that status.
// Invariants: synced() ≤ bytes(); bytes() is a multiple of kAlignment.
class SegmentWriter {
 public:
  // Writes the header, durable when this returns OK.
  static absl::StatusOr<std::unique_ptr<SegmentWriter>> Start(std::unique_ptr<DiskFile> file,
                                                              const SegmentHeader& header);

  // A record whose payload is `prefix` and then `payload`.
  absl::Status Append(RecordType type, Round round, std::span<const std::byte> prefix,
                      std::span<const std::byte> payload);
  absl::Status Append(RecordType type, Round round, const std::string& payload);
  // What was appended may begin its way to the disk.
  void StartWriteback();
  absl::Status Sync();

  const SegmentHeader& header() const { return header_; }
  uint64_t bytes() const { return bytes_; }    // of header and records
  uint64_t synced() const { return synced_; }  // of these, durable

 private:
  SegmentWriter(std::unique_ptr<DiskFile> file, const SegmentHeader& header);
  absl::Status Poison(absl::Status status);

  // Constant after construction.
  const std::unique_ptr<DiskFile> file_;
  const SegmentHeader header_;
  const uint64_t seed_;

  uint64_t bytes_ = 0, synced_ = 0, writeback_ = 0;
  absl::Status poison_;  // OK while the tail is known
};

}  // namespace signvote::journal
