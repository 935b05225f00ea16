#include "server/rpc/coordinator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "server/rpc/coordinator_impl.h"

namespace signvote::rpc {
namespace {

constexpr Duration kHousekeepingEvery = std::chrono::milliseconds(100);
constexpr Duration kJoinTimeout = std::chrono::seconds(10);  // from the stream's start to its Join
constexpr Time kEndOfTime{std::numeric_limits<int64_t>::max()};
constexpr size_t kStrangersMax = 32;  // streams that have not joined yet

absl::StatusOr<v1::Direction> ToProto(const DirectionSpec& spec) {
  v1::Direction out;
  if (spec.kind == "signsgd") {
    out.set_kind(v1::Direction::KIND_SIGNSGD);
  } else if (spec.kind == "signum") {
    out.set_kind(v1::Direction::KIND_SIGNUM);
  } else if (spec.kind == "nesterov") {
    out.set_kind(v1::Direction::KIND_NESTEROV_SIGNUM);
  } else if (spec.kind == "lion") {
    out.set_kind(v1::Direction::KIND_LION);
  } else {
    return absl::InvalidArgumentError("--direction '" + spec.kind +
                                      "' is unknown; use signsgd, signum, nesterov or lion");
  }
  const auto in_range = [](double beta) { return beta >= 0 && beta < 1; };
  if (!in_range(spec.beta)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--beta ", spec.beta, " is out of range; use a number in [0, 1)"));
  }
  if (!in_range(spec.beta2)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--beta2 ", spec.beta2, " is out of range; use a number in [0, 1)"));
  }
  if (spec.kind != "signsgd") out.set_beta(spec.beta);
  if (spec.kind == "lion") out.set_beta2(spec.beta2);
  return out;
}

}  // namespace

void CoordinatorImpl::RequestStop() {
  (void)Post([this] {  // false: stopped already
    if (stop_requested_) return;
    stop_requested_ = true;
    if (engine_ != nullptr) {
      Drive(round::StopRequestedEvent{});
    } else {
      End(absl::CancelledError("stopped by the operator before the first round"));
    }
  });
}

bool CoordinatorImpl::WaitUntilEnded(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&end_mu_);
  while (!ended_) {
    const Duration left = until - clock_->Now();
    if (left <= Duration::zero()) return false;
    (void)end_cv_.WaitFor(&end_mu_, left);  // the loop looks at the condition itself
  }
  return true;
}

absl::Status CoordinatorImpl::end_status() const {
  MutexLock lock(&end_mu_);
  SIGNVOTE_CHECK(ended_);
  return end_status_;
}

void CoordinatorImpl::ReplaceTokens(TokenTable tokens) {
  (void)Post([this, tokens = std::move(tokens)] {  // false: nobody joins any more
    size_t withdrawn = 0;
    if (tokens_.has_value()) {
      for (const std::string& name : tokens.WithdrawnFrom(*tokens_)) {
        ++withdrawn;
        const WorkerRecord* record = FindWorker(name);
        if (record == nullptr || record->link == nullptr) continue;
        LogWarning(
            "a worker stays until its session ends although its token is withdrawn; to end it now: "
            "signvote evict",
            {{"worker", name}});
      }
    }
    LogInfo("tokens read again",
            {{"workers", uint64_t{tokens.size()}}, {"withdrawn", uint64_t{withdrawn}}});
    tokens_ = tokens;
  });
}

void CoordinatorImpl::CloseSessions(Duration timeout) {
  const Time until = clock_->Now() + timeout;
  (void)Post([this] {  // false: nobody is left to close
    refuse_all_ = true;
    AnswerWatchers(kEndOfTime);
    const absl::Status status = closing_status_;
    for (auto& [session, link] : links_) CloseLink(link.get(), status);
  });
  MutexLock lock(&end_mu_);
  while (open_links_ > 0) {
    const Duration left = until - clock_->Now();
    if (left <= Duration::zero()) return;
    (void)end_cv_.WaitFor(&end_mu_, left);  // likewise
  }
}

void CoordinatorImpl::Stop() {
  inbox_.Close();
  {
    MutexLock lock(&end_mu_);
    stop_thread_ = true;
  }
  if (thread_.joinable()) thread_.join();
  if (applier_ != nullptr) applier_->Stop();
}

