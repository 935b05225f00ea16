#include "worker/session/verdict_assembler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/payload_plan.h"
#include "common/status.h"

namespace signvote {
namespace {

// Verdicts of a round and its successor may be under way at the same time.
constexpr size_t kRoundsMax = 2;

std::vector<ChunkSum> SumsOf(const v1::Commit& commit, const VerdictStore::Slot& slot) {
  std::vector<ChunkSum> sums(slot.chunks.size());
  for (size_t k = 0; k < sums.size(); ++k) {
    sums[k] = {.counted = commit.counted(static_cast<int>(k)), .checksum = slot.chunks[k].checksum};
  }
  return sums;
}

// Each chunk has as many bytes as so many ballots make.
bool BytesFit(const PayloadPlan& plan, const VerdictStore::Slot& slot) {
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    if (slot.chunks[k].bytes != plan.Bytes(ChunkIndex(k), slot.sums[k].counted)) return false;
  }
  return true;
}

// Why the slot is not what the commit speaks of; null: it is. Fills in slot->sums.
const char* Differs(const v1::Commit& commit, const PayloadPlan& plan, VerdictStore::Slot* slot) {
  if (!slot->IsWhole(Epoch(commit.epoch()), Attempt(commit.attempt())))
    return "a chunk is missing or of another vote";
  if (static_cast<size_t>(commit.counted_size()) != slot->chunks.size()) return "the hash differs";
  slot->sums = SumsOf(commit, *slot);
  if (PayloadHash(slot->sums) != commit.payload_hash()) return "the hash differs";
  return BytesFit(plan, *slot) ? nullptr : "a chunk has not the bytes of the ballots counted";
}

}  // namespace

VerdictStore::Slot* VerdictAssembler::Find(Round round) {
  const auto it =
      std::find_if(assembled_.begin(), assembled_.end(),
                   [round](const VerdictStore::Slot* slot) { return slot->round == round; });
  return it == assembled_.end() ? nullptr : *it;
}

absl::StatusOr<VerdictAssembler::Added> VerdictAssembler::Add(const VerdictHeader& header,
                                                              uint64_t payload_bytes,
                                                              const Copy& copy, Time now) {
  const PayloadPlan& plan = store_->plan();
  if (header.chunk.value() >= plan.chunks() || !plan.Fits(header.chunk, payload_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("verdict chunk ", header.chunk.value(), " of ",
                                                   plan.chunks(), " with ", payload_bytes,
                                                   " bytes"));
  }
  VerdictStore::Slot* slot = Find(header.round);
  if (slot == nullptr) {
    // Whoever begins with a round in the middle meets rounds that are never committed here.
    if (assembled_.size() >= kRoundsMax) {
      const auto oldest =
          std::min_element(assembled_.begin(), assembled_.end(),
                           [](const VerdictStore::Slot* a, const VerdictStore::Slot* b) {
                             return a->round < b->round;
                           });
      store_->Release(*oldest);
      assembled_.erase(oldest);
    }
    slot = store_->Acquire(header.round);
    if (slot == nullptr) return Added::kNoRoom;
    slot->first_chunk = now;
    assembled_.push_back(slot);
  }
  VerdictStore::Slot::Origin& origin = slot->chunks[header.chunk.value()];
  origin.present = false;
  SIGNVOTE_RETURN_IF_ERROR(
      copy({slot->bits.data() + plan.Offset(header.chunk), static_cast<size_t>(payload_bytes)}));
  origin = {.present = true,
            .epoch = header.epoch,
            .attempt = header.attempt,
            .checksum = header.checksum,
            .bytes = payload_bytes};
  return Added::kKept;
}

absl::StatusOr<VerdictAssembler::Added> VerdictAssembler::Add(const VerdictHeader& header,
                                                              std::span<const uint8_t> payload,
                                                              Time now) {
  return Add(
      header, payload.size(),
      [&](std::span<uint8_t> out) {
        if (Xxh3(payload.data(), payload.size()) != header.checksum)
          return absl::DataLossError("checksum");
        std::copy(payload.begin(), payload.end(), out.begin());
        return absl::OkStatus();
      },
      now);
}

VerdictStore::Slot* VerdictAssembler::TakeSlot(Round round) {
  VerdictStore::Slot* taken = nullptr;
  std::vector<VerdictStore::Slot*> later;
  for (VerdictStore::Slot* slot : assembled_) {
    if (slot->round == round) {
      taken = slot;
    } else if (slot->round < round) {
      store_->Release(slot);
    } else {
      later.push_back(slot);
    }
  }
  assembled_ = std::move(later);
  return taken;
}

absl::StatusOr<CommitEvent> VerdictAssembler::Take(const v1::Commit& commit, Time now) {
  CommitEvent event;
  event.round = Round(commit.round());
  event.epoch = Epoch(commit.epoch());
  event.loss = commit.loss();
  event.voters = commit.voters();
  event.main_round = commit.main_round();
  event.next_data_step = DataStep(commit.next_data_step());
  event.run_done = commit.run_done();
  event.digest_due = commit.digest_due();
  event.reason = commit.reason();
  event.run_state = commit.run_state();
  event.times.committed = now;
  VerdictStore::Slot* const slot = TakeSlot(event.round);
  if (commit.kind() != v1::Commit::KIND_STEP) {
    if (slot != nullptr) store_->Release(slot);
    event.kind = commit.kind() == v1::Commit::KIND_REWIND ? CommitKind::kRewind : CommitKind::kNone;
    return event;
  }
  event.stepsize = commit.stepsize();
  event.rho = commit.rho();
  event.decay_step = commit.has_decay_step() ? commit.decay_step() : commit.stepsize();
  event.scales.assign(commit.scales().begin(), commit.scales().end());
  if (slot == nullptr) return absl::DataLossError("no verdict chunk came");
  if (const char* const wrong = Differs(commit, store_->plan(), slot); wrong != nullptr) {
    store_->Release(slot);
    return absl::DataLossError(wrong);
  }
  event.slot = slot;
  event.times.first_verdict = slot->first_chunk;
  return event;
}

void VerdictAssembler::Drop() {
  for (VerdictStore::Slot* slot : assembled_) store_->Release(slot);
  assembled_.clear();
}

}  // namespace signvote
