// The reader of a worker's state (worker/checkpoint/state_format.h). What it takes is written again to
// the same bytes.
//
// Input: one byte that says which checksums are put right (1: the header's, 2: those of sections' headers,
// 4: of their payloads); then the file.

#include <cstring>
#include <span>
#include <string>

#include "common/check.h"
#include "common/checksum.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/repair.h"
#include "worker/checkpoint/state_format.h"

namespace signvote {
namespace {

// Offsets of docs/worker_state_format.md.
constexpr size_t kHeaderChecksum = 208, kHeaderBytes = 216;
constexpr size_t kSectionChecksum = 24, kSectionBytes = 32, kPayloadChecksum = 16;

template <typename Number>
Number Read(const std::string& bytes, size_t at) {
  Number number;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

void RepairAll(std::string* bytes, uint8_t which) {
  if (!fuzz::Repair(bytes, 0, kHeaderChecksum, (which & 1) != 0)) return;
  for (size_t at = kHeaderBytes; bytes->size() - at >= kSectionBytes;) {
    const uint64_t room = bytes->size() - at - kSectionBytes;
    const uint64_t element_bytes = Read<uint32_t>(*bytes, at + 4);
    const uint64_t elements = Read<uint64_t>(*bytes, at + 8);
    if (element_bytes == 0 || elements > room / element_bytes) return;
    const uint64_t size = elements * element_bytes;
    if ((which & 4) != 0) {
      const uint64_t sum = Xxh3(bytes->data() + at + kSectionBytes, size);
      std::memcpy(bytes->data() + at + kPayloadChecksum, &sum, sizeof(sum));
    }
    (void)fuzz::Repair(bytes, at, kSectionChecksum, (which & 2) != 0);
    const uint64_t padded = (size + 7) / 8 * 8;
    if (padded > room) return;
    at += kSectionBytes + padded;
  }
}

void Check(const std::string& bytes) {
  const auto state = DecodeWorkerState(std::as_bytes(std::span(bytes.data(), bytes.size())));
  if (!state.ok()) {
    SIGNVOTE_CHECK(absl::IsInvalidArgument(state.status()) || absl::IsDataLoss(state.status()) ||
                   absl::IsUnimplemented(state.status()) ||
                   absl::IsResourceExhausted(state.status()));
    return;
  }
  for (size_t k = 0; k < PlanesOf(state->direction).size(); ++k)
    SIGNVOTE_CHECK(state->plane(k).bytes().size() == state->plane(k).size());
  SIGNVOTE_CHECK(EncodeWorkerState(*state) == bytes);
}

}  // namespace
}  // namespace signvote

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t repairs = input.Byte();
  std::string bytes = input.Rest();
  signvote::RepairAll(&bytes, repairs);
  signvote::Check(bytes);
  return 0;
}
