// Run: rounds, from the ballots to the commit.

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status.h"
#include "server/run/run.h"
#include "server/stepsize/robust_mean.h"

namespace signvote::run {
namespace {

// The usual length of a round is a mean over about so many.
constexpr int kUsualOver = 8;

}  // namespace

// ---- what streams bring -------------------------------------------------------------------------

void Run::On(Time now, Stream& s, BallotIn& in) {
  if (!s.in_engine) return;
  const Roster::StreamRecord& record = RecordOf(s);
  Drive(now,
        round::BallotChunkIn{*record.worker, record.incarnation, in.round, in.attempt, in.chunk});
}

void Run::On(Time now, Stream& s, ScalarsIn& in) {
  if (!s.in_engine) return;
  const Roster::StreamRecord& record = RecordOf(s);
  // The first ones stand, as those of the ballot do.
  if (IsOpen(in.round, in.attempt)) course_->times.try_emplace(*record.worker, in.times);
  if (in.held_out.has_value()) TakeHeldOut(now, s, *in.held_out);
  // A number of microseconds that no Duration holds is none.
  const bool told = in.times.compute_us <= static_cast<uint64_t>(Duration::max().count()) / 1000;
  Drive(now, round::ScalarsIn{*record.worker, record.incarnation, in.round, in.attempt,
                              std::move(in.scalars),
                              std::chrono::microseconds(told ? in.times.compute_us : 0)});
}

void Run::On(Time now, Stream& s, AbstainIn& in) {
  if (!s.in_engine) return;
  const Roster::StreamRecord& record = RecordOf(s);
  if (IsOpen(in.round, in.attempt)) books_.OnAbstain(*record.worker, Words(in.reason));
  Drive(now, round::AbstainIn{*record.worker, record.incarnation, in.round, in.attempt, in.reason});
}

void Run::On(Time now, Stream& s, DigestIn& in) {
  // Of one that was told to fetch the state again it is of the replica that it gives up.
  if (!s.in_engine || StageOf(s) == Stage::kFetching) return;
  const Roster::StreamRecord& record = RecordOf(s);
  // Once a round: the log's size is not for a worker to decide.
  if (in.round > s.digest_logged && in.round <= committed()) {
    s.digest_logged = in.round;
    books_.OnDigest(At(now), *record.worker, in.round, in.digest);
  }
  Drive(now, round::WorkerDigestIn{*record.worker, record.incarnation, in.round, in.digest});
}

void Run::TakeHeldOut(Time now, const Stream& s, const Evaluation::Measured& measured) {
  const WorkerId worker = *RecordOf(s).worker;
  const Evaluation::Verdict verdict = evaluation_.OnMeasured(worker, measured, committed());
  if (verdict == Evaluation::Verdict::kKnown) return;
  if (verdict == Evaluation::Verdict::kRefused) {
    std::string text =
        "a held-out loss is left out: no number, or of other windows than joined with";
    const std::string name = WorkerName(s);
    if (MayTell(now, "held out " + name, &text)) LogWarning(text, {{"worker", name}});
    return;
  }
  const bool own = verdict == Evaluation::Verdict::kItsOwn;
  const std::vector<HeldOut>& before = books_.history().held_out();
  if (!own && !before.empty() && before.back().windows != measured.windows) {
    LogWarning("the held-out loss is of other windows from now on: do not compare it with the last",
               {{"worker", WorkerName(s)}, {"round", measured.round.value()}});
  }
  books_.OnHeldOut(worker, {.loss = measured.loss,
                            .error = measured.error,
                            .round = measured.round,
                            .windows = measured.windows,
                            .own = own});
}

bool Run::IsOpen(Round round, Attempt attempt) const {
  const std::optional<round::OpenRound>& open = course_->open;
  return open.has_value() && open->round == round && open->attempt == attempt;
}

// ---- what the helpers answer --------------------------------------------------------------------

void Run::On(Time now, const ChunkTallied& tallied) {
  if (course_ == nullptr) return;
  if (course_->vote.Take(tallied)) {
    const PayloadPlan& plan = course_->vote.plan();
    const std::span<const uint8_t> payload(tallied.payload.get(),
                                           plan.Bytes(tallied.chunk, tallied.counted));
    const VerdictHeader header{.round = tallied.round,
                               .attempt = tallied.attempt,
                               .chunk = tallied.chunk,
                               .checksum = tallied.checksum};
    for (auto& [peer, s] : streams_) {
      if (s.live) s.peer->SendVerdict(header, payload, tallied.payload);
    }
    if (keeps_run()) {
      parts_.durability->NoteChunk(
          {.round = tallied.round,
           .attempt = tallied.attempt,
           .chunk = tallied.chunk,
           .sum = {.counted = tallied.counted, .checksum = tallied.checksum},
           .payload = payload,
           .owner = tallied.payload});
    }
  }
  Drive(now, round::ChunkTallied{.round = tallied.round,
                                 .attempt = tallied.attempt,
                                 .chunk = tallied.chunk,
                                 .counted = tallied.counted,
                                 .checksum = tallied.checksum});
}

void Run::On(Time now, const Applied& applied) {
  course_->pipeline->OnApplied(applied);
  books_.OnApplied(At(now), {.next_round = applied.next_round,
                             .digest = applied.digest,
                             .seconds = ToSeconds(applied.took)});
  TellRoom();
  if (applied.digest.has_value()) {
    LogInfo("master replica",
            {{"round", applied.next_round.value()},
             {"digest", absl::StrCat(absl::Hex(*applied.digest, absl::kZeroPad16))}});
    course_->events.push_back(round::MasterDigestIn{applied.next_round, *applied.digest});
  }
  Drive(now);
}

void Run::TellRoom() {
  const bool room = course_->pipeline->CanPropose();
  if (std::exchange(course_->room, room) != room)
    course_->events.push_back(round::ProposalRoom{room});
}

// ---- the engine ---------------------------------------------------------------------------------

void Run::Drive(Time now, round::EngineEvent event) {
  if (course_->driving || !course_->events.empty()) {
    course_->events.push_back(std::move(event));
  } else {
    // Nearly always: straight through, not by way of the queue.
    now_ = now;
    course_->driving = true;
    Step(now, event);
    course_->driving = false;
  }
  Drive(now);
}

void Run::Step(Time now, const round::EngineEvent& event) {
  const round::Actions actions = course_->engine->Step(now, event);
  for (const round::Action& action : actions) {
    std::visit([this, now](const auto& a) { Execute(now, a); }, action);
  }
}

void Run::Drive(Time now) {
  now_ = now;
  if (course_->driving) return;
  course_->driving = true;
  do {
    while (!course_->events.empty()) {
      const round::EngineEvent next = std::move(course_->events.front());
      course_->events.pop_front();
      Step(now, next);
    }
    AfterCommits(now);
  } while (!course_->events.empty());
  course_->driving = false;
}

void Run::Execute(Time now, const round::OpenRound& open) {
  Course& c = *course_;
  NoteStatistics();
  c.open = open;
  c.opened_at = now;
  c.times.clear();
  if (open.reopening) {
    const std::string reason = absl::StrCat("attempt ", open.attempt.value());
    Event(now, EventKind::kReopened, {.reason = reason});
  }
  if (open.x0_over && !std::exchange(c.x0_dropped, true)) parts_.host->DropX0From(open.round);
  for (auto& [peer, s] : streams_) s.live = s.owed_open = false;
  std::vector<WorkerId> seated;
  std::vector<OpenVote::Voter> voters;
  std::vector<round::Seat> in_time;
  std::vector<std::pair<Stream*, bool>> told;  // and whether it is behind
  seated.reserve(open.seats.size());
  for (const round::Seat& seat : open.seats) {
    seated.push_back(seat.worker);
    Stream* s = FindLive(seat.worker, seat.incarnation);
    if (s == nullptr) continue;
    voters.push_back({.worker = seat.worker, .slots = s->slots});
    if (StageOf(*s) != Stage::kReady) continue;
    const bool behind = s->next_send < open.round ||
                        s->peer->queued_bytes() > options_.model.sizes.session_buffer_bytes;
    told.emplace_back(s, behind);
    if (!behind) in_time.push_back(seat);
  }
  roster_.SetSeated(std::move(seated));
  // Who has voted in an attempt of this round hears no more than that its ballot is wanted again.
  if (!open.reopening) AskForEvaluation(now, open.round, in_time);
  c.vote.Open(open.round, open.attempt, std::move(voters));
  for (const auto& [s, behind] : told) {
    // One that has not taken what came before could not vote yet, and gets the round whole.
    if (behind) {
      s->owed_open = true;
      s->peer->NotifyWhenBelow(feed_bytes_ / 2);
    } else {
      SendRoundOpen(now, *s);
    }
  }
}

void Run::AskForEvaluation(Time now, Round round, std::span<const round::Seat> seats) {
  if (!evaluation_.Due(round, seats)) return;
  const std::optional<WorkerId> before = evaluation_.evaluator();
  const WorkerId asked = evaluation_.Ask(round, seats, course_->engine->View(now).workers);
  if (asked == before) return;
  std::string text = "a worker measures the held-out loss from now on";
  if (MayTell(now, "evaluator", &text)) {
    LogInfo(text, {{"worker", roster_.FindWorker(asked)->name}, {"round", round.value()}});
  }
}

void Run::Execute(Time, const round::CloseChunk& close) {
  course_->vote.Close(close.chunk, close.voters);
}

void Run::Execute(Time now, const round::CommitRound& commit) {
  Course& c = *course_;
  CommitRecord record{.round = commit.round,
                      .attempt = commit.attempt,
                      .kind = commit.kind,
                      .data_step = commit.data_step,
                      .next_data_step = commit.next_data_step,
                      .main_round = commit.main_rounds,
                      .run_done = commit.run_done,
                      .gamma = commit.gamma,
                      .rho = commit.rho,
                      .digest_due = commit.digest_due,
                      .loss = commit.loss,
                      .voters = static_cast<uint32_t>(commit.voters.size()),
                      .reason = commit.reason};
  Duration tally_time{};
  std::vector<OpenVote::Result::Counted> counted;
  if (commit.kind == CommitKind::kStep) {
    OpenVote::Result result = c.vote.Finish();
    counted = std::move(result.counted);
    record.chunks = std::move(result.chunks);
    record.payload = WholePayload(c.vote.plan(), std::move(result.payload));
    tally_time = result.tally_time;
    c.counted = true;
    if (commit.local.plan.steps > 1) {
      // The stepsize is in the lengths that workers say.
      record.scales = commit.local.scales;
      record.decay_step = commit.local.decay_step;
      record.gamma = 1;
    }
    // What error feedback signs is applied at the length that it was signed at: γ is in it.
    if (options_.direction.error_feedback) {
      record.scales = RobustLengths(commit.scalars, model_->layout().tensors().size());
      record.decay_step = record.gamma;
      record.gamma = 1;
    }
  } else {
    c.vote.Abandon();
    if (commit.kind == CommitKind::kRewind) c.vote.ForgetOptimizer();
  }
  c.for_saves = {.round = commit.round, .state = StateForSaves()};
  absl::StatusOr<std::shared_ptr<const CommitRecord>> made =
      MakeCommitRecord(std::move(record), c.vote.plan(), model_->layout().tensors().size());
  // The engine only commits what a rule may decide.
  SIGNVOTE_CHECK(made.ok());
  c.proposed = {.commit = commit,
                .seats = c.open.has_value() ? std::exchange(c.open, std::nullopt)->seats
                                            : std::vector<round::Seat>(),
                .times = {c.times.begin(), c.times.end()},
                .tally_time = tally_time,
                .decided = clock_->Now(),
                .payload_hash = (*made)->payload_hash};
  if (c.vote.scalars().d > 0)
    c.proposed->commit.rule.state.emplace_back("dense_d", c.vote.scalars().d);
  now_ = now;
  if (keeps_run()) NoteState(counted);
  c.pipeline->Propose(*std::move(made));
}

void Run::Publish(const std::shared_ptr<const CommitRecord>& record) {
  Course& c = *course_;
  SIGNVOTE_CHECK(c.proposed.has_value() && c.proposed->commit.round == record->round);
  c.told = record->round.next();
  c.main_rounds = record->main_round;
  v1::ServerMessage message = CommitMessage(*record, facts_.run_id, facts_.epoch);
  for (auto& [peer, s] : streams_) {
    if (!std::exchange(s.live, false) || s.next_send != record->round) continue;
    SendCommit(s, record->round, &message);
    s.next_send = record->round.next();
    CrashPoint("commit.told-to-one");
  }
  Published done{.proposed = *std::exchange(c.proposed, std::nullopt)};
  done.took = clock_->Now() - done.proposed.decided;
  if (AnyOutrun() && !record->run_done && !stop_.requested) GiveWay(done.proposed);
  c.published.push_back(std::move(done));
  // Room is told before the commit behind which a round might open.
  TellRoom();
  if (!c.giving_way.has_value()) c.events.push_back(round::CommitDurable{record->round});
}

void Run::AfterCommits(Time now) {
  if (course_ == nullptr || course_->published.empty()) return;
  std::vector<Published> published = std::exchange(course_->published, {});
  for (const Published& done : published) {
    const Proposed& p = done.proposed;
    books_.OnCommit(At(now), p.commit,
                    {.seats = p.seats,
                     .times = p.times,
                     .tally_seconds = ToSeconds(p.tally_time),
                     .commit_seconds = ToSeconds(done.took),
                     .payload_hash = p.payload_hash});
  }
  TellRoles(now);
  ForgetNames();
  bool undisturbed = true;
  for (auto& [peer, s] : streams_) {
    CountBytes(s);
    if (s.following && s.next_send < course_->told) {
      Feed(now, s);
      NoteOutrun(s);
      undisturbed = false;
    }
    if (s.transfers.call != nullptr) undisturbed = false;
  }
  if (!undisturbed) return;
  for (const Published& done : published) {
    const Duration took = done.proposed.commit.opened_for;
    Duration& usual = course_->usual;
    usual = usual == Duration::zero() ? took : usual + (took - usual) / kUsualOver;
  }
}

void Run::NoteStatistics() {
  if (!std::exchange(course_->counted, false)) return;
  books_.OnStatistics(course_->vote.statistics(), model_->payloads());
}

void Run::Execute(Time now, const round::Disconnect& disconnect) {
  Stream* s = FindLive(disconnect.worker, disconnect.incarnation);
  if (s == nullptr) return;
  s->in_engine = false;  // the engine need not be told of what it has decided
  CloseStream(now, *s, disconnect.status);
}

void Run::Execute(Time, const round::AskToDrain& ask) {
  if (Stream* s = FindLive(ask.worker, ask.incarnation)) s->peer->Send(DrainMessage());
}

void Run::Execute(Time now, const round::Resync& resync) {
  Stream* s = FindLive(resync.worker, resync.incarnation);
  if (s == nullptr || StageOf(*s) == Stage::kFetching) return;
  if (const absl::Status status = roster_.CountResync(resync.worker, now); !status.ok()) {
    return CloseStream(now, *s, status);
  }
  SendResync(now, *s, absl::StrCat("its replica differs after round ", resync.round.value()));
}

void Run::Execute(Time now, const round::RoleChanged& change) {
  const Roster::Worker* worker = roster_.FindWorker(change.worker);
  if (worker == nullptr) return;
  const bool with_commit = course_->proposed.has_value() || !course_->published.empty();
  course_->roles.push_back({change.role, worker->name, change.reason});
  if (!with_commit) TellRoles(now);
}

void Run::TellRoles(Time now) {
  for (const RoleTold& told : std::exchange(course_->roles, {})) {
    Event(now, told.role == round::Role::kObserver ? EventKind::kObserver : EventKind::kMember,
          {.worker = told.worker, .reason = told.reason});
  }
}

void Run::Execute(Time now, const round::PauseSet& pause) {
  if (std::exchange(stop_.paused, pause.paused) == pause.paused) return;
  if (keeps_run()) parts_.durability->NotePause(pause.paused);
  Event(now, pause.paused ? EventKind::kPaused : EventKind::kResumed, {});
}

void Run::Execute(Time now, const round::FinishRun& finish) {
  NoteStatistics();
  stop_.finished = finish.rounds;
  LogInfo("the last round is committed", {{"rounds", finish.rounds.value()}});
  Event(now, EventKind::kFinished, {});
  for (auto& [peer, s] : streams_) {
    if (StageOf(s) == Stage::kReady && s.next_send == course_->told) SendFinish(s);
  }
}

void Run::Execute(Time now, const round::EndRun& end) { End(now, end.status); }

void Run::Execute(Time now, const round::Notice& notice) {
  std::string text = notice.text;
  if (notice.of.has_value() && !MayTell(now, absl::StrCat("notice ", notice.of->value()), &text)) {
    return;
  }
  switch (notice.level) {
    case round::NoticeLevel::kInfo:
      return LogInfo(text);
    case round::NoticeLevel::kWarning:
      return LogWarning(text);
    case round::NoticeLevel::kError:
      return LogError(text);
  }
}

}  // namespace signvote::run
