#include "server/replica/move_parameters.h"

#include <algorithm>

#include "common/apply.h"
#include "common/check.h"

namespace signvote {
namespace {

// The step of one part of the payload. x and x0 point to `from`.
void MovePart(const Layout& layout, const CommitRecord& record, const PayloadPart& part,
              uint64_t from, uint64_t to, const float* x0, float* x) {
  const StepArguments arguments{.gamma = record.gamma,
                                .rho = record.rho,
                                .decay_step = record.decay_step,
                                .scales = record.scales};
  if (part.kind == PayloadKind::kSigns) {
    return ApplyStep(layout, arguments, from, to - from, part.bytes.get(), part.first_coordinate,
                     x0, x);
  }
  if (part.kind != PayloadKind::kCounts) {
    return ApplyDense(layout, arguments, from, to - from,
                      {.values = part.bytes.get(),
                       .bf16 = part.kind == PayloadKind::kBf16,
                       .first = part.first_coordinate},
                      x0, x);
  }
  // The planes of each chunk stand by themselves.
  const ChunkPlan& chunks = record.plan.chunk_plan();
  for (uint64_t at = from; at < to;) {
    const ChunkIndex k(static_cast<uint32_t>(at / chunks.chunk_coordinates()));
    const uint64_t end = std::min(to, chunks.First(k) + chunks.Count(k));
    const uint64_t done = at - from;
    ApplyCounts(layout, arguments, at, end - at,
                {.planes = record.Chunk(k).data(),
                 .plane_bytes = chunks.Bytes(k),
                 .ballots = record.chunks[k.value()].counted,
                 .first = chunks.First(k)},
                x0 == nullptr ? nullptr : x0 + done, x + done);
    at = end;
  }
}

}  // namespace

void MoveParameters(const Layout& layout, const CommitRecord& record, uint64_t from, uint64_t to,
                    const float* x0, float* x) {
  if (record.kind == CommitKind::kNone) return;
  const bool rewind = record.kind == CommitKind::kRewind;
  SIGNVOTE_CHECK(x0 != nullptr || (!rewind && record.rho == 1.0f));
  if (rewind) return ApplyRewind(to - from, x0, x);
  for (const PayloadPart& part : record.payload) {
    const uint64_t begin = std::max(from, part.first_coordinate);
    const uint64_t end = std::min(to, part.first_coordinate + part.coordinates);
    if (begin >= end) continue;
    MovePart(layout, record, part, begin, end, x0 == nullptr ? nullptr : x0 + (begin - from),
             x + (begin - from));
  }
}

}  // namespace signvote
