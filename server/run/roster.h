#pragma once
// Who is here: the names of a run, the streams that stand for them, and how far each stream has come.
// By stage, the stages that may follow (MayFollow()):
//   kConnected     kHeld, kWaitingState
//   kHeld          kWaitingState
//   kWaitingState  kUploading, kFetching, kKeeping
//   kUploading     kCatchingUp
//   kFetching      kCatchingUp, kFetching
//   kKeeping       kCatchingUp, kFetching
//   kCatchingUp    kReady, kFetching
//   kReady         kFetching
//   and kClosing after any other; nothing after that.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "server/round/types.h"
#include "server/run/peer.h"

namespace signvote::run {

using round::WorkerId;

enum class Stage : uint8_t {
  kConnected,     // no Join yet: a stranger
  kHeld,          // joined under a name whose live stream is being pinged
  kWaitingState,  // accepted; welcome once the initial parameters are there
  kUploading,     // welcomed, uploads them
  kFetching,      // welcomed, or told to resync; Ready comes after the transfer
  kKeeping,       // welcomed with its own replica; Ready comes at once
  kCatchingUp,    // gets missing commits from the ring
  kReady,         // gets everything as it happens
  kClosing,       // closed by us or gone; is forgotten when the stream is done
};
inline constexpr size_t kStages = 9;
std::string_view Words(Stage stage);
// The transition table. A stage never follows itself, but for kFetching (a resync during a fetch).
bool MayFollow(Stage from, Stage to);

// Ownership:  of its books only; streams are known by number.
// Threads:    thread-compatible; one thread drives it. Pure: time comes in.
// Failure:    what a worker does wrong is a status for it; a number that is not open, or a transition
//             that the table does not have, is our bug and ends the process.
// Invariants: a name has at most one live and one held stream; a held one only beside a live one.
//             Each call takes O(log n), Fence() besides O(what is due): nothing scans all streams.
//             At most strangers_max streams are kConnected and at most names_max names are
//             remembered, beyond those that are here, evicted, or have a seat.
class Roster {
 public:
  static constexpr size_t kStrangersMin = 32;
  struct Options {
    size_t names_max = 4096;
    size_t strangers_max =
        0;  // 0: kStrangersMin; a Run says more, since all its workers may come at once
    Duration join_timeout = std::chrono::seconds(10);  // from the stream's start to its Join
    // A live stream whose name joins again shows within this time that it lives, or is fenced.
    Duration ping_timeout = std::chrono::seconds(1);
    // A stream that was closed and does not end by itself is then broken off.
    Duration close_timeout = std::chrono::seconds(2);
  };

  // A name that ever joined.
  struct Worker {
    WorkerId id;
    std::string name;
    Incarnation incarnation;  // of the last accepted stream; 0: none yet
    std::optional<PeerId> live, held;
    bool evicted = false;
    Time last_seen;        // when its last live stream ended
    uint32_t resyncs = 0;  // since resyncs_since
    Time resyncs_since;
  };

  // What is known of a stream.
  struct StreamRecord {
    PeerId peer;
    Stage stage = Stage::kConnected;
    Time since;                      // of the stage
    Time opened, joined;             // joined: of its Join, whatever came of it
    std::optional<WorkerId> worker;  // whose live or held stream it is
    Incarnation incarnation;         // set when it is accepted
  };

  // The answers to a Join that was checked.
  struct Accepted {
    PeerId peer;
    WorkerId worker;
    Incarnation incarnation;
  };
  struct Held {
    PeerId live;  // shall be pinged: Pong() when it answers
  };
  using Answer = std::variant<Accepted, Held, absl::Status>;

  // What became of a name when one of its streams went.
  struct Departure {
    WorkerId worker;
    Incarnation incarnation;            // of the stream that went; 0: it was only held
    Stage stage = Stage::kClosing;      // in which it went
    bool was_live = false;              // false: it was only held, the name's live stream goes on
    std::optional<Accepted> successor;  // the held stream that takes its place
  };

  // What time asks for; the caller closes these, each with its status.
  struct Due {
    std::vector<std::pair<PeerId, absl::Status>> close;  // strangers, and live ones that are fenced
    std::vector<PeerId> cancel;                          // closed, and still not gone
  };

  // What outlives the process: RunState.
  struct Remembered {
    WorkerId id;
    std::string name;
    Incarnation incarnation;
    bool evicted = false;
    bool operator==(const Remembered&) const = default;
  };
  struct Memory {
    std::vector<Remembered> names;  // by id
    uint32_t next_worker_id = 0;    // above every id that was ever given
    bool operator==(const Memory&) const = default;
  };

  // REQUIRES: names and ids of `memory` are not repeated, ids below next_worker_id.
  Roster(Options options, const Memory& memory, Time now);

  // ---- streams ----

