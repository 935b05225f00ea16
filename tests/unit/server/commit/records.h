#pragma once
// Small commits for the tests of ring, pipeline and replica.

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/checksum.h"
#include "server/commit/commit_record.h"

namespace signvote::testing {

inline std::shared_ptr<uint8_t> Bytes(size_t n, uint8_t fill = 0) {
  std::shared_ptr<uint8_t> bytes(new uint8_t[n], std::default_delete<uint8_t[]>());
  std::memset(bytes.get(), fill, n);
  return bytes;
}

// A step whose payload is `bytes`, one ballot a chunk, as far as MakeCommitRecord() does not fill it.
inline CommitRecord StepFields(uint64_t round, const PayloadPlan& plan,
                               std::shared_ptr<const uint8_t> bytes) {
  CommitRecord record;
  record.round = Round(round);
  record.gamma = 1.0f;
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    const uint8_t* chunk = bytes.get() + plan.Offset(ChunkIndex(k));
    record.chunks.push_back({.counted = 1, .checksum = Xxh3(chunk, plan.Room(ChunkIndex(k)))});
  }
  record.payload = WholePayload(plan, std::move(bytes));
  return record;
}

inline std::shared_ptr<const CommitRecord> Make(CommitRecord fields, const PayloadPlan& plan,
                                                size_t tensors = 1) {
  auto record = MakeCommitRecord(std::move(fields), plan, tensors);
  SIGNVOTE_CHECK(record.ok());
  return *std::move(record);
}

// A commit that moves nothing, for tests to whom only its round matters.
inline std::shared_ptr<const CommitRecord> Empty(uint64_t round, uint64_t payload_bytes = 0) {
  auto record = std::make_shared<CommitRecord>();
  record->round = Round(round);
  record->kind = CommitKind::kNone;
  record->payload_bytes = payload_bytes;
  return record;
}

}  // namespace signvote::testing
