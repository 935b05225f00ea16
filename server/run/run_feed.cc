// Run: how commits reach workers.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "server/run/run.h"

namespace signvote::run {

void Run::Follow(Stream& s, Round from) {
  s.following = true;
  s.next_send = from;
  s.acknowledged = Round(0);
}

void Run::Feed(Time now, Stream& s) {
  if (!s.following) return;
  while (s.next_send < course_->told) {
    if (!course_->ring.Reaches(s.next_send)) return FellBehind(now, s);
    if (s.peer->queued_bytes() > feed_bytes_) return s.peer->NotifyWhenBelow(feed_bytes_ / 2);
    SendRound(s, course_->ring.Find(s.next_send));
    s.next_send = s.next_send.next();
  }
  CaughtUp(now, s);
}

void Run::NoteOutrun(Stream& s) {
  if (!s.following || s.outrun || s.given_up) return;
  const uint64_t behind = course_->told.value() - s.next_send.value();
  switch (StageOf(s)) {
    case Stage::kFetching:
      s.outrun = behind >= kFetchingBehind;
      break;
    case Stage::kCatchingUp:
      s.outrun = behind > 0;
      break;
    default:
      break;
  }
  if (!s.outrun) return;
  const std::string name = WorkerName(s);
  std::string text = "rounds give way to a newcomer";
  if (MayTell(now_, "way " + name, &text)) LogInfo(text, {{"worker", name}});
}

bool Run::AnyOutrun() const {
  return std::any_of(streams_.begin(), streams_.end(),
                     [](const auto& entry) { return entry.second.outrun; });
}

Duration Run::MayGiveWay(const Proposed& proposed) const {
  const auto members =
      std::count_if(proposed.seats.begin(), proposed.seats.end(),
                    [](const round::Seat& seat) { return seat.role == round::Role::kMember; });
  const Duration took = proposed.commit.opened_for;
  const Duration usual = course_->usual == Duration::zero() ? took : course_->usual;
  const Duration longest = usual + 2 * usual / std::max<int64_t>(members, 1);
  return std::clamp(longest - took, Duration::zero(), kGiveWayMax);
}

void Run::GiveWay(const Proposed& proposed) {
  const Duration wait = MayGiveWay(proposed);
  if (wait == Duration::zero()) return;
  bool wanted = false;
  for (auto& [peer, s] : streams_) {
    if (!s.outrun) continue;
    const std::string name = WorkerName(s);
    if (course_->ways.Take(name, now_).has_value()) {
      wanted = true;
      continue;
    }
    s.outrun = false;
    s.given_up = true;
    std::string text = "a newcomer is slow though rounds gave way; they wait for it no longer";
    if (MayTell(now_, "no way " + name, &text)) LogWarning(text, {{"worker", name}});
  }
  if (wanted) course_->giving_way = {.committed = proposed.commit.round, .until = now_ + wait};
}

void Run::EndGivingWay(Time now) {
  if (course_ == nullptr || !course_->giving_way.has_value()) return;
  const Round committed = course_->giving_way->committed;
  course_->giving_way.reset();
  Drive(now, round::CommitDurable{committed});
}

void Run::CaughtUp(Time now, Stream& s) {
  switch (StageOf(s)) {
    case Stage::kCatchingUp: {
      const uint64_t missing = course_->told.value() - s.acknowledged.value();
      if (missing <= 1 || s.admit.tries >= kAdmitTries) return Admit(now, s);
      if (s.admit.nonce != 0) return;
      s.admit.nonce = rng_.Next() | 1;
      s.admit.round = s.next_send;
      s.admit.sent = now;
      return s.peer->Send(PingMessage(s.admit.nonce));
    }
    case Stage::kReady:
      if (s.owed_open) SendRoundOpen(now, s);
      if (stop_.finished.has_value()) SendFinish(s);
      return;
    default:
      return;
  }
}

void Run::Admit(Time now, Stream& s) {
  s.outrun = false;
  s.admit.nonce = 0;
  roster_.SetStage(s.id, Stage::kReady, now);
  const Roster::Worker& worker = *WorkerOf(s);
  if (!std::exchange(s.in_engine, true)) {
    Drive(now, round::WorkerReady{.worker = worker.id,
                                  .incarnation = RecordOf(s).incarnation,
                                  .name = worker.name,
                                  .fetched = s.transfers.fetched});
  } else {
    // Back from a resync: the engine never took its seat away.
    SendRoundOpen(now, s);
  }
  if (stop_.finished.has_value()) SendFinish(s);
}

void Run::FellBehind(Time now, Stream& s) {
  const std::string name = WorkerName(s);
  const Stage stage = StageOf(s);
  const absl::Status late = course_->ring.CheckReaches(s.next_send);
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(
      stage == Stage::kReady ? "the worker reads too slowly: " : "the rounds outrun this worker: ",
      late.message(), " (--catch-up-bytes); join again to catch up"));
  if (stage == Stage::kCatchingUp && !s.transfers.fetched) {
    // Its own replica was too old, which one fetch mends.
    const absl::Status again = roster_.CountResync(*RecordOf(s).worker, now);
    if (again.ok()) return SendResync(now, s, "its state is older than the commits that are kept");
    status = again;
  }
  std::string text = "a worker cannot follow";
  if (MayTell(now, "behind " + name, &text)) {
    LogWarning(text, {{"worker", name}, {"reason", Describe(status)}});
  }
  if (s.transfers.call != nullptr) std::exchange(s.transfers.call, nullptr)->End(status);
  CloseStream(now, s, status);
}

