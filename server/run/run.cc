#include "server/run/run.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"

namespace signvote::run {
namespace {

constexpr Time kEndOfTime{std::numeric_limits<int64_t>::max()};

// A crowd that comes at once is no crowd of strangers.
Roster::Options RosterOptions(const RunOptions& options) {
  Roster::Options out = options.roster;
  if (out.strangers_max == 0) {
    out.strangers_max = std::max(Roster::kStrangersMin, size_t{options.model.sizes.workers_max});
  }
  return out;
}

// A model that is trained already does not stand the steps of a fresh one.
absl::Status TakeUpStepsize(const InitialParameters& init, const RuleRun& run, RuleFlags* rule) {
  if (!ResumesStepsize(*rule, run)) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<float> stepsize, init.alias_stepsize());
  if (stepsize.has_value()) {
    rule->alias_resumed_stepsize = *stepsize;
    LogInfo("the stepsize goes on from that of the run that made the initial parameters",
            {{"stepsize", double{*stepsize}}});
  } else {
    rule->alias_unknown_start = true;  // of which the rule warns in each round
    LogWarning(
        "the initial parameters do not say at which stepsize they were trained: ALIAS begins as "
        "with an untrained model, and its first steps may spoil a trained one; "
        "--alias-eta0 holds it back",
        {{"init", init.path()}});
  }
  return absl::OkStatus();
}

}  // namespace

RuleRun RuleRunOf(const RunOptions& options) {
  StepBy step_by = StepBy::kVerdict;
  if (options.model.sizes.aggregate == Aggregate::kAverage) step_by = StepBy::kMeanSigns;
  if (AnyDense(options.model.tensor_rules)) step_by = StepBy::kUpdates;
  return {.main_rounds_max = options.rule.length_unknown ? 0 : options.main_rounds_max,
          .direction = options.direction,
          .step_by = step_by,
          .local = options.local_steps};
}

void RunHost::LoadInitial(std::unique_ptr<InitialParameters>, std::shared_ptr<MasterReplica>) {
  SIGNVOTE_CHECK(false && "the host of a run with initial parameters reads them");
}

