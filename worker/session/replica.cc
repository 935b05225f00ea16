#include "worker/session/replica.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint64_t kCopyCoordinates = uint64_t{1} << 18;

absl::Status NotDue(uint64_t count, uint64_t first, uint64_t left, uint64_t end) {
  return absl::InvalidArgumentError(absl::StrCat("state transfer sent ", count,
                                                 " coordinates from ", first, " where ", left,
                                                 " from ", end, " were due"));
}

}  // namespace

absl::Status Replica::BeginHere() {
  Clear();
  const uint64_t d = layout_->coordinates();
  if (needs_x0()) {
    std::vector<float> piece;
    for (uint64_t first = 0; first < d; first += piece.size()) {
      piece.resize(std::min(kCopyCoordinates, d - first));
      SIGNVOTE_RETURN_IF_ERROR(memory_->Read(first, piece));
      SIGNVOTE_RETURN_IF_ERROR(memory_->WriteX0(first, piece));
    }
    x0_end_ = d;
  }
  parts_ = {{d, Round(0)}};
  return absl::OkStatus();
}

void Replica::Clear() {
  parts_.clear();
  x0_end_ = 0;
}

absl::Status Replica::ExpectX0() {
  if (!x0_let_go_) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(memory_->KeepX0());
  x0_let_go_ = false;
  return absl::OkStatus();
}

void Replica::LetGoOfX0() {
  if (!needs_x0()) return;
  x0_let_go_ = true;
  x0_end_ = 0;
  memory_->DropX0();
}

absl::Status Replica::AddPart(Round round, uint64_t first, uint64_t count) {
  const uint64_t end = received();
  const uint64_t left = layout_->coordinates() - end;
  if (first != end || count == 0 || count > left) return NotDue(count, first, left, end);
  if (!parts_.empty() && parts_.back().round == round) {
    parts_.back().end += count;
  } else {
    parts_.push_back({end + count, round});
  }
  return absl::OkStatus();
}

absl::Status Replica::AddX0Part(uint64_t first, uint64_t count) {
  const uint64_t left = needs_x0() ? layout_->coordinates() - x0_end_ : 0;
  if (first != x0_end_ || count == 0 || count > left) return NotDue(count, first, left, x0_end_);
  x0_end_ += count;
  return absl::OkStatus();
}

Round Replica::round() const {
  if (parts_.empty()) return Round(0);
  return std::min_element(parts_.begin(), parts_.end(),
                          [](const Part& a, const Part& b) { return a.round < b.round; })
      ->round;
}

absl::Status Replica::ApplyTo(const CommitEvent& commit, uint64_t first, uint64_t count) {
  switch (commit.kind) {
    case CommitKind::kNone:
      return absl::OkStatus();
    case CommitKind::kRewind:
      return memory_->Rewind(first, count);
    case CommitKind::kStep:
      break;
  }
  const StepArguments step{.gamma = commit.stepsize,
                           .rho = commit.rho,
                           .decay_step = commit.decay_step,
                           .scales = commit.scales};
  const PayloadPlan& plan = *commit.slot->plan;
  if (plan.OnlySigns()) {
    return memory_->Apply(*layout_, step, first, count, commit.slot->bits.data());
  }
  // Each chunk stands by itself.
  const ChunkPlan& chunks = plan.chunk_plan();
  for (uint64_t at = first; at < first + count;) {
    const ChunkIndex k(static_cast<uint32_t>(at / chunks.chunk_coordinates()));
    const uint64_t end = std::min(first + count, chunks.First(k) + chunks.Count(k));
    SIGNVOTE_RETURN_IF_ERROR(ApplyChunk(commit, step, k, at, end - at));
    at = end;
  }
  return absl::OkStatus();
}

absl::Status Replica::ApplyChunk(const CommitEvent& commit, const StepArguments& step, ChunkIndex k,
                                 uint64_t first, uint64_t count) {
  const VerdictStore::Slot& slot = *commit.slot;
  const uint64_t chunk_first = slot.plan->chunk_plan().First(k);
  const uint8_t* const payload = slot.bits.data() + slot.plan->Offset(k);
  switch (const PayloadKind kind = slot.plan->kind(k)) {
    case PayloadKind::kSigns:
      // Those that begin the payload lie where the whole model's would.
      if (slot.plan->Offset(k) == slot.plan->chunk_plan().ByteOffset(k))
        return memory_->Apply(*layout_, step, first, count, slot.bits.data());
      break;
    case PayloadKind::kCounts:
      return memory_->ApplyCounts(*layout_, step, first, count,
                                  {.planes = payload,
                                   .plane_bytes = slot.plan->chunk_plan().Bytes(k),
                                   .ballots = slot.sums[k.value()].counted,
                                   .first = chunk_first});
    case PayloadKind::kFp32:
    case PayloadKind::kBf16:
      return memory_->ApplyDense(
          *layout_, step, first, count,
          {.values = payload, .bf16 = kind == PayloadKind::kBf16, .first = chunk_first});
  }
  // Of one plane the count is the bit, and the step of counts is the step of signs.
  return memory_->ApplyCounts(*layout_, step, first, count,
                              {.planes = payload,
                               .plane_bytes = slot.plan->chunk_plan().Bytes(k),
                               .ballots = 1,
                               .first = chunk_first});
}

absl::Status Replica::Apply(const CommitEvent& commit) {
  if (parts_.empty() || round() < commit.round) {
    return absl::FailedPreconditionError(
        absl::StrCat("the replica lacks commits before round ", commit.round.value()));
  }
  const bool wants_x0 = commit.kind == CommitKind::kRewind ||
                        (commit.kind == CommitKind::kStep && commit.rho != 1.0f);
  if (wants_x0 && (!needs_x0() || !x0_complete())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the commit of round ", commit.round.value(), " wants x0, which is not here"));
  }
  CrashPoint("commit.apply-due");
  uint64_t first = 0;
  for (Part& part : parts_) {
    if (part.round == commit.round) {
      SIGNVOTE_RETURN_IF_ERROR(ApplyTo(commit, first, part.end - first));
      CrashPoint("commit.applied");
      ++part.round;
    }
    first = part.end;
  }
  // Neighbours that have become level are one part from now on.
  size_t kept = 0;
  for (size_t i = 1; i < parts_.size(); ++i) {
    if (parts_[i].round == parts_[kept].round) {
      parts_[kept].end = parts_[i].end;
    } else {
      parts_[++kept] = parts_[i];
    }
  }
  parts_.resize(kept + 1);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Replica::Digest() const {
  if (!level()) return absl::FailedPreconditionError("the replica is not whole at one round");
  return memory_->Digest();
}

}  // namespace signvote
