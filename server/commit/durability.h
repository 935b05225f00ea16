#pragma once
// When a commit may be told to anybody: the policy of durability behind one interface.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/payload_plan.h"
#include "server/commit/commit_record.h"

namespace signvote::v1 {
class JournalHead;
class JournalName;
class RunState;
}  // namespace signvote::v1

namespace signvote {

// Threads: all methods are called by the run's thread, in the order in which things happen, and never
//          wait.
class Durability {
 public:
  // Every commit up to and including `round` is released to be published. Rounds grow from call to
  // call. An implementation says which thread calls it.
  using Released = std::function<void(Round round)>;

  virtual ~Durability() = default;
  // Takes the record and answers through Released, now or later. A record that cannot be made
  // durable is never answered.
  virtual void Append(std::shared_ptr<const CommitRecord> record) = 0;

  // ---- what a server that goes on with the run needs beside the commits. What is not kept is not
  // asked for: of the rest only Append() is called unless keeps_run().

  virtual bool keeps_run() const { return false; }
  // The run's parameters are there, and the optimizer of dense tensors stands so; before the first
  // commit of this process, and before the replica moves.
  virtual void Begin(const v1::JournalHead&, std::shared_ptr<const std::vector<float>>) {}
  // A name came, or was evicted.
  virtual void NoteName(const v1::JournalName&) {}
  virtual void NotePause(bool) {}
  // A chunk of the open attempt was counted. Void unless a commit has it.
  struct Chunk {
    Round round;
    Attempt attempt;
    ChunkIndex chunk;
    ChunkSum sum;
    std::span<const uint8_t> payload;
    std::shared_ptr<const uint8_t> owner;  // keeps the payload alive
  };
  virtual void NoteChunk(Chunk) {}
  // Of the record that is appended next: where the run stands behind it (JournalCommit.after), the
  // optimizer of dense tensors there, and whose ballots it counted (JournalCommit.voters_of).
  struct Voters {
    uint32_t chunks = 0;            // neighbours that counted the same
    std::vector<uint32_t> workers;  // ids, in the order in which their ballots were added up
  };
  virtual void NoteState(std::shared_ptr<const v1::RunState>,
                         std::shared_ptr<const std::vector<float>>, std::vector<Voters>) {}
};

// Durability `none`: a commit is released as soon as it is proposed; a crash of the server loses
// the run unless its workers saved their replicas.
// Threads: Released runs inside Append().
class NoDurability final : public Durability {
 public:
  explicit NoDurability(Released released) : released_(std::move(released)) {}
  void Append(std::shared_ptr<const CommitRecord> record) override { released_(record->round); }

 private:
  const Released released_;
};

}  // namespace signvote
