#include "tests/sim/network.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/checksum.h"

namespace signvote::sim {
namespace {

constexpr double kLatencyMin = 0.001, kLatencyMax = 0.01;  // seconds
constexpr double kDelayMax = 2;
constexpr double kNoticeMin = 3, kNoticeMax = 20;  // until a silent connection is given up

absl::Status Broken() { return absl::UnavailableError("the connection broke"); }

}  // namespace

Network::Network(Timeline* timeline, Codec* codec, size_t hosts)
    : timeline_(timeline), codec_(codec), hosts_(hosts) {}

Network::Connection* Network::Find(ConnectionId id) {
  const auto it = connections_.find(id);
  return it == connections_.end() ? nullptr : &it->second;
}

Time Network::Latency(Time* last) {
  Time at = timeline_->Now() + FromSeconds(timeline_->Uniform(kLatencyMin, kLatencyMax));
  if (faults.delay_rate > 0 && timeline_->Uniform(0, 1) < faults.delay_rate) {
    on_delay();
    at = at + FromSeconds(timeline_->Uniform(0, kDelayMax));
  }
  *last = std::max(*last, at);
  return *last;
}

Time Network::Reachable(size_t host) const {
  return std::max(timeline_->Now(), hosts_[host].stalled_until);
}

Time Network::Arrival(size_t host) {
  Time last;
  return std::max(Latency(&last), hosts_[host].stalled_until);
}

// ---- the server

void Network::Serve(ServerEnd* server) {
  SIGNVOTE_CHECK(server_ == nullptr);
  server_ = server;
}

void Network::StopServing() {
  server_ = nullptr;
  ++life_;
  std::vector<ConnectionId> open;
  for (auto& [id, connection] : connections_) {
    connection.server_open = false;
    connection.server_done = true;
    open.push_back(id);
  }
  for (const ConnectionId id : open) {
    if (Find(id)->silent) continue;  // its host notices in its own time
    const Time at = timeline_->Now() + FromSeconds(timeline_->Uniform(kLatencyMin, kLatencyMax));
    timeline_->At(at, [this, id] { CloseHost(id, Broken()); });
  }
  for (const ConnectionId id : open) Sweep(id);
}

void Network::SendDown(ConnectionId id, DownFrame frame, size_t bytes) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->server_open || c->silent || !c->host_open) return;
  if (c->queued > 0 && c->queued + bytes > queue_bytes_max) {
    CloseByServer(id, absl::ResourceExhaustedError("the worker reads too slowly"));
    return;
  }
  if (faults.garbled_rate > 0 && std::holds_alternative<VoteFrame>(frame) &&
      timeline_->Uniform(0, 1) < faults.garbled_rate) {
    on_garbled();
    VoteFrame& vote = std::get<VoteFrame>(frame);
    auto bits = std::make_shared<std::vector<uint8_t>>(vote.payload.begin(), vote.payload.end());
    for (uint8_t& byte : *bits) byte = static_cast<uint8_t>(byte ^ 1);
    vote.payload = *bits;
    vote.checksum = Xxh3(vote.payload.data(), vote.payload.size());
    vote.owner = std::move(bits);
  }
  const Time at = Latency(&c->down.last);
  c->queued += bytes;
  c->down.frames.emplace_back(at, Down{std::move(frame), bytes});
  PumpDownAt(id, at);
}

size_t Network::queued_bytes(ConnectionId id) const {
  const auto it = connections_.find(id);
  return it == connections_.end() ? 0 : it->second.queued;
}

void Network::NotifyWhenBelow(ConnectionId id, size_t bytes) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->server_open) return;
  c->notify_below = bytes;
  if (c->queued <= bytes) PumpDownAt(id, timeline_->Now());
}

void Network::CloseByServer(ConnectionId id, absl::Status status) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->server_open) return;
  TellGone(id, std::string(status.message()), !status.ok() && !absl::IsCancelled(status));
  if (!status.ok()) {
    c->down.frames.clear();
    c->queued = 0;
  }
  c->closing = std::move(status);
  if (c->host_open) {
    PumpDownAt(id, Latency(&c->down.last));
  } else {
    TellDone(id);
  }
}

