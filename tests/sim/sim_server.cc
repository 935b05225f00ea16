#include "tests/sim/sim_server.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "server/tally/tally.h"

namespace signvote::sim {
namespace {

constexpr uint64_t kReferenceEvery = 8;  // tallies between two that the reference recomputes

}  // namespace

SimServer::SimServer(World* world) : world_(world), x_(world->model.Start()) {
  round::EngineConfig config = world->options.engine;
  config.x0_max_abs = static_cast<double>(MaxAbs(x_));
  config.step_scale_max = static_cast<double>(world->model.layout().step_scale_max());
  auto rule = MakeRule(world->options.rule);
  SIGNVOTE_CHECK(rule.ok());
  auto engine = round::Engine::Create(config, *std::move(rule), world->now());
  SIGNVOTE_CHECK(engine.ok());
  engine_ = *std::move(engine);
  world->checker.SetStart(ReplicaDigest(x_.data(), 0, kCoordinates));
  ArmTick();
}

void SimServer::Note(const round::Event& event) {
  if (const auto* lost = std::get_if<round::WorkerLost>(&event)) {
    gone_.insert({lost->worker.value(), lost->incarnation.value()});
  } else if (const auto* leaves = std::get_if<round::WorkerLeaves>(&event)) {
    gone_.insert({leaves->worker.value(), leaves->incarnation.value()});
  } else if (const auto* ready = std::get_if<round::WorkerReady>(&event)) {
    for (uint64_t older = 1; older < ready->incarnation.value(); ++older)
      gone_.insert({ready->worker.value(), older});
  } else if (const auto* evicted = std::get_if<round::EvictRequested>(&event)) {
    gone_.insert({evicted->worker.value(), incarnations_[evicted->worker.value()]});
  } else if (const auto* abstains = std::get_if<round::AbstainIn>(&event)) {
    if (open_.has_value() && abstains->round == open_->round &&
        abstains->attempt == open_->attempt) {
      abstained_.insert(abstains->worker.value());
    }
  }
}

void SimServer::Step(const round::Event& event) {
  Note(event);
  for (const round::Action& action : engine_->Step(world_->now(), event)) {
    std::visit([this](const auto& a) { Do(a); }, action);
  }
  ArmTick();
}

void SimServer::ArmTick() {
  const std::optional<Time> next = engine_->NextTick();
  if (!next.has_value() || (tick_at_.has_value() && *tick_at_ <= *next)) return;
  tick_at_ = next;
  // A real driver ticks a little late.
  const double wait = std::max(0.0, ToSeconds(*next - world_->now())) + world_->Uniform(0, 0.02);
  world_->After(wait, [this, armed = *next] {
    if (tick_at_ != armed) return;
    tick_at_.reset();
    if (const auto due = engine_->NextTick(); due.has_value() && *due <= world_->now()) {
      Step(round::Tick{});
    } else {
      ArmTick();
    }
  });
}

// ---- messages
// -------------------------------------------------------------------------------------------------

void SimServer::OnMessage(size_t stream, const ToServer& message) {
  std::visit([&](const auto& m) { On(stream, m); }, message);
}

void SimServer::OnStreamLost(size_t id) {
  Stream& stream = world_->stream(id);
  if (!stream.server_open) return;
  stream.server_open = false;
  if (stream.incarnation == 0) return;
  Step(round::WorkerLost{round::WorkerId(stream.worker), Incarnation(stream.incarnation)});
}

void SimServer::On(size_t id, const Hello& m) {
  Stream& stream = world_->stream(id);
  if (stream.incarnation != 0) return;  // a repetition
  stream.incarnation = ++incarnations_[stream.worker];
  const auto old = sessions_.find(stream.worker);
  if (old != sessions_.end() && world_->stream(old->second).server_open) {
    // The newcomer fences the old session; the engine may hear of that at once, or after the
    // newcomer is ready.
    Stream& fenced = world_->stream(old->second);
    fenced.server_open = false;
    const round::WorkerLost lost{round::WorkerId(fenced.worker), Incarnation(fenced.incarnation)};
    if (fenced.ready && !world_->healed && world_->options.on(Fault::kGhost)) {
      world_->Count(
          Fault::kGhost);  // the fenced session's greeting is processed once more, whenever
      world_->After(world_->Uniform(0, 2), [this, lost] {
        Step(round::WorkerReady{lost.worker, lost.incarnation,
                                absl::StrFormat("w%d", lost.worker.value())});
      });
    }
    if (world_->Below(2) == 0) {
      Step(lost);
    } else {
      world_->After(world_->Uniform(0, 1), [this, lost] { Step(lost); });
    }
  }
  sessions_[world_->stream(id).worker] = id;
  const bool own = m.has_replica && WithinRing(m.round);
  world_->SendDown(id, own ? State{m.round, nullptr} : Snapshot());
}

void SimServer::On(size_t id, const CaughtUp& m) {
  if (world_->stream(id).ready) return;
  if (!WithinRing(m.round)) {
    world_->SendDown(id, Snapshot());
    return;
  }
  if (m.round.value() < commits_) ++world_->counters->catch_ups;
  for (const Kept& kept : ring_) {
    if (kept.record.round >= m.round) world_->SendDown(id, CommitBits{kept.record, kept.bits});
  }
  Stream& stream = world_->stream(id);
  stream.ready = true;
  if (finished_) world_->SendDown(id, Finish{Round(commits_)});
  const uint32_t worker = stream.worker;
  Step(round::WorkerReady{round::WorkerId(worker), Incarnation(stream.incarnation),
                          absl::StrFormat("w%d", worker)});
}

void SimServer::On(size_t id, const FetchCommit& m) {
  ++world_->counters->fetches;
  if (m.round.value() >= commits_) return;
  for (const Kept& kept : ring_) {
    if (kept.record.round == m.round) {
      world_->SendDown(id, CommitBits{kept.record, kept.bits});
      return;
    }
  }
  world_->SendDown(id, Snapshot());
}

void SimServer::On(size_t id, const FetchState&) { world_->SendDown(id, Snapshot()); }

void SimServer::On(size_t id, const BallotChunk& m) {
  const Stream& stream = world_->stream(id);
  const round::WorkerId worker(stream.worker);
  const Incarnation incarnation(stream.incarnation);
  const bool current =
      open_.has_value() && m.round == open_->round && m.attempt == open_->attempt &&
      stream.server_open &&
      std::any_of(open_->seats.begin(), open_->seats.end(), [&](const round::Seat& seat) {
        return seat.worker == worker && seat.incarnation == incarnation;
      });
  if (current)
    ballots_.try_emplace({m.chunk.value(), worker.value()}, StoredBallot{m.bits, m.genuine});
  Step(round::BallotChunkIn{worker, incarnation, m.round, m.attempt, m.chunk});
}

void SimServer::On(size_t id, const Scalars& m) {
  const Stream& stream = world_->stream(id);
  Step(round::ScalarsIn{round::WorkerId(stream.worker), Incarnation(stream.incarnation), m.round,
                        m.attempt, m.scalars});
}

void SimServer::On(size_t id, const Abstain& m) {
  const Stream& stream = world_->stream(id);
  Step(round::AbstainIn{round::WorkerId(stream.worker), Incarnation(stream.incarnation), m.round,
                        m.attempt, round::AbstainReason::kNonFiniteGradient});
}

void SimServer::On(size_t id, const Leaves&) {
  const Stream& stream = world_->stream(id);
  Step(round::WorkerLeaves{round::WorkerId(stream.worker), Incarnation(stream.incarnation)});
}

void SimServer::On(size_t id, const Digest& m) {
  const Stream& stream = world_->stream(id);
  Step(round::WorkerDigestIn{round::WorkerId(stream.worker), Incarnation(stream.incarnation),
                             m.round, m.digest});
}

State SimServer::Snapshot() {
  ++world_->counters->snapshots;
  if (snapshot_ == nullptr) snapshot_ = std::make_shared<const std::vector<float>>(x_);
  return {Round(commits_), snapshot_};
}

void SimServer::Broadcast(const ToWorker& message) {
  for (const auto& [worker, id] : sessions_) {
    if (world_->stream(id).ready) world_->SendDown(id, message);
  }
}

std::optional<size_t> SimServer::StreamOf(round::WorkerId worker, Incarnation incarnation) {
  const auto it = sessions_.find(worker.value());
  if (it == sessions_.end()) return std::nullopt;
  const Stream& stream = world_->stream(it->second);
  if (stream.incarnation != incarnation.value() || !stream.server_open) return std::nullopt;
  return it->second;
}

// ---- actions
// -------------------------------------------------------------------------------------------------

void SimServer::Do(const round::OpenRound& action) {
  world_->checker.OnOpen(action);
  open_ = action;
  ballots_.clear();
  abstained_.clear();
  for (const round::Seat& seat : action.seats) {
    world_->checker.Require(!Gone(seat.worker, seat.incarnation),
                            "somebody who is gone has a seat");
  }
  for (const round::Seat& seat : action.seats) {
    if (const auto id = StreamOf(seat.worker, seat.incarnation)) {
      world_->SendDown(
          *id, Open{action.round, action.attempt, action.data_step, action.probe, seat.share});
    }
  }
}

void SimServer::Do(const round::CloseChunk& action) {
  world_->checker.OnClose(action);
  const uint32_t k = action.chunk.value();
  // Deaths and silence may not bring the vote below the quorum; abstentions may.
  uint32_t accountable = 0;
  for (const round::Seat& seat : open_->seats) {
    if (seat.role != round::Role::kMember) continue;
    uint32_t chunks = 0;
    for (uint32_t c = 0; c < kChunks; ++c)
      chunks += ballots_.contains({c, seat.worker.value()}) ? 1 : 0;
    const bool answered = chunks == kChunks || abstained_.contains(seat.worker.value());
    if (answered || !Gone(seat.worker, seat.incarnation)) ++accountable;
  }
  world_->checker.Require(accountable >= open_->quorum, "a chunk closes without its quorum");
  std::vector<const uint8_t*> ballots;
  for (const round::WorkerId voter : action.voters) {
    const auto it = ballots_.find({k, voter.value()});
    if (it == ballots_.end()) return world_->checker.Fail("a ballot is counted that never came");
    world_->checker.Require(it->second.genuine, "a repeated ballot replaced the first one");
    ballots.push_back(it->second.bits.data());
  }
  const TallyInput input{.ballots = ballots,
                         .coordinates = kChunkCoordinates,
                         .first_coordinate = k * kChunkCoordinates,
                         .seed = world_->options.seed,
                         .round = action.round};
  VerdictChunk verdict{action.round, action.attempt, action.chunk, {}};
  Tally(input, verdict.bits.data());
  if (++tallies_ % kReferenceEvery == 0) {
    ChunkBits reference{};
    TallyReference(input, reference.data());
    world_->checker.Require(reference == verdict.bits, "a verdict is not the majority");
  }
  std::copy(verdict.bits.begin(), verdict.bits.end(),
            verdict_.begin() + static_cast<ptrdiff_t>(k * verdict.bits.size()));
  Broadcast(verdict);
}

void SimServer::Do(const round::CommitRound& action) {
  const uint64_t hash = Xxh3(verdict_.data(), verdict_.size());
  const CommitRecord record{action.round, action.attempt, action.stepsize.gamma, hash,
                            action.digest_due};
  ApplyStep(world_->model.layout(), record.gamma, 0, kCoordinates, verdict_.data(), 0, x_.data());
  snapshot_.reset();
  const uint64_t digest = ReplicaDigest(x_.data(), 0, kCoordinates);
  world_->checker.OnCommit(action, hash, digest);
  if (std::count(action.counted.begin(), action.counted.end(), action.counted[0]) != kChunks) {
    ++world_->counters->partial_commits;
  }
  ring_.push_back({record, verdict_});
  if (ring_.size() > kRing) ring_.pop_front();
  ++commits_;
  Broadcast(Commit{record});
  if (action.digest_due) {
    // The applier works off the critical path.
    world_->After(world_->Uniform(0, 2), [this, round = Round(commits_), digest] {
      Step(round::MasterDigestIn{round, digest});
    });
  }
}

void SimServer::Do(const round::ChangeRole& action) {
  ++(action.role == round::Role::kObserver ? world_->counters->observers
                                           : world_->counters->members_again);
}

void SimServer::Do(const round::Disconnect& action) {
  const auto id = StreamOf(action.worker, action.incarnation);
  if (!id.has_value()) return;
  world_->SendDown(*id, Bye{});
  world_->After(0.01, [this, id = *id] { OnStreamLost(id); });
}

void SimServer::Do(const round::AskToDrain& action) {
  if (const auto id = StreamOf(action.worker, action.incarnation))
    world_->SendDown(*id, DrainNow{});
}

void SimServer::Do(const round::Resync& action) {
  ++world_->counters->resyncs;
  if (const auto id = StreamOf(action.worker, action.incarnation))
    world_->SendDown(*id, Snapshot());
}

void SimServer::Do(const round::FinishRun& action) {
  finished_ = true;
  world_->checker.Require(action.rounds.value() == commits_,
                          "the run finishes with another number of rounds");
  Broadcast(Finish{action.rounds});
}

void SimServer::Do(const round::EndRun& action) { end_ = action.status; }

void SimServer::Do(const round::Notice& action) {
  if (world_->options.trace)
    std::printf("%10.3f  %s\n", ToSeconds(world_->now() - Time{}), action.text.c_str());
}

}  // namespace signvote::sim
