#include "server/journal/segment_writer.h"

#include <cstring>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"

namespace signvote::journal {
namespace {

// A payload up to this size is written with its header, in one call.
constexpr size_t kTogether = size_t{64} << 10;

uint64_t Checksum(std::span<const std::byte> prefix, std::span<const std::byte> payload,
                  uint64_t seed) {
  if (prefix.empty()) return Xxh3(payload, seed);
  Xxh3Stream stream(seed);
  stream.Update(prefix.data(), prefix.size());
  stream.Update(payload.data(), payload.size());
  return stream.Digest();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentWriter::Start(std::unique_ptr<DiskFile> file,
                                                                    const SegmentHeader& header) {
  SIGNVOTE_RETURN_IF_ERROR(file->WriteAt(0, std::as_bytes(std::span(&header, 1))));
  SIGNVOTE_RETURN_IF_ERROR(file->Sync());
  return std::unique_ptr<SegmentWriter>(new SegmentWriter(std::move(file), header));
}

SegmentWriter::SegmentWriter(std::unique_ptr<DiskFile> file, const SegmentHeader& header)
    : file_(std::move(file)),
      header_(header),
      seed_(
          SegmentSeed(*RunId::FromBytes({header.run_id, sizeof(header.run_id)}), header.sequence)),
      bytes_(sizeof(header)),
      synced_(sizeof(header)),
      writeback_(sizeof(header)) {}

absl::Status SegmentWriter::Poison(absl::Status status) {
  if (!status.ok()) poison_ = status;
  return status;
}

absl::Status SegmentWriter::Append(RecordType type, Round round, std::span<const std::byte> prefix,
                                   std::span<const std::byte> payload) {
  if (!poison_.ok()) return poison_;
  const RecordHeader header =
      MakeRecordHeader(type, round.value(), synced_, prefix.size() + payload.size(),
                       Checksum(prefix, payload, seed_), seed_);
  std::vector<std::byte> front(sizeof(header) + prefix.size());
  std::memcpy(front.data(), &header, sizeof(header));
  if (!prefix.empty()) std::memcpy(front.data() + sizeof(header), prefix.data(), prefix.size());
  const size_t padding = static_cast<size_t>(RecordBytes(header.payload_bytes) - sizeof(header) -
                                             header.payload_bytes);
  if (payload.size() <= kTogether) {
    front.insert(front.end(), payload.begin(), payload.end());
    front.resize(front.size() + padding);
    SIGNVOTE_RETURN_IF_ERROR(Poison(file_->WriteAt(bytes_, front)));
  } else {
    constexpr std::byte kZeros[kAlignment] = {};
    const uint64_t at = bytes_ + front.size();
    SIGNVOTE_RETURN_IF_ERROR(Poison(file_->WriteAt(bytes_, front)));
    SIGNVOTE_RETURN_IF_ERROR(Poison(file_->WriteAt(at, payload)));
    SIGNVOTE_RETURN_IF_ERROR(
        Poison(file_->WriteAt(at + payload.size(), std::span(kZeros).first(padding))));
  }
  bytes_ += RecordBytes(header.payload_bytes);
  return absl::OkStatus();
}

absl::Status SegmentWriter::Append(RecordType type, Round round, const std::string& payload) {
  return Append(type, round, {}, std::as_bytes(std::span(payload.data(), payload.size())));
}

void SegmentWriter::StartWriteback() {
  if (!poison_.ok() || bytes_ == writeback_) return;
  file_->StartWriteback(writeback_, bytes_ - writeback_);
  writeback_ = bytes_;
}

absl::Status SegmentWriter::Sync() {
  if (!poison_.ok()) return poison_;
  if (synced_ == bytes_) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(Poison(file_->Sync()));
  synced_ = writeback_ = bytes_;
  return absl::OkStatus();
}

}  // namespace signvote::journal
