#include "server/run/roster.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace signvote::run {
namespace {

constexpr size_t Index(Stage stage) { return static_cast<size_t>(stage); }
static_assert(Index(Stage::kClosing) + 1 == kStages);

constexpr uint16_t Bits(std::initializer_list<Stage> stages) {
  unsigned bits = 0;
  for (const Stage stage : stages) bits |= 1u << Index(stage);
  return static_cast<uint16_t>(bits);
}

// By the stage before, the stages that may follow.
constexpr std::array<uint16_t, kStages> kMayFollow = {
    /* kConnected */ Bits({Stage::kHeld, Stage::kWaitingState, Stage::kClosing}),
    /* kHeld */ Bits({Stage::kWaitingState, Stage::kClosing}),
    /* kWaitingState */
    Bits({Stage::kUploading, Stage::kFetching, Stage::kKeeping, Stage::kClosing}),
    /* kUploading */ Bits({Stage::kCatchingUp, Stage::kClosing}),
    /* kFetching */ Bits({Stage::kFetching, Stage::kCatchingUp, Stage::kClosing}),
    /* kKeeping */ Bits({Stage::kFetching, Stage::kCatchingUp, Stage::kClosing}),
    /* kCatchingUp */ Bits({Stage::kFetching, Stage::kReady, Stage::kClosing}),
    /* kReady */ Bits({Stage::kFetching, Stage::kClosing}),
    /* kClosing */ Bits({}),
};

double Seconds(Duration d) { return ToSeconds(d); }

Roster::Options WithDefaults(Roster::Options options) {
  if (options.strangers_max == 0) options.strangers_max = Roster::kStrangersMin;
  return options;
}

}  // namespace

std::string_view Words(Stage stage) {
  switch (stage) {
    case Stage::kConnected:
      return "connected";
    case Stage::kHeld:
      return "held";
    case Stage::kWaitingState:
      return "waiting for the initial parameters";
    case Stage::kUploading:
      return "uploading";
    case Stage::kFetching:
      return "fetching";
    case Stage::kKeeping:
      return "keeping its replica";
    case Stage::kCatchingUp:
      return "catching up";
    case Stage::kReady:
      return "ready";
    case Stage::kClosing:
      break;
  }
  return "closing";
}

bool MayFollow(Stage from, Stage to) { return (kMayFollow[Index(from)] >> Index(to) & 1u) != 0; }

Roster::Roster(Options options, const Memory& memory, Time now)
    : options_(WithDefaults(options)), next_worker_id_(memory.next_worker_id) {
  for (const Remembered& known : memory.names) {
    SIGNVOTE_CHECK(known.id.value() < next_worker_id_);
    auto worker = std::make_unique<Worker>();
    worker->id = known.id;
    worker->name = known.name;
    worker->incarnation = known.incarnation;
    worker->evicted = known.evicted;
    worker->last_seen = now;
    Worker* const raw = worker.get();
    SIGNVOTE_CHECK(by_name_.emplace(known.name, raw).second);
    SIGNVOTE_CHECK(workers_.emplace(known.id, std::move(worker)).second);
    NoteAway(*raw);
  }
}

Roster::StreamRecord& Roster::At(PeerId peer) {
  const auto it = streams_.find(peer);
  SIGNVOTE_CHECK(it != streams_.end());
  return it->second;
}

void Roster::Move(StreamRecord& stream, Stage stage, Time now) {
  SIGNVOTE_CHECK(MayFollow(stream.stage, stage));
  by_stage_[Index(stream.stage)].erase({stream.since, stream.peer});
  stream.stage = stage;
  stream.since = now;
  by_stage_[Index(stage)].insert({now, stream.peer});
}

std::vector<std::pair<PeerId, absl::Status>> Roster::Open(PeerId peer, Time now) {
  StreamRecord stream;
  stream.peer = peer;
  stream.since = stream.opened = now;
  SIGNVOTE_CHECK(streams_.emplace(peer, stream).second);
  std::set<std::pair<Time, PeerId>>& strangers = by_stage_[Index(Stage::kConnected)];
  strangers.insert({now, peer});
  std::vector<std::pair<PeerId, absl::Status>> out;
  if (strangers.size() <= options_.strangers_max) return out;
  auto oldest = strangers.begin();
  for (size_t i = strangers.size() - options_.strangers_max; i > 0; --i, ++oldest) {
    out.emplace_back(oldest->second,
                     absl::UnavailableError(absl::StrCat("more than ", options_.strangers_max,
                                                         " streams have sent no Join; try again")));
  }
  return out;
}

