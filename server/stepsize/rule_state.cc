#include "server/stepsize/rule_state.h"

#include <bit>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/checksum.h"

namespace signvote {
namespace {

constexpr size_t kFieldBytes = 8;
constexpr size_t kVersionBytes = 4;
constexpr size_t kHashBytes = 8;
constexpr size_t kNameBytesMax = 255;

void Append(std::string& bytes, uint64_t value, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    bytes.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * i))));
  }
}

// REQUIRES: bytes has at least `count` bytes.
uint64_t TakeInteger(std::string_view& bytes, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) {
    value |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  bytes.remove_prefix(count);
  return value;
}

absl::Status Damaged(std::string_view name) {
  return absl::DataLossError(
      absl::StrFormat("the saved state of stepsize rule '%s' is damaged; "
                      "restore an older state of the run",
                      name));
}

}  // namespace

RuleStateWriter::RuleStateWriter(std::string_view name, uint32_t version) {
  SIGNVOTE_CHECK(name.size() <= kNameBytesMax);
  Append(bytes_, name.size(), 1);
  bytes_.append(name);
  Append(bytes_, version, kVersionBytes);
}

void RuleStateWriter::Add(uint64_t value) { Append(bytes_, value, kFieldBytes); }
void RuleStateWriter::Add(double value) { Add(std::bit_cast<uint64_t>(value)); }

std::string RuleStateWriter::Take() {
  Append(bytes_, Xxh3(bytes_.data(), bytes_.size()), kHashBytes);
  return std::move(bytes_);
}

RuleStateReader::RuleStateReader(std::string_view bytes, std::string_view name, uint32_t version)
    : name_(name) {
  if (bytes.size() < 1 + kVersionBytes + kHashBytes) {
    status_ = Damaged(name);
    return;
  }
  std::string_view hash = bytes.substr(bytes.size() - kHashBytes);
  bytes.remove_suffix(kHashBytes);
  if (Xxh3(bytes.data(), bytes.size()) != TakeInteger(hash, kHashBytes)) {
    status_ = Damaged(name);
    return;
  }
  const size_t name_bytes = TakeInteger(bytes, 1);
  if (name_bytes > bytes.size() - kVersionBytes) {
    status_ = Damaged(name);
    return;
  }
  const std::string_view saved = bytes.substr(0, name_bytes);
  bytes.remove_prefix(name_bytes);
  const uint64_t saved_version = TakeInteger(bytes, kVersionBytes);
  if (saved != name || saved_version != version) {
    status_ = absl::InvalidArgumentError(absl::StrFormat(
        "the saved state is of stepsize rule '%s', version %d, and this run has '%s', version %d; "
        "start the server with the rule and the release that saved it",
        saved, saved_version, name, version));
    return;
  }
  left_ = bytes;
}

uint64_t RuleStateReader::U64() {
  if (!status_.ok()) return 0;
  if (left_.size() < kFieldBytes) {
    status_ = Damaged(name_);
    return 0;
  }
  return TakeInteger(left_, kFieldBytes);
}

size_t RuleStateReader::Count(size_t fields) {
  const uint64_t count = U64();
  if (status_.ok() && count > left_.size() / (fields * kFieldBytes)) status_ = Damaged(name_);
  return status_.ok() ? static_cast<size_t>(count) : 0;
}

double RuleStateReader::Double() { return std::bit_cast<double>(U64()); }

absl::Status RuleStateReader::Finish() const {
  if (status_.ok() && !left_.empty()) return Damaged(name_);
  return status_;
}

}  // namespace signvote
