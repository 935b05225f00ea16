#pragma once
// The engine's thread: turns what sessions send into events, and the engine's actions into tallies,
// messages and commits. Everything that is decided about a run is decided here, one input after the
// other.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "common/layout.h"
#include "server/round/engine.h"
#include "server/rpc/inbox.h"
#include "server/rpc/state_transfer.h"
#include "server/rpc/tokens.h"
#include "server/stepsize/stepsize_rule.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::rpc {

class CommitObserver;
struct ServerSnapshot;

struct DirectionSpec {
  std::string kind = "signum";  // signsgd | signum | nesterov | lion
  double beta = 0.9;            // [0, 1)
  double beta2 = 0.99;          // [0, 1); lion only
};

struct CoordinatorOptions {
  uint64_t seed = 0;
  uint64_t rounds_max = 0;
  uint32_t workers_min = 1;
  uint32_t workers_max = 64;
  uint32_t quorum = 0;
  round::DeadlineConfig deadline;
  uint32_t observer_after = 5;
  uint64_t share_hold_rounds = 100;
  uint64_t digest_every = 50;
  Duration wait_timeout = std::chrono::hours(1);
  Duration linger = std::chrono::seconds(30);
  // A session whose name joins again shows within this time that it lives, or is fenced:
  // docs/fault_model.md, "Survived".
  Duration ping_timeout = std::chrono::seconds(1);
  // A stream that was closed and does not end by itself is then broken off.
  Duration close_timeout = std::chrono::seconds(2);
  Duration upload_timeout = std::chrono::seconds(60);  // without progress
  uint64_t chunk_coordinates = 0;                      // 0: ChunkPlan's default
  DirectionSpec direction;
  RuleFlags rule;
  std::string init_path;             // initial parameters; empty: the first worker uploads its own
  std::optional<TokenTable> tokens;  // to begin with; nullopt: no token is asked for
  bool tls = false;                  // peers must show a worker's certificate of their name
  uint64_t message_bytes_max = uint64_t{64} << 20;
  uint64_t session_buffer_bytes = uint64_t{64} << 20;
  uint64_t catch_up_bytes = uint64_t{64} << 20;
  size_t names_max = 4096;  // workers remembered; whoever is here or has a seat is, beyond that too
  std::string round_log_path, event_log_path;
  Duration test_applier_delay{};
  CommitObserver* observer = nullptr;  // may be null; must outlive the coordinator
};

// Ownership:  owns sessions' books, engine, master replica, applier and ring; gRPC's services only
//             point to it.
// Threads:    Start() begins one thread; public methods are thread-safe unless stated otherwise.
//             The methods of the block "engine's thread" may only be called inside a call given to
//             Post().
// Failure:    what workers do wrong ends their session; what makes the run impossible is
//             end_status().
class Coordinator {
 public:
  // INVALID_ARGUMENT, NOT_FOUND, …: a setting or file that cannot work, told before anything
  // listens.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Create(CoordinatorOptions options,
                                                             Clock* clock, FileSystem* fs);
  virtual ~Coordinator() = default;

  virtual void Start() = 0;
  // The operator's stop: the open round may complete.
  virtual void RequestStop() = 0;
  // True once the run has ended; false after `timeout`.
  virtual bool WaitUntilEnded(Duration timeout) = 0;
  // OK: finished, or stopped by the operator. REQUIRES: ended.
  virtual absl::Status end_status() const = 0;
  // From now on joins are checked against these. Sessions go on, whatever became of their tokens.
  virtual void ReplaceTokens(TokenTable tokens) = 0;
  // Closes every session, after what is queued for it when all is well, and returns when they are
  // gone or after `timeout`.
  virtual void CloseSessions(Duration timeout) = 0;
  // Ends the thread. Idempotent. Calls that are still posted run first.
  virtual void Stop() = 0;
  // Writes the master replica with every commit so far. FAILED_PRECONDITION: no parameters yet.
  // REQUIRES: ended.
  virtual absl::Status ExportFinal(const std::string& path) = 0;

  // ---- for the services ----
  virtual Inbox* inbox() = 0;
  virtual StateHub* hub() = 0;
  virtual const RunId& run_id() const = 0;
  virtual Epoch epoch() const = 0;
  virtual uint64_t session_buffer_bytes() const = 0;
  // Bytes of a state transfer on a connection of its own.
  virtual void AddTransfer(std::shared_ptr<ServerSession> session, TransferBytes bytes) = 0;
  virtual void Uploaded(std::shared_ptr<ServerSession> session) = 0;
  // Runs `call` on the engine's thread. False: the server stops, it will not run.
  virtual bool Post(std::function<void()> call) = 0;
  // DEADLINE_EXCEEDED when the engine's thread does not answer in time. Not for the engine's thread
  // itself.
  virtual absl::StatusOr<ServerSnapshot> Snapshot(Duration timeout) = 0;
  struct Exported {
    std::vector<float> x;
    Layout layout;
    Round round;
    std::string config_json;
  };
  // A copy of the master replica at one round. Blocks for as long as the copy takes: not for gRPC's
  // threads.
  virtual absl::StatusOr<Exported> CopyReplica() = 0;

  // ---- engine's thread ----
  virtual ServerSnapshot SnapshotNow() = 0;
  // `done` is called on this thread: after `wait` (at most a minute), when the run ends, or at once
  // when too many wait already. UNAVAILABLE: the server stops.
  using WatchDone = std::function<void(absl::StatusOr<v1::WatchReply>)>;
  virtual void Watch(uint64_t events_after, Duration wait, WatchDone done) = 0;
  virtual absl::Status Pause() = 0;
  virtual absl::Status Resume() = 0;
  virtual absl::Status Drain(const std::string& worker) = 0;
  virtual absl::Status Evict(const std::string& worker) = 0;
};

// The metadata of an exported safetensors file.
std::map<std::string, std::string> ExportMetadata(const RunId& run_id, Round round);

}  // namespace signvote::rpc
