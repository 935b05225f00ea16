#include "server/rpc/coordinator_impl.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/apply.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/text.h"

namespace signvote::rpc {
namespace {

constexpr size_t kCatchUpQueueBytes = size_t{4}
                                      << 20;  // a worker that catches up is fed this far ahead
constexpr uint64_t kModelConfigBytesMax = 1 << 20;

absl::StatusOr<Layout> LayoutOf(const v1::Layout& in) {
  std::vector<TensorSpec> tensors;
  tensors.reserve(static_cast<size_t>(in.tensors_size()));
  for (const v1::Tensor& t : in.tensors()) {
    tensors.push_back({.name = t.name(),
                       .shape = {t.shape().begin(), t.shape().end()},
                       .step_scale = t.step_scale(),
                       .weight_decay = t.weight_decay()});
  }
  SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, Layout::Make(std::move(tensors)));
  if (layout.digest() != in.digest()) {
    return absl::InvalidArgumentError("the layout's digest " + Hex(in.digest()) +
                                      " is not the one of its tensors, " + Hex(layout.digest()));
  }
  return layout;
}

// Bytes of memory that can still be used; nullopt when the system does not say.
std::optional<uint64_t> AvailableMemory(FileSystem* fs) {
  const absl::StatusOr<std::string> text = fs->ReadFile("/proc/meminfo", 1 << 16);
  if (!text.ok()) return std::nullopt;
  constexpr std::string_view kKey = "MemAvailable:";
  const size_t at = text->find(kKey);
  if (at == std::string::npos) return std::nullopt;
  return std::strtoull(text->c_str() + at + kKey.size(), nullptr, 10) * 1024;
}

}  // namespace

void CoordinatorImpl::On(Link* link, JoinIn& in) {
  link->join = in.join;
  link->joined = clock_->Now();
  const absl::Status status = CheckJoin(link);
  if (!status.ok()) return Refuse(link, status);
  in.join->clear_layout();  // it is the run's, and may be large
  WorkerRecord* record = FindOrAddWorker(in.join->name());
  link->worker = record;
  if (record->link != nullptr) {
    if (record->held != nullptr) {
      return Refuse(link,
                    absl::AlreadyExistsError("worker '" + record->name + "' is already joining"));
    }
    // Whoever answers in time is alive, and the newcomer is a second process with the same
    // name.
    record->held = link;
    record->link->ping_nonce = rng_.Next() | 1;
    v1::ServerMessage ping;
    ping.mutable_ping()->set_nonce(record->link->ping_nonce);
    record->link->session->Send(wire::EncodeMessage(ping));
    return SetStage(link, Stage::kHeld);
  }
  Accept(link);
}

absl::Status CoordinatorImpl::CheckJoin(Link* link) {
  const v1::Join& join = *link->join;
  if (refuse_all_) return absl::CancelledError("the server stops");
  SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(join.name()));
  if (join.protocol_min() > wire::kProtocolVersion ||
      join.protocol_max() < wire::kProtocolVersion || join.protocol_min() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("protocol versions do not meet: the server (", SoftwareVersion(), ") speaks ",
                     wire::kProtocolVersion, ", worker '", join.name(), "' (",
                     join.software_version(), ") speaks ", join.protocol_min(), " to ",
                     join.protocol_max(), "; install the same release on both"));
  }
  const wire::Peer& peer = link->session->peer();
  if (options_.tls) {
    if (!peer.authenticated || !peer.HasRole(wire::Role::kWorker)) {
      return absl::PermissionDeniedError("the certificate of '" + join.name() +
                                         "' is not a worker's (role signvote:role:worker)");
    }
    if (std::find(peer.dns_names.begin(), peer.dns_names.end(), join.name()) ==
        peer.dns_names.end()) {
      return absl::PermissionDeniedError(
          "worker '" + join.name() + "' shows the certificate of '" +
          (peer.dns_names.empty() ? std::string("nobody") : peer.dns_names.front()) +
          "'; a worker's name is the DNS name in its certificate");
    }
  }
  if (tokens_.has_value()) SIGNVOTE_RETURN_IF_ERROR(tokens_->Check(join.name(), join.token()));
  if (const WorkerRecord* known = FindWorker(join.name()); known != nullptr && known->evicted) {
    return EvictedStatus(*known);
  }
  if (!join.run_id().empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const RunId wanted, RunId::FromBytes(join.run_id()));
    if (wanted != run_id_) {
      return absl::FailedPreconditionError("worker '" + join.name() + "' belongs to run " +
                                           wanted.ToText() + ", this server trains run " +
                                           run_id_.ToText());
    }
  }
  if (join.model_config_json().size() > kModelConfigBytesMax) {
    return absl::InvalidArgumentError("the model's config.json has more than 1 MiB");
  }
  size_t present = 0;
  for (const auto& [session, other] : links_) {
    if (other->worker != nullptr && other->stage != Stage::kClosing &&
        other->worker->name != join.name())
      ++present;
  }
  if (present >= options_.workers_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the run is full: ", present,
                                                     " workers are connected (--workers-max ",
                                                     options_.workers_max, ")"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, LayoutOf(join.layout()));
  if (layout_.has_value()) {
    if (layout.digest() == layout_->digest()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        "worker '" + join.name() + "' trains another model: its layout is " + Hex(layout.digest()) +
        ", the run's is " + Hex(layout_->digest()) + "; " + layout_->FirstDifference(layout));
  }
  return FixLayout(std::move(layout));
}

