// The reader of a journal's folder (server/journal/recovery.h): segments as a disk may have them. What
// it recovers is consistent, and is recovered again to the same.
//
// Input: one byte that says which checksums are put right, so that what lies behind them is reached as
// well (1: the segment's header, 2: records' headers, 4: records' payloads); two bytes that say where
// the file is cut into two segments (0: it is one); then the segments' bytes. A snapshot of round 0
// stands beside them.

#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "common/check.h"
#include "common/checksum.h"
#include "server/journal/journal_format.h"
#include "server/journal/recovery.h"
#include "server/journal/snapshot.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/sim/sim_disk.h"
#include "tests/unit/server/journal/toy_journal.h"

namespace signvote::journal {
namespace {

constexpr uint64_t kSeed = 1;  // of the run whose snapshot it is, and whose segments the corpus has

// Checksums of a segment's header and of the records as far as their lengths lead.
void Repair(std::string* bytes, uint8_t which) {
  if (bytes->size() < sizeof(SegmentHeader)) return;
  if ((which & 1) != 0) {
    const uint64_t sum = Xxh3(bytes->data(), offsetof(SegmentHeader, checksum));
    std::memcpy(bytes->data() + offsetof(SegmentHeader, checksum), &sum, sizeof(sum));
  }
  SegmentHeader header;
  std::memcpy(&header, bytes->data(), sizeof(header));
  const uint64_t seed =
      SegmentSeed(*RunId::FromBytes({header.run_id, sizeof(header.run_id)}), header.sequence);
  for (uint64_t at = sizeof(header); at + sizeof(RecordHeader) <= bytes->size();) {
    RecordHeader record;
    std::memcpy(&record, bytes->data() + at, sizeof(record));
    const uint64_t room = bytes->size() - at - sizeof(record);
    if (record.payload_bytes > room || Aligned(record.payload_bytes) > room) return;
    if ((which & 4) != 0)
      record.payload_checksum =
          Xxh3(bytes->data() + at + sizeof(record), record.payload_bytes, seed);
    if ((which & 2) != 0) record.checksum = Xxh3(&record, offsetof(RecordHeader, checksum), seed);
    std::memcpy(bytes->data() + at, &record, sizeof(record));
    at += RecordBytes(record.payload_bytes);
  }
}

void Put(sim::SimDisk* disk, const std::string& name, const std::string& bytes) {
  const auto file = disk->Create(name, 0);
  SIGNVOTE_CHECK(file.ok());
  SIGNVOTE_CHECK((*file)->WriteAt(0, std::as_bytes(std::span(bytes.data(), bytes.size()))).ok());
}

void Check(const std::string& first, const std::string& second) {
  sim::SimDisk disk(1);
  const testing::ToyRun run(kSeed, testing::ToyPayload::kSigns, true);
  const v1::JournalHead head = run.Head();
  SIGNVOTE_CHECK(WriteSnapshot(&disk, run.View(&head), nullptr).ok());
  Put(&disk, SegmentName(1), first);
  if (!second.empty()) Put(&disk, SegmentName(2), second);
  RecoveryOptions options{.recent_bytes = 1 << 20, .recent_max = 4};
  const auto recovered = Recover(&disk, options, Clock::System());
  if (!recovered.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(recovered.status()) ||
                   absl::IsUnimplemented(recovered.status()) ||
                   absl::IsInvalidArgument(recovered.status()));
    return;
  }
  SIGNVOTE_CHECK(recovered->begun && recovered->x->size() == recovered->layout.coordinates());
  SIGNVOTE_CHECK(recovered->round().value() == recovered->report.commits);
  for (const auto& record : recovered->recent) SIGNVOTE_CHECK(record->round < recovered->round());
  options.until = recovered->round();
  const auto again = Recover(&disk, options, Clock::System());
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(std::memcmp(again->x->data(), recovered->x->data(),
                             recovered->x->size() * sizeof(float)) == 0);
}

}  // namespace
}  // namespace signvote::journal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t repairs = input.Byte();
  const size_t cut = input.Byte() + size_t{256} * input.Byte();
  std::string first = cut == 0 ? input.Rest() : input.Text(cut);
  std::string second = input.Rest();
  signvote::journal::Repair(&first, repairs);
  signvote::journal::Repair(&second, repairs);
  signvote::journal::Check(first, second);
  return 0;
}
