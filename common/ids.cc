#include "common/ids.h"

#include <cstring>

#include "absl/status/status.h"

namespace signvote {
namespace {

constexpr size_t kWorkerNameMax = 63;
constexpr char kHexDigits[] = "0123456789abcdef";
constexpr size_t kTextLength = 36;

constexpr bool IsAlphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

constexpr bool IsDash(size_t position) {
  return position == 8 || position == 13 || position == 18 || position == 23;
}

constexpr int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

absl::Status ValidateWorkerName(std::string_view name) {
  if (name.empty())
    return absl::InvalidArgumentError("the worker name is empty; give 1 to 63 characters");
  if (name.size() > kWorkerNameMax) {
    return absl::InvalidArgumentError("the worker name has " + std::to_string(name.size()) +
                                      " characters; at most 63 are allowed");
  }
  for (size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    if (IsAlphanumeric(c)) continue;
    const bool edge = i == 0 || i + 1 == name.size();
    if (!edge && (c == '.' || c == '_' || c == '-')) continue;
    return absl::InvalidArgumentError(
        "the worker name is invalid at character " + std::to_string(i + 1) +
        "; use letters, digits, '.', '_' and '-', with a letter or digit first and last");
  }
  return absl::OkStatus();
}

absl::StatusOr<RunId> RunId::FromBytes(std::string_view bytes) {
  if (bytes.size() != kBytes) {
    return absl::InvalidArgumentError("a run id has 16 bytes, not " + std::to_string(bytes.size()));
  }
  RunId id;
  std::memcpy(id.bytes_.data(), bytes.data(), kBytes);
  return id;
}

absl::StatusOr<RunId> RunId::FromText(std::string_view text) {
  const absl::Status malformed = absl::InvalidArgumentError(
      "a run id is a UUID such as 123e4567-e89b-42d3-a456-426614174000 (36 characters)");
  if (text.size() != kTextLength) return malformed;
  RunId id;
  size_t digit = 0;
  for (size_t i = 0; i < kTextLength; ++i) {
    if (IsDash(i)) {
      if (text[i] != '-') return malformed;
      continue;
    }
    const int value = HexValue(text[i]);
    if (value < 0) return malformed;
    char& byte = id.bytes_[digit / 2];
    byte = static_cast<char>((static_cast<unsigned char>(byte) << 4) | value);
    ++digit;
  }
  return id;
}

RunId RunId::FromRandom(uint64_t high, uint64_t low) {
  high = (high & ~uint64_t{0xF000}) | uint64_t{0x4000};      // version 4
  low = (low & ~(uint64_t{3} << 62)) | (uint64_t{2} << 62);  // the RFC's variant
  RunId id;
  for (size_t i = 0; i < 8; ++i) {
    id.bytes_[i] = static_cast<char>(high >> (56 - 8 * i));
    id.bytes_[8 + i] = static_cast<char>(low >> (56 - 8 * i));
  }
  return id;
}

std::string RunId::ToText() const {
  std::string text;
  text.reserve(kTextLength);
  for (const char c : bytes_) {
    if (IsDash(text.size())) text += '-';
    const auto byte = static_cast<unsigned char>(c);
    text += kHexDigits[byte >> 4];
    text += kHexDigits[byte & 15];
  }
  return text;
}

}  // namespace signvote