absl::Status CoordinatorImpl::ExportFinal(const std::string& path) {
  std::shared_ptr<MasterReplica> replica;
  Applier* applier = nullptr;
  Round round;
  std::string config;
  {
    MutexLock lock(&end_mu_);
    SIGNVOTE_CHECK(ended_);
    replica = final_replica_;
    applier = final_applier_;
    round = Round(final_rounds_);
    config = final_config_;
  }
  if (replica == nullptr) {
    return absl::FailedPreconditionError(
        path + ": there are no parameters to export: no worker brought any");
  }
  while (!applier->WaitUntilIdle(kApplierPatience)) {
    LogWarning("the export waits for the master replica",
               {{"rounds", uint64_t{applier->backlog()}}});
  }
  return ExportReplica(fs_, path, replica->layout(), std::as_const(*replica).x(),
                       ExportMetadata(run_id_, round), config);
}

void CoordinatorImpl::AddTransfer(std::shared_ptr<ServerSession> session, TransferBytes bytes) {
  (void)Post([this, session = std::move(session), bytes] {  // false: nobody counts any more
    const auto it = links_.find(session.get());
    if (it == links_.end() || it->second->worker == nullptr) return;
    Link* link = it->second.get();
    v1::WireTotals& wire = link->worker->wire;
    wire.set_up_setup_bytes(wire.up_setup_bytes() + bytes.up);
    wire.set_down_setup_bytes(wire.down_setup_bytes() + bytes.down);
    if (bytes.on_session_connection) {
      CountBytes(link);
      link->baseline.received = std::min(link->baseline.received + bytes.up, link->last.received);
      link->baseline.sent = std::min(link->baseline.sent + bytes.down, link->last.sent);
    }
  });
}

void CoordinatorImpl::Uploaded(std::shared_ptr<ServerSession> session) {
  (void)Post([this, session = std::move(session)] {
    OnUploaded(session.get());
  });  // false: the server stops
}

absl::StatusOr<ServerSnapshot> CoordinatorImpl::Snapshot(Duration timeout) {
  struct Answer {
    Mutex mu;
    CondVar cv;
    std::optional<ServerSnapshot> snapshot ABSL_GUARDED_BY(mu);
  };
  // Shared: the answer may come after this call has given up.
  const auto answer = std::make_shared<Answer>();
  const bool posted = Post([this, answer] {
    ServerSnapshot snapshot = SnapshotNow();
    MutexLock lock(&answer->mu);
    answer->snapshot = std::move(snapshot);
    answer->cv.NotifyAll();
  });
  if (!posted) return absl::UnavailableError("the server stops");
  const Time until = clock_->Now() + timeout;
  MutexLock lock(&answer->mu);
  while (!answer->snapshot.has_value()) {
    const Duration left = until - clock_->Now();
    if (left <= Duration::zero())
      return absl::DeadlineExceededError("the engine's thread does not answer");
    (void)answer->cv.WaitFor(&answer->mu, left);  // the loop looks at the condition itself
  }
  return *std::move(answer->snapshot);
}

absl::StatusOr<Coordinator::Exported> CoordinatorImpl::CopyReplica() {
  std::shared_ptr<MasterReplica> replica;
  Applier* applier = nullptr;
  std::string config;
  {
    MutexLock lock(&end_mu_);
    replica = final_replica_;
    applier = final_applier_;
    config = final_config_;
  }
  if (replica == nullptr) return absl::FailedPreconditionError("there are no parameters yet");
  Exported out;
  out.layout = replica->layout();
  out.round = applier->Snapshot(&out.x);
  out.config_json = std::move(config);
  return out;
}

absl::Status CoordinatorImpl::Pause() {
  if (!std::exchange(paused_, true)) Event(v1::Event::KIND_PAUSED, EventAbout{});
  if (engine_ != nullptr) Drive(round::PauseRequested{});
  return absl::OkStatus();
}

absl::Status CoordinatorImpl::Resume() {
  if (std::exchange(paused_, false)) Event(v1::Event::KIND_RESUMED, EventAbout{});
  if (engine_ != nullptr) Drive(round::ResumeRequested{});
  return absl::OkStatus();
}

absl::Status CoordinatorImpl::Drain(const std::string& worker) {
  WorkerRecord* record = FindWorker(worker);
  if (record == nullptr || record->link == nullptr) {
    return absl::NotFoundError("no worker '" + worker + "' is connected");
  }
  if (record->link->in_engine) {
    Drive(round::DrainRequested{record->id});
  } else {
    SendDrain(record->link);
  }
  return absl::OkStatus();
}

absl::Status CoordinatorImpl::Evict(const std::string& worker) {
  WorkerRecord* record = FindWorker(worker);
  if (record == nullptr) return absl::NotFoundError("no worker '" + worker + "' was ever seen");
  if (record->evicted) return absl::OkStatus();
  record->evicted = true;
  Event(v1::Event::KIND_EVICTED, record);
  // First the newcomer that would take the live session's place.
  if (record->held != nullptr) CloseLink(record->held, EvictedStatus(*record));
  if (engine_ != nullptr) Drive(round::EvictRequested{record->id});
  if (record->link != nullptr) CloseLink(record->link, EvictedStatus(*record));
  return absl::OkStatus();
}