  // A new stream, kConnected. Returns the strangers that have to go for it, the oldest first: a
  // worker sends its Join at once, so who has been silent for longest is the least likely to be one.
  // REQUIRES: the number was never open.
  std::vector<std::pair<PeerId, absl::Status>> Open(PeerId peer, Time now);
  // A Join that CheckJoin() has passed: accepted, the stream is kWaitingState. ALREADY_EXISTS: two
  // streams of this name are here already. RESOURCE_EXHAUSTED: 2^32 names were invented.
  // REQUIRES: the stream is kConnected, the name is not evicted.
  Answer Join(PeerId peer, const std::string& name, Time now);
  // The live stream has answered the ping: the held one, which is to be refused with this status;
  // nullopt: nobody waits for it.
  std::optional<std::pair<PeerId, absl::Status>> Pong(PeerId live) const;
  // REQUIRES: MayFollow(the stream's stage, stage), and stage is neither kConnected nor kHeld; use
  // Close() for kClosing.
  void SetStage(PeerId peer, Stage stage, Time now);
  // The stream stands for nobody any more. Idempotent: nullopt when it stood for nobody.
  std::optional<Departure> Close(PeerId peer, Time now);
  // The stream is done. REQUIRES: it is kClosing.
  void Forget(PeerId peer);
  // What is due; the caller then calls Close() for each of `close`. Streams of `cancel` are named
  // once, and count as kClosing no more.
  Due Fence(Time now);
  // When Fence() may have something to do; nullopt: nothing is waited for.
  std::optional<Time> NextFence() const;

  // ---- names ----

  // NOT_FOUND: never seen. OK also when it was evicted before; its streams are the caller's to close.
  absl::Status Evict(std::string_view name);
  // These have a seat in the open attempt: their names are not forgotten. Replaces the last ones.
  void SetSeated(std::vector<WorkerId> seated);
  // Names that were forgotten since the last call, so that other books forget them too.
  std::vector<WorkerId> TakeForgotten();
  // For a resync: at most kResyncsMax in kResyncWindow of one name, whatever streams it comes with.
  // RESOURCE_EXHAUSTED beyond: who fetches again and again without getting anywhere costs everybody a
  // transfer each time. REQUIRES: FindWorker(worker) finds it.
  absl::Status CountResync(WorkerId worker, Time now);
  static constexpr uint32_t kResyncsMax = 8;
  static constexpr Duration kResyncWindow = std::chrono::minutes(10);

  // ---- views; pointers stay valid until the next call that is not const ----

  // nullptr: not open. Valid until Forget() of this stream.
  const StreamRecord* FindStream(PeerId peer) const;
  const Worker* FindWorker(WorkerId worker) const;  // nullptr: unknown or forgotten
  const Worker* FindWorker(std::string_view name) const;
  // The live stream of a worker; nullptr when it has none, or another incarnation.
  const StreamRecord* FindLive(WorkerId worker, Incarnation incarnation) const;
  // Streams in a stage, the longest there first; of kClosing those that were not named for Cancel() yet.
  std::vector<PeerId> In(Stage stage) const;
  size_t CountIn(Stage stage) const { return by_stage_[static_cast<size_t>(stage)].size(); }
  std::optional<PeerId> LongestIn(Stage stage) const;
  // Names with a live stream, but for `name`.
  size_t PresentBeside(std::string_view name) const;
  size_t streams() const { return streams_.size(); }  // those that are closing included
  const std::map<WorkerId, std::unique_ptr<Worker>>& workers() const { return workers_; }
  Memory Remember() const;
  uint32_t next_worker_id() const { return next_worker_id_; }  // above every id that was ever given

 private:
  StreamRecord& At(PeerId peer);
  void Move(StreamRecord& stream, Stage stage, Time now);
  Accepted Accept(StreamRecord& stream, Worker& worker, Time now);
  Worker* FindOrAdd(const std::string& name, Time now);
  void ForgetOldestName();
  static bool IsAway(const Worker& worker);
  // Keeps away_ right: called whenever a stream or an eviction changes the worker.
  void NoteAway(const Worker& worker);

  // Constant after construction.
  const Options options_;

  std::unordered_map<PeerId, StreamRecord> streams_;
  // Each stage's streams by how long they are there.
  std::array<std::set<std::pair<Time, PeerId>>, kStages> by_stage_;
  std::map<WorkerId, std::unique_ptr<Worker>> workers_;
  std::map<std::string, Worker*, std::less<>> by_name_;
  // Names without a stream that are not evicted, by when they were last seen.
  std::set<std::pair<Time, WorkerId>> away_;
  std::unordered_set<WorkerId> seated_;
  std::vector<WorkerId> forgotten_;
  size_t present_ = 0;  // names with a live stream
  uint32_t next_worker_id_ = 0;
};

}  // namespace signvote::run
