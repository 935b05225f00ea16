#pragma once
// The server's side of a run in one process: the product's Run with engine, vote, commit pipeline, ring,
// roster and books, and around it what a server gives to it: streams, tallies, an applier, time. All of
// it on the caller's thread, without a socket.
//
// Time stands still while anything is left to be done: a worker that computes for an hour is as early as
// any other, so that no deadline changes what a run computes. Where nothing else is left it jumps to
// whatever the run waits for.
//
// Ownership:  owns the run and its applier. Ends must outlive it, or be closed first.
// Threads:    one.
// Failure:    what ends the run is end_status(); what a worker says that the protocol does not allow ends
//             its stream, which its end is told.
// Invariants: messages reach an end, and inputs the run, in the order in which they were said; neither
//             inside the call that says them.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "server/replica/applier.h"
#include "server/run/from_worker.h"
#include "server/run/run.h"
#include "server/vote/ballot_slots.h"
#include "server/vote/tally_sink.h"
#include "signvote/v1/training.pb.h"

namespace signvote::lab {

// What the header of a ballot's or a verdict's chunk says.
struct ChunkOf {
  RunId run_id;
  Epoch epoch;
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
};
// How long such a chunk's message is, as wire::EncodeVote() writes it, with any checksum but 0.
uint64_t ChunkMessageBytes(const ChunkOf& of, uint64_t payload_bytes);

// A worker's end of a stream.
class LocalEnd {
 public:
  virtual ~LocalEnd() = default;
  virtual void OnMessage(const v1::ServerMessage& message) = 0;
  // `payload` is valid during the call.
  virtual void OnVerdict(Epoch epoch, const run::VerdictHeader& header,
                         std::span<const uint8_t> payload) = 0;
  // The last call. OK: in good order.
  virtual void OnClosed(const absl::Status& status) = 0;
};

struct LocalServerOptions {
  run::RunOptions run;
  RunId run_id;
  LineSink* round_log = nullptr;  // null: none is wanted, here and below
  LineSink* event_log = nullptr;
  run::RunModel::MemoryReader memory;            // null: any model may be tried
  std::unique_ptr<run::InitialParameters> init;  // null: the first worker brings them
  std::unique_ptr<StepsizeRule> rule;            // null: the one that run.rule names
};

class LocalServer final : public run::RunHost {
 public:
  // As Run::Create().
  static absl::StatusOr<std::unique_ptr<LocalServer>> Create(LocalServerOptions options);
  ~LocalServer() override;

  // ---- a worker's side
  // Opens a stream.
  run::PeerId Open(LocalEnd* end);
  // What a worker says on its stream, other than a ballot's bits.
  void Say(run::PeerId peer, v1::WorkerMessage message);
  // A chunk of a ballot: copied at once.
  void SayChunk(run::PeerId peer, Round round, Attempt attempt, ChunkIndex chunk,
                std::span<const uint8_t> bits);
  // What becomes of a call that moves the stream's state: inputs.h has what is told.
  void Tell(run::PeerId peer, run::StreamWhat what);
  // The end is gone.
  void Close(run::PeerId peer);

  // ---- the driver's side
  // Does the next thing. False: nothing is left, and nothing would come with time.
  bool Turn();
  bool ended() const { return run_->ended(); }
  // REQUIRES: ended().
  const absl::Status& end_status() const { return run_->end_status(); }
  // No further round opens.
  void RequestStop() { run_->RequestStop(clock_.Now()); }

  // ---- views
  // What all streams have carried so far: whole messages, without what a network adds.
  run::PeerBytes bytes() const;
  const run::Run& run() const { return *run_; }
  // Commits that are applied are in it. Null: no parameters yet. REQUIRES: no call of Turn() meanwhile.
  const MasterReplica* replica() const { return replica_.get(); }
  // Commits that replica() has not applied yet: few, however long the run.
  size_t backlog() const { return applier_ == nullptr ? 0 : applier_->backlog(); }
  Clock* clock() { return &clock_; }

 private:
  class LocalPeer;
  struct Verdict {
    run::VerdictHeader header;
    std::span<const uint8_t> payload;
    std::shared_ptr<const void> owner;
  };
  struct Mail {
    run::PeerId peer;
    std::variant<v1::ServerMessage, Verdict, absl::Status> what;
  };

  LocalServer();
  // ---- RunHost
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override;
  void DropX0From(Round round) override;
  void LoadInitial(std::unique_ptr<run::InitialParameters> init,
                   std::shared_ptr<MasterReplica> replica) override;

  void Deliver(Mail mail);

  FakeClock clock_;
  InlineTallySink tally_;
  std::deque<run::Input> inbox_;
  std::deque<Mail> mail_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<Applier> applier_;
  std::map<run::PeerId, std::shared_ptr<LocalPeer>> peers_;
  run::PeerId last_peer_;
  bool streams_closed_ = false;
  std::unique_ptr<run::Run> run_;  // last: it uses those above
};

}  // namespace signvote::lab
