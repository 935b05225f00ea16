#include "server/commit/commit_record.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote {
namespace {

absl::Status Bad(const CommitRecord& record, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("commit of round ", record.round.value(), " (",
                                                 ToAbsl(Words(record.kind)), "): ", ToAbsl(what)));
}

bool IsFactor(float value) { return std::isfinite(value) && value >= 0; }

absl::Status CheckNumbers(const CommitRecord& record, size_t tensors) {
  if (!IsFactor(record.gamma)) return Bad(record, absl::StrCat("stepsize ", record.gamma));
  if (!IsFactor(record.rho)) return Bad(record, absl::StrCat("rho ", record.rho));
  if (record.decay_step.has_value() && !IsFactor(*record.decay_step))
    return Bad(record, absl::StrCat("stepsize of the decay ", *record.decay_step));
  if (!record.scales.empty() && record.scales.size() != tensors) {
    return Bad(record, absl::StrCat(record.scales.size(), " scales for ", tensors, " tensors"));
  }
  for (const float scale : record.scales) {
    if (!IsFactor(scale)) return Bad(record, absl::StrCat("a tensor's scale ", scale));
  }
  return absl::OkStatus();
}

absl::Status CheckPayload(const CommitRecord& record, const PayloadPlan& plan) {
  if (record.chunks.size() != plan.chunks()) {
    return Bad(record, absl::StrCat(record.chunks.size(), " counted chunks of ", plan.chunks()));
  }
  uint64_t next = 0;
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    const uint32_t counted = record.chunks[k].counted;
    if (plan.kind(ChunkIndex(k)) == PayloadKind::kCounts &&
        (counted == 0 || counted > plan.ballots_max())) {
      return Bad(record, absl::StrCat("counts of ", counted, " ballots in chunk ", k, ", of which ",
                                      plan.ballots_max(), " are the most"));
    }
  }
  for (const PayloadPart& part : record.payload) {
    if (part.first.value() != next || part.chunks == 0 || part.chunks > plan.chunks() - next)
      return Bad(record, absl::StrCat("a part of the payload begins at chunk ", part.first.value(),
                                      " where chunk ", next, " is next"));
    for (uint32_t i = 0; i < part.chunks; ++i) {
      if (plan.kind(ChunkIndex(part.first.value() + i)) != part.kind) {
        return Bad(record,
                   absl::StrCat("chunk ", part.first.value() + i, " as ", ToAbsl(Words(part.kind)),
                                " where the plan has another kind"));
      }
    }
    const PayloadPart right = MakePart(plan, part.first, part.chunks, nullptr);
    if (part.first_coordinate != right.first_coordinate || part.coordinates != right.coordinates)
      return Bad(record, absl::StrCat("a part of the payload with the coordinates of others than "
                                      "its ",
                                      part.chunks, " chunks"));
    next += part.chunks;
  }
  if (next != plan.chunks())
    return Bad(record, absl::StrCat("its payload ends at chunk ", next, " of ", plan.chunks()));
  return absl::OkStatus();
}

uint64_t BytesHere(const CommitRecord& record, const PayloadPlan& plan) {
  uint64_t bytes = 0;
  for (const PayloadPart& part : record.payload) {
    if (part.bytes == nullptr) continue;
    const ChunkIndex last(part.first.value() + part.chunks - 1);
    bytes += plan.Offset(last) + plan.Room(last) - plan.Offset(part.first);
  }
  return bytes;
}

absl::Status CheckApplicable(const CommitRecord& record) {
  for (const PayloadPart& part : record.payload) {
    if (part.bytes == nullptr) {
      return absl::UnimplementedError(absl::StrCat(
          "commit of round ", record.round.value(), ": the payload from chunk ", part.first.value(),
          " on lies elsewhere, where no replica of this version fetches it"));
    }
  }
  return absl::OkStatus();
}

const PayloadPart& PartOf(const CommitRecord& record, ChunkIndex k) {
  for (const PayloadPart& part : record.payload) {
    if (k >= part.first && k.value() - part.first.value() < part.chunks) return part;
  }
  SIGNVOTE_CHECK(false && "a chunk that the commit has no payload for");
  return record.payload.front();
}

}  // namespace

std::span<const uint8_t> CommitRecord::Chunk(ChunkIndex k) const {
  const PayloadPart& part = PartOf(*this, k);
  if (part.bytes == nullptr) return {};
  return {part.bytes.get() + (plan.Offset(k) - plan.Offset(part.first)),
          plan.Bytes(k, chunks[k.value()].counted)};
}

const std::shared_ptr<const uint8_t>& CommitRecord::ChunkOwner(ChunkIndex k) const {
  return PartOf(*this, k).bytes;
}

PayloadPart MakePart(const PayloadPlan& plan, ChunkIndex first, uint32_t chunks,
                     std::shared_ptr<const uint8_t> bytes) {
  SIGNVOTE_CHECK(chunks > 0 && first.value() + chunks <= plan.chunks());
  const ChunkPlan& cut = plan.chunk_plan();
  const ChunkIndex last(first.value() + chunks - 1);
  return {.first = first,
          .chunks = chunks,
          .kind = plan.kind(first),
          .first_coordinate = cut.First(first),
          .coordinates = cut.First(last) + cut.Count(last) - cut.First(first),
          .bytes = std::move(bytes)};
}

std::vector<PayloadPart> WholePayload(const PayloadPlan& plan,
                                      std::shared_ptr<const uint8_t> bytes) {
  std::vector<PayloadPart> parts;
  for (const PayloadRange& range : plan.ranges()) {
    parts.push_back(
        MakePart(plan, range.first, range.chunks,
                 std::shared_ptr<const uint8_t>(bytes, bytes.get() + plan.Offset(range.first))));
  }
  return parts;
}

absl::StatusOr<std::shared_ptr<const CommitRecord>> MakeCommitRecord(CommitRecord record,
                                                                     const PayloadPlan& plan,
                                                                     size_t tensors) {
  SIGNVOTE_RETURN_IF_ERROR(CheckNumbers(record, tensors));
  record.plan = plan;
  if (record.kind == CommitKind::kStep) {
    SIGNVOTE_RETURN_IF_ERROR(CheckPayload(record, plan));
    SIGNVOTE_RETURN_IF_ERROR(CheckApplicable(record));
    record.payload_hash = PayloadHash(record.chunks);
    record.payload_bytes = BytesHere(record, plan);
  } else {
    if (!record.chunks.empty() || !record.payload.empty())
      return Bad(record, "a payload, which this kind has not");
    if (record.rho != 1.0f || record.decay_step.has_value() || !record.scales.empty())
      return Bad(record, "a rescaling, a decay or scales, which belong to a step");
    record.payload_hash = 0;
    record.payload_bytes = 0;
  }
  return std::make_shared<const CommitRecord>(std::move(record));
}

}  // namespace signvote
