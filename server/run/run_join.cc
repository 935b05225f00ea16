// Run: who comes and goes, and how the parameters come and go.

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "server/journal/head.h"
#include "server/run/run.h"

namespace signvote::run {
namespace {

// Beyond the longest name that is one.
constexpr size_t kNameForPeopleBytes = 80;

}  // namespace

// ---- joining ------------------------------------------------------------------------------------

void Run::On(Time now, Stream& s, JoinIn& in) {
  if (StageOf(s) != Stage::kConnected) {
    return CloseStream(now, s, absl::InvalidArgumentError("a second Join on one session"));
  }
  const std::string name = ForPeople(in.join->name(), kNameForPeopleBytes);
  const Roster::Worker* known = roster_.FindWorker(in.join->name());
  const bool identified = model_->wanted_layout() != nullptr;
  const RunFacts facts{.run_id = facts_.run_id,
                       .stopping = stop_.refuse_all || stop_.ended,
                       .tls = options_.tls,
                       .tokens = tokens_.has_value() ? &*tokens_ : nullptr,
                       .evicted = known != nullptr && known->evicted,
                       .present = roster_.PresentBeside(in.join->name()),
                       .workers_max = options_.model.sizes.workers_max,
                       .layout = model_->wanted_layout(),
                       .identity = model_->wanted_identity(),
                       .identity_text = identified ? model_->identity_text() : std::string_view()};
  absl::StatusOr<CheckedJoin> checked = CheckJoin(*in.join, s.peer->identity(), facts);
  if (!checked.ok()) return Refuse(now, s, name, checked.status());
  if (model_->state() == RunModel::State::kUnknown) {
    if (const absl::Status status = model_->FixLayout(*checked); !status.ok()) {
      return Refuse(now, s, name, status);
    }
    std::string text = "the model is known";
    if (MayTell(now, "model", &text)) {
      LogInfo(text, {{"coordinates", model_->layout().coordinates()},
                     {"tensors", uint64_t{model_->layout().tensors().size()}},
                     {"chunks", uint64_t{model_->plan().chunks()}}});
    }
    if (std::unique_ptr<InitialParameters> init = model_->TakeInitial(); init != nullptr) {
      parts_.host->LoadInitial(std::move(init), model_->replica());
    }
  }
  const Roster::Answer answer = roster_.Join(s.id, checked->name, now);
  if (const auto* status = std::get_if<absl::Status>(&answer)) {
    return Refuse(now, s, name, *status);
  }
  s.join = *std::move(checked);
  s.wants_run_state = in.join->wants_run_state();
  if (const auto* held = std::get_if<Roster::Held>(&answer)) {
    // Whoever answers in time is alive, and the newcomer is a second process with the same name.
    Stream& live = *Find(held->live);
    live.fence_nonce = rng_.Next() | 1;
    live.peer->Send(PingMessage(live.fence_nonce));
    return;
  }
  Accept(now, std::get<Roster::Accepted>(answer));
}

void Run::Accept(Time now, const Roster::Accepted& accepted) {
  Stream& s = *Find(accepted.peer);
  const std::string name = s.join->name;
  s.baseline = s.peer->bytes();
  s.slots = std::make_shared<BallotSlots>(model_->payloads().ballots, model_->ballots().Acquire());
  s.peer->Admit(s.slots);
  books_.OnJoined(accepted.worker, name, accepted.incarnation, s.peer->identity().address,
                  s.join->metrics_address);
  books_.AddSetupBytes(accepted.worker, s.baseline.received, s.baseline.sent);
  evaluation_.OnJoined(accepted.worker, accepted.incarnation, s.join->held_out_hash);
  NoteName(name);
  if (Event(now, EventKind::kJoined, {.worker = name, .incarnation = accepted.incarnation})) {
    LogInfo("worker joined", {{"worker", name},
                              {"incarnation", accepted.incarnation.value()},
                              {"address", s.peer->identity().address}});
  }
  ForgetNames();
  Arriving(now, s);
  if (course_ != nullptr) return Welcome(now, s);
  // Those who wait already have heard it: told to all at every join it would be as many as their square.
  if (!NameUploader(now) && StageOf(s) == Stage::kWaitingState) s.peer->Send(AwaitedNotice());
}

void Run::Welcome(Time now, Stream& s) {
  const CheckedJoin join = *std::exchange(s.join, std::nullopt);
  const bool keeps = MayKeep(join);
  if (join.round.has_value() && *join.round > committed()) {
    // Only where the durability policy allowed that a crash took commits back.
    books_.OnAhead();
    LogWarning("a worker is ahead of the commits that the server recovered: it fetches the state",
               {{"worker", WorkerName(s)},
                {"its_round", join.round->value()},
                {"round", committed().value()}});
  }
  SendWelcome(now, s, keeps ? v1::Welcome::STATE_KEEP : v1::Welcome::STATE_FETCH);
  roster_.SetStage(s.id, keeps ? Stage::kKeeping : Stage::kFetching, now);
}

void Run::SendWelcome(Time now, Stream& s, v1::Welcome::State state) {
  s.peer->Send(WelcomeMessage(facts_, model_->layout(), model_->payloads(),
                              {.incarnation = RecordOf(s).incarnation,
                               .ticket = s.peer->ticket(),
                               .state = state,
                               .round = committed(),
                               .main_rounds = course_ == nullptr ? 0 : course_->main_rounds,
                               .run_head = s.wants_run_state ? HeadForSave(now) : ""}));
}

bool Run::NameUploader(Time now) {
  bool named = false;
  while (course_ == nullptr && !model_->loading() && !model_->lease().holder().has_value()) {
    const std::optional<PeerId> first = roster_.LongestIn(Stage::kWaitingState);
    if (!first.has_value()) return false;
    Stream& s = *Find(*first);
    if (const absl::Status status = model_->GrantUpload(s.id, *s.join, now); !status.ok()) {
      Refuse(now, s, WorkerName(s), status);
      continue;
    }
    s.join.reset();
    roster_.SetStage(s.id, Stage::kUploading, now);
    SendWelcome(now, s, v1::Welcome::STATE_UPLOAD);
    std::string text = "initial parameters come from a worker";
    if (MayTell(now, "uploader", &text)) LogInfo(text, {{"worker", WorkerName(s)}});
    named = true;
  }
  if (!named) return false;
  const v1::ServerMessage notice = AwaitedNotice();
  for (const PeerId peer : roster_.In(Stage::kWaitingState)) Find(peer)->peer->Send(notice);
  return true;
}

v1::ServerMessage Run::AwaitedNotice() {
  return NoticeMessage("waiting for the initial parameters from " +
                       (model_->loading() ? "the server's file (--init), which is being read"
                                          : WorkerName(*Find(*model_->lease().holder()))));
}

void Run::Refuse(Time now, Stream& s, const std::string& name, const absl::Status& status) {
  const std::string address = s.peer->identity().address;
  const std::string reason = Describe(status);
  // A stranger's budget of lines is that of its host, whatever names it invents.
  if (Event(now, EventKind::kRefused,
            {.worker = name, .reason = reason, .who = s.peer->identity().host})) {
    LogWarning("join refused", {{"worker", name}, {"address", address}, {"reason", reason}});
  }
  CloseStream(now, s, status);
}

// ---- the course begins --------------------------------------------------------------------------

void Run::Uploaded(Time now, Stream& s, float max_abs) {
  if (const absl::Status status = model_->Complete(max_abs); !status.ok()) {
    return CloseStream(now, s, status);
  }
  BeginCourse(now);
}

void Run::On(Time now, const InitLoaded& loaded) {
  if (stop_.ended) return;
  const absl::Status status = loaded.status.ok() ? model_->Complete(loaded.max_abs) : loaded.status;
  if (status.ok()) return BeginCourse(now);
  // It was whole and finite when the server began: nobody's model, and no other attempt, mends that.
  End(now, WithExitCode(absl::FailedPreconditionError(
                            absl::StrCat(model_->init_path(), " (--init): ", status.message())),
                        ExitCode::kBadInput));
}

void Run::BeginCourse(Time now) {
  if (const absl::Status status = StartCourse(now, {}, {}); !status.ok()) return End(now, status);
  BeginJournal(Progress());
  // An uploader itself says Ready on its stream, behind this.
  for (const PeerId peer : roster_.In(Stage::kWaitingState)) Welcome(now, *Find(peer));
}

// All but what the model says.
round::EngineConfig Run::EngineConfigOf(const RunOptions& options) {
  return {.main_rounds_max = options.main_rounds_max,
          .workers_min = options.workers_min,
          .workers_max = options.model.sizes.workers_max,
          .quorum = options.quorum,
          .deadline = options.deadline,
          .observer_after = options.observer_after,
          .warm_in_rounds = options.warm_in_rounds,
          .nonfinite_rounds = options.nonfinite_rounds,
          .share_hold_rounds = options.share_hold_rounds,
          .digest_every = options.digest_every,
          .wait_timeout = options.wait_timeout,
          .stop_wait = options.stop_wait,
          .linger = options.linger,
          .return_wait = options.return_wait};
}

absl::Status Run::StartCourse(Time now, const round::EngineState& state,
                              const std::vector<std::shared_ptr<const CommitRecord>>& recent) {
  const PayloadPlan& plan = model_->payloads().commits;
  const size_t rounds = CommitRing::CapacityFor(model_->catch_up_bytes(), plan.TotalBytes());
  const double x0_max_abs = model_->x0_max_abs();
  round::EngineConfig config = EngineConfigOf(options_);
  config.coordinates = model_->layout().coordinates();
  config.chunks = model_->plan().chunks();
  config.x0_max_abs = x0_max_abs;
  config.step_scale_max = static_cast<double>(model_->layout().step_scale_max());
  for (const TensorSpec& tensor : model_->layout().tensors()) {
    config.step_scales.push_back(tensor.step_scale);
    config.dense_steps.push_back(tensor.dense ? options_.model.sizes.dense.stepsize : 0.0f);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<round::Engine> engine,
                            round::Engine::Create(std::move(config), std::move(rule_), state, now));
  // Those of a server that cut payloads in another way are of no use.
  size_t kept = 0;
  while (kept < recent.size() && kept < rounds &&
         journal::SamePlan(recent[recent.size() - 1 - kept]->plan, plan)) {
    ++kept;
  }
  course_ =
      std::make_unique<Course>(CommitRing::Options{.start = Round(state.round.value() - kept),
                                                   .rounds_kept = rounds,
                                                   .payload_bytes = plan.TotalBytes()},
                               OpenVote::Options{.plan = plan,
                                                 .ballots = model_->payloads().ballots,
                                                 .seed = options_.seed,
                                                 .layout = &model_->layout(),
                                                 .optimizer = options_.model.sizes.dense.optimizer,
                                                 .aggregate = options_.model.sizes.aggregate},
                               parts_.tally, model_.get(), state.round);
  for (size_t i = recent.size() - kept; i < recent.size(); ++i) course_->ring.Push(recent[i]);
  SIGNVOTE_CHECK(course_->ring.next() == state.round);
  course_->engine = std::move(engine);
  course_->main_rounds = state.course.main_rounds;
  Durability* durability = parts_.durability;
  if (durability == nullptr) {
    course_->none = std::make_unique<NoDurability>(
        [this](Round round) { course_->pipeline->OnDurable(round); });
    durability = course_->none.get();
  }
  course_->pipeline = std::make_unique<CommitPipeline>(
      &course_->ring, durability, parts_.host->StartApplier(model_->replica(), rounds),
      [this](const std::shared_ptr<const CommitRecord>& record) { Publish(record); });
  LogInfo("initial parameters are complete",
          {{"max_abs", x0_max_abs}, {"rounds_kept", uint64_t{rounds}}});
  if (stop_.paused && !state.paused) Drive(now, round::PauseRequested{});
  if (stop_.requested) Drive(now, round::StopRequestedEvent{});
  return absl::OkStatus();
}

// ---- state transfers ----------------------------------------------------------------------------

absl::Status Run::CheckFetch(Time now, const Stream& s) {
  if (course_ == nullptr) {
    return absl::FailedPreconditionError(
        "the initial parameters are not there yet; wait for Welcome");
  }
  if (StageOf(s) != Stage::kFetching) {
    return absl::FailedPreconditionError("this worker was not told to fetch the state");
  }
  return fetches_.Take(WorkerName(s), s.peer->identity().host, now);
}

void Run::On(Time now, Stream& s, CallAsked& in) {
  if (StageOf(s) == Stage::kClosing) {
    return in.call->End(absl::AbortedError("the session of this ticket has ended"));
  }
  if (s.transfers.call != nullptr) {
    return in.call->End(
        absl::FailedPreconditionError("this session is transferring its state already"));
  }
  if (in.kind == CallKind::kUpload) {
    if (model_->lease().holder() != s.id) {
      return in.call->End(
          absl::FailedPreconditionError("this worker does not hold the upload lease"));
    }
  } else {
    if (const absl::Status status = CheckFetch(now, s); !status.ok()) return in.call->End(status);
    s.transfers.fetched = true;
    // No piece stands below what is applied now. A second fetch finds the cursor where it is.
    if (!s.following) Follow(s, course_->pipeline->applied());
  }
  s.transfers.call = in.call;
  s.transfers.kind = in.kind;
  Arriving(now, s);
  s.transfers.call->Start(model_->replica());
  Feed(now, s);
}

void Run::On(Time now, Stream& s, CallProgress& in) {
  if (s.transfers.call != in.call) return;
  Arriving(now, s);
  if (s.transfers.kind != CallKind::kUpload || model_->lease().holder() != s.id) return;
  model_->lease().Progress(in.bytes, now);
  if (in.bytes == model_->layout().coordinates() * sizeof(float)) Uploaded(now, s, in.max_abs);
}

void Run::On(Time, Stream& s, CallEnded& in) {
  if (s.transfers.call == in.call) s.transfers.call.reset();
}

void Run::On(Stream* s, const CallMoved& in) {
  const Roster::Worker* worker = s == nullptr ? nullptr : WorkerOf(*s);
  books_.AddSetupBytes(worker == nullptr ? std::nullopt : std::optional(worker->id), in.up,
                       in.down);
}

void Run::On(Time now, Stream& s, ReadyIn& in) {
  const Stage stage = StageOf(s);
  const bool expected = stage == Stage::kFetching || stage == Stage::kKeeping ||
                        (stage == Stage::kUploading && course_ != nullptr);
  if (!expected) {
    return CloseStream(now, s, absl::InvalidArgumentError("Ready came without being asked for"));
  }
  if (in.round > committed()) {
    return CloseStream(
        now, s,
        absl::InvalidArgumentError(absl::StrCat("Ready at round ", in.round.value(), ", but only ",
                                                committed().value(), " are committed")));
  }
  roster_.SetStage(s.id, Stage::kCatchingUp, now);
  if (!s.following) {
    if (!course_->ring.Reaches(in.round)) {
      s.next_send = in.round;
      return FellBehind(now, s);
    }
    Follow(s, in.round);
  }
  s.next_send = std::max(s.next_send, in.round);
  s.acknowledged = std::max(s.acknowledged, in.round);
  s.admit.tries = 0;
  s.admit.nonce = 0;
  Arriving(now, s);
  Feed(now, s);
}

void Run::On(Time now, Stream& s, PongIn& in) {
  if (in.nonce == 0) return;
  if (in.nonce == s.fence_nonce) {
    s.fence_nonce = 0;
    if (const auto held = roster_.Pong(s.id); held.has_value()) {
      Stream& newcomer = *Find(held->first);
      Refuse(now, newcomer, WorkerName(newcomer), held->second);
    }
    return;
  }
  if (in.nonce != s.admit.nonce) return;
  s.admit.nonce = 0;
  s.acknowledged = std::max(s.acknowledged, s.admit.round);
  s.admit.tries = now - s.admit.sent <= kAdmitPong ? s.admit.tries + 1 : 0;
  Feed(now, s);
}

void Run::Arriving(Time now, const Stream& s) {
  const Roster::Worker* worker = WorkerOf(s);
  if (worker == nullptr || s.in_engine) return;
  if (course_ == nullptr) {
    stop_.waiting_since = now;
  } else {
    Drive(now, round::WorkerArriving{worker->id});
  }
}

// ---- going --------------------------------------------------------------------------------------

void Run::CloseStream(Time now, Stream& s, absl::Status status) {
  if (StageOf(s) == Stage::kClosing) return;
  // When everybody is sent home it is no one's fault.
  if (!status.ok() && !absl::IsCancelled(status) && !stop_.refuse_all) books_.OnRefusal();
  const std::string reason = Describe(status);
  s.peer->Close(std::move(status));
  Detach(now, s, reason);
}

void Run::On(Time now, Stream& s, GoneIn& in) {
  if (in.ended_by_us) books_.OnRefusal();
  Detach(now, s, in.reason);
}

void Run::Detach(Time now, Stream& s, const std::string& reason) {
  const std::string name = WorkerName(s);
  const std::optional<Roster::Departure> gone = roster_.Close(s.id, now);
  s.live = s.owed_open = s.following = s.outrun = false;
  s.join.reset();
  if (s.transfers.call != nullptr) {
    std::exchange(s.transfers.call, nullptr)
        ->End(absl::AbortedError("the session of this ticket has ended"));
  }
  if (!gone.has_value()) return;
  if (gone->was_live) {
    CountBytes(s, gone->worker);
    books_.OnGone(gone->worker);
    evaluation_.OnGone(gone->worker);
    const Roster::Worker* worker = roster_.FindWorker(gone->worker);
    const bool evicted = worker != nullptr && worker->evicted;
    if (!s.left && !s.finish_sent && !stop_.ended && !evicted &&
        Event(now, EventKind::kLost, {.worker = name, .incarnation = gone->incarnation})) {
      LogInfo("stream ended", {{"worker", name}, {"reason", reason}});
    }
    if (std::exchange(s.in_engine, false)) {
      Drive(now, round::WorkerLost{gone->worker, gone->incarnation});
    }
    if (model_->lease().holder() == s.id) {
      model_->lease().Revoke();
      NameUploader(now);
    }
  }
  if (gone->successor.has_value()) Accept(now, *gone->successor);
  // A layout without parameters and without anybody who could bring them binds nobody.
  if (model_->state() == RunModel::State::kLayoutKnown && !model_->loading() &&
      roster_.PresentBeside("") == 0) {
    model_->Forget();
  }
}

void Run::On(Time now, Stream& s, LeaveIn& in) {
  s.left = true;
  const Roster::Worker* worker = WorkerOf(s);
  if (worker != nullptr && worker->live == s.id) {
    const WorkerId id = worker->id;
    if (Event(now, EventKind::kLeft,
              {.worker = worker->name, .reason = in.reason, .incarnation = worker->incarnation})) {
      LogInfo("worker leaves", {{"worker", worker->name}, {"reason", in.reason}});
    }
    if (s.in_engine) Drive(now, round::WorkerLeaves{id, RecordOf(s).incarnation});
  }
  CloseStream(now, s, absl::OkStatus());
}

void Run::ForgetNames() {
  for (const WorkerId worker : roster_.TakeForgotten()) books_.Forget(worker);
}

void Run::CountBytes(Stream& s) {
  const Roster::StreamRecord& record = RecordOf(s);
  if (record.worker.has_value() && record.incarnation != Incarnation())
    CountBytes(s, *record.worker);
}

void Run::CountBytes(Stream& s, WorkerId worker) {
  const PeerBytes bytes = s.peer->bytes();
  s.moved = {.received = bytes.received - std::min(bytes.received, s.baseline.received),
             .sent = bytes.sent - std::min(bytes.sent, s.baseline.sent)};
  books_.SetSessionBytes(worker, s.moved.received, s.moved.sent);
}

}  // namespace signvote::run