Roster::Answer Roster::Join(PeerId peer, const std::string& name, Time now) {
  StreamRecord& stream = At(peer);
  SIGNVOTE_CHECK(stream.stage == Stage::kConnected);
  stream.joined = now;
  Worker* const worker = FindOrAdd(name, now);
  if (worker == nullptr) {
    return absl::ResourceExhaustedError(
        "this server has given a number to every name that it can tell apart; restart it");
  }
  SIGNVOTE_CHECK(!worker->evicted);
  if (!worker->live.has_value()) return Accept(stream, *worker, now);
  if (worker->held.has_value()) {
    return absl::AlreadyExistsError(absl::StrCat("worker '", name, "' is already joining"));
  }
  stream.worker = worker->id;
  worker->held = peer;
  Move(stream, Stage::kHeld, now);
  return Held{.live = *worker->live};
}

Roster::Accepted Roster::Accept(StreamRecord& stream, Worker& worker, Time now) {
  stream.worker = worker.id;
  worker.incarnation = worker.incarnation.next();
  stream.incarnation = worker.incarnation;
  worker.live = stream.peer;
  NoteAway(worker);
  ++present_;
  Move(stream, Stage::kWaitingState, now);
  return {.peer = stream.peer, .worker = worker.id, .incarnation = worker.incarnation};
}

std::optional<std::pair<PeerId, absl::Status>> Roster::Pong(PeerId live) const {
  const StreamRecord* const stream = FindStream(live);
  if (stream == nullptr || !stream->worker.has_value()) return std::nullopt;
  const Worker& worker = *workers_.at(*stream->worker);
  if (worker.live != live || !worker.held.has_value()) return std::nullopt;
  return std::pair(*worker.held,
                   absl::AlreadyExistsError(absl::StrCat(
                       "worker '", worker.name,
                       "' is in a live session already; two workers cannot share a name")));
}

void Roster::SetStage(PeerId peer, Stage stage, Time now) {
  SIGNVOTE_CHECK(stage != Stage::kConnected && stage != Stage::kHeld && stage != Stage::kClosing);
  StreamRecord& stream = At(peer);
  // Who is accepted comes here through Join() or the end of the stream before it.
  SIGNVOTE_CHECK(stage != Stage::kWaitingState);
  Move(stream, stage, now);
}

std::optional<Roster::Departure> Roster::Close(PeerId peer, Time now) {
  StreamRecord& stream = At(peer);
  if (stream.stage == Stage::kClosing) return std::nullopt;
  const Stage stage = stream.stage;
  Move(stream, Stage::kClosing, now);
  if (!stream.worker.has_value()) return std::nullopt;
  Worker& worker = *workers_.at(*stream.worker);
  stream.worker.reset();
  Departure out{.worker = worker.id, .incarnation = stream.incarnation, .stage = stage};
  if (worker.held == peer) {
    worker.held.reset();
    return out;
  }
  SIGNVOTE_CHECK(worker.live == peer);
  out.was_live = true;
  worker.live.reset();
  --present_;
  worker.last_seen = now;
  if (const std::optional<PeerId> held = std::exchange(worker.held, std::nullopt)) {
    out.successor = Accept(At(*held), worker, now);
  } else {
    NoteAway(worker);
  }
  return out;
}

void Roster::Forget(PeerId peer) {
  const StreamRecord& stream = At(peer);
  SIGNVOTE_CHECK(stream.stage == Stage::kClosing);
  by_stage_[Index(Stage::kClosing)].erase({stream.since, peer});
  streams_.erase(peer);
}

Roster::Due Roster::Fence(Time now) {
  Due due;
  for (const auto& [since, peer] : by_stage_[Index(Stage::kConnected)]) {
    if (now - since <= options_.join_timeout) break;
    due.close.emplace_back(peer, absl::UnavailableError(absl::StrCat("no Join came within ",
                                                                     Seconds(options_.join_timeout),
                                                                     " s of the stream's start")));
  }
  for (const auto& [since, peer] : by_stage_[Index(Stage::kHeld)]) {
    if (now - since < options_.ping_timeout) break;
    const Worker& worker = *workers_.at(*FindStream(peer)->worker);
    due.close.emplace_back(*worker.live, absl::AbortedError(absl::StrCat(
                                             "a newer session of '", worker.name, "' took over")));
  }
  std::set<std::pair<Time, PeerId>>& closing = by_stage_[Index(Stage::kClosing)];
  while (!closing.empty() && now - closing.begin()->first > options_.close_timeout) {
    due.cancel.push_back(closing.begin()->second);
    closing.erase(closing.begin());
  }
  return due;
}