absl::Status CoordinatorImpl::FixLayout(Layout layout) {
  const uint64_t chunk_coordinates = options_.chunk_coordinates != 0
                                         ? options_.chunk_coordinates
                                         : ChunkPlan::DefaultChunkCoordinates(layout.coordinates());
  const ChunkPlan plan(layout.coordinates(), chunk_coordinates);
  const uint64_t needed = layout.coordinates() * sizeof(float) + plan.TotalBytes() * 8;
  if (const std::optional<uint64_t> available = AvailableMemory(fs_);
      available.has_value() && needed > *available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a model of ", layout.coordinates(), " coordinates needs ", needed >> 20,
                     " MiB at the server, which has ", *available >> 20, " MiB left"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MasterReplica> replica,
                            MasterReplica::Create(std::move(layout)));
  if (init_ != nullptr) {
    if (const absl::Status status = init_->CopyInto(replica->layout(), replica->x());
        !status.ok()) {
      return absl::FailedPreconditionError(
          options_.init_path +
          " (--init) does not fit the worker's model: " + std::string(ToStd(status.message())));
    }
  }
  layout_ = replica->layout();
  plan_ = plan;
  replica_ = std::move(replica);
  verdict_pool_ = std::make_unique<BufferPool>(plan_.TotalBytes(), 8);
  ballot_pool_ = std::make_unique<BufferPool>(plan_.TotalBytes(), options_.workers_max);
  ring_ = std::make_unique<CommitRing>(
      CommitRing::CapacityFor(options_.catch_up_bytes, plan_.TotalBytes()));
  LogInfo("the model is known", {{"coordinates", layout_->coordinates()},
                                 {"layout", Hex(layout_->digest())},
                                 {"chunks", uint64_t{plan_.chunks()}},
                                 {"rounds_kept", uint64_t{ring_->capacity()}}});
  if (init_ != nullptr) {
    init_.reset();
    if (const absl::Status status = StartEngine(); !status.ok()) {
      End(status);
      return status;
    }
  }
  return absl::OkStatus();
}

