// The reader of a run's state (server/run/run_state.h). What it takes is consistent, and its bytes
// are read back to the same bytes.
//
// Input: one byte that says which checksums are put right, so that what lies behind them is reached
// as well (1: header, 2: body, 4: planes); then the state.

#include <cstring>
#include <span>
#include <string>

#include "common/check.h"
#include "server/run/run_state.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/repair.h"

namespace signvote::run {
namespace {

// Offsets of docs/state_format.md.
constexpr size_t kPlanes = 12, kBodyBytes = 16, kCoordinates = 24, kChecksum = 32,
                 kHeaderBytes = 40;

template <typename Number>
Number Read(const std::string& bytes, size_t at) {
  Number number;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

void RepairAll(std::string* bytes, uint8_t which) {
  if (!fuzz::Repair(bytes, 0, kChecksum, (which & 1) != 0)) return;
  const auto body = Read<uint64_t>(*bytes, kBodyBytes);
  if (!fuzz::Repair(bytes, kHeaderBytes, body, (which & 2) != 0)) return;
  size_t at = kHeaderBytes + body + 8;
  const auto coordinates = Read<uint64_t>(*bytes, kCoordinates);
  if (coordinates > bytes->size()) return;
  for (uint32_t plane = Read<uint32_t>(*bytes, kPlanes); plane > 0; --plane) {
    if (!fuzz::Repair(bytes, at, 4 * coordinates, (which & 4) != 0)) return;
    at += 4 * coordinates + 8;
  }
}

std::string Encoded(const RunState& state) {
  std::string bytes;
  const StateParts parts = EncodeState(state);
  for (const std::span<const std::byte> part : parts.parts)
    bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
  SIGNVOTE_CHECK(bytes.size() == parts.bytes);
  return bytes;
}

void Check(const std::string& bytes) {
  const auto state = DecodeState(std::as_bytes(std::span(bytes)));
  if (!state.ok()) {
    SIGNVOTE_CHECK(absl::IsDataLoss(state.status()) || absl::IsUnimplemented(state.status()) ||
                   absl::IsInvalidArgument(state.status()));
    return;
  }
  SIGNVOTE_CHECK(CheckState(*state).ok());
  const std::string written = Encoded(*state);
  const auto again = DecodeState(std::as_bytes(std::span(written)));
  SIGNVOTE_CHECK(again.ok());
  SIGNVOTE_CHECK(Encoded(*again) == written);
}

}  // namespace
}  // namespace signvote::run

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t repairs = input.Byte();
  std::string bytes = input.Rest();
  signvote::run::RepairAll(&bytes, repairs);
  signvote::run::Check(bytes);
  return 0;
}