void Network::Cancel(ConnectionId id) {
  Connection* const c = Find(id);
  if (c == nullptr) return;
  if (!c->silent && c->host_open) {
    timeline_->At(Arrival(c->host), [this, id] { CloseHost(id, Broken()); });
  }
  if (c->server_open) TellGone(id, "cancelled", true);
  TellDone(id);
}

// ---- hosts

ConnectionId Network::Dial(size_t host) {
  const ConnectionId id = next_++;
  Connection& c = connections_[id];
  c.host = host;
  if (server_ == nullptr) {
    c.server_open = false;
    c.server_done = true;
    timeline_->At(Arrival(host),
                  [this, id] { CloseHost(id, absl::UnavailableError("nobody listens")); });
    return id;
  }
  PumpUpAt(id, Latency(&c.up.last));
  return id;
}

void Network::SendUp(ConnectionId id, UpFrame frame) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->host_open || c->silent) return;
  const Time at = Latency(&c->up.last);
  c->up.frames.emplace_back(at, std::move(frame));
  PumpUpAt(id, at);
}

void Network::CloseByHost(ConnectionId id) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->host_open) return;
  c->host_open = false;
  c->down.frames.clear();
  c->queued = 0;
  if (!c->silent) {
    c->host_gone = Latency(&c->up.last);
    PumpUpAt(id, *c->host_gone);
  }
  Sweep(id);
}

// ---- faults

void Network::Break(ConnectionId id) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->host_open || c->silent) return;
  if (timeline_->OneIn(2)) {
    c->up.frames.clear();  // the server hears of the end before what was under way
    c->up.last = timeline_->Now();
  }
  c->host_gone = Latency(&c->up.last);
  PumpUpAt(id, *c->host_gone);
  c->down.frames.clear();
  c->queued = 0;
  timeline_->After(0.0, [this, id] { CloseHost(id, Broken()); });
}

void Network::Silence(ConnectionId id) {
  Connection* const c = Find(id);
  if (c == nullptr || c->silent) return;
  c->silent = true;
  c->up.frames.clear();
  timeline_->After(timeline_->Uniform(kNoticeMin, kNoticeMax), [this, id] {
    Connection* const gone = Find(id);
    if (gone == nullptr || server_ == nullptr) return;
    if (gone->server_open) TellGone(id, "nothing is heard of the worker", false);
    TellDone(id);
  });
  timeline_->After(timeline_->Uniform(kNoticeMin, kNoticeMax),
                   [this, id] { CloseHost(id, Broken()); });
}

void Network::Stall(size_t host, Time until) {
  hosts_[host].stalled_until = std::max(hosts_[host].stalled_until, until);
}

void Network::Hang(size_t host, Time until) {
  hosts_[host].hung_until = std::max(hosts_[host].hung_until, until);
}

void Network::Heal() {
  faults = {};
  for (Host& host : hosts_) host.stalled_until = host.hung_until = Time{};
  for (auto& [id, c] : connections_) {
    // What waits for a host that was out of reach looks again now; the later look finds nothing.
    if (!c.up.frames.empty() || c.host_gone) timeline_->After(0.0, [this, id = id] { PumpUp(id); });
    if (!c.down.frames.empty()) timeline_->After(0.0, [this, id = id] { PumpDown(id); });
  }
}

// ---- what happens by itself

void Network::PumpUpAt(ConnectionId id, Time at) {
  Connection* const c = Find(id);
  if (c->up.pumping) return;
  c->up.pumping = true;
  timeline_->At(at, [this, id] { PumpUp(id); });
}