void CoordinatorImpl::Run() {
  std::vector<Input> inputs;
  Time next_housekeeping = clock_->Now();
  while (true) {
    {
      MutexLock lock(&end_mu_);
      if (stop_thread_) break;
    }
    Time wake = next_housekeeping;
    if (engine_ != nullptr) {
      if (const std::optional<Time> tick = engine_->NextTick()) wake = std::min(wake, *tick);
    }
    inbox_.TakeAll(wake - clock_->Now(), &inputs);
    for (Input& input : inputs) Process(input);
    inputs.clear();
    // Ticks come after what lay in the inbox: ballots that are here are in time.
    const Time now = clock_->Now();
    if (engine_ != nullptr) {
      const std::optional<Time> tick = engine_->NextTick();
      if (tick.has_value() && now >= *tick) Drive(round::Tick{});
    }
    if (now >= next_housekeeping) {
      Housekeeping(now);
      next_housekeeping = clock_->Now() + kHousekeepingEvery;
    }
  }
  // Calls carry answers that somebody waits for.
  inbox_.TakeAll(Duration::zero(), &inputs);
  for (Input& input : inputs) {
    if (auto* call = std::get_if<std::function<void()>>(&input.what)) (*call)();
  }
  for (Watcher& watcher : watchers_) watcher.done(absl::UnavailableError("the server stops"));
  watchers_.clear();
  links_.clear();
}

void CoordinatorImpl::Process(Input& input) {
  if (auto* call = std::get_if<std::function<void()>>(&input.what)) return (*call)();
  ServerSession* session = input.session.get();
  if (std::holds_alternative<OpenedIn>(input.what)) return OpenBooks(input.session);
  if (std::holds_alternative<DoneIn>(input.what)) return Forget(session);
  const bool counted =
      !std::holds_alternative<GoneIn>(input.what) && !std::holds_alternative<RoomIn>(input.what);
  if (counted) session->Processed();
  const auto it = links_.find(session);
  if (it == links_.end()) return;  // a GoneIn that was overtaken by its DoneIn
  Link* link = it->second.get();
  if (link->stage == Stage::kClosing && !std::holds_alternative<GoneIn>(input.what)) return;
  std::visit(
      [&](auto& what) {
        using What = std::decay_t<decltype(what)>;
        if constexpr (requires { On(link, what); }) {
          On(link, what);
        } else {
          static_assert(std::is_same_v<What, OpenedIn> || std::is_same_v<What, DoneIn> ||
                        std::is_same_v<What, std::function<void()>>);
        }
      },
      input.what);
}

void CoordinatorImpl::OpenBooks(const std::shared_ptr<ServerSession>& session) {
  auto link = std::make_unique<Link>();
  link->session = session;
  link->since = clock_->Now();
  links_[session.get()] = std::move(link);
  MutexLock lock(&end_mu_);
  open_links_ = links_.size();
}

void CoordinatorImpl::Forget(ServerSession* session) {
  const auto it = links_.find(session);
  if (it == links_.end()) return;
  Detach(it->second.get());
  links_.erase(it);
  MutexLock lock(&end_mu_);
  open_links_ = links_.size();
  end_cv_.NotifyAll();
}

void CoordinatorImpl::SetStage(Link* link, Stage stage) {
  link->stage = stage;
  link->since = clock_->Now();
}

void CoordinatorImpl::End(absl::Status status) {
  if (end_seen_) return;
  end_seen_ = true;
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
      if (stop_requested_) {
        LogInfo(ToStd(status.message()));
        closing_status_ = absl::CancelledError("the server stops");
        reason = "stopped by the operator";
        status = absl::OkStatus();
      }
      break;
    default:
      break;
  }
  Event(v1::Event::KIND_ENDED, {.reason = reason});
  AnswerWatchers(kEndOfTime);
  if (absl::IsAborted(status)) {
    // Nothing resumes a run that diverged: workers must not look for this server again.
    closing_status_ = absl::FailedPreconditionError(status.message());
  } else if (!status.ok()) {
    closing_status_ = status;
  }
  if (finish_rounds_.has_value() && closing_status_.ok()) {
    // Those who were still joining came too late: nothing is left to look for this server for.
    for (auto& [session, link] : links_) {
      if (link->stage == Stage::kFetching || link->stage == Stage::kKeeping ||
          link->stage == Stage::kCatchingUp) {
        SendFinish(link.get());
      }
    }
  }
  MutexLock lock(&end_mu_);
  ended_ = true;
  end_status_ = std::move(status);
  final_rounds_ = ring_ == nullptr ? 0 : ring_->next().value();
  end_cv_.NotifyAll();
}