void Run::SendRound(Stream& s, const std::shared_ptr<const CommitRecord>& record) {
  if (record->kind == CommitKind::kStep) {
    for (uint32_t i = 0; i < record->chunks.size(); ++i) {
      const ChunkIndex k(i);
      s.peer->SendVerdict({.round = record->round,
                           .attempt = record->attempt,
                           .chunk = k,
                           .checksum = record->chunks[i].checksum},
                          record->Chunk(k), record->ChunkOwner(k));
    }
  }
  v1::ServerMessage message = CommitMessage(*record, facts_.run_id, facts_.epoch);
  SendCommit(s, record->round, &message);
}

void Run::SendCommit(Stream& s, Round round, v1::ServerMessage* message) {
  v1::Commit& commit = *message->mutable_commit();
  commit.set_total_wire_bytes(s.moved.received + s.moved.sent);
  const ForSaves& kept = course_->for_saves;
  if (s.wants_run_state && kept.round == round && kept.state != nullptr) {
    commit.set_run_state(*kept.state);
  } else {
    commit.clear_run_state();
  }
  s.peer->Send(*message);
}

void Run::SendRoundOpen(Time now, Stream& s) {
  s.owed_open = false;
  const std::optional<round::OpenRound>& open = course_->open;
  if (!open.has_value()) return;
  const Roster::StreamRecord& record = RecordOf(s);
  const auto seat =
      std::lower_bound(open->seats.begin(), open->seats.end(), *record.worker,
                       [](const round::Seat& a, WorkerId worker) { return a.worker < worker; });
  if (seat == open->seats.end() || seat->worker != *record.worker ||
      seat->incarnation != record.incarnation) {
    return;
  }
  // One that has missed a chunk gets this round whole.
  s.live = course_->vote.tallied_chunks() == 0;
  v1::ServerMessage message = RoundOpenMessage(*open, *seat, now - course_->opened_at);
  message.mutable_round_open()->set_evaluate(evaluation_.Asks(open->round, *seat));
  s.peer->Send(message);
  if (seat->role == round::Role::kMember && !std::exchange(s.seated, true)) {
    books_.OnSeated(*record.worker, now - record.joined);
    Event(now, EventKind::kMember, {.worker = WorkerName(s), .incarnation = record.incarnation});
  }
}

void Run::SendResync(Time now, Stream& s, const std::string& reason) {
  s.live = s.owed_open = s.following = s.outrun = false;
  s.admit.nonce = 0;
  s.peer->Send(ResyncMessage(committed(), reason));
  roster_.SetStage(s.id, Stage::kFetching, now);
  const std::string name = WorkerName(s);
  if (Event(now, EventKind::kResync, {.worker = name, .reason = reason})) {
    LogWarning("worker must fetch the state again", {{"worker", name}, {"reason", reason}});
  }
}

void Run::SendFinish(Stream& s) {
  if (std::exchange(s.finish_sent, true)) return;
  s.peer->Send(FinishMessage(*stop_.finished));
}

}  // namespace signvote::run