absl::StatusOr<std::unique_ptr<Run>> Run::Create(RunOptions options, RunParts parts, RunState state,
                                                 Time now) {
  std::unique_ptr<StepsizeRule> rule = std::move(parts.rule);
  if (rule == nullptr) {
    const RuleRun made_for = RuleRunOf(options);
    if (parts.init != nullptr) {
      SIGNVOTE_RETURN_IF_ERROR(TakeUpStepsize(*parts.init, made_for, &options.rule));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(rule, MakeRule(options.rule, made_for));
    if (const std::string choice = ExplainRule(options.rule, made_for); !choice.empty())
      LogInfo(choice);
    const LocalSchedule& local = options.local_steps;
    if (local.on() && local.main_rounds() < kLocalRoundsFew) {
      LogWarning(absl::StrCat("workers meet only ", local.main_rounds(),
                              " times in this run: below about ", kLocalRoundsFew,
                              " rounds local steps cost more than they save; use fewer of them "
                              "(--local-steps) and more rounds (--max-rounds)"));
    }
  }
  const bool rule_needs_x0 = rule->needs_x0();
  options.model.sizes.needs_x0 = rule_needs_x0;
  // What cannot work is told before anybody brings a model.
  round::EngineConfig config = EngineConfigOf(options);
  config.coordinates = config.chunks = 1;
  SIGNVOTE_RETURN_IF_ERROR(round::ValidateConfig(config));
  SIGNVOTE_ASSIGN_OR_RETURN(
      std::unique_ptr<RunModel> model,
      RunModel::Create(options.model, std::move(parts.memory), std::move(parts.init)));
  WelcomeFacts facts{.run_id = state.run_id,
                     .epoch = state.epoch,
                     .seed = options.seed,
                     .main_rounds = options.main_rounds_max,
                     .direction = options.direction,
                     .clip_norm = options.clip_norm,
                     .rule = std::string(rule->name()),
                     .probes = rule->probes(),
                     .keeps_gradients = rule->keeps_gradients(),
                     .needs_x0 = rule->needs_x0(),
                     .digest_every = options.digest_every,
                     .evaluate_every = options.evaluate_every,
                     .message_bytes_max = options.model.sizes.message_bytes_max,
                     .local_steps_max = rule->local_steps_max()};
  std::unique_ptr<Run> run(new Run(std::move(options), std::move(parts), std::move(facts),
                                   std::move(rule), std::move(model), state, now));
  if (state.has_parameters()) {
    const std::span<const float> no_x0;
    SIGNVOTE_RETURN_IF_ERROR(
        run->model_->Restore({.layout = state.layout,
                              .config_json = state.config_json,
                              .identity_text = state.identity_text,
                              .x = *state.x,
                              .x0 = state.x0 == nullptr ? no_x0 : std::span<const float>(*state.x0),
                              .x0_max_abs = state.x0_max_abs,
                              .round = state.engine.round,
                              .aggregate = state.aggregate,
                              .dense_wire = state.dense_wire}));
    SIGNVOTE_RETURN_IF_ERROR(run->StartCourse(now, state.engine, state.recent));
    SIGNVOTE_RETURN_IF_ERROR(run->course_->vote.RestoreOptimizer(state.optimizer));
    run->BeginJournal(run->Progress());
    if (rule_needs_x0 && !run->model_->replica()->has_x0() && !run->course_->engine->x0_over()) {
      return absl::DataLossError(
          "the saved state lacks the starting parameters, which its stepsize rule needs; restore "
          "an "
          "older state of the run");
    }
  }
  return run;
}

Run::Run(RunOptions options, RunParts parts, WelcomeFacts facts, std::unique_ptr<StepsizeRule> rule,
         std::unique_ptr<RunModel> model, const RunState& state, Time now)
    : options_(std::move(options)),
      clock_(parts.clock),
      feed_bytes_(std::min<uint64_t>(kFeedBytes, options_.model.sizes.session_buffer_bytes)),
      parts_(std::move(parts)),
      facts_(std::move(facts)),
      rng_(parts_.rng),
      tokens_(parts_.tokens),
      rule_(std::move(rule)),
      model_(std::move(model)),
      roster_(RosterOptions(options_), state.roster, now),
      books_({.run_id = facts_.run_id.ToText(),
              .rule = facts_.rule,
              .direction = std::string(DirectionName(options_.direction.kind)),
              .epoch = facts_.epoch,
              .main_rounds = options_.main_rounds_max,
              .local_steps = options_.local_steps,
              .workers_min = options_.workers_min,
              .round = state.engine.round,
              .round_log = parts_.round_log,
              .event_log = parts_.event_log,
              .listener = parts_.listener},
             At(now)),
      evaluation_(options_.evaluate_every),
      fetches_(options_.fetches, options_.model.sizes.workers_max),
      lines_(RateLimit::Options{}) {
  stop_.waiting_since = now;
  stop_.paused = state.paused;
  begun_ = state.begun;
}

Run::~Run() = default;

void Run::Handle(Time now, Input input) {
  if (auto* in = std::get_if<StreamInput>(&input)) {
    if (auto* opened = std::get_if<StreamOpened>(&in->what)) {
      Stream& added = streams_[in->peer];
      added.id = in->peer;
      added.peer = std::move(opened->peer);
      by_peer_.emplace(in->peer, &added);
      const auto strangers = roster_.Open(in->peer, now);
      added.record = roster_.FindStream(in->peer);
      for (const auto& [peer, status] : strangers) {
        CloseStream(now, *Find(peer), status);
      }
      return;
    }
    Stream* s = Find(in->peer);
    if (const auto* moved = std::get_if<CallMoved>(&in->what)) return On(s, *moved);
    if (s == nullptr) return;
    if (std::holds_alternative<StreamDone>(in->what)) {
      Detach(now, *s, "");
      roster_.Forget(in->peer);
      by_peer_.erase(in->peer);
      streams_.erase(in->peer);
      return;
    }
    const bool closing = StageOf(*s) == Stage::kClosing;
    std::visit(
        [&](auto& what) {
          using What = std::decay_t<decltype(what)>;
          if constexpr (requires { On(now, *s, what); }) {
            // Calls are answered and counted whatever became of their stream.
            constexpr bool kCall =
                std::is_same_v<What, CallAsked> || std::is_same_v<What, CallEnded>;
            if (!closing || kCall) On(now, *s, what);
          }
        },
        in->what);
    if (course_ != nullptr && course_->giving_way.has_value() && !AnyOutrun()) EndGivingWay(now);
  } else if (const auto* tallied = std::get_if<ChunkTallied>(&input)) {
    On(now, *tallied);
  } else if (const auto* durable = std::get_if<DurableIn>(&input)) {
    if (course_ != nullptr) {
      now_ = now;
      course_->pipeline->OnDurable(durable->round);
      Drive(now);
    }
  } else if (const auto* failed = std::get_if<JournalFailed>(&input)) {
    On(now, *failed);
  } else if (const auto* applied = std::get_if<Applied>(&input)) {
    On(now, *applied);
  } else if (const auto* loaded = std::get_if<InitLoaded>(&input)) {
    On(now, *loaded);
  } else {
    Tick(now);
  }
}

std::optional<Time> Run::NextTick() const {
  std::optional<Time> next;
  const auto at = [&next](std::optional<Time> time) {
    if (time.has_value() && (!next.has_value() || *time < *next)) next = time;
  };
  at(roster_.NextFence());
  at(books_.NextWatcher());
  at(model_->lease().expiry());
  if (!stop_.journal.ok() && !stop_.ended) at(stop_.journal_failed + options_.wait_timeout);
  if (course_ != nullptr) {
    at(course_->engine->NextTick());
    if (course_->giving_way.has_value()) at(course_->giving_way->until);
  } else if (!stop_.ended && !stop_.paused && !model_->loading()) {
    at(stop_.waiting_since + options_.wait_timeout);
  }
  return next;
}

void Run::Tick(Time now) {
  const Roster::Due due = roster_.Fence(now);
  for (const auto& [peer, status] : due.close) {
    Stream& s = *Find(peer);
    const std::string name = WorkerName(s);
    std::string text = "an old session is fenced";
    if (!name.empty() && MayTell(now, "fence " + name, &text)) LogWarning(text, {{"worker", name}});
    CloseStream(now, s, status);
  }
  for (const PeerId peer : due.cancel) Find(peer)->peer->Cancel();
  const UploadLease& lease = model_->lease();
  if (lease.Expired(now)) {
    CloseStream(now, *Find(*lease.holder()),
                absl::AbortedError(absl::StrCat(
                    "the upload of the initial parameters is too slow: ", lease.wanted_bytes(),
                    " bytes were due within ", ToSeconds(lease.options().timeout),
                    " s (--upload-timeout)")));
  }
  if (course_ != nullptr) {
    if (course_->giving_way.has_value() && now >= course_->giving_way->until) EndGivingWay(now);
    const std::optional<Time> tick = course_->engine->NextTick();
    if (tick.has_value() && now >= *tick) Drive(now, round::Tick{});
  } else if (!stop_.ended) {
    if (stop_.paused || model_->loading()) stop_.waiting_since = now;
    if (now - stop_.waiting_since >= options_.wait_timeout) {
      End(now, absl::DeadlineExceededError(absl::StrCat("waited ", ToSeconds(options_.wait_timeout),
                                                        " s for a worker (--wait-timeout)")));
    }
  }
  if (!stop_.journal.ok() && !stop_.ended && now - stop_.journal_failed >= options_.wait_timeout) {
    End(now, WithExitCode(absl::UnavailableError(stop_.journal.message()), ExitCode::kBadInput));
  }
  AnswerWatchers(now, now);
}

// ---- operator -----------------------------------------------------------------------------------

absl::Status Run::Pause(Time now) {
  if (course_ != nullptr) {
    Drive(now, round::PauseRequested{});
    EndGivingWay(now);
  } else {
    Execute(now, round::PauseSet{.paused = true});
  }
  return absl::OkStatus();
}

absl::Status Run::Resume(Time now) {
  if (course_ != nullptr) {
    Drive(now, round::ResumeRequested{});
  } else {
    stop_.waiting_since = now;
    Execute(now, round::PauseSet{.paused = false});
  }
  return absl::OkStatus();
}

absl::Status Run::Drain(Time now, std::string_view worker) {
  const Roster::Worker* known = roster_.FindWorker(worker);
  if (known == nullptr || !known->live.has_value()) {
    return absl::NotFoundError(absl::StrCat("no worker '", ToAbsl(worker), "' is connected"));
  }
  Stream& s = *Find(*known->live);
  if (s.in_engine) {
    Drive(now, round::DrainRequested{known->id});
  } else {
    s.peer->Send(DrainMessage());
  }
  return absl::OkStatus();
}

absl::Status Run::Evict(Time now, std::string_view worker) {
  const Roster::Worker* known = roster_.FindWorker(worker);
  if (known != nullptr && known->evicted) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(roster_.Evict(worker));
  known = roster_.FindWorker(worker);
  const WorkerId id = known->id;
  NoteName(worker);
  Event(now, EventKind::kEvicted, {.worker = worker, .incarnation = known->incarnation});
  const absl::Status status = EvictedStatus(worker);
  // First the newcomer that would take the live stream's place.
  if (known->held.has_value()) CloseStream(now, *Find(*known->held), status);
  if (course_ != nullptr) Drive(now, round::EvictRequested{id});
  known = roster_.FindWorker(id);
  if (known != nullptr && known->live.has_value()) CloseStream(now, *Find(*known->live), status);
  return absl::OkStatus();
}

void Run::RequestStop(Time now) {
  if (std::exchange(stop_.requested, true) || stop_.ended) return;
  if (stop_.finished.has_value()) {
    // The run is over; nobody waits for the last digests any more.
    End(now, absl::OkStatus());
  } else if (course_ != nullptr) {
    Drive(now, round::StopRequestedEvent{});
    EndGivingWay(now);
  } else {
    End(now, absl::CancelledError("stopped by the operator before the first round"));
  }
}

void Run::ReplaceTokens(TokenTable tokens) {
  size_t withdrawn = 0;
  if (tokens_.has_value()) {
    for (const std::string& name : tokens.WithdrawnFrom(*tokens_)) {
      ++withdrawn;
      const Roster::Worker* known = roster_.FindWorker(name);
      if (known == nullptr || !known->live.has_value()) continue;
      LogWarning(
          "a worker stays until its session ends although its token is withdrawn; to end it now: "
          "signvote evict",
          {{"worker", name}});
    }
  }
  LogInfo("tokens read again",
          {{"workers", uint64_t{tokens.size()}}, {"withdrawn", uint64_t{withdrawn}}});
  tokens_ = std::move(tokens);
}

void Run::CloseStreams(Time now) {
  stop_.refuse_all = true;
  AnswerWatchers(now, kEndOfTime);
  for (auto& [peer, s] : streams_) CloseStream(now, s, stop_.closing_status);
}

// ---- views --------------------------------------------------------------------------------------

Moment Run::At(Time now) const {
  return {.now = now, .unix_seconds = static_cast<double>(clock_->UnixMicros()) * 1e-6};
}

std::optional<float> Run::resumed_stepsize() const {
  const float stepsize = options_.rule.alias_resumed_stepsize;
  return stepsize > 0 ? std::optional(stepsize) : std::nullopt;
}

Round Run::committed() const { return course_ == nullptr ? Round(0) : course_->told; }

LiveFacts Run::Facts(const round::EngineView* view) const {
  const bool known = model_->state() != RunModel::State::kUnknown;
  LiveFacts facts{.engine = view,
                  .ended = stop_.ended,
                  .journal = stop_.journal,
                  .paused = stop_.paused,
                  .layout_known = known,
                  .complete = course_ != nullptr};
  if (known) {
    facts.coordinates = model_->layout().coordinates();
    facts.layout_digest = model_->layout().digest();
  }
  if (course_ != nullptr) {
    facts.applier_lag = course_->pipeline->backlog();
    facts.waits_for = WaitsFor();
    facts.evaluator = evaluation_.evaluator();
  }
  return facts;
}

std::string Run::WaitsFor() const {
  const round::Engine& engine = *course_->engine;
  switch (engine.phase()) {
    case round::Phase::kWaitingForRoom:
      return "the server waits for its own applier";
    case round::Phase::kWaitingForWorkers:
      if (const std::vector<std::string> awaited = engine.awaited(); !awaited.empty())
        return absl::StrCat("waiting for who was there before the server started again: ",
                            absl::StrJoin(awaited, ", "));
      // Later on the first worker that comes goes on.
      if (committed() != Round(0)) return "";
      return absl::StrCat("waiting for workers: ", engine.ready(), " ready, ",
                          engine.ready_wanted(), " wanted (--workers-min)");
    default:
      return "";
  }
}

bool Run::MayTell(Time now, const std::string& key, std::string* text) {
  const std::optional<uint64_t> held_back = lines_.Take(key, now);
  if (!held_back.has_value()) return false;
  *text = WithHeldBack(*text, *held_back);
  return true;
}

Health Run::HealthNow() const { return books_.HealthNow(Facts(nullptr)); }

StatusPage Run::Snapshot(Time now) {
  for (auto& [peer, s] : streams_) CountBytes(s);
  if (course_ == nullptr) return books_.Snapshot(At(now), roster_, Facts(nullptr));
  const round::EngineView view = course_->engine->View(now);
  return books_.Snapshot(At(now), roster_, Facts(&view));
}

void Run::Watch(Time now, uint64_t events_after, Duration wait, WatchDone done) {
  const bool at_once = stop_.ended || stop_.refuse_all;
  if (!at_once && books_.Watch(events_after, wait, now, std::move(done))) return;
  done(books_.View(events_after, Snapshot(now)));
}

void Run::AnswerWatchers(Time now, Time due) {
  books_.AnswerWatchers(due, [this, now] { return Snapshot(now); });
}

absl::StatusOr<RunState> Run::State() const {
  if (course_ == nullptr) return Progress();
  const round::Phase phase = course_->engine->View(now_).phase;
  const CommitPipeline& pipeline = *course_->pipeline;
  if (phase == round::Phase::kRoundOpen || phase == round::Phase::kCommitting ||
      pipeline.applied() != pipeline.proposed()) {
    return absl::FailedPreconditionError(
        "a round is open, or its commit is not applied yet; pause the run first");
  }
  RunState state = Progress();
  const MasterReplica& replica = *model_->replica();
  const auto copy = [&replica](Plane plane) -> absl::StatusOr<std::shared_ptr<std::vector<float>>> {
    auto out = std::make_shared<std::vector<float>>(replica.coordinates());
    for (uint64_t p = 0; p < replica.pieces(); ++p) {
      SIGNVOTE_RETURN_IF_ERROR(
          replica.CopyPiece(plane, p, out->data() + replica.First(p)).status());
    }
    return out;
  };
  SIGNVOTE_ASSIGN_OR_RETURN(state.x, copy(Plane::kX));
  if (replica.has_x0()) {
    SIGNVOTE_ASSIGN_OR_RETURN(state.x0, copy(Plane::kX0));
  }
  return state;
}

// ---- the end ------------------------------------------------------------------------------------

void Run::End(Time now, absl::Status status) {
  if (stop_.ended) return;
  std::string reason(ToStd(status.message()));  // empty when all went well
  switch (status.code()) {
    case absl::StatusCode::kAborted:
      status = WithExitCode(std::move(status), ExitCode::kDiverged);
      break;
    case absl::StatusCode::kDeadlineExceeded:
      status = WithExitCode(std::move(status), ExitCode::kWaitTimeout);
      break;
    case absl::StatusCode::kDataLoss:
      status = WithExitCode(std::move(status), ExitCode::kReplicaMismatch);
      break;
    case absl::StatusCode::kCancelled:
      if (stop_.requested) {
        LogInfo(reason);
        stop_.closing_status = absl::CancelledError("the server stops");
        reason = "stopped by the operator";
        status = absl::OkStatus();
      }
      break;
    default:
      break;
  }
  stop_.ended = true;
  Event(now, EventKind::kEnded, {.reason = reason});
  AnswerWatchers(now, kEndOfTime);
  if (absl::IsAborted(status) || absl::IsDataLoss(status) || absl::IsInternal(status)) {
    // Nothing resumes a run that diverged, whose replica is damaged or whose rule is broken: workers
    // must not look for this server again, and of the first two they end as it does.
    stop_.closing_status =
        WithExitCode(absl::FailedPreconditionError(status.message()), ExitCodeFor(status));
  } else if (!status.ok()) {
    stop_.closing_status = status;
  }
  if (stop_.finished.has_value() && stop_.closing_status.ok()) {
    // Those who were still joining came too late: nothing is left to look for this server for.
    for (auto& [peer, s] : streams_) {
      const Stage stage = StageOf(s);
      if (stage == Stage::kFetching || stage == Stage::kKeeping || stage == Stage::kCatchingUp) {
        SendFinish(s);
      }
    }
  }
  stop_.status = std::move(status);
}

// ---- streams ------------------------------------------------------------------------------------

Run::Stream* Run::Find(PeerId peer) {
  const auto it = by_peer_.find(peer);
  return it == by_peer_.end() ? nullptr : it->second;
}

Run::Stream* Run::FindLive(WorkerId worker, Incarnation incarnation) {
  const Roster::StreamRecord* record = roster_.FindLive(worker, incarnation);
  return record == nullptr ? nullptr : Find(record->peer);
}

const Roster::Worker* Run::WorkerOf(const Stream& s) const {
  const std::optional<WorkerId> worker = RecordOf(s).worker;
  return worker.has_value() ? roster_.FindWorker(*worker) : nullptr;
}

std::string Run::WorkerName(const Stream& s) const {
  const Roster::Worker* worker = WorkerOf(s);
  return worker == nullptr ? "" : worker->name;
}

bool Run::Event(Time now, EventKind kind, const RunBooks::About& about) {
  return books_.OnEvent(At(now), kind, about);
}

}  // namespace signvote::run
