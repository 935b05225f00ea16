#pragma once
// Verdicts and commits as they come over the wire, checked, put together and handed to the
// conversation: what fails is counted, logged and asked for again.
//
// Ownership: owns the slots of verdicts; one that has gone out with a commit comes back by Release().
// Threads:   the link's thread; Release() any, once a commit has gone out.
// Failure:   a status ends the connection. ABORTED: the commit is asked for again over another;
//            RESOURCE_EXHAUSTED: the caller takes too little.

#include <memory>
#include <memory_resource>
#include <string>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/payload_plan.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/conversation.h"
#include "worker/session/session.h"
#include "worker/session/session_counters.h"
#include "worker/session/verdict_assembler.h"
#include "worker/session/verdict_store.h"

namespace signvote {

class CommitReceiver {
 public:
  // Rounds of signs whose verdicts may wait for the caller, who may be computing while others go on (an
  // observer). Each costs a payload's bytes, and only while it is needed; beyond that nothing is read and
  // the server's limits apply.
  static constexpr size_t kVerdictSlotsMax = 16;
  // Rounds of any payload: as many as fit into the bytes of kVerdictSlotsMax of signs, and two, with
  // which a caller that keeps up is never waited for.
  static size_t VerdictSlots(const PayloadPlan& plan);

  // All of them must outlive it.
  CommitReceiver(const Clock* clock, Conversation* conversation, SessionCounters* counters,
                 const SessionLog* log)
      : clock_(clock), conversation_(conversation), counters_(counters), log_(log) {}

  // The run is known. Once, before the rest.
  void Begin(const PayloadPlan& plan, std::pmr::memory_resource* memory);
  bool begun() const { return assembler_ != nullptr; }

  // `view` is of `message`. kNoRoom: nothing was changed, and the chunk may be given again once a
  // slot was released. Chunks of rounds that nobody waits for are kKept too.
  absl::StatusOr<VerdictAssembler::Added> OnChunk(const wire::VoteView& view,
                                                  const grpc::ByteBuffer& message);
  // One that is due.
  absl::Status OnCommit(const v1::Commit& commit);
  // Chunks that are here are of no use any more.
  void Drop();

  void Release(VerdictStore::Slot* slot) { store_->Release(slot); }

 private:
  absl::Status OnMismatch(Round round, const std::string& why);

  // Constant after construction.
  const Clock* const clock_;
  Conversation* const conversation_;
  SessionCounters* const counters_;
  const SessionLog* const log_;

  // Set by Begin(), constant then.
  std::unique_ptr<VerdictStore> store_;
  std::unique_ptr<VerdictAssembler> assembler_;
};

}  // namespace signvote