void CoordinatorImpl::Accept(Link* link) {
  WorkerRecord* record = link->worker;
  record->link = link;
  record->incarnation = record->incarnation.next();
  record->address = link->session->peer().address;
  record->metrics_address = link->join->metrics_address();
  link->incarnation = record->incarnation;
  link->counter.emplace(record->address, 0);
  link->baseline = link->counter->Read().value_or(wire::SocketBytes{});
  link->last = link->baseline;
  record->wire.set_up_setup_bytes(record->wire.up_setup_bytes() + link->baseline.received);
  record->wire.set_down_setup_bytes(record->wire.down_setup_bytes() + link->baseline.sent);
  const absl::StatusOr<std::string> ticket = fs_->RandomBytes(wire::kTicketBytes);
  if (!ticket.ok()) return Refuse(link, ticket.status());
  link->ticket = *ticket;
  hub_.tickets()->Add(link->ticket, link->session);
  link->slots = std::make_shared<BallotSlots>(plan_, ballot_pool_->Acquire());
  link->session->Admit(link->slots);
  if (model_config_.empty() && !link->join->model_config_json().empty()) {
    model_config_ = link->join->model_config_json();
    MutexLock lock(&end_mu_);
    final_config_ = model_config_;
  }
  record->abstaining = false;
  Event(v1::Event::KIND_JOINED, record);
  LogInfo("worker joined", {{"worker", record->name},
                            {"incarnation", record->incarnation.value()},
                            {"address", record->address}});
  if (engine_ != nullptr) return Welcome(link);
  SetStage(link, Stage::kWaitingState);
  NameUploader();
}

void CoordinatorImpl::Welcome(Link* link) {
  const v1::Join& join = *link->join;
  const bool keeps = join.has_round() && !join.run_id().empty() && join.epoch() == epoch_.value() &&
                     ring_->Reaches(Round(join.round()));
  SendWelcome(link, keeps ? v1::Welcome::STATE_KEEP : v1::Welcome::STATE_FETCH);
  SetStage(link, keeps ? Stage::kKeeping : Stage::kFetching);
}

void CoordinatorImpl::SendWelcome(Link* link, v1::Welcome::State state) {
  v1::ServerMessage message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_protocol(wire::kProtocolVersion);
  welcome.set_software_version(SoftwareVersion());
  welcome.set_run_id(std::string(run_id_.bytes()));
  welcome.set_epoch(epoch_.value());
  welcome.set_incarnation(link->incarnation.value());
  welcome.set_ticket(link->ticket);
  welcome.set_state(state);
  welcome.set_chunk_coordinates(plan_.chunk_coordinates());
  welcome.set_seed(options_.seed);
  welcome.set_rounds_max(options_.rounds_max);
  *welcome.mutable_direction() = direction_;
  welcome.set_digest_every(options_.digest_every);
  welcome.set_message_bytes_max(options_.message_bytes_max);
  welcome.set_round(ring_->next().value());
  link->session->Send(wire::EncodeMessage(message));
}

void CoordinatorImpl::NameUploader() {
  if (engine_ != nullptr) return;
  Link* uploader = nullptr;
  Link* first = nullptr;
  for (auto& [session, link] : links_) {
    if (link->stage == Stage::kUploading) uploader = link.get();
    if (link->stage != Stage::kWaitingState) continue;
    if (first == nullptr || link->joined < first->joined) first = link.get();
  }
  if (uploader == nullptr) {
    if (first == nullptr) return;
    uploader = first;
    SetStage(uploader, Stage::kUploading);
    hub_.Grant(uploader->session, replica_);
    SendWelcome(uploader, v1::Welcome::STATE_UPLOAD);
    LogInfo("initial parameters come from a worker", {{"worker", uploader->worker->name}});
  }
  v1::ServerMessage notice;
  notice.mutable_notice()->set_text("waiting for the initial parameters from " +
                                    uploader->worker->name);
  const grpc::ByteBuffer encoded = wire::EncodeMessage(notice);
  for (auto& [session, link] : links_) {
    if (link->stage == Stage::kWaitingState) link->session->Send(encoded);
  }
}

void CoordinatorImpl::OnUploaded(ServerSession* session) {
  // An uploader that went meanwhile has lost its lease, and perhaps its layout, to somebody else.
  const auto it = links_.find(session);
  if (engine_ != nullptr || it == links_.end() || it->second->stage != Stage::kUploading) return;
  const absl::Status status = StartEngine();
  if (!status.ok()) return End(status);
  // The uploader itself says Ready on its stream, behind this.
  for (auto& [key, link] : links_) {
    if (link->stage == Stage::kWaitingState) Welcome(link.get());
  }
}

