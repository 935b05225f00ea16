#pragma once
// A network between one server and hosts with a worker each: connections whose messages keep their
// order, as TCP's do, and that break, fall silent, and are noticed to be gone by their two ends at
// different times. Messages of different connections overtake each other.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "tests/sim/frames.h"
#include "tests/sim/timeline.h"

namespace signvote::sim {

using ConnectionId = uint64_t;

// The server's end. Never called from inside a call to the network.
class ServerEnd {
 public:
  virtual ~ServerEnd() = default;
  virtual void OnOpened(ConnectionId id) = 0;
  virtual void OnUp(ConnectionId id, UpFrame frame) = 0;
  virtual void OnRoom(ConnectionId id) = 0;
  // Nothing comes any more; `by_server`: it closed.
  virtual void OnGone(ConnectionId id, const std::string& why, bool by_server) = 0;
  // Nothing goes either. The last call about this connection.
  virtual void OnDone(ConnectionId id) = 0;
};

// A host's end.
class HostEnd {
 public:
  virtual ~HostEnd() = default;
  virtual void OnDown(ConnectionId id, DownFrame frame) = 0;
  // The last call about this connection, unless the host itself has closed it.
  virtual void OnClosed(ConnectionId id, const absl::Status& status) = 0;
};

// Ownership: refers to the ends, which must outlive it.
// Threads:   thread-compatible.
class Network {
 public:
  struct Faults {
    double delay_rate = 0;    // per message
    double garbled_rate = 0;  // per verdict chunk
  };

  Network(Timeline* timeline, Codec* codec, size_t hosts);

  // Told of what struck.
  std::function<void()> on_delay, on_garbled;
  Faults faults;
  // Bytes queued for one host beyond which a connection ends (--session-buffer-bytes).
  size_t queue_bytes_max = SIZE_MAX;

  // ---- the server
  void Serve(ServerEnd* server);
  // It is gone with all its connections; it hears of none of them any more.
  void StopServing();
  void SendDown(ConnectionId id, DownFrame frame, size_t bytes);
  size_t queued_bytes(ConnectionId id) const;
  void NotifyWhenBelow(ConnectionId id, size_t bytes);
  // OK: after what is queued; else what is queued is lost.
  void CloseByServer(ConnectionId id, absl::Status status);
  // One that was closed does not end by itself: it is broken off.
  void Cancel(ConnectionId id);

  // ---- hosts
  void Attach(size_t host, HostEnd* end) { hosts_[host].end = end; }
  // Its OnClosed() comes later when nobody serves.
  ConnectionId Dial(size_t host);
  void SendUp(ConnectionId id, UpFrame frame);
  // The host says goodbye: what it sent arrives, and its OnClosed() does not come.
  void CloseByHost(ConnectionId id);
  // REQUIRES: OnDone() was not called for it.
  size_t host_of(ConnectionId id) const { return connections_.at(id).host; }
  // When what is sent now to or from the host arrives, for calls beside the connections.
  Time Arrival(size_t host);

  // ---- faults
  // Reset: both ends notice soon, and some of what is under way is lost.
  void Break(ConnectionId id);
  // Everything is lost from now on; each end notices in its own time.
  void Silence(ConnectionId id);
  // Nothing reaches or leaves the host until then, and nothing is lost.
  void Stall(size_t host, Time until);
  // The host reads nothing until then.
  void Hang(size_t host, Time until);
  // All that was made to stall goes on.
  void Heal();

 private:
  template <typename Frame>
  struct Pipe {
    std::deque<std::pair<Time, Frame>> frames;
    Time last;             // arrival of the last one
    bool pumping = false;  // an event will look at the first
  };
  struct Down {
    DownFrame frame;
    size_t bytes = 0;
  };
  struct Connection {
    size_t host = 0;
    bool host_open = true;      // the host's end
    bool server_knows = false;  // OnOpened() was called
    bool server_open = true;    // neither OnGone() nor a close
    bool server_done = false;   // OnDone() was called
    bool silent = false;
    Pipe<UpFrame> up;
    Pipe<Down> down;
    size_t queued = 0;  // bytes of `down`
    std::optional<size_t> notify_below;
    std::optional<absl::Status> closing;  // the server's last word, behind the queue
    std::optional<Time> host_gone;        // the server hears then that the host's end is closed
  };
  struct Host {
    HostEnd* end = nullptr;
    Time stalled_until, hung_until;
  };

  Connection* Find(ConnectionId id);
  Time Latency(Time* last);
  Time Reachable(size_t host) const;
  void PumpUpAt(ConnectionId id, Time at);
  void PumpUp(ConnectionId id);
  void PumpDownAt(ConnectionId id, Time at);
  void PumpDown(ConnectionId id);
  void TellGone(ConnectionId id, std::string why, bool by_server);
  void TellDone(ConnectionId id);
  void CloseHost(ConnectionId id, const absl::Status& status);
  void Sweep(ConnectionId id);

  Timeline* const timeline_;
  Codec* const codec_;
  ServerEnd* server_ = nullptr;
  uint64_t life_ = 0;  // of the server; grows with each StopServing()
  ConnectionId next_ = 1;
  std::map<ConnectionId, Connection> connections_;
  std::vector<Host> hosts_;
};

}  // namespace signvote::sim
