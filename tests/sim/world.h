#pragma once
// Simulated time and a simulated network: an event queue, and streams whose messages can be
// delayed, overtaken, repeated and lost. One thread, one seed.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <variant>
#include <vector>

#include "common/clock.h"
#include "common/rng.h"
#include "server/round/types.h"
#include "tests/sim/checker.h"
#include "tests/sim/model.h"
#include "tests/sim/options.h"

namespace signvote::sim {

using ChunkBits = std::array<uint8_t, kChunkCoordinates / 8>;
using ModelBits = std::array<uint8_t, kCoordinates / 8>;

// ---- worker to server
// ---------------------------------------------------------------------------------------------
struct Hello {
  bool has_replica = false;
  Round round;  // commits before it are applied
};
struct CaughtUp {
  Round round;
};
struct FetchCommit {
  Round round;
};
struct FetchState {};
struct BallotChunk {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  ChunkBits bits{};
  bool genuine = true;  // false: a repetition with other bits, which must never be counted
};
struct Scalars {
  Round round;
  Attempt attempt;
  WorkerScalars scalars;
};
struct Abstain {
  Round round;
  Attempt attempt;
};
struct Leaves {};
struct Digest {
  Round round;
  uint64_t digest = 0;
};
using ToServer = std::variant<Hello, CaughtUp, FetchCommit, FetchState, BallotChunk, Scalars,
                              Abstain, Leaves, Digest>;

// ---- server to worker
// ---------------------------------------------------------------------------------------------
struct State {
  Round round;
  std::shared_ptr<const std::vector<float>>
      x;  // null: the worker's own replica can catch up by commits
};
struct Open {
  Round round;
  Attempt attempt;
  DataStep data_step;
  bool probe = false;
  Share share;
};
struct VerdictChunk {
  Round round;
  Attempt attempt;
  ChunkIndex chunk;
  ChunkBits bits{};
};
struct Commit {
  CommitRecord record;
};
struct CommitBits {
  CommitRecord record;
  ModelBits bits{};
};
struct DrainNow {};
struct Finish {
  Round rounds;
};
struct Bye {};
using ToWorker = std::variant<State, Open, VerdictChunk, Commit, CommitBits, DrainNow, Finish, Bye>;

struct Stream {
  uint32_t worker = 0;
  uint64_t incarnation = 0;  // given by the server when it greets
  bool worker_open = true;
  bool server_open = true;
  bool black_hole = false;
  bool ready = false;  // follows commits
  Time last_up,
      last_down;  // messages of one direction keep their order, unless the injector overtakes
};

class World {
 public:
  World(const SimOptions& options, const Model& model, SimCounters* counters);

  // ---- time ----
  Time now() const { return now_; }
  void After(double seconds, std::function<void()> what);
  // Runs the next event; false when there is none.
  bool RunOne();
  double Uniform(double low, double high) { return low + (high - low) * rng_.Uniform(); }
  uint64_t Below(uint64_t bound) { return rng_.Below(bound); }

  // ---- faults ----
  // Whether a fault that befalls messages strikes now; counted.
  bool StrikesMessage(Fault fault);
  void Count(Fault fault) { ++counters->struck[static_cast<size_t>(fault)]; }
  bool healed = false;

  // ---- network ----
  size_t OpenStream(uint32_t worker);
  Stream& stream(size_t id) { return streams_[id]; }
  // The worker's end is closed; the server notices a little later.
  void CloseByWorker(size_t stream);
  void SendUp(size_t stream, ToServer message);
  void SendDown(size_t stream, ToWorker message);
  // (stream, message); for a lost stream only messages that the ghost injector lets through.
  std::function<void(size_t, const ToServer&)> on_up;
  std::function<void(size_t, const ToWorker&)> on_down;
  std::function<void(size_t)> on_lost;  // the server notices that a stream is gone

  const SimOptions& options;
  const Model& model;
  SimCounters* const counters;
  Checker checker;

 private:
  struct Item {
    Time at;
    uint64_t sequence;
    std::function<void()> what;
    bool operator>(const Item& o) const { return at != o.at ? at > o.at : sequence > o.sequence; }
  };
  Time Arrival(Time* last);
  void DeliverUp(size_t id, const ToServer& message);

  Rng rng_;
  Time now_;
  uint64_t sequence_ = 0;
  std::priority_queue<Item, std::vector<Item>, std::greater<>> queue_;
  std::vector<Stream> streams_;
};

}  // namespace signvote::sim
