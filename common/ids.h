#pragma once
// Strong types for everything that is counted or named, so that no signature takes a bare integer.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

// An integer that is only comparable and assignable to its own kind. Arithmetic is limited to what
// ids need.
template <typename Tag, typename Value>
class StrongInt {
 public:
  using value_type = Value;
  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Value value) : value_(value) {}
  constexpr Value value() const { return value_; }
  constexpr auto operator<=>(const StrongInt&) const = default;
  constexpr StrongInt next() const { return StrongInt(static_cast<Value>(value_ + 1)); }
  constexpr StrongInt& operator++() {
    ++value_;
    return *this;
  }
  template <typename H>
  friend H AbslHashValue(H h, const StrongInt& id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  Value value_ = 0;
};

// 0, 1, 2, …: one synchronous step.
using Round = StrongInt<struct RoundTag, uint64_t>;
// Grows when one round is opened again.
using Attempt = StrongInt<struct AttemptTag, uint32_t>;
// Chunk k covers coordinates [k·C, (k+1)·C).
using ChunkIndex = StrongInt<struct ChunkIndexTag, uint32_t>;
// Grows with each server start.
using Epoch = StrongInt<struct EpochTag, uint64_t>;
// Grows each time the same worker (re)connects.
using Incarnation = StrongInt<struct IncarnationTag, uint64_t>;
// A worker's part of the data; also its coin number.
using Share = StrongInt<struct ShareTag, uint32_t>;
// Index of the minibatch within a share.
using DataStep = StrongInt<struct DataStepTag, uint64_t>;

// A worker's name: 1 to 63 characters of [A-Za-z0-9._-], first and last alphanumeric (a DNS label
// or host name). With mTLS it is the DNS subject alternative name of the worker's certificate.
absl::Status ValidateWorkerName(std::string_view name);

// A run's UUID (RFC 9562, version 4), 16 bytes on the wire.
class RunId {
 public:
  static constexpr size_t kBytes = 16;
  constexpr RunId() = default;
  // INVALID_ARGUMENT unless `bytes` has exactly 16 bytes.
  static absl::StatusOr<RunId> FromBytes(std::string_view bytes);
  // Accepts the 36-character text form. INVALID_ARGUMENT otherwise.
  static absl::StatusOr<RunId> FromText(std::string_view text);
  // A version-4 UUID whose 122 free bits come from the two words.
  static RunId FromRandom(uint64_t high, uint64_t low);
  std::string_view bytes() const { return {bytes_.data(), bytes_.size()}; }
  std::string ToText() const;
  bool empty() const { return bytes_ == std::array<char, kBytes>{}; }
  auto operator<=>(const RunId&) const = default;

 private:
  std::array<char, kBytes> bytes_{};
};

}  // namespace signvote

template <typename Tag, typename Value>
struct std::hash<signvote::StrongInt<Tag, Value>> {
  size_t operator()(const signvote::StrongInt<Tag, Value>& id) const noexcept {
    return std::hash<Value>{}(id.value());
  }
};