void CoordinatorImpl::Housekeeping(Time now) {
  AnswerWatchers(now);
  // Streams that wait for one another to go are looked at by name, so that closing one does not
  // disturb the loop.
  std::vector<Link*> links, strangers;
  for (auto& [session, link] : links_) links.push_back(link.get());
  for (Link* link : links) {
    const Duration age = now - link->since;
    switch (link->stage) {
      case Stage::kConnected:
        if (age > kJoinTimeout) {
          CloseLink(link,
                    absl::DeadlineExceededError("no Join came within 10 s of the stream's start"));
        } else {
          strangers.push_back(link);
        }
        break;
      case Stage::kHeld:
        if (age >= options_.ping_timeout && link->worker != nullptr &&
            link->worker->link != nullptr) {
          Link* old = link->worker->link;
          LogWarning("an old session is fenced", {{"worker", link->worker->name}});
          // Detaching the old one lets the held one in.
          CloseLink(
              old, absl::AbortedError("a newer session of '" + link->worker->name + "' took over"));
        }
        break;
      case Stage::kUploading:
        if (engine_ == nullptr && now - hub_.last_progress() > options_.upload_timeout) {
          CloseLink(link, absl::AbortedError(absl::StrCat(
                              "the upload of the initial parameters made no progress for ",
                              ToSeconds(options_.upload_timeout), " s (--upload-timeout)")));
        }
        break;
      case Stage::kClosing:
        if (age > options_.close_timeout) link->session->Cancel();
        break;
      default:
        break;
    }
    CountBytes(link);
  }
  CloseOldest(std::move(strangers));
  if (engine_ == nullptr && !end_seen_) {
    const bool anybody = std::any_of(links.begin(), links.end(), [](const Link* link) {
      return link->stage == Stage::kUploading;
    });
    if (anybody || paused_) waiting_since_ = now;
    if (now - waiting_since_ > options_.wait_timeout) {
      End(absl::DeadlineExceededError(absl::StrCat("waited ", ToSeconds(options_.wait_timeout),
                                                   " s for a worker (--wait-timeout)")));
    }
  }
}

void CoordinatorImpl::CloseOldest(std::vector<Link*> strangers) {
  if (strangers.size() <= kStrangersMax) return;
  // A worker sends its Join at once: who has been silent for longest is the least likely to be one.
  std::sort(strangers.begin(), strangers.end(),
            [](const Link* a, const Link* b) { return a->since < b->since; });
  strangers.resize(strangers.size() - kStrangersMax);
  for (Link* link : strangers) {
    CloseLink(link, absl::UnavailableError(absl::StrCat("more than ", kStrangersMax,
                                                        " streams have sent no Join; try again")));
  }
}

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(CoordinatorOptions options,
                                                                 Clock* clock, FileSystem* fs) {
  SIGNVOTE_ASSIGN_OR_RETURN(v1::Direction direction, ToProto(options.direction));
  SIGNVOTE_RETURN_IF_ERROR(MakeRule(options.rule).status());
  if (options.chunk_coordinates % kChunkCoordinatesMultiple != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--chunk-coordinates ", options.chunk_coordinates, " is not a multiple of ",
                     kChunkCoordinatesMultiple));
  }
  std::unique_ptr<SafetensorsFile> init;
  if (!options.init_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(init, SafetensorsFile::Open(fs, options.init_path));
    SIGNVOTE_RETURN_IF_ERROR(WithContext(init->RequireFinite(), "--init"));
    if (init->tensors().empty()) {
      return absl::DataLossError(absl::StrCat("--init: ", options.init_path, ": holds no tensor"));
    }
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<RunLog> log,
                            RunLog::Open(fs, options.round_log_path, options.event_log_path));
  uint64_t words[4];
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(words)));
  std::memcpy(words, random.data(), sizeof(words));
  return std::make_unique<CoordinatorImpl>(
      std::move(options), clock, fs, RunId::FromRandom(words[0], words[1]), std::move(direction),
      Rng(words[2], words[3]), std::move(log), std::move(init));
}

std::map<std::string, std::string> ExportMetadata(const RunId& run_id, Round round) {
  return {{"format", "pt"},
          {"signvote.run_id", run_id.ToText()},
          {"signvote.round", std::to_string(round.value())}};
}

}  // namespace signvote::rpc
