#pragma once
// One worker's stream as the run sees it: messages out, and what is known of whoever is at the other
// end. Sessions over gRPC implement it, and so does the simulation; no gRPC type passes through.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "signvote/v1/training.pb.h"

namespace signvote {

class BallotSlots;
class MasterReplica;

namespace run {

// The number of a stream, given when it opens and never used again.
using PeerId = StrongInt<struct PeerIdTag, uint64_t>;

// Who is at the other end, as its connection shows it.
struct PeerIdentity {
  std::string address;                 // "host:port", for people
  std::string host;                    // by which what a host may do is counted, for people too
  bool authenticated = false;          // it has shown a certificate of our authority
  std::vector<std::string> dns_names;  // the certificate's; empty without one
  bool worker_role = false;            // the certificate has the role of a worker
  bool admin_role = false;             // that of an operator
};

// TCP payload that the stream's connection moved since it was opened, both ways.
struct PeerBytes {
  uint64_t received = 0;
  uint64_t sent = 0;
};

// Which chunk of which verdict follows. Run and epoch are the server's and do not change.
struct VerdictHeader {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  uint64_t checksum = 0;  // XXH3-64 of the payload
};

// Ownership:  Run holds shared references from the moment a stream opens until it is done.
// Threads:    methods are called on the run's thread and never block; what the stream brings reaches
//             Run as inputs.
// Failure:    whatever is wrong with the stream comes back as one input "gone"; no call here fails.
// Invariants: messages leave in the order of the calls. After Close() nothing is sent any more, and
//             calls other than Cancel() do nothing.
class Peer {
 public:
  virtual ~Peer() = default;

  // Constant for the life of the stream.
  virtual PeerId id() const = 0;
  virtual const PeerIdentity& identity() const = 0;
  // 16 bytes that nobody else knows, of this stream alone: they open the calls that move its state.
  virtual const std::string& ticket() const = 0;

  // Queues a message.
  virtual void Send(const v1::ServerMessage& message) = 0;
  // Queues a chunk of a verdict. `payload` is referenced, not copied: `owner` keeps it alive, and
  // unchanged, until the network has let go of it.
  virtual void SendVerdict(const VerdictHeader& header, std::span<const uint8_t> payload,
                           std::shared_ptr<const void> owner) = 0;
  // From now on ballots are taken into these slots.
  virtual void Admit(std::shared_ptr<BallotSlots> slots) = 0;

  // Bytes queued and not yet taken by the network.
  virtual size_t queued_bytes() const = 0;
  // One input "room" comes as soon as at most `bytes` are queued; at once when that is so already.
  virtual void NotifyWhenBelow(size_t bytes) = 0;

  // Ends the stream: OK and CANCELLED (a stop) after everything queued was sent, any other status after the
  // message that is being sent. Idempotent: the first status counts.
  virtual void Close(absl::Status status) = 0;
  // Breaks the stream off when it does not end by itself (a worker that reads nothing).
  virtual void Cancel() = 0;

  // So far, without what transfers on the same connection moved; the last figures known once the
  // connection is gone.
  virtual PeerBytes bytes() const = 0;
};

// A call of its own that moves a stream's state: it fetches the replica or uploads the initial
// parameters. It reaches Run as an input (inputs.h) and waits for its answer; its owner takes care
// that at most one call of a stream is there at a time.
//
// Ownership: Run holds a shared reference while the call goes on.
// Threads:   called on the run's thread; never blocks.
class StateCall {
 public:
  virtual ~StateCall() = default;
  // Go on: send every plane of the replica, or write into it what comes. Said at most once.
  virtual void Start(std::shared_ptr<MasterReplica> replica) = 0;
  // The call ends with this status, now. The first status counts. One that has come to its own end
  // is not disturbed.
  virtual void End(absl::Status status) = 0;
};

}  // namespace run
}  // namespace signvote
