#include "server/round/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "server/round/notices.h"
#include "server/stepsize/local_lengths.h"

namespace signvote::round {
namespace {

// Openings of one round for want of ballots; then it closes without a step, or waits for the silent.
constexpr uint32_t kReopeningsMax = 3;
// How long what was closed at the last moment may take to be tallied.
constexpr Duration kTallyGrace = std::chrono::seconds(2);
// How long a stop waits for the commit that it found, or made, to become durable.
constexpr Duration kStopCommitGrace = std::chrono::seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineConfig config,
                                                       std::unique_ptr<StepsizeRule> rule,
                                                       const EngineState& state, Time now) {
  if (absl::Status status = ValidateConfig(config); !status.ok()) return status;
  absl::StatusOr<Course> course = Course::Make(config, std::move(rule), state.course);
  if (!course.ok()) return course.status();
  return std::unique_ptr<Engine>(new Engine(config, *std::move(course), state, now));
}

Engine::Engine(EngineConfig config, Course course, const EngineState& state, Time now)
    : config_(config),
      course_(std::move(course)),
      members_(config_, state),
      now_(now),
      phase_(state.paused ? Phase::kPaused : Phase::kWaitingForWorkers),
      round_(state.round),
      waiting_{.since = now, .returning = {}, .returning_until = now + config.return_wait},
      paused_(state.paused) {
  if (config_.return_wait == Duration::zero() || state.round == Round(0)) return;
  for (const WorkerState& worker : state.workers)
    if (!worker.evicted && worker.last_seen == state.round) waiting_.returning.insert(worker.id);
}

Actions Engine::Step(Time now, const EngineEvent& event) {
  if (phase_ == Phase::kEnded) return {};
  now_ = std::max(now_, now);
  std::visit([this](const auto& e) { On(e); }, event);
  return std::exchange(out_, {});
}

std::optional<Time> Engine::NextTick() const {
  switch (phase_) {
    case Phase::kWaitingForWorkers: {
      if (Over()) return waiting_.since;
      const Time until = waiting_.since + config_.wait_timeout;
      return waiting_.returning.empty() ? until : std::min(until, waiting_.returning_until);
    }
    case Phase::kRoundOpen: {
      const AttemptPlan& plan = open_->plan();
      Time next = attempt_until_;
      if (plan.deadline.has_value() && !open_->deadline_passed()) {
        next = std::min(next, *plan.deadline);
      }
      if (open_->standing() == Standing::kTallied) next = std::min(next, ScalarsUntil());
      if (stop_until_.has_value()) next = std::min(next, *stop_until_);
      return next;
    }
    case Phase::kCommitting:
      return stop_until_;
    case Phase::kBackingOff:
      return std::min(back_off_until_, *stepless_since_ + config_.wait_timeout);
    case Phase::kFinishing:
      return finish_until_;
    case Phase::kWaitingForRoom:
    case Phase::kPaused:
    case Phase::kEnded:
      break;
  }
  return std::nullopt;
}

EngineView Engine::View(Time now) const {
  EngineView view;
  view.phase = phase_;
  view.round = round_;
  view.attempt = attempt_;
  view.data_step = course_.data_step();
  view.main_rounds = course_.main_rounds();
  view.minibatches = course_.minibatches();
  view.race = course_.race();
  view.workers = members_.View();
  view.totals = members_.totals();
  if (!open_.has_value()) return view;
  if (open_->plan().deadline.has_value()) {
    view.deadline_left = std::max(Duration{0}, *open_->plan().deadline - now);
  }
  for (MemberView& worker : view.workers) {
    const std::optional<uint32_t> seat = open_->Find(worker.worker, worker.incarnation);
    if (!seat.has_value()) continue;
    const SeatRecord& record = open_->record(*seat);
    worker.member_of_open_round = record.member && record.presence == Presence::kHere;
  }
  return view;
}

EngineState Engine::State() const {
  SIGNVOTE_CHECK(phase_ != Phase::kRoundOpen);
  EngineState state;
  state.round = round_;
  state.course = course_.State();
  state.paused = paused_;
  members_.Save(round_, state);
  return state;
}

// ---- workers come and go

void Engine::On(const WorkerArriving&) {
  if (phase_ == Phase::kWaitingForWorkers) waiting_.since = now_;
}

void Engine::On(const WorkerReady& e) {
  const bool running = phase_ != Phase::kWaitingForWorkers && members_.ready() > 0 &&
                       (round_ != Round(0) || open_.has_value());
  // Who brings its replica along brings its direction's state as well, as far as that had come.
  std::optional<uint32_t> warm_in;
  if (!running)
    warm_in = 0;
  else if (e.fetched)
    warm_in = config_.warm_in_rounds;
  const Members::Joined result = members_.Join(e, warm_in, round_, out_);
  if (result.replaced.has_value()) {
    // The older incarnation may have been the last one that was waited for.
    AfterDeparture(e.worker, *result.replaced, Presence::kGone);
  }
  if (!result.joined) return;
  waiting_.returning.erase(e.worker);
  if (phase_ == Phase::kWaitingForWorkers) {
    waiting_.since = now_;
    Advance();
  } else if (phase_ == Phase::kRoundOpen && open_->deadline_passed() &&
             open_->standing() == Standing::kCounting) {
    ReopenForTheReady();
  }
}

void Engine::On(const WorkerLost& e) {
  Worker* w = members_.Live(e.worker, e.incarnation);
  if (w == nullptr) return;
  members_.Lose(e.worker, *w, round_, out_);
  AfterDeparture(e.worker, e.incarnation, Presence::kGone);
}

void Engine::On(const WorkerLeaves& e) {
  Worker* w = members_.Live(e.worker, e.incarnation);
  if (w == nullptr || w->leaving) return;
  w->leaving = true;
  Note(NoticeLevel::kInfo, absl::StrFormat("%s leaves in round %d", w->name, round_.value()),
       e.worker);
  AfterDeparture(e.worker, e.incarnation, Presence::kLeaving);
}

void Engine::On(const DrainRequested& e) {
  const Worker* w = members_.Find(e.worker);
  if (w == nullptr || !w->connected) {
    Note(NoticeLevel::kWarning,
         absl::StrFormat("cannot drain worker number %d: it is not connected", e.worker.value()));
    return;
  }
  out_.push_back(AskToDrain{e.worker, w->incarnation});
}

void Engine::On(const EvictRequested& e) {
  const std::optional<Incarnation> gone = members_.Evict(e.worker, round_, out_);
  if (gone.has_value()) AfterDeparture(e.worker, *gone, Presence::kGone);
  NoLongerAwaited(e.worker);
}

void Engine::AfterDeparture(WorkerId worker, Incarnation incarnation, Presence presence) {
  digests_.Forget(worker);
  if (open_.has_value()) {
    if (const auto seat = open_->Find(worker, incarnation)) open_->SetPresence(*seat, presence);
  }
  CheckDigests();
  if (phase_ == Phase::kFinishing) return CheckFinished();
  Progress();
}

// ---- ballots

template <typename Message>
std::optional<uint32_t> Engine::SeatFor(const Message& e) const {
  if (e.round != round_ || e.attempt != attempt_ || !open_.has_value()) return std::nullopt;
  return open_->Find(e.worker, e.incarnation);
}

void Engine::On(const BallotChunkIn& e) {
  const std::optional<uint32_t> seat = SeatFor(e);
  if (!seat.has_value()) {
    Worker* w = members_.Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    if (e.round >= round_) return Stale();
    const std::optional<Time> opened = openings_.Find(e.round);
    const bool first = opened.has_value() && e.attempt == Attempt(0);
    return members_.AddLateChunk(*w, e.round, first ? std::optional(now_ - *opened) : std::nullopt);
  }
  if (open_->plan().local.is_silent()) return Stale();  // nobody counts it
  switch (open_->AddChunk(*seat, e.chunk, now_)) {
    case Took::kTaken:
      break;
    case Took::kLate:
      if (open_->record(*seat).member) {
        members_.AddLateChunk(*members_.Live(e.worker, e.incarnation), e.round, std::nullopt);
      }
      break;
    case Took::kDuplicate:
      ++members_.Live(e.worker, e.incarnation)->duplicate_chunks;
      ++members_.totals().duplicate_chunks;
      return;
    case Took::kRefused:
    case Took::kStale:
      return Stale();
  }
  Progress();
}

void Engine::On(const ScalarsIn& e) {
  const std::optional<uint32_t> seat = SeatFor(e);
  if (!seat.has_value()) {
    LearnFromLate(e);
    return Stale();
  }
  const Took took = open_->AddScalars(*seat, e.scalars, e.compute);
  if (took == Took::kStale) return Stale();
  // They are all that a silent round wants.
  if (open_->plan().local.is_silent()) (void)open_->AddChunk(*seat, ChunkIndex(0), now_);
  Worker& w = *members_.Live(e.worker, e.incarnation);
  if (took == Took::kRefused) ++members_.totals().scalars_refused;
  if (!std::exchange(w.scalars_refused, took == Took::kRefused) && w.scalars_refused) {
    Note(NoticeLevel::kWarning,
         absl::StrFormat("%s sent scalars in round %d that are not finite, or not those asked for: "
                         "left out of the stepsize",
                         w.name, round_.value()),
         e.worker);
  }
  Progress();
}

void Engine::LearnFromLate(const ScalarsIn& e) {
  if (e.round >= round_ || e.attempt != Attempt(0)) return;
  const std::optional<Time> opened = openings_.Find(e.round);
  if (!opened.has_value()) return;
  const LocalSteps& local = openings_.Local(e.round);
  if (local.is_vote() || e.scalars.local_steps > local.steps) return;
  Worker* const w = members_.Live(e.worker, e.incarnation);
  if (w == nullptr) return;
  const uint32_t taken = e.scalars.local_steps > 0 ? e.scalars.local_steps : local.steps;
  Members::AddLateBallot(*w, LocalArrivals::Split(local, taken, now_ - *opened, e.compute));
}

void Engine::On(const AbstainIn& e) {
  const std::optional<uint32_t> seat = SeatFor(e);
  if (!seat.has_value()) return Stale();
  if (open_->AddAbstention(*seat, e.reason) == Took::kStale) return Stale();
  const Worker& w = *members_.Live(e.worker, e.incarnation);
  if (open_->record(*seat).member && w.abstentions_in_a_row == 0) {
    Note(NoticeLevel::kWarning,
         absl::StrFormat("%s abstains in round %d: %s", w.name, round_.value(), Words(e.reason)),
         e.worker);
  }
  Progress();
}

void Engine::On(const ChunkTallied& e) {
  const bool taken =
      open_.has_value() && e.round == round_ && e.attempt == attempt_ && open_->AddTally(e);
  if (!taken) {
    ++members_.totals().tallies_dropped;
    return;
  }
  Progress();
}

// ---- between rounds

void Engine::On(const CommitDurable& e) {
  if (phase_ != Phase::kCommitting || e.round.next() != round_) return Stale();
  if (room_ && std::exchange(room_noticed_, false)) {
    Note(NoticeLevel::kInfo, "the server's applier keeps up again");
  }
  Advance();
}

void Engine::On(const ProposalRoom& e) {
  room_ = e.room;
  if (room_ && phase_ == Phase::kWaitingForRoom) GoOn();
}

void Engine::Hold(Phase phase) {
  if (phase_ != Phase::kPaused && phase_ != Phase::kWaitingForRoom) held_since_ = now_;
  phase_ = phase;
}

void Engine::GoOn() {
  if (stepless_since_.has_value()) stepless_since_ = *stepless_since_ + (now_ - held_since_);
  held_since_ = now_;
  Advance();
}

void Engine::Advance() {
  if (course_.diverged()) {
    return End(absl::AbortedError(absl::StrFormat(
        "diverged: no worker had a finite loss in %d rounds in a row, the last is round %d",
        config_.nonfinite_rounds, round_.value() - 1)));
  }
  if (absl::Status failure = course_.failure(); !failure.ok()) return End(std::move(failure));
  if (course_.run_done()) return Finish();
  if (stopping_) return End(Stopped());
  if (stepless_since_.has_value() && now_ >= *stepless_since_ + config_.wait_timeout) {
    return End(absl::DeadlineExceededError(
        absl::StrFormat("no step for %s (--wait-timeout): every round up to %d closed without one; "
                        "the workers' logs say why they abstain",
                        Seconds(config_.wait_timeout), round_.value() - 1)));
  }
  if (paused_) return Hold(Phase::kPaused);
  if (now_ < back_off_until_) {
    phase_ = Phase::kBackingOff;
    return;
  }
  if (!room_) {
    Hold(Phase::kWaitingForRoom);
    if (!std::exchange(room_noticed_, true)) {
      Note(NoticeLevel::kWarning,
           absl::StrFormat("round %d waits for the server's own applier, which is behind",
                           round_.value()));
    }
    return;
  }
  OpenOrWait();
}

uint32_t Engine::ready_wanted() const {
  return round_ == Round(0) && attempt_ == Attempt(0) ? config_.workers_min : 1;
}

std::vector<std::string> Engine::awaited() const {
  std::vector<std::string> names;
  for (const WorkerId worker : waiting_.returning) names.push_back(members_.Name(worker));
  return names;
}

void Engine::NoLongerAwaited(WorkerId worker) {
  if (waiting_.returning.erase(worker) == 0 || !waiting_.returning.empty()) return;
  if (phase_ == Phase::kWaitingForWorkers) Advance();
}

void Engine::OpenOrWait() {
  if (now_ >= waiting_.returning_until && !waiting_.returning.empty()) {
    Note(NoticeLevel::kWarning,
         absl::StrFormat("round %d does not wait any longer for who was there before the server "
                         "started again: %s",
                         round_.value(), absl::StrJoin(awaited(), ", ")));
    waiting_.returning.clear();
  }
  if (members_.ready() >= ready_wanted() && waiting_.returning.empty()) return Open();
  if (phase_ == Phase::kWaitingForWorkers) return;
  phase_ = Phase::kWaitingForWorkers;
  waiting_.since = now_;
  Note(NoticeLevel::kWarning,
       absl::StrFormat("round %d waits for workers: too few are ready", round_.value()));
}

uint32_t Engine::QuorumOf(uint32_t members) const {
  return config_.quorum == 0 ? (members + 1) / 2 : std::min(config_.quorum, members);
}

void Engine::CountIfNeeded(std::vector<Seat>& seats) const {
  uint32_t members = 0, warm = 0;
  for (const Seat& seat : seats) {
    members += seat.role == Role::kMember ? 1 : 0;
    warm += IsCounted(seat) ? 1 : 0;
  }
  if (warm >= QuorumOf(members) && warm > 0) return;
  for (Seat& seat : seats) seat.uncounted = false;
}

void Engine::Open() {
  const LocalSteps local = course_.Local(round_);
  AttemptPlan plan{.round = round_,
                   .attempt = attempt_,
                   .chunks = local.is_silent() ? 1 : config_.chunks,
                   .quorum = 0,
                   .wanted = course_.Wanted(round_),
                   .seats = members_.SeatEverybody(round_, out_),
                   .opened = now_,
                   .deadline = std::nullopt,
                   .local = local};
  for (Seat& seat : plan.seats)
    seat.wanted = course_.WantedOf(round_, seat.share, plan.wanted.size());
  CountIfNeeded(plan.seats);
  const auto members =
      static_cast<uint32_t>(std::count_if(plan.seats.begin(), plan.seats.end(), IsCounted));
  plan.quorum = QuorumOf(members);
  std::optional<Duration> deadline;
  if (config_.deadline.enabled) {
    deadline = members_.Wait(local, plan.seats, out_);
    plan.deadline = now_ + *deadline;
  }
  OpenRound action{.round = round_,
                   .attempt = attempt_,
                   .reopening = attempt_ != Attempt(0),
                   .data_step = course_.data_step(),
                   .wanted = plan.wanted,
                   .members = members,
                   .quorum = plan.quorum,
                   .deadline = deadline,
                   .x0_over = course_.x0_over(round_),
                   .seats = plan.seats,
                   .local = local};
  if (attempt_ == Attempt(0)) {
    openings_.Add(round_, now_, local);
  } else {
    openings_.Drop(round_);
  }
  if (!first_opened_.has_value()) first_opened_ = now_;
  // Minibatches that are computed in time are no silence.
  const Duration computing =
      local.is_vote() ? Duration::zero() : deadline.value_or(Duration::zero());
  attempt_until_ = now_ + std::max(config_.wait_timeout, computing);
  open_.emplace(std::move(plan));
  phase_ = Phase::kRoundOpen;
  out_.push_back(std::move(action));
}

// ---- one attempt

// Closes what can be closed, commits what can be committed, and reopens what never can be; after
// every event.
void Engine::Progress() {
  if (phase_ != Phase::kRoundOpen) return;
  switch (open_->standing()) {
    case Standing::kShort:
      return Reopen("too few members are left for the quorum");
    case Standing::kNoBallot:
      return CloseWithoutBallot();
    case Standing::kCounting:
    case Standing::kTallying:
      break;
    case Standing::kTallied:
      if (ScalarsSettled()) Commit(CourseEnd::kVerdict);
      return;
  }
  if (!open_->plan().local.is_silent()) return open_->CloseRipe(now_, out_);
  // There is nothing to tally.
  Actions closed;
  open_->CloseRipe(now_, closed);
  for (const Action& action : closed) {
    const auto& chunk = std::get<CloseChunk>(action);
    (void)open_->AddTally({.round = round_, .attempt = attempt_, .chunk = chunk.chunk});
  }
  if (open_->standing() == Standing::kTallied && ScalarsSettled()) Commit(CourseEnd::kVerdict);
}

void Engine::CloseWithoutBallot() {
  if (reopenings_ == 0 || (reopenings_ < kReopeningsMax && members_.AnyReadyWithoutSeat())) {
    ++reopenings_;
    return Reopen("some part of the model has no ballot");
  }
  Commit(open_->OnlyNonFiniteLosses() ? CourseEnd::kNonFiniteLoss
         : open_->OnlyNonFinite()     ? CourseEnd::kNonFiniteGradient
                                      : CourseEnd::kWithoutBallots);
}

bool Engine::ReopenForTheReady() {
  if (reopenings_ >= kReopeningsMax || !members_.AnyReadyWithoutSeat()) return false;
  ++reopenings_;
  Reopen("too few have answered by the deadline, and others are ready");
  return true;
}

void Engine::Reopen(const std::string& why) {
  if (stopping_) return End(Stopped());
  ++attempt_;
  Note(NoticeLevel::kWarning,
       absl::StrFormat("round %d opens again as attempt %d: %s (%d members, quorum %d)",
                       round_.value(), attempt_.value(), why, open_->members(),
                       open_->plan().quorum));
  ++members_.totals().attempts_reopened;
  open_.reset();
  members_.Unseat();
  // A pause lets the open round complete, in whatever attempt.
  OpenOrWait();
  if (paused_ && phase_ == Phase::kWaitingForWorkers) Hold(Phase::kPaused);
}

// Scalars follow the last chunk: when a ballot is completed after the deadline, they still get the
// shortest grace.
Time Engine::ScalarsUntil() const {
  const AttemptPlan& plan = open_->plan();
  if (!plan.deadline.has_value()) return plan.opened + config_.wait_timeout;
  return std::max(*plan.deadline, open_->last_closed() + config_.deadline.grace_floor);
}

bool Engine::ScalarsSettled() const {
  if (now_ >= ScalarsUntil()) return true;
  const std::optional<Time>& deadline = open_->plan().deadline;
  return open_->ScalarsSettled(deadline.has_value() && now_ >= *deadline);
}

void Engine::Commit(CourseEnd end) {
  OpenAttempt attempt = *std::exchange(open_, std::nullopt);
  // In a trial everybody goes a way of its own: those who are left over say nothing of most.
  if (end == CourseEnd::kVerdict && attempt.plan().local.is_silent() && attempt.MostlyNonFinite())
    end = CourseEnd::kNonFiniteGradient;
  const uint32_t chunks = attempt.plan().chunks;
  CommitRound commit;
  attempt.Summarise(
      end == CourseEnd::kVerdict ? OpenAttempt::Verdict::kTaken : OpenAttempt::Verdict::kDropped,
      config_.coordinates, commit);
  if (end == CourseEnd::kVerdict) end = TakeLengths(commit);
  const bool verdict = end == CourseEnd::kVerdict;
  absl::StatusOr<std::optional<Notice>> told = course_.Decide(end, commit);
  if (!told.ok()) return End(told.status());
  if (told->has_value()) out_.push_back(**std::move(told));
  commit.opened_for = now_ - *first_opened_;
  commit.wait = verdict ? now_ - attempt.first_complete().value_or(now_) : Duration{0};
  std::vector<WorkerId> here;
  for (uint32_t s = 0; s < attempt.plan().seats.size(); ++s) {
    const SeatRecord& record = attempt.record(s);
    if (record.presence == Presence::kHere) here.push_back(attempt.plan().seats[s].worker);
    if (record.member && !(verdict && Given(record, chunks))) ++commit.abstentions;
  }
  const Round committed = round_.next();
  commit.digest_due = commit.run_done ||
                      (config_.digest_every > 0 && committed.value() % config_.digest_every == 0);
  if (commit.digest_due) digests_.Expect(committed, here);

  const bool meant = verdict && commit.local.plan.is_silent();  // to move nothing
  if (commit.kind == CommitKind::kNone && !meant) ++members_.totals().rounds_without_step;
  if (verdict) {
    stepless_since_.reset();
  } else {
    if (!stepless_since_.has_value()) stepless_since_ = first_opened_;
    Note(NoticeLevel::kWarning,
         absl::StrFormat("round %d closes without a step: %s", round_.value(), commit.reason));
  }
  const bool rewound = commit.kind == CommitKind::kRewind;
  out_.push_back(std::move(commit));
  Account(attempt, end);
  if (rewound) members_.WarmUpAll();

  round_ = committed;
  attempt_ = Attempt(0);
  first_opened_.reset();
  reopenings_ = 0;
  back_off_until_ = now_ + course_.BackOff();
  if (stopping_) stop_until_ = std::min(now_ + kStopCommitGrace, *stop_end_);
  phase_ = Phase::kCommitting;
  CheckDigests();  // nobody waits for answers to earlier rounds any more
}

CourseEnd Engine::TakeLengths(CommitRound& commit) const {
  if (commit.local.plan.steps == 1 || commit.local.plan.is_silent()) return CourseEnd::kVerdict;
  std::optional<LocalLengths> lengths =
      MeanLengths(commit.local.plan, config_.step_scales, config_.dense_steps, commit.scalars);
  if (!lengths.has_value()) {
    commit.voters.clear();
    return CourseEnd::kWithoutLengths;
  }
  commit.local.scales = std::move(lengths->scales);
  commit.local.decay_step = lengths->decay_step;
  return CourseEnd::kVerdict;
}

void Engine::Account(const OpenAttempt& attempt, CourseEnd end) {
  const AttemptPlan& plan = attempt.plan();
  const bool first = plan.attempt == Attempt(0);
  std::vector<Duration> arrivals;
  std::vector<LocalArrivals::Part> parts;
  for (uint32_t s = 0; s < plan.seats.size(); ++s) {
    const SeatRecord& record = attempt.record(s);
    Members::SeatReport report{.seat = plan.seats[s],
                               .record = record,
                               .given = end == CourseEnd::kVerdict && Given(record, plan.chunks),
                               .arrival = std::nullopt};
    // In a later attempt survivors only resend what they have: that says nothing about how long a
    // ballot takes.
    if (first && record.in > 0) {
      report.arrival = record.last_chunk - plan.opened;
      if (record.member) arrivals.push_back(*report.arrival);
      if (!plan.local.is_vote() && record.scalars_came) {
        report.local =
            LocalArrivals::Split(plan.local, record.steps, *report.arrival, record.compute);
        if (record.member) parts.push_back(*report.local);
      }
    }
    members_.Account(report, plan.round, out_);
  }
  members_.AddRound(std::move(arrivals));
  members_.AddLocalRound(parts);
  members_.Unseat();
}

// ---- time

void Engine::On(const Tick&) {
  switch (phase_) {
    case Phase::kWaitingForWorkers:
      if (Over()) return Advance();
      if (!waiting_.returning.empty() && now_ >= waiting_.returning_until) return Advance();
      if (now_ < waiting_.since + config_.wait_timeout) return;
      return End(absl::DeadlineExceededError(
          absl::StrFormat("waited %s for workers in round %d (--wait-timeout)",
                          Seconds(config_.wait_timeout), round_.value())));
    case Phase::kRoundOpen:
      return PassTime();
    case Phase::kCommitting:
      if (stop_until_.has_value() && now_ >= *stop_until_) End(Stopped());
      return;
    case Phase::kBackingOff:
      return Advance();
    case Phase::kFinishing:
      return CheckFinished();
    case Phase::kWaitingForRoom:
    case Phase::kPaused:
    case Phase::kEnded:
      return;
  }
}

void Engine::PassTime() {
  const AttemptPlan& plan = open_->plan();
  const bool wait_over = now_ >= attempt_until_;
  const bool stop_over = stop_until_.has_value() && now_ >= *stop_until_;
  const bool deadline_over = plan.deadline.has_value() && now_ >= *plan.deadline;
  const bool passes = (wait_over || stop_over || deadline_over) && !open_->deadline_passed();
  const bool was_counting = open_->standing() == Standing::kCounting;
  if (passes) open_->PassDeadline();
  const Round round = round_;
  const Attempt attempt = attempt_;
  Progress();
  if (phase_ != Phase::kRoundOpen || round_ != round || attempt_ != attempt) return;

  const Standing standing = open_->standing();
  if ((stop_over || wait_over) && standing == Standing::kTallied) {
    return Commit(CourseEnd::kVerdict);
  }
  if ((stop_over || wait_over) && was_counting && standing == Standing::kTallying) {
    // What the quorum closed just now gets the time of a tally.
    attempt_until_ = now_ + kTallyGrace;
    if (stopping_) stop_until_ = std::min(attempt_until_, *stop_end_);
    return;
  }
  if (stop_over) return End(Stopped());
  if (wait_over) {
    return End(absl::DeadlineExceededError(absl::StrFormat(
        "waited %s for %s in round %d (--wait-timeout); silent: %s", Seconds(config_.wait_timeout),
        standing == Standing::kTallying ? "the tally" : "ballots", round_.value(), Silent())));
  }
  if (passes && standing == Standing::kCounting && !ReopenForTheReady()) {
    Note(NoticeLevel::kWarning,
         absl::StrFormat(
             "round %d waits past its deadline: the quorum is %d of %d members; silent: %s",
             round_.value(), plan.quorum, open_->members(), Silent()));
  }
}

std::string Engine::Silent() const {
  std::vector<std::string> names;
  for (uint32_t s = 0; s < open_->plan().seats.size(); ++s) {
    const SeatRecord& record = open_->record(s);
    if (record.member && record.presence == Presence::kHere && !record.abstained &&
        !open_->Complete(s)) {
      names.push_back(members_.Name(open_->plan().seats[s].worker));
    }
  }
  return names.empty() ? "nobody" : absl::StrJoin(names, ", ");
}

// ---- the operator

void Engine::On(const PauseRequested&) {
  if (std::exchange(paused_, true)) return;
  out_.push_back(PauseSet{true});
  Note(NoticeLevel::kInfo,
       absl::StrFormat("paused by the operator after round %d", round_.value()));
  if (phase_ == Phase::kWaitingForWorkers || phase_ == Phase::kWaitingForRoom ||
      phase_ == Phase::kBackingOff) {
    Hold(Phase::kPaused);
  }
}

void Engine::On(const ResumeRequested&) {
  if (!std::exchange(paused_, false)) return;
  out_.push_back(PauseSet{false});
  Note(NoticeLevel::kInfo, "resumed by the operator");
  if (phase_ == Phase::kPaused) GoOn();
}

void Engine::On(const StopRequestedEvent&) {
  if (std::exchange(stopping_, true)) return;
  Note(NoticeLevel::kInfo, absl::StrFormat("stopping in round %d", round_.value()));
  stop_end_ = now_ + config_.stop_wait + kTallyGrace;
  switch (phase_) {
    case Phase::kFinishing:  // every round is committed
      finish_until_ = std::min(finish_until_, now_ + config_.stop_wait);
      return;
    case Phase::kCommitting:
      stop_until_ = now_ + kStopCommitGrace;
      return;
    case Phase::kRoundOpen: {
      const std::optional<Time>& deadline = open_->plan().deadline;
      stop_until_ = now_ + config_.stop_wait;
      if (deadline.has_value() && open_->standing() == Standing::kCounting) {
        stop_until_ = std::min(*stop_until_, *deadline);
      }
      if (now_ >= *stop_until_) PassTime();
      return;
    }
    case Phase::kWaitingForWorkers:
    case Phase::kWaitingForRoom:
    case Phase::kBackingOff:
    case Phase::kPaused:
    case Phase::kEnded:
      return End(Stopped());
  }
}

absl::Status Engine::Stopped() const {
  return absl::CancelledError(
      absl::StrFormat("stopped by the operator after %d rounds", round_.value()));
}

}  // namespace signvote::round
