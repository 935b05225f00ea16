#include "server/journal/segment_reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::journal {

absl::StatusOr<SegmentReader> SegmentReader::Open(std::string name,
                                                  std::span<const std::byte> bytes,
                                                  std::optional<uint64_t> end) {
  const absl::StatusOr<SegmentHeader> header = ReadSegmentHeader(bytes);
  if (!header.ok())
    return absl::Status(header.status().code(), absl::StrCat(name, " ", header.status().message()));
  if (end.has_value() && *end < sizeof(SegmentHeader)) {
    return WithExitCode(absl::DataLossError(absl::StrCat("the segment behind ", name,
                                                         " says that its records end at byte ",
                                                         *end, ", which is in its header")),
                        ExitCode::kBadInput);
  }
  const uint64_t seed =
      SegmentSeed(*RunId::FromBytes({header->run_id, sizeof(header->run_id)}), header->sequence);
  return SegmentReader(std::move(name), bytes, end, *header, seed);
}

SegmentReader::SegmentReader(std::string name, std::span<const std::byte> bytes,
                             std::optional<uint64_t> end, const SegmentHeader& header,
                             uint64_t seed)
    : name_(std::move(name)),
      bytes_(bytes.first(std::min<uint64_t>(end.value_or(bytes.size()), bytes.size()))),
      limit_(end),
      header_(header),
      seed_(seed),
      offset_(sizeof(SegmentHeader)),
      end_{.offset = sizeof(SegmentHeader)} {}

absl::StatusOr<std::optional<SegmentReader::Record>> SegmentReader::Next() {
  while (true) {
    end_.offset = offset_;
    if (offset_ == bytes_.size()) {
      if (limit_.value_or(0) > offset_) return AtBreak("the end of the file");
      return std::nullopt;
    }
    const std::span<const std::byte> rest = bytes_.subspan(offset_);
    const std::optional<RecordHeader> header = ReadRecordHeader(rest, seed_);
    if (!header.has_value()) return AtBreak("a record's header");
    if (header->payload_bytes > rest.size() - sizeof(RecordHeader) ||
        Aligned(header->payload_bytes) > rest.size() - sizeof(RecordHeader)) {
      end_.torn = true;
      return AtBreak("a record that ends behind the file");
    }
    const auto payload = rest.subspan(sizeof(RecordHeader), header->payload_bytes);
    if (Xxh3(payload, seed_) != header->payload_checksum) {
      end_.torn = true;
      return AtBreak("a record's payload");
    }
    const uint64_t offset = offset_;
    offset_ += RecordBytes(header->payload_bytes);
    const bool known = header->type >= static_cast<uint8_t>(RecordType::kHead) &&
                       header->type <= static_cast<uint8_t>(RecordType::kCommit);
    if (header->reserved != 0 || header->reserved2 != 0 || (header->flags & ~kSafeToSkip) != 0 ||
        (!known && (header->flags & kSafeToSkip) == 0)) {
      return WithExitCode(
          absl::UnimplementedError(absl::StrCat(
              name_, ", byte ", offset, ": a record of type ", header->type,
              " that this version does not know; start the release that wrote the journal")),
          ExitCode::kBadInput);
    }
    if (!known) continue;
    return Record{.type = static_cast<RecordType>(header->type),
                  .round = Round(header->round),
                  .offset = offset,
                  .payload = payload};
  }
}

absl::StatusOr<std::optional<SegmentReader::Record>> SegmentReader::AtBreak(std::string_view what) {
  bool damage = limit_.has_value();
  for (uint64_t at = offset_ + kAlignment; !damage && at + sizeof(RecordHeader) <= bytes_.size();
       at += kAlignment) {
    // Most of what follows is zeros.
    if (bytes_[at] == std::byte{0}) continue;
    const std::optional<RecordHeader> later = ReadRecordHeader(bytes_.subspan(at), seed_);
    if (!later.has_value()) continue;
    end_.torn = true;
    damage = later->synced > offset_;
  }
  if (!damage) return std::nullopt;
  return WithExitCode(
      absl::DataLossError(absl::StrCat(
          name_, " is damaged at byte ", offset_, ": ", ToAbsl(what),
          " is not what was written, and what follows shows that it was. Restore the file from a "
          "copy of it, or give up the rounds from there on: signvote journal truncate DIR")),
      ExitCode::kBadInput);
}

}  // namespace signvote::journal