absl::Status CoordinatorImpl::StartEngine() {
  const float x0_max_abs = MaxAbs(std::as_const(*replica_).x());
  if (!std::isfinite(x0_max_abs)) {
    return WithExitCode(absl::InvalidArgumentError("the initial parameters are not finite"),
                        ExitCode::kBadInput);
  }
  round::EngineConfig config;
  config.coordinates = layout_->coordinates();
  config.chunks = plan_.chunks();
  config.rounds_max = options_.rounds_max;
  config.workers_min = options_.workers_min;
  config.workers_max = options_.workers_max;
  config.quorum = options_.quorum;
  config.deadline = options_.deadline;
  config.observer_after = options_.observer_after;
  config.share_hold_rounds = options_.share_hold_rounds;
  config.digest_every = options_.digest_every;
  config.wait_timeout = options_.wait_timeout;
  config.linger = options_.linger;
  config.x0_max_abs = static_cast<double>(x0_max_abs);
  config.step_scale_max = static_cast<double>(layout_->step_scale_max());
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<StepsizeRule> rule, MakeRule(options_.rule));
  SIGNVOTE_ASSIGN_OR_RETURN(
      engine_, round::Engine::Create(std::move(config), std::move(rule), clock_->Now()));
  applier_ = std::make_unique<Applier>(
      replica_.get(), clock_,
      Applier::Options{.backlog_max = std::max<size_t>(1, ring_->capacity() * 3 / 4),
                       .delay = options_.test_applier_delay,
                       .on_applied = [this](const Applier::Applied& applied) {
                         (void)Post(
                             [this, applied] { OnApplied(applied); });  // false: the server stops
                       }});
  hub_.Publish(replica_);
  {
    MutexLock lock(&end_mu_);
    final_replica_ = replica_;
    final_applier_ = applier_.get();
  }
  LogInfo("initial parameters are complete", {{"max_abs", static_cast<double>(x0_max_abs)}});
  if (paused_) Drive(round::PauseRequested{});
  return absl::OkStatus();
}

void CoordinatorImpl::OnApplied(const Applier::Applied& applied) {
  apply_.Add(ToSeconds(applied.took));
  if (options_.observer != nullptr) options_.observer->OnApplied(ToSeconds(applied.took));
  if (!applied.digest.has_value()) return;
  master_digest_ = *applied.digest;
  master_digest_round_ = applied.next_round;
  LogInfo("master replica",
          {{"round", applied.next_round.value()}, {"digest", Hex(master_digest_)}});
  log_->Event(EventLine("digest").Text("worker", "").Text("digest", Hex(master_digest_)));
  Drive(round::MasterDigestIn{applied.next_round, *applied.digest});
}

void CoordinatorImpl::On(Link* link, ReadyIn& in) {
  const bool expected = link->stage == Stage::kFetching || link->stage == Stage::kKeeping ||
                        (link->stage == Stage::kUploading && engine_ != nullptr);
  if (!expected)
    return CloseLink(link, absl::InvalidArgumentError("Ready came without being asked for"));
  if (in.round > ring_->next()) {
    return CloseLink(link, absl::InvalidArgumentError(
                               absl::StrCat("Ready at round ", in.round.value(), ", but only ",
                                            ring_->next().value(), " are committed")));
  }
  link->next_send = in.round;
  SetStage(link, Stage::kCatchingUp);
  Feed(link);
}

void CoordinatorImpl::Feed(Link* link) {
  while (link->stage == Stage::kCatchingUp && link->next_send < ring_->next()) {
    if (link->session->queued_bytes() > kCatchUpQueueBytes) {
      return link->session->NotifyWhenBelow(kCatchUpQueueBytes / 2);
    }
    const std::shared_ptr<const CommitRecord> record = ring_->Find(link->next_send);
    if (record == nullptr)
      return SendResync(link, "its state is older than the commits that are kept");
    SendWholeRound(link, record);
    link->next_send = link->next_send.next();
  }
  if (link->stage != Stage::kCatchingUp) return;
  SetStage(link, Stage::kReady);
  if (!link->in_engine) {
    link->in_engine = true;
    Drive(round::WorkerReady{link->worker->id, link->incarnation, link->worker->name});
  } else if (open_.has_value()) {
    // Back from a resync: the engine never took its seat away.
    for (const round::Seat& seat : open_->seats) {
      if (seat.worker == link->worker->id && seat.incarnation == link->incarnation)
        SendRoundOpen(link, seat);
    }
  }
  if (finish_rounds_.has_value()) SendFinish(link);
}

