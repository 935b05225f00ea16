// The reader of a snapshot's state file (server/journal/snapshot.h). What it takes is written again to
// bytes that say the same.
//
// Input: one byte that says which checksums are put right (1: header, 2: body, 4: the optimizer's); then
// the file.

#include <cstring>
#include <span>
#include <string>

#include "common/check.h"
#include "server/journal/head.h"
#include "server/journal/snapshot.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/repair.h"

namespace signvote::journal {
namespace {

// Offsets of docs/journal_format.md, "Snapshots".
constexpr size_t kBodyBytes = 16, kNumbers = 24, kChecksum = 32, kHeaderBytes = 40;

uint64_t Read(const std::string& bytes, size_t at) {
  uint64_t number;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

void RepairAll(std::string* bytes, uint8_t which) {
  if (!fuzz::Repair(bytes, 0, kChecksum, (which & 1) != 0)) return;
  const uint64_t body = Read(*bytes, kBodyBytes), numbers = Read(*bytes, kNumbers);
  if (!fuzz::Repair(bytes, kHeaderBytes, body, (which & 2) != 0) || numbers > bytes->size()) return;
  (void)fuzz::Repair(bytes, kHeaderBytes + body + 8, 4 * numbers, (which & 4) != 0);
}

void Check(const std::string& bytes) {
  const auto state = DecodeStateFile(std::as_bytes(std::span(bytes.data(), bytes.size())));
  if (!state.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(state.status()) || absl::IsUnimplemented(state.status()));
    return;
  }
  // What of it has a meaning is refused or understood.
  const auto layout = LayoutFrom(state->message.head().run());
  if (layout.ok() && layout->coordinates() > 0)
    (void)PlanFrom(state->message.head(), layout->coordinates());
  const std::string written = EncodeStateFile(state->message, state->optimizer);
  const auto again = DecodeStateFile(std::as_bytes(std::span(written.data(), written.size())));
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(EncodeStateFile(again->message, again->optimizer) == written);
}

}  // namespace
}  // namespace signvote::journal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t repairs = input.Byte();
  std::string bytes = input.Rest();
  signvote::journal::RepairAll(&bytes, repairs);
  signvote::journal::Check(bytes);
  return 0;
}
