#include "worker/session/commit_receiver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote {

size_t CommitReceiver::VerdictSlots(const PayloadPlan& plan) {
  return std::max<size_t>(2, kVerdictSlotsMax * plan.chunk_plan().TotalBytes() / plan.TotalBytes());
}

void CommitReceiver::Begin(const PayloadPlan& plan, std::pmr::memory_resource* memory) {
  store_ = std::make_unique<VerdictStore>(plan, VerdictSlots(plan), memory);
  assembler_ = std::make_unique<VerdictAssembler>(store_.get());
}

absl::StatusOr<VerdictAssembler::Added> CommitReceiver::OnChunk(const wire::VoteView& view,
                                                                const grpc::ByteBuffer& message) {
  const wire::VoteHeader& header = view.header;
  SIGNVOTE_ASSIGN_OR_RETURN(const bool wanted, conversation_->Wants(header.run_id, header.round));
  if (!wanted) return VerdictAssembler::Added::kKept;
  absl::StatusOr<VerdictAssembler::Added> added = assembler_->Add(
      {.epoch = header.epoch,
       .round = header.round,
       .attempt = header.attempt,
       .chunk = header.chunk,
       .checksum = header.checksum},
      view.payload_bytes,
      [&](std::span<uint8_t> out) {
        return wire::CopyPayloadChecked(message, view.payload_offset, header.checksum, out);
      },
      clock_->Now());
  if (!absl::IsDataLoss(added.status())) return added;
  SIGNVOTE_RETURN_IF_ERROR(OnMismatch(
      header.round, absl::StrCat("chunk ", header.chunk.value(), " fails its checksum")));
  return VerdictAssembler::Added::kKept;
}

absl::Status CommitReceiver::OnCommit(const v1::Commit& commit) {
  absl::StatusOr<CommitEvent> event = assembler_->Take(commit, clock_->Now());
  if (!event.ok()) return OnMismatch(Round(commit.round()), std::string(event.status().message()));
  VerdictStore::Slot* const slot = event->slot;
  const absl::Status took = conversation_->Took(*std::move(event));
  if (!took.ok() && slot != nullptr) store_->Release(slot);
  return took;
}

absl::Status CommitReceiver::OnMismatch(Round round, const std::string& why) {
  const absl::Status status = conversation_->Mismatched(round, why);
  if (status.ok()) {
    (*log_)(LogLevel::kInfo, "a commit that came during the state transfer is not whole",
            {{"round", round.value()}, {"reason", why}});
    return status;
  }
  (*log_)(LogLevel::kWarning, "verdict does not match its commit",
          {{"round", round.value()}, {"reason", why}});
  counters_->VerdictMismatched();
  return status;
}

void CommitReceiver::Drop() {
  if (assembler_ != nullptr) assembler_->Drop();
}

}  // namespace signvote
