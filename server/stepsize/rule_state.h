#pragma once
// A stepsize rule's state as bytes.
// Format, all integers little-endian:
//   name    u8 length, then the rule's name
//   version u32, of this rule's fields
//   fields  8 bytes each: a uint64, or the bits of a double; where a field says how many things follow,
//           those follow
//   hash    u64, XXH3-64 of everything before
// What it is not for: the rule's configuration, which the caller has.

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace signvote {

// Threads: thread-compatible.
class RuleStateWriter {
 public:
  // REQUIRES: name has at most 255 bytes.
  RuleStateWriter(std::string_view name, uint32_t version);
  void Add(uint64_t value);
  void Add(double value);
  // The whole record. REQUIRES: called once, last.
  std::string Take();

 private:
  std::string bytes_;
};

// Ownership: keeps a view of `bytes`, which must outlive it.
// Failure:   the first error stays; reads after it give 0.
// Threads:   thread-compatible.
class RuleStateReader {
 public:
  RuleStateReader(std::string_view bytes, std::string_view name, uint32_t version);
  uint64_t U64();
  double Double();
  // How many of the things that follow there are, each of at least `fields` fields: 0, and damaged, when
  // the record has not as many.
  size_t Count(size_t fields);
  // OK when the record is whole, of this rule and version, and every field was read.
  // INVALID_ARGUMENT: of another rule or version. DATA_LOSS: damaged.
  absl::Status Finish() const;

 private:
  std::string_view name_;
  std::string_view left_;
  absl::Status status_;
};

}  // namespace signvote