std::optional<Time> Roster::NextFence() const {
  std::optional<Time> next;
  const auto consider = [&](Stage stage, Duration after) {
    const auto& peers = by_stage_[Index(stage)];
    if (peers.empty()) return;
    const Time due = peers.begin()->first + after;
    next = next.has_value() ? std::min(*next, due) : due;
  };
  constexpr Duration kPast{1};  // these two wait until the time has passed
  consider(Stage::kConnected, options_.join_timeout + kPast);
  consider(Stage::kHeld, options_.ping_timeout);
  consider(Stage::kClosing, options_.close_timeout + kPast);
  return next;
}

absl::Status Roster::Evict(std::string_view name) {
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) {
    return absl::NotFoundError(absl::StrCat("no worker '", std::string(name), "' was ever seen"));
  }
  it->second->evicted = true;
  NoteAway(*it->second);
  return absl::OkStatus();
}

void Roster::SetSeated(std::vector<WorkerId> seated) {
  seated_.clear();
  seated_.insert(seated.begin(), seated.end());
}

std::vector<WorkerId> Roster::TakeForgotten() { return std::exchange(forgotten_, {}); }

absl::Status Roster::CountResync(WorkerId id, Time now) {
  const auto it = workers_.find(id);
  SIGNVOTE_CHECK(it != workers_.end());
  Worker& worker = *it->second;
  if (worker.resyncs == 0 || now - worker.resyncs_since > kResyncWindow) {
    worker.resyncs = 0;
    worker.resyncs_since = now;
  }
  if (worker.resyncs >= kResyncsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this worker had to fetch the state ", worker.resyncs, " times within ",
                     Seconds(kResyncWindow),
                     " s and never caught up; see its log, and consider a "
                     "larger --catch-up-bytes at the server"));
  }
  ++worker.resyncs;
  return absl::OkStatus();
}

const Roster::StreamRecord* Roster::FindStream(PeerId peer) const {
  const auto it = streams_.find(peer);
  return it == streams_.end() ? nullptr : &it->second;
}

const Roster::Worker* Roster::FindWorker(WorkerId worker) const {
  const auto it = workers_.find(worker);
  return it == workers_.end() ? nullptr : it->second.get();
}

const Roster::Worker* Roster::FindWorker(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

const Roster::StreamRecord* Roster::FindLive(WorkerId worker, Incarnation incarnation) const {
  const Worker* const known = FindWorker(worker);
  if (known == nullptr || !known->live.has_value()) return nullptr;
  const StreamRecord* const stream = FindStream(*known->live);
  return stream->incarnation == incarnation ? stream : nullptr;
}

std::vector<PeerId> Roster::In(Stage stage) const {
  std::vector<PeerId> out;
  out.reserve(CountIn(stage));
  for (const auto& [since, peer] : by_stage_[Index(stage)]) out.push_back(peer);
  return out;
}

std::optional<PeerId> Roster::LongestIn(Stage stage) const {
  const auto& peers = by_stage_[Index(stage)];
  if (peers.empty()) return std::nullopt;
  return peers.begin()->second;
}

size_t Roster::PresentBeside(std::string_view name) const {
  const Worker* const worker = FindWorker(name);
  return present_ - (worker != nullptr && worker->live.has_value() ? 1 : 0);
}

Roster::Memory Roster::Remember() const {
  Memory out;
  out.next_worker_id = next_worker_id_;
  out.names.reserve(workers_.size());
  for (const auto& [id, worker] : workers_) {
    out.names.push_back({.id = id,
                         .name = worker->name,
                         .incarnation = worker->incarnation,
                         .evicted = worker->evicted});
  }
  return out;
}

Roster::Worker* Roster::FindOrAdd(const std::string& name, Time now) {
  if (const auto it = by_name_.find(name); it != by_name_.end()) return it->second;
  if (next_worker_id_ == UINT32_MAX) return nullptr;
  if (workers_.size() >= options_.names_max) ForgetOldestName();
  auto worker = std::make_unique<Worker>();
  worker->id = WorkerId(next_worker_id_++);
  worker->name = name;
  worker->last_seen = now;
  Worker* const raw = worker.get();
  by_name_.emplace(name, raw);
  workers_.emplace(raw->id, std::move(worker));
  return raw;
}

void Roster::ForgetOldestName() {
  // Seats of those who are away are few, and none a round later.
  for (const auto& [last_seen, id] : away_) {
    if (seated_.contains(id)) continue;
    const auto it = workers_.find(id);
    by_name_.erase(it->second->name);
    workers_.erase(it);
    forgotten_.push_back(id);
    away_.erase({last_seen, id});
    return;
  }
}

bool Roster::IsAway(const Worker& worker) { return !worker.live.has_value() && !worker.evicted; }

void Roster::NoteAway(const Worker& worker) {
  const std::pair<Time, WorkerId> key{worker.last_seen, worker.id};
  if (IsAway(worker)) {
    away_.insert(key);
  } else {
    away_.erase(key);
  }
}

}  // namespace signvote::run