void CoordinatorImpl::On(Link* link, PongIn& in) {
  WorkerRecord* record = link->worker;
  if (record == nullptr || record->held == nullptr || in.nonce == 0 || in.nonce != link->ping_nonce)
    return;
  link->ping_nonce = 0;
  Refuse(record->held,
         absl::AlreadyExistsError("worker '" + record->name + "' is in a live session from " +
                                  record->address + "; two workers cannot share a name"));
}

void CoordinatorImpl::Refuse(Link* link, const absl::Status& status) {
  const std::string name =
      link->join == nullptr ? "" : ForPeople(link->join->name(), RunHistory::kTextBytesMax);
  LogWarning(
      "join refused",
      {{"worker", name}, {"address", link->session->peer().address}, {"reason", Describe(status)}});
  Event(v1::Event::KIND_REFUSED, {.worker = name, .reason = Describe(status)});
  CloseLink(link, status);
}

absl::Status CoordinatorImpl::EvictedStatus(const WorkerRecord& record) {
  return absl::PermissionDeniedError("worker '" + record.name +
                                     "' was evicted by the operator for the rest of this run");
}

void CoordinatorImpl::CloseLink(Link* link, absl::Status status) {
  if (link->stage == Stage::kClosing) return;
  // When everybody is sent home it is no one's fault.
  if (!status.ok() && status.code() != absl::StatusCode::kCancelled && !refuse_all_) ++refusals_;
  link->session->Close(std::move(status));
  Detach(link);
  SetStage(link, Stage::kClosing);
}

void CoordinatorImpl::On(Link* link, GoneIn& in) {
  if (link->stage == Stage::kClosing) return;
  if (in.ended_by_us) ++refusals_;
  if (link->worker != nullptr) {
    LogInfo("stream ended", {{"worker", link->worker->name}, {"reason", in.reason}});
  }
  Detach(link);
  SetStage(link, Stage::kClosing);
}

void CoordinatorImpl::Detach(Link* link) {
  WorkerRecord* record = std::exchange(link->worker, nullptr);
  if (record == nullptr) return;
  const Stage stage = std::exchange(link->stage, Stage::kClosing);
  link->since = clock_->Now();
  link->live = false;
  if (!link->ticket.empty()) hub_.tickets()->Remove(link->ticket);
  if (record->held == link) {
    record->held = nullptr;
    return;
  }
  if (record->link != link) return;
  CountBytes(link);
  AddBytes(SessionBytes(*link), &record->wire);
  link->counter.reset();
  record->link = nullptr;
  record->last_seen = clock_->Now();
  const bool finished = link->finish_sent || end_seen_;
  if (!link->left && !finished && !record->evicted) Event(v1::Event::KIND_LOST, record);
  if (link->in_engine) Drive(round::WorkerLost{record->id, link->incarnation});
  if (stage == Stage::kUploading && engine_ == nullptr) {
    hub_.Revoke();
    NameUploader();
  }
  if (Link* held = std::exchange(record->held, nullptr)) Accept(held);
  if (engine_ == nullptr) ForgetLayout();
}

void CoordinatorImpl::ForgetLayout() {
  for (const auto& [name, record] : workers_) {
    if (record->link != nullptr || record->held != nullptr) return;
  }
  layout_.reset();
  replica_.reset();
  ring_.reset();
  verdict_pool_.reset();
  ballot_pool_.reset();
  model_config_.clear();
}

void CoordinatorImpl::On(Link* link, LeaveIn& in) {
  link->left = true;
  if (link->worker != nullptr && link->worker->link == link) {
    LogInfo("worker leaves", {{"worker", link->worker->name}, {"reason", in.reason}});
    Event(v1::Event::KIND_LEFT, {.worker = link->worker->name,
                                 .reason = in.reason,
                                 .incarnation = link->worker->incarnation});
    if (link->in_engine) Drive(round::WorkerLeaves{link->worker->id, link->incarnation});
  }
  CloseLink(link, absl::OkStatus());
}

}  // namespace signvote::rpc