void Network::PumpUp(ConnectionId id) {
  Connection* c = Find(id);
  if (c == nullptr) return;
  c->up.pumping = false;
  if (server_ == nullptr || c->server_done) return;
  const Time now = timeline_->Now();
  if (const Time reachable = Reachable(c->host); reachable > now) return PumpUpAt(id, reachable);
  if (!c->server_knows && !c->silent) {
    c->server_knows = true;
    server_->OnOpened(id);
    c = Find(id);
  }
  while (c != nullptr && !c->up.frames.empty() && c->up.frames.front().first <= now) {
    UpFrame frame = std::move(c->up.frames.front().second);
    c->up.frames.pop_front();
    if (!c->server_open) continue;
    absl::StatusOr<UpFrame> passed = codec_->Pass(std::move(frame));
    if (passed.ok()) {
      server_->OnUp(id, *std::move(passed));
    } else {
      CloseByServer(id, passed.status());
    }
    c = Find(id);
  }
  if (c == nullptr) return;
  if (!c->up.frames.empty()) return PumpUpAt(id, c->up.frames.front().first);
  if (!c->host_gone) return;
  if (*c->host_gone > now) return PumpUpAt(id, *c->host_gone);
  if (c->server_open) TellGone(id, "the connection broke", false);
  TellDone(id);
}

void Network::PumpDownAt(ConnectionId id, Time at) {
  Connection* const c = Find(id);
  if (c->down.pumping) return;
  c->down.pumping = true;
  timeline_->At(at, [this, id] { PumpDown(id); });
}

void Network::PumpDown(ConnectionId id) {
  Connection* c = Find(id);
  if (c == nullptr) return;
  c->down.pumping = false;
  if (c->silent) return;
  const Time now = timeline_->Now();
  const Host& host = hosts_[c->host];
  if (const Time reads = std::max(host.stalled_until, host.hung_until); reads > now) {
    return PumpDownAt(id, reads);
  }
  while (c != nullptr && c->host_open && !c->down.frames.empty() &&
         c->down.frames.front().first <= now) {
    Down down = std::move(c->down.frames.front().second);
    c->down.frames.pop_front();
    c->queued -= down.bytes;
    absl::StatusOr<DownFrame> passed = codec_->Pass(std::move(down.frame));
    SIGNVOTE_CHECK(passed.ok());  // the server's own encoding
    hosts_[c->host].end->OnDown(id, *std::move(passed));
    c = Find(id);
  }
  if (c == nullptr || !c->host_open) return;
  if (c->notify_below && c->queued <= *c->notify_below && c->server_open && server_ != nullptr) {
    c->notify_below.reset();
    server_->OnRoom(id);
    c = Find(id);
    if (c == nullptr) return;
  }
  if (!c->down.frames.empty()) return PumpDownAt(id, c->down.frames.front().first);
  if (!c->closing) return;
  if (c->down.last > now) return PumpDownAt(id, c->down.last);
  const absl::Status status = *c->closing;
  TellDone(id);
  CloseHost(id, status);
}

void Network::TellGone(ConnectionId id, std::string why, bool by_server) {
  Connection* const c = Find(id);
  c->server_open = false;
  if (!c->server_knows) return;
  // Never from inside a call of the server's own.
  timeline_->After(0.0, [this, life = life_, id, why = std::move(why), by_server] {
    if (life_ == life) server_->OnGone(id, why, by_server);
  });
}

void Network::TellDone(ConnectionId id) {
  Connection* const c = Find(id);
  if (c == nullptr || c->server_done) return;
  c->server_done = true;
  if (c->server_knows) {
    timeline_->After(0.0, [this, life = life_, id] {
      if (life_ == life) server_->OnDone(id);
    });
  }
  Sweep(id);
}

void Network::CloseHost(ConnectionId id, const absl::Status& status) {
  Connection* const c = Find(id);
  if (c == nullptr || !c->host_open) return;
  c->host_open = false;
  HostEnd* const end = hosts_[c->host].end;
  Sweep(id);
  end->OnClosed(id, status);
}

void Network::Sweep(ConnectionId id) {
  const Connection* const c = Find(id);
  if (c != nullptr && c->server_done && !c->host_open) connections_.erase(id);
}

}  // namespace signvote::sim
