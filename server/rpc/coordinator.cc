#include "server/rpc/coordinator.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/process.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "proto/wire/socket_bytes.h"
#include "proto/wire/wire.h"
#include "server/replica/applier.h"
#include "server/replica/buffer_pool.h"
#include "server/replica/commit_ring.h"
#include "server/replica/master_replica.h"
#include "server/rpc/ballot_slots.h"
#include "server/rpc/probe.h"
#include "server/rpc/run_log.h"
#include "server/rpc/session.h"
#include "server/tally/tally.h"
#include "signvote/v1/training.pb.h"

namespace signvote::rpc {
namespace {

using round::WorkerId;

constexpr Duration kHousekeepingEvery = std::chrono::milliseconds(100);
constexpr Duration kJoinTimeout = std::chrono::seconds(10);   // from the stream's start to its Join
constexpr Duration kPingTimeout = std::chrono::seconds(1);    // architecture.md 6b
constexpr Duration kCloseTimeout = std::chrono::seconds(2);   // then a stream that does not end is broken off
constexpr Duration kApplierPatience = std::chrono::seconds(10);
constexpr size_t kNamesMax = 4096;                            // names ever seen, without a token table
constexpr size_t kStrangersMax = 32;                          // streams beyond workers_max: not yet joined, or closing
constexpr size_t kCatchUpQueueBytes = size_t{4} << 20;        // a worker that catches up is fed this far ahead
constexpr uint64_t kModelConfigBytesMax = 1 << 20;
constexpr size_t kRoundSecondsKept = 16;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

enum class Stage {
  kConnected,      // no Join yet
  kHeld,           // joined under a name whose old session is being pinged
  kWaitingState,   // welcome once the initial parameters are there
  kUploading,      // welcomed, uploads them
  kFetching,       // welcomed, or told to resync; Ready comes after the transfer
  kKeeping,        // welcomed with its own replica; Ready comes at once
  kCatchingUp,     // gets missing commits from the ring
  kReady,          // gets everything as it happens
  kClosing,
};

struct Link;

// A name that ever joined.
struct WorkerRecord {
  WorkerId id;
  std::string name;
  Incarnation incarnation;
  Link* link = nullptr;  // its live session
  Link* held = nullptr;  // a newcomer under the same name
  bool evicted = false;
  Time last_seen;
  // For people:
  std::string address, metrics_address;
  double agreement = kNan, loss = kNan, joined_seconds = kNan;
  v1::WireTotals wire;   // of ended sessions; the live one's is added on top
  uint64_t whole_ballots = 0;
  double compute_seconds = 0, apply_seconds = 0;  // as it said in its last scalars
};

struct Link {
  std::shared_ptr<ServerSession> session;
  Stage stage = Stage::kConnected;
  Time since;              // of the stage
  Time joined;
  WorkerRecord* worker = nullptr;
  Incarnation incarnation;
  std::shared_ptr<const v1::Join> join;
  std::string ticket;
  std::shared_ptr<BallotSlots> slots;
  uint64_t ping_nonce = 0;
  Round next_send;         // kCatchingUp: the next commit to send
  bool in_engine = false;  // WorkerReady was said
  bool left = false;       // said Leave
  bool live = false;       // was there when the open attempt was opened: gets its verdicts as they come
  bool seated = false;     // has had a seat as member
  bool finish_sent = false;
  // Bytes on the wire.
  std::optional<wire::SocketByteCounter> counter;
  wire::SocketBytes baseline, last;
};

double UnixSeconds(const Clock& clock) { return static_cast<double>(clock.UnixMicros()) * 1e-6; }

std::string Hex(uint64_t value) { return absl::StrFormat("%016x", value); }

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
    return absl::InvalidArgumentError(absl::StrCat("--beta ", spec.beta, " is out of range; use a number in [0, 1)"));
  }
  if (!in_range(spec.beta2)) {
    return absl::InvalidArgumentError(absl::StrCat("--beta2 ", spec.beta2, " is out of range; use a number in [0, 1)"));
  }
  if (spec.kind != "signsgd") out.set_beta(spec.beta);
  if (spec.kind == "lion") out.set_beta2(spec.beta2);
  return out;
}

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

v1::RoundOpen::Role ToProto(round::Role role) {
  return role == round::Role::kMember ? v1::RoundOpen::ROLE_MEMBER : v1::RoundOpen::ROLE_OBSERVER;
}

v1::Status::Phase ToProto(round::Phase phase) {
  switch (phase) {
    case round::Phase::kWaitingForWorkers:
      return v1::Status::PHASE_WAITING_FOR_WORKERS;
    case round::Phase::kRoundOpen:
      return v1::Status::PHASE_ROUND_OPEN;
    case round::Phase::kPaused:
      return v1::Status::PHASE_PAUSED;
    case round::Phase::kFinishing:
      return v1::Status::PHASE_FINISHING;
    case round::Phase::kEnded:
      break;
  }
  return v1::Status::PHASE_ENDED;
}

void Add(const v1::WireTotals& in, v1::WireTotals* out) {
  out->set_up_rounds_bytes(out->up_rounds_bytes() + in.up_rounds_bytes());
  out->set_down_rounds_bytes(out->down_rounds_bytes() + in.down_rounds_bytes());
  out->set_up_setup_bytes(out->up_setup_bytes() + in.up_setup_bytes());
  out->set_down_setup_bytes(out->down_setup_bytes() + in.down_setup_bytes());
  out->set_fp32_equivalent_bytes(out->fp32_equivalent_bytes() + in.fp32_equivalent_bytes());
  out->set_ballots(out->ballots() + in.ballots());
}

class CoordinatorImpl final : public Coordinator {
 public:
  CoordinatorImpl(CoordinatorOptions options, Clock* clock, FileSystem* fs, RunId run_id, v1::Direction direction,
                  Rng rng, std::unique_ptr<RunLog> log, std::unique_ptr<SafetensorsFile> init)
      : options_(std::move(options)),
        clock_(clock),
        fs_(fs),
        run_id_(run_id),
        direction_(std::move(direction)),
        started_(clock->Now()),
        hub_(clock),
        rng_(rng),
        log_(std::move(log)),
        init_(std::move(init)),
        waiting_since_(clock->Now()) {}

  ~CoordinatorImpl() override { Stop(); }

  // ---- any thread --------------------------------------------------------------------------------------------------

  void Start() override { thread_ = std::thread([this] { Run(); }); }

  void RequestStop() override {
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

  bool WaitUntilEnded(Duration timeout) override {
    const Time until = clock_->Now() + timeout;
    MutexLock lock(&end_mu_);
    while (!ended_) {
      const Duration left = until - clock_->Now();
      if (left <= Duration::zero()) return false;
      (void)end_cv_.WaitFor(&end_mu_, left);  // the loop looks at the condition itself
    }
    return true;
  }

  absl::Status end_status() const override {
    MutexLock lock(&end_mu_);
    SIGNVOTE_CHECK(ended_);
    return end_status_;
  }

  void CloseSessions(Duration timeout) override {
    const Time until = clock_->Now() + timeout;
    (void)Post([this] {  // false: nobody is left to close
      refuse_all_ = true;
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

  void Stop() override {
    inbox_.Close();
    {
      MutexLock lock(&end_mu_);
      stop_thread_ = true;
    }
    if (thread_.joinable()) thread_.join();
    if (applier_ != nullptr) applier_->Stop();
  }

  absl::Status ExportFinal(const std::string& path) override {
    std::shared_ptr<MasterReplica> replica;
    Applier* applier = nullptr;
    {
      MutexLock lock(&end_mu_);
      SIGNVOTE_CHECK(ended_);
      replica = final_replica_;
      applier = final_applier_;
    }
    if (replica == nullptr) {
      return absl::FailedPreconditionError(path + ": there are no parameters to export: no worker brought any");
    }
    while (!applier->WaitUntilIdle(kApplierPatience)) {
      LogWarning("the export waits for the master replica", {{"rounds", uint64_t{applier->backlog()}}});
    }
    std::vector<float> unused;
    const Round round = Round(final_rounds_);
    return ExportReplica(fs_, path, replica->layout(), std::as_const(*replica).x(), ExportMetadata(run_id_, round),
                         final_config_);
  }

  Inbox* inbox() override { return &inbox_; }
  StateHub* hub() override { return &hub_; }
  const RunId& run_id() const override { return run_id_; }
  Epoch epoch() const override { return epoch_; }
  uint64_t session_buffer_bytes() const override { return options_.session_buffer_bytes; }

  void AddTransfer(std::shared_ptr<ServerSession> session, TransferBytes bytes) override {
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

  void Uploaded(std::shared_ptr<ServerSession> session) override {
    (void)Post([this, session = std::move(session)] { OnUploaded(session.get()); });  // false: the server stops
  }

  bool Post(std::function<void()> call) override { return inbox_.Push({nullptr, std::move(call)}); }

  absl::StatusOr<ServerSnapshot> Snapshot(Duration timeout) override {
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
      if (left <= Duration::zero()) return absl::DeadlineExceededError("the engine's thread does not answer");
      (void)answer->cv.WaitFor(&answer->mu, left);  // the loop looks at the condition itself
    }
    return *std::move(answer->snapshot);
  }

  absl::StatusOr<Exported> CopyReplica() override {
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

  // ---- engine's thread: operator -----------------------------------------------------------------------------------

  absl::Status Pause() override {
    paused_ = true;
    if (engine_ != nullptr) Drive(round::PauseRequested{});
    return absl::OkStatus();
  }
  absl::Status Resume() override {
    paused_ = false;
    if (engine_ != nullptr) Drive(round::ResumeRequested{});
    return absl::OkStatus();
  }
  absl::Status Drain(const std::string& worker) override {
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
  absl::Status Evict(const std::string& worker) override {
    WorkerRecord* record = FindWorker(worker);
    if (record == nullptr) return absl::NotFoundError("no worker '" + worker + "' was ever seen");
    if (record->evicted) return absl::OkStatus();
    record->evicted = true;
    Event("evicted", record);
    if (engine_ != nullptr) Drive(round::EvictRequested{record->id});
    if (record->link != nullptr) CloseLink(record->link, EvictedStatus(*record));
    if (record->held != nullptr) CloseLink(record->held, EvictedStatus(*record));
    return absl::OkStatus();
  }

  ServerSnapshot SnapshotNow() override;

 private:
  // ---- the thread --------------------------------------------------------------------------------------------------

  void Run() {
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
    links_.clear();
  }

  void Process(Input& input) {
    if (auto* call = std::get_if<std::function<void()>>(&input.what)) return (*call)();
    ServerSession* session = input.session.get();
    if (std::holds_alternative<OpenedIn>(input.what)) return OpenBooks(input.session);
    if (std::holds_alternative<DoneIn>(input.what)) return Forget(session);
    const bool counted = !std::holds_alternative<GoneIn>(input.what) && !std::holds_alternative<RoomIn>(input.what);
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

  void OpenBooks(const std::shared_ptr<ServerSession>& session) {
    auto link = std::make_unique<Link>();
    link->session = session;
    link->since = clock_->Now();
    links_[session.get()] = std::move(link);
    MutexLock lock(&end_mu_);
    open_links_ = links_.size();
  }

  void Forget(ServerSession* session) {
    const auto it = links_.find(session);
    if (it == links_.end()) return;
    Detach(it->second.get());
    links_.erase(it);
    MutexLock lock(&end_mu_);
    open_links_ = links_.size();
    end_cv_.NotifyAll();
  }

  void SetStage(Link* link, Stage stage) {
    link->stage = stage;
    link->since = clock_->Now();
  }

  // ---- joining -----------------------------------------------------------------------------------------------------

  void On(Link* link, JoinIn& in) {
    link->join = in.join;
    link->joined = clock_->Now();
    const absl::Status status = CheckJoin(link);
    if (!status.ok()) return Refuse(link, status);
    WorkerRecord* record = FindOrAddWorker(in.join->name());
    link->worker = record;
    if (record->link != nullptr) {
      if (record->held != nullptr) {
        return Refuse(link, absl::AlreadyExistsError("worker '" + record->name + "' is already joining"));
      }
      // Whoever answers within a second is alive, and the newcomer is a second process with the same name.
      record->held = link;
      record->link->ping_nonce = rng_.Next() | 1;
      v1::ServerMessage ping;
      ping.mutable_ping()->set_nonce(record->link->ping_nonce);
      record->link->session->Send(wire::EncodeMessage(ping));
      return SetStage(link, Stage::kHeld);
    }
    Accept(link);
  }

  absl::Status CheckJoin(Link* link) {
    const v1::Join& join = *link->join;
    if (refuse_all_) return absl::CancelledError("the server stops");
    if (join.protocol_min() > wire::kProtocolVersion || join.protocol_max() < wire::kProtocolVersion ||
        join.protocol_min() == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "protocol versions do not meet: the server (", SoftwareVersion(), ") speaks ", wire::kProtocolVersion,
          ", worker '", join.name(), "' (", join.software_version(), ") speaks ", join.protocol_min(), " to ",
          join.protocol_max(), "; install the same release on both"));
    }
    SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(join.name()));
    const wire::Peer& peer = link->session->peer();
    if (options_.tls) {
      if (!peer.authenticated || !peer.HasRole(wire::Role::kWorker)) {
        return absl::PermissionDeniedError("the certificate of '" + join.name() +
                                           "' is not a worker's (role signvote:role:worker)");
      }
      if (std::find(peer.dns_names.begin(), peer.dns_names.end(), join.name()) == peer.dns_names.end()) {
        return absl::PermissionDeniedError(
            "worker '" + join.name() + "' shows the certificate of '" +
            (peer.dns_names.empty() ? std::string("nobody") : peer.dns_names.front()) +
            "'; a worker's name is the DNS name in its certificate");
      }
    }
    if (options_.tokens.has_value()) SIGNVOTE_RETURN_IF_ERROR(options_.tokens->Check(join.name(), join.token()));
    if (const WorkerRecord* known = FindWorker(join.name()); known != nullptr && known->evicted) {
      return EvictedStatus(*known);
    }
    if (!join.run_id().empty()) {
      SIGNVOTE_ASSIGN_OR_RETURN(const RunId wanted, RunId::FromBytes(join.run_id()));
      if (wanted != run_id_) {
        return absl::FailedPreconditionError("worker '" + join.name() + "' belongs to run " + wanted.ToText() +
                                             ", this server trains run " + run_id_.ToText());
      }
    }
    if (join.model_config_json().size() > kModelConfigBytesMax) {
      return absl::InvalidArgumentError("the model's config.json has more than 1 MiB");
    }
    size_t present = 0;
    for (const auto& [session, other] : links_) {
      if (other->worker != nullptr && other->stage != Stage::kClosing && other->worker->name != join.name()) ++present;
    }
    if (present >= options_.workers_max) {
      return absl::ResourceExhaustedError(absl::StrCat("the run is full: ", present,
                                                       " workers are connected (--workers-max ", options_.workers_max,
                                                       ")"));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, LayoutOf(join.layout()));
    if (layout_.has_value()) {
      if (layout.digest() == layout_->digest()) return absl::OkStatus();
      return absl::FailedPreconditionError("worker '" + join.name() + "' trains another model: its layout is " +
                                           Hex(layout.digest()) + ", the run's is " + Hex(layout_->digest()) + "; " +
                                           layout_->FirstDifference(layout));
    }
    return FixLayout(std::move(layout));
  }

  // The first joiner's layout is the run's.
  absl::Status FixLayout(Layout layout) {
    const uint64_t chunk_coordinates = options_.chunk_coordinates != 0
                                           ? options_.chunk_coordinates
                                           : ChunkPlan::DefaultChunkCoordinates(layout.coordinates());
    const ChunkPlan plan(layout.coordinates(), chunk_coordinates);
    const uint64_t needed = layout.coordinates() * sizeof(float) + plan.TotalBytes() * 8;
    if (const std::optional<uint64_t> available = AvailableMemory(fs_); available.has_value() && needed > *available) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a model of ", layout.coordinates(), " coordinates needs ", needed >> 20,
                       " MiB at the server, which has ", *available >> 20, " MiB left"));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MasterReplica> replica, MasterReplica::Create(std::move(layout)));
    if (init_ != nullptr) {
      if (const absl::Status status = init_->CopyInto(replica->layout(), replica->x()); !status.ok()) {
        return absl::FailedPreconditionError(options_.init_path + " (--init) does not fit the worker's model: " +
                                             std::string(ToStd(status.message())));
      }
    }
    layout_ = replica->layout();
    plan_ = plan;
    replica_ = std::move(replica);
    verdict_pool_ = std::make_unique<BufferPool>(plan_.TotalBytes(), 8);
    ballot_pool_ = std::make_unique<BufferPool>(plan_.TotalBytes(), options_.workers_max);
    ring_ = std::make_unique<CommitRing>(CommitRing::CapacityFor(options_.catch_up_bytes, plan_.TotalBytes()));
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

  // Gives the newcomer its incarnation and what it needs to get to the current round.
  void Accept(Link* link) {
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
    Event("joined", record);
    LogInfo("worker joined", {{"worker", record->name},
                              {"incarnation", record->incarnation.value()},
                              {"address", record->address}});
    if (engine_ != nullptr) return Welcome(link);
    SetStage(link, Stage::kWaitingState);
    NameUploader();
  }

  void Welcome(Link* link) {
    const v1::Join& join = *link->join;
    const bool keeps = join.has_round() && !join.run_id().empty() && join.epoch() == epoch_.value() &&
                       ring_->Reaches(Round(join.round()));
    SendWelcome(link, keeps ? v1::Welcome::STATE_KEEP : v1::Welcome::STATE_FETCH);
    SetStage(link, keeps ? Stage::kKeeping : Stage::kFetching);
  }

  void SendWelcome(Link* link, v1::Welcome::State state) {
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

  // One worker uploads the initial parameters; the others are told whom they wait for.
  void NameUploader() {
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
    notice.mutable_notice()->set_text("waiting for the initial parameters from " + uploader->worker->name);
    const grpc::ByteBuffer encoded = wire::EncodeMessage(notice);
    for (auto& [session, link] : links_) {
      if (link->stage == Stage::kWaitingState) link->session->Send(encoded);
    }
  }

  void OnUploaded(const ServerSession* session) {
    if (engine_ != nullptr) return;
    const absl::Status status = StartEngine();
    if (!status.ok()) return End(status);
    // The uploader itself says Ready on its stream, behind this.
    for (auto& [key, link] : links_) {
      if (link->stage == Stage::kWaitingState) Welcome(link.get());
      if (link->stage == Stage::kUploading && link->session.get() != session) {
        CloseLink(link.get(), absl::AbortedError("the upload lease went to another worker"));
      }
    }
  }

  // The initial parameters are complete.
  absl::Status StartEngine() {
    const float x0_max_abs = MaxAbs(std::as_const(*replica_).x());
    if (!std::isfinite(x0_max_abs)) {
      return WithExitCode(absl::InvalidArgumentError("the initial parameters are not finite"), ExitCode::kBadInput);
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
    rule_name_ = rule->name();
    SIGNVOTE_ASSIGN_OR_RETURN(engine_, round::Engine::Create(std::move(config), std::move(rule), clock_->Now()));
    applier_ = std::make_unique<Applier>(
        replica_.get(), clock_,
        Applier::Options{.backlog_max = std::max<size_t>(1, ring_->capacity() * 3 / 4),
                         .delay = options_.test_applier_delay,
                         .on_applied = [this](const Applier::Applied& applied) {
                           (void)Post([this, applied] { OnApplied(applied); });  // false: the server stops
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

  void OnApplied(const Applier::Applied& applied) {
    apply_.Add(ToSeconds(applied.took));
    if (options_.observer != nullptr) options_.observer->OnApplied(ToSeconds(applied.took));
    if (!applied.digest.has_value()) return;
    master_digest_ = *applied.digest;
    master_digest_round_ = applied.next_round;
    LogInfo("master replica", {{"round", applied.next_round.value()}, {"digest", Hex(master_digest_)}});
    log_->Event(EventLine("digest").Text("worker", "").Text("digest", Hex(master_digest_)));
    Drive(round::MasterDigestIn{applied.next_round, *applied.digest});
  }

  void On(Link* link, ReadyIn& in) {
    const bool expected = link->stage == Stage::kFetching || link->stage == Stage::kKeeping ||
                          (link->stage == Stage::kUploading && engine_ != nullptr);
    if (!expected) return CloseLink(link, absl::InvalidArgumentError("Ready came without being asked for"));
    if (in.round > ring_->next()) {
      return CloseLink(link, absl::InvalidArgumentError(absl::StrCat("Ready at round ", in.round.value(), ", but only ",
                                                                     ring_->next().value(), " are committed")));
    }
    link->next_send = in.round;
    SetStage(link, Stage::kCatchingUp);
    Feed(link);
  }

  // Sends missing commits from the ring, as far ahead as the stream takes them, then makes the worker ready.
  void Feed(Link* link) {
    while (link->stage == Stage::kCatchingUp && link->next_send < ring_->next()) {
      if (link->session->queued_bytes() > kCatchUpQueueBytes) {
        return link->session->NotifyWhenBelow(kCatchUpQueueBytes / 2);
      }
      const std::shared_ptr<const CommitRecord> record = ring_->Find(link->next_send);
      if (record == nullptr) return SendResync(link, "its state is older than the commits that are kept");
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
        if (seat.worker == link->worker->id && seat.incarnation == link->incarnation) SendRoundOpen(link, seat);
      }
    }
    if (finish_rounds_.has_value()) SendFinish(link);
  }

  void On(Link* link, RoomIn&) { Feed(link); }

  void On(Link* link, PongIn& in) {
    WorkerRecord* record = link->worker;
    if (record == nullptr || record->held == nullptr || in.nonce == 0 || in.nonce != link->ping_nonce) return;
    link->ping_nonce = 0;
    Refuse(record->held, absl::AlreadyExistsError("worker '" + record->name + "' is in a live session from " +
                                                  record->address + "; two workers cannot share a name"));
  }

  void Refuse(Link* link, const absl::Status& status) {
    const std::string name = link->join == nullptr ? "" : link->join->name();
    LogWarning("join refused", {{"worker", name},
                                {"address", link->session->peer().address},
                                {"reason", Describe(status)}});
    log_->Event(EventLine("refused").Text("worker", name).Text("reason", Describe(status)));
    CloseLink(link, status);
  }

  static absl::Status EvictedStatus(const WorkerRecord& record) {
    return absl::PermissionDeniedError("worker '" + record.name + "' was evicted by the operator for the rest of this run");
  }

  // ---- going -------------------------------------------------------------------------------------------------------

  void CloseLink(Link* link, absl::Status status) {
    if (link->stage == Stage::kClosing) return;
    if (!status.ok() && status.code() != absl::StatusCode::kCancelled) ++refusals_;
    link->session->Close(std::move(status));
    Detach(link);
    SetStage(link, Stage::kClosing);
  }

  void On(Link* link, GoneIn& in) {
    if (link->stage == Stage::kClosing) return;
    if (in.ended_by_us) ++refusals_;
    if (link->worker != nullptr) {
      LogInfo("stream ended", {{"worker", link->worker->name}, {"reason", in.reason}});
    }
    Detach(link);
    SetStage(link, Stage::kClosing);
  }

  // The link no longer stands for its worker. Idempotent.
  void Detach(Link* link) {
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
    Add(SessionBytes(*link), &record->wire);
    link->counter.reset();
    record->link = nullptr;
    record->last_seen = clock_->Now();
    const bool finished = link->finish_sent || end_seen_;
    if (!link->left && !finished && !record->evicted) Event("lost", record);
    if (link->in_engine) Drive(round::WorkerLost{record->id, link->incarnation});
    if (stage == Stage::kUploading && engine_ == nullptr) {
      hub_.Revoke();
      NameUploader();
    }
    if (Link* held = std::exchange(record->held, nullptr)) Accept(held);
    if (engine_ == nullptr) ForgetLayout();
  }

  // A layout without parameters and without anybody who could bring them binds nobody.
  void ForgetLayout() {
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

  void On(Link* link, LeaveIn& in) {
    link->left = true;
    if (link->worker != nullptr) {
      LogInfo("worker leaves", {{"worker", link->worker->name}, {"reason", in.reason}});
      Event("left", link->worker);
      if (link->in_engine) Drive(round::WorkerLeaves{link->worker->id, link->incarnation});
    }
    CloseLink(link, absl::OkStatus());
  }

  // ---- voting ------------------------------------------------------------------------------------------------------

  // Whether the engine may hear of this link's worker.
  static bool Votes(const Link* link) { return link->worker != nullptr && link->in_engine; }

  void On(Link* link, BallotIn& in) {
    if (Votes(link)) {
      Drive(round::BallotChunkIn{link->worker->id, link->incarnation, in.round, in.attempt, in.chunk});
    }
  }
  void On(Link* link, ScalarsMessageIn& in) {
    if (!Votes(link)) return;
    link->worker->loss = in.scalars.loss;
    link->worker->compute_seconds = static_cast<double>(in.compute_us) * 1e-6;
    link->worker->apply_seconds = static_cast<double>(in.apply_us) * 1e-6;
    Drive(round::ScalarsIn{link->worker->id, link->incarnation, in.round, in.attempt, in.scalars});
  }
  void On(Link* link, AbstainMessageIn& in) {
    if (!Votes(link)) return;
    Drive(round::AbstainIn{link->worker->id, link->incarnation, in.round, in.attempt, in.reason});
  }
  void On(Link* link, DigestMessageIn& in) {
    if (!Votes(link)) return;
    log_->Event(EventLine("digest").Text("worker", link->worker->name).Count("replica_round", in.round.value()).Text(
        "digest", Hex(in.digest)));
    Drive(round::WorkerDigestIn{link->worker->id, link->incarnation, in.round, in.digest});
  }

  // ---- the engine's actions ----------------------------------------------------------------------------------------

  // Carries the actions out in order. An action may end sessions, which makes further events: those wait their turn.
  void Drive(round::Event event) {
    events_.push_back(std::move(event));
    if (driving_) return;
    driving_ = true;
    while (!events_.empty()) {
      const round::Event next = std::move(events_.front());
      events_.pop_front();
      const round::Actions actions = engine_->Step(clock_->Now(), next);
      for (const round::Action& action : actions) {
        std::visit([this](const auto& a) { Execute(a); }, action);
      }
      AfterCommit();
    }
    driving_ = false;
  }

  Link* FindLink(WorkerId worker, Incarnation incarnation) {
    const auto it = by_id_.find(worker);
    if (it == by_id_.end() || it->second->link == nullptr || it->second->link->incarnation != incarnation) {
      return nullptr;
    }
    return it->second->link;
  }

  void Execute(const round::OpenRound& open) {
    open_ = open;
    // A new buffer for each attempt: verdicts of the last one may still be on their way out.
    verdict_ = verdict_pool_->Acquire();
    hash_.Reset();
    hashed_chunks_ = 0;
    closed_.assign(plan_.chunks(), false);
    tally_time_ = Duration::zero();
    ties_in_round_ = 0;
    round_slots_.clear();
    voted_.clear();
    for (auto& [session, link] : links_) link->live = false;
    for (const round::Seat& seat : open.seats) {
      Link* link = FindLink(seat.worker, seat.incarnation);
      if (link == nullptr) continue;
      round_slots_[seat.worker] = link->slots;
      link->slots->Open(open.round, open.attempt);
      if (link->stage == Stage::kReady) SendRoundOpen(link, seat);
    }
  }

  void SendRoundOpen(Link* link, const round::Seat& seat) {
    v1::ServerMessage message;
    v1::RoundOpen& out = *message.mutable_round_open();
    out.set_round(open_->round.value());
    out.set_attempt(open_->attempt.value());
    out.set_data_step(open_->data_step.value());
    out.set_share(seat.share.value());
    out.set_role(ToProto(seat.role));
    out.set_probe(open_->probe);
    const auto members = std::count_if(open_->seats.begin(), open_->seats.end(),
                                       [](const round::Seat& s) { return s.role == round::Role::kMember; });
    out.set_members(static_cast<uint32_t>(members));
    if (open_->deadline.has_value()) {
      // At least 1: zero would mean that there is none.
      const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(*open_->deadline).count();
      out.set_deadline_ms(static_cast<uint64_t>(std::max<int64_t>(1, ms)));
    }
    // One that comes back from a resync has missed chunks that are closed: it gets this round whole.
    link->live = std::none_of(closed_.begin(), closed_.end(), [](bool closed) { return closed; });
    link->session->Send(wire::EncodeMessage(message));
    if (seat.role == round::Role::kMember && !link->seated) {
      link->seated = true;
      link->worker->joined_seconds = ToSeconds(clock_->Now() - link->joined);
      Event("member", link->worker);
    }
  }

  void Execute(const round::CloseChunk& close) {
    const Time begin = clock_->Now();
    const ChunkIndex k = close.chunk;
    for (auto& [worker, slots] : round_slots_) slots->Close(k);
    ballots_.clear();
    for (const WorkerId voter : close.voters) {
      const auto it = round_slots_.find(voter);
      SIGNVOTE_CHECK(it != round_slots_.end());
      ballots_.push_back(it->second->chunk(k));
    }
    const TallyInput input{.ballots = ballots_,
                           .coordinates = plan_.Count(k),
                           .first_coordinate = plan_.First(k),
                           .seed = options_.seed,
                           .round = close.round};
    uint8_t* out = verdict_.get() + plan_.ByteOffset(k);
    Tally(input, out);
    tally_time_ += clock_->Now() - begin;

    const std::span<const uint8_t> payload(out, plan_.Bytes(k));
    const grpc::ByteBuffer message = wire::EncodeVote(
        wire::BulkKind::kVerdictChunk, VerdictHeader(close.round, close.attempt, k, Xxh3(payload.data(), payload.size())),
        payload, verdict_);
    for (auto& [session, link] : links_) {
      if (link->live) link->session->Send(message);
    }
    closed_[k.value()] = true;
    // The hash of the whole verdict grows with the closed prefix, so that little is left to do at the commit.
    while (hashed_chunks_ < plan_.chunks() && closed_[hashed_chunks_]) {
      const ChunkIndex next(hashed_chunks_++);
      hash_.Update(verdict_.get() + plan_.ByteOffset(next), plan_.Bytes(next));
    }
    // For people; the verdict is on its way.
    ties_in_round_ += CountTies(input);
    for (size_t i = 0; i < ballots_.size(); ++i) {
      Voted& voted = voted_[close.voters[i]];
      voted.agreeing += CountAgreement(ballots_[i], out, input.coordinates);
      voted.coordinates += input.coordinates;
      ++voted.chunks;
    }
  }

  wire::VoteHeader VerdictHeader(Round round, Attempt attempt, ChunkIndex k, uint64_t checksum) const {
    return {.run_id = run_id_, .epoch = epoch_, .round = round, .attempt = attempt, .chunk = k, .checksum = checksum};
  }

  void Execute(const round::CommitRound& commit) {
    const Time begin = clock_->Now();
    SIGNVOTE_CHECK(hashed_chunks_ == plan_.chunks());
    auto record = std::make_shared<CommitRecord>();
    record->round = commit.round;
    record->attempt = commit.attempt;
    record->data_step = commit.data_step;
    record->gamma = commit.stepsize.gamma;
    record->rho = commit.stepsize.rho;
    record->counted = commit.counted;
    record->verdict_hash = hash_.Digest();
    record->digest_due = commit.digest_due;
    record->loss = commit.loss;
    record->voters = static_cast<uint32_t>(commit.voters.size());
    record->verdict = std::move(verdict_);
    ring_->Push(record);
    v1::ServerMessage message;
    FillCommit(*record, message.mutable_commit());
    for (auto& [session, link] : links_) {
      if (link->stage != Stage::kReady) continue;
      if (link->live) {
        SendCommit(link.get(), &message);
      } else {
        SendWholeRound(link.get(), record);
      }
      link->live = false;
    }
    // The next attempt's OpenRound may follow in the same batch of actions and starts these anew.
    pending_commit_ = {.commit = commit,
                       .record = record,
                       .seats = open_->seats,
                       .voted = std::exchange(voted_, {}),
                       .tally_time = tally_time_,
                       .ties = ties_in_round_,
                       .took = clock_->Now() - begin};
    open_.reset();
    while (!applier_->TryPush(record)) {
      // The bound of the ring: from here on rounds are as slow as the applier.
      if (!applier_->WaitForRoom(kApplierPatience)) {
        LogWarning("commits wait for the master replica", {{"rounds", uint64_t{applier_->backlog()}}});
      }
    }
  }

  static void FillCommit(const CommitRecord& record, const RunId& run_id, Epoch epoch, v1::Commit* out) {
    out->set_run_id(std::string(run_id.bytes()));
    out->set_epoch(epoch.value());
    out->set_round(record.round.value());
    out->set_attempt(record.attempt.value());
    out->set_kind(v1::Commit::KIND_STEP);
    out->set_stepsize(record.gamma);
    out->set_rho(record.rho);
    out->mutable_counted()->Add(record.counted.begin(), record.counted.end());
    out->set_verdict_hash(record.verdict_hash);
    out->set_data_step(record.data_step.value());
    out->set_digest_due(record.digest_due);
    out->set_loss(record.loss.value_or(kNan));
    out->set_voters(record.voters);
  }
  void FillCommit(const CommitRecord& record, v1::Commit* out) const { FillCommit(record, run_id_, epoch_, out); }

  // The commit differs between workers in one number only.
  void SendCommit(Link* link, v1::ServerMessage* message) {
    message->mutable_commit()->set_total_wire_bytes(link->last.sent + link->last.received);
    link->session->Send(wire::EncodeMessage(*message));
  }

  void SendWholeRound(Link* link, const std::shared_ptr<const CommitRecord>& record) {
    for (uint32_t i = 0; i < plan_.chunks(); ++i) {
      const ChunkIndex k(i);
      const std::span<const uint8_t> payload(record->verdict.get() + plan_.ByteOffset(k), plan_.Bytes(k));
      link->session->Send(wire::EncodeVote(
          wire::BulkKind::kVerdictChunk,
          VerdictHeader(record->round, record->attempt, k, Xxh3(payload.data(), payload.size())), payload,
          record->verdict));
    }
    v1::ServerMessage message;
    FillCommit(*record, message.mutable_commit());
    SendCommit(link, &message);
  }

  // Books, logs and catching up: everything about a commit that no worker of the next round waits for.
  void AfterCommit() {
    if (!pending_commit_.has_value()) return;
    const PendingCommit done = *std::exchange(pending_commit_, std::nullopt);
    const round::CommitRound& commit = done.commit;
    last_commit_ = commit;
    ties_ += done.ties;
    ties_of_last_ = done.ties;
    for (auto& [session, link] : links_) {
      CountBytes(link.get());
      if (link->stage == Stage::kCatchingUp) Feed(link.get());
    }
    RoundLogExtras extras{.unix_seconds = UnixSeconds(*clock_),
                          .tally_seconds = ToSeconds(done.tally_time),
                          .commit_seconds = ToSeconds(done.took),
                          .ties = done.ties,
                          .verdict_hash = done.record->verdict_hash};
    double compute = 0, worker_apply = 0;
    for (const auto& [worker, voted] : done.voted) {
      WorkerRecord* record = by_id_.at(worker);
      record->agreement = static_cast<double>(voted.agreeing) / static_cast<double>(voted.coordinates);
      v1::WireTotals& wire = record->wire;
      wire.set_fp32_equivalent_bytes(wire.fp32_equivalent_bytes() + voted.coordinates * sizeof(float));
      if (voted.chunks == plan_.chunks()) wire.set_ballots(wire.ballots() + 1);
    }
    for (const auto& [worker, scalars] : commit.scalars) {
      const WorkerRecord* record = by_id_.at(worker);
      compute += record->compute_seconds;
      worker_apply += record->apply_seconds;
      Share share;
      uint64_t incarnation = 0;
      for (const round::Seat& seat : done.seats) {
        if (seat.worker == worker) {
          share = seat.share;
          incarnation = seat.incarnation.value();
        }
      }
      extras.voters.push_back({record->name, share, scalars, incarnation, record->compute_seconds,
                               record->apply_seconds});
    }
    CommitTimes times{.round = ToSeconds(commit.opened_for),
                      .wait = ToSeconds(commit.wait),
                      .tally = extras.tally_seconds,
                      .commit = extras.commit_seconds};
    round_.Add(times.round);
    wait_.Add(times.wait);
    tally_.Add(times.tally);
    commit_.Add(times.commit);
    if (!commit.scalars.empty()) {
      times.has_voter_times = true;
      times.compute = compute / static_cast<double>(commit.scalars.size());
      times.worker_apply = worker_apply / static_cast<double>(commit.scalars.size());
      compute_.Add(times.compute);
      worker_apply_.Add(times.worker_apply);
    }
    if (options_.observer != nullptr) options_.observer->OnCommit(times);
    commit_times_.push_back(clock_->Now());
    if (commit_times_.size() > kRoundSecondsKept + 1) commit_times_.pop_front();
    if (!log_->wants_rounds()) return;
    for (const WorkerId voter : commit.voters) extras.counted_workers.push_back(by_id_.at(voter)->name);
    for (const round::Seat& seat : done.seats) {
      if (seat.role == round::Role::kMember) extras.members.push_back(by_id_.at(seat.worker)->name);
    }
    const v1::WireTotals total = TotalBytes();
    extras.up_rounds_bytes = total.up_rounds_bytes();
    extras.down_rounds_bytes = total.down_rounds_bytes();
    log_->Round(commit, extras);
  }

  void Execute(const round::ChangeRole& change) {
    const auto it = by_id_.find(change.worker);
    if (it == by_id_.end()) return;
    log_->Event(EventLine(change.role == round::Role::kObserver ? "observer" : "member")
                    .Text("worker", it->second->name)
                    .Text("reason", change.reason));
  }
  void Execute(const round::Disconnect& disconnect) {
    if (Link* link = FindLink(disconnect.worker, disconnect.incarnation)) CloseLink(link, disconnect.status);
  }
  void Execute(const round::AskToDrain& ask) {
    if (Link* link = FindLink(ask.worker, ask.incarnation)) SendDrain(link);
  }
  void Execute(const round::Resync& resync) {
    Link* link = FindLink(resync.worker, resync.incarnation);
    if (link != nullptr) SendResync(link, absl::StrCat("its replica differs after round ", resync.round.value()));
  }
  void Execute(const round::FinishRun& finish) {
    finish_rounds_ = finish.rounds;
    LogInfo("the last round is committed", {{"rounds", finish.rounds.value()}});
    log_->Event(EventLine("finished"));
    for (auto& [session, link] : links_) {
      if (link->stage == Stage::kReady) SendFinish(link.get());
    }
  }
  void Execute(const round::EndRun& end) { End(end.status); }
  void Execute(const round::Notice& notice) {
    switch (notice.level) {
      case round::NoticeLevel::kInfo:
        return LogInfo(notice.text);
      case round::NoticeLevel::kWarning:
        return LogWarning(notice.text);
      case round::NoticeLevel::kError:
        return LogError(notice.text);
    }
  }

  void SendDrain(Link* link) {
    v1::ServerMessage message;
    message.mutable_drain()->set_reason("the operator drains this worker");
    link->session->Send(wire::EncodeMessage(message));
  }
  void SendFinish(Link* link) {
    if (std::exchange(link->finish_sent, true)) return;
    v1::ServerMessage message;
    message.mutable_finish()->set_rounds(finish_rounds_->value());
    link->session->Send(wire::EncodeMessage(message));
  }
  void SendResync(Link* link, const std::string& reason) {
    if (link->stage == Stage::kFetching) return;
    v1::ServerMessage message;
    message.mutable_resync()->set_round(ring_->next().value());
    message.mutable_resync()->set_reason(reason);
    link->session->Send(wire::EncodeMessage(message));
    link->live = false;
    SetStage(link, Stage::kFetching);
    log_->Event(EventLine("resync").Text("worker", link->worker->name).Text("reason", reason));
    LogWarning("worker must fetch the state again", {{"worker", link->worker->name}, {"reason", reason}});
  }

  // ---- the end -----------------------------------------------------------------------------------------------------

  void End(absl::Status status) {
    if (end_seen_) return;
    end_seen_ = true;
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
          status = absl::OkStatus();
        }
        break;
      default:
        break;
    }
    if (!status.ok()) closing_status_ = status;
    MutexLock lock(&end_mu_);
    ended_ = true;
    end_status_ = std::move(status);
    final_rounds_ = ring_ == nullptr ? 0 : ring_->next().value();
    end_cv_.NotifyAll();
  }

  // ---- time --------------------------------------------------------------------------------------------------------

  void Housekeeping(Time now) {
    // Streams that wait for one another to go are looked at by name, so that closing one does not disturb the loop.
    std::vector<Link*> links;
    for (auto& [session, link] : links_) links.push_back(link.get());
    size_t strangers = 0;
    for (Link* link : links) {
      const Duration age = now - link->since;
      switch (link->stage) {
        case Stage::kConnected:
          ++strangers;
          if (age > kJoinTimeout || strangers > kStrangersMax) {
            CloseLink(link, absl::DeadlineExceededError("no Join came within 10 s of the stream's start"));
          }
          break;
        case Stage::kHeld:
          if (age >= kPingTimeout && link->worker != nullptr && link->worker->link != nullptr) {
            Link* old = link->worker->link;
            LogWarning("an old session is fenced", {{"worker", link->worker->name}});
            // Detaching the old one lets the held one in.
            CloseLink(old, absl::AbortedError("a newer session of '" + link->worker->name + "' took over"));
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
          if (age > kCloseTimeout) link->session->Cancel();
          break;
        default:
          break;
      }
      CountBytes(link);
    }
    if (engine_ == nullptr && !end_seen_) {
      const bool anybody = std::any_of(links.begin(), links.end(), [](const Link* link) {
        return link->stage == Stage::kUploading;
      });
      if (anybody) waiting_since_ = now;
      if (now - waiting_since_ > options_.wait_timeout) {
        End(absl::DeadlineExceededError(
            absl::StrCat("waited ", ToSeconds(options_.wait_timeout), " s for a worker (--wait-timeout)")));
      }
    }
  }

  // ---- books -------------------------------------------------------------------------------------------------------

  WorkerRecord* FindWorker(const std::string& name) {
    const auto it = workers_.find(name);
    return it == workers_.end() ? nullptr : it->second.get();
  }

  WorkerRecord* FindOrAddWorker(const std::string& name) {
    if (WorkerRecord* known = FindWorker(name)) return known;
    if (workers_.size() >= kNamesMax) ForgetOldestName();
    auto record = std::make_unique<WorkerRecord>();
    record->id = WorkerId(next_worker_id_++);
    record->name = name;
    WorkerRecord* raw = record.get();
    by_id_[raw->id] = raw;
    workers_[name] = std::move(record);
    return raw;
  }

  // Names are free to invent without tokens: the one that has been away for longest makes room.
  void ForgetOldestName() {
    auto oldest = workers_.end();
    for (auto it = workers_.begin(); it != workers_.end(); ++it) {
      const WorkerRecord& record = *it->second;
      if (record.link != nullptr || record.held != nullptr || record.evicted || voted_.contains(record.id)) continue;
      if (oldest == workers_.end() || record.last_seen < oldest->second->last_seen) oldest = it;
    }
    if (oldest == workers_.end()) return;
    Add(oldest->second->wire, &forgotten_wire_);
    by_id_.erase(oldest->second->id);
    workers_.erase(oldest);
  }

  void CountBytes(Link* link) {
    if (!link->counter.has_value()) return;
    if (const std::optional<wire::SocketBytes> now = link->counter->Read()) link->last = *now;
  }
  static v1::WireTotals SessionBytes(const Link& link) {
    v1::WireTotals out;
    out.set_up_rounds_bytes(link.last.received - link.baseline.received);
    out.set_down_rounds_bytes(link.last.sent - link.baseline.sent);
    return out;
  }
  v1::WireTotals WorkerBytes(const WorkerRecord& record) const {
    v1::WireTotals out = record.wire;
    if (record.link != nullptr) Add(SessionBytes(*record.link), &out);
    return out;
  }
  v1::WireTotals TotalBytes() const {
    v1::WireTotals out = forgotten_wire_;
    for (const auto& [name, record] : workers_) Add(WorkerBytes(*record), &out);
    return out;
  }

  JsonLine EventLine(std::string_view kind) const {
    JsonLine line;
    line.Text("kind", kind)
        .Count("round", ring_ == nullptr ? 0 : ring_->next().value())
        .Number("unix_time", UnixSeconds(*clock_))
        .Number("seconds", ToSeconds(clock_->Now() - started_));
    return line;
  }
  void Event(std::string_view kind, const WorkerRecord* record) {
    log_->Event(EventLine(kind).Text("worker", record->name).Count("incarnation", record->incarnation.value()));
  }

  // Constant after construction.
  const CoordinatorOptions options_;
  Clock* const clock_;
  FileSystem* const fs_;
  const RunId run_id_;
  const Epoch epoch_{1};
  const v1::Direction direction_;
  const Time started_;

  // Own synchronisation.
  Inbox inbox_;
  StateHub hub_;
  std::thread thread_;

  mutable Mutex end_mu_;
  CondVar end_cv_;
  bool ended_ ABSL_GUARDED_BY(end_mu_) = false;
  bool stop_thread_ ABSL_GUARDED_BY(end_mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(end_mu_);
  size_t open_links_ ABSL_GUARDED_BY(end_mu_) = 0;
  std::shared_ptr<MasterReplica> final_replica_ ABSL_GUARDED_BY(end_mu_);
  Applier* final_applier_ ABSL_GUARDED_BY(end_mu_) = nullptr;  // lives as long as this object
  std::string final_config_ ABSL_GUARDED_BY(end_mu_);
  uint64_t final_rounds_ ABSL_GUARDED_BY(end_mu_) = 0;

  // The rest belongs to the engine's thread.
  Rng rng_;
  const std::unique_ptr<RunLog> log_;
  std::unique_ptr<SafetensorsFile> init_;
  Time waiting_since_;
  bool stop_requested_ = false, refuse_all_ = false, paused_ = false, end_seen_ = false;
  absl::Status closing_status_;  // what sessions are told when the server closes them

  std::unordered_map<ServerSession*, std::unique_ptr<Link>> links_;
  std::map<std::string, std::unique_ptr<WorkerRecord>> workers_;
  std::map<WorkerId, WorkerRecord*> by_id_;
  uint32_t next_worker_id_ = 0;

  // Set once the layout is known.
  std::optional<Layout> layout_;
  ChunkPlan plan_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<BufferPool> verdict_pool_, ballot_pool_;
  std::unique_ptr<CommitRing> ring_;
  std::string model_config_;

  // Set once the initial parameters are complete.
  std::unique_ptr<round::Engine> engine_;
  std::unique_ptr<Applier> applier_;
  std::string rule_name_;
  std::deque<round::Event> events_;
  bool driving_ = false;

  // The open attempt.
  struct Voted {
    uint64_t agreeing = 0, coordinates = 0;
    uint32_t chunks = 0;
  };
  std::optional<round::OpenRound> open_;
  std::shared_ptr<uint8_t> verdict_;
  std::map<WorkerId, std::shared_ptr<BallotSlots>> round_slots_;
  std::map<WorkerId, Voted> voted_;
  std::vector<const uint8_t*> ballots_;  // of one chunk; kept for its memory
  std::vector<bool> closed_;
  uint32_t hashed_chunks_ = 0;           // Invariant: hash_ holds chunks [0, hashed_chunks_)
  Xxh3Stream hash_;
  Duration tally_time_{};
  uint64_t ties_in_round_ = 0;

  struct PendingCommit {
    round::CommitRound commit;
    std::shared_ptr<const CommitRecord> record;
    std::vector<round::Seat> seats;
    std::map<WorkerId, Voted> voted;
    Duration tally_time{};
    uint64_t ties = 0;
    Duration took{};  // from the decision to the hand-over to the network
  };
  std::optional<PendingCommit> pending_commit_;
  std::optional<Round> finish_rounds_;

  // Statistics.
  std::optional<round::CommitRound> last_commit_;
  std::deque<Time> commit_times_;
  uint64_t refusals_ = 0, ties_ = 0, ties_of_last_ = 0;
  uint64_t master_digest_ = 0;
  Round master_digest_round_;
  v1::WireTotals forgotten_wire_;
  Mean round_, compute_, wait_, tally_, commit_, apply_, worker_apply_;  // seconds
};

ServerSnapshot CoordinatorImpl::SnapshotNow() {
  ServerSnapshot out;
  v1::Status& status = out.status;
  const Time now = clock_->Now();
  status.set_software_version(SoftwareVersion());
  status.set_run_id(run_id_.ToText());
  status.set_epoch(epoch_.value());
  status.set_phase(end_seen_ ? v1::Status::PHASE_ENDED : v1::Status::PHASE_WAITING_FOR_WORKERS);
  status.set_rounds_max(options_.rounds_max);
  if (layout_.has_value()) {
    status.set_coordinates(layout_->coordinates());
    status.set_layout_digest(layout_->digest());
  }
  status.set_rule(options_.rule.rule);
  status.set_direction(options_.direction.kind);
  status.set_loss(kNan);
  status.set_g_l1(kNan);
  status.set_density(kNan);
  status.set_seconds_left(kNan);
  if (last_commit_.has_value()) {
    status.set_stepsize(static_cast<double>(last_commit_->stepsize.gamma));
    status.set_loss(last_commit_->loss.value_or(kNan));
    status.set_g_l1(last_commit_->g_l1.value_or(kNan));
    status.set_density(last_commit_->density.value_or(kNan));
  }
  status.set_round(ring_ == nullptr ? 0 : ring_->next().value());
  if (commit_times_.size() > 1) {
    const double mean = ToSeconds(commit_times_.back() - commit_times_.front()) /
                        static_cast<double>(commit_times_.size() - 1);
    status.set_round_seconds(mean);
    status.set_seconds_left(mean * static_cast<double>(options_.rounds_max - status.round()));
  } else if (round_.count() > 0) {
    status.set_round_seconds(round_.value());
  }
  status.set_master_digest(master_digest_);
  status.set_master_digest_round(master_digest_round_.value());
  status.set_resident_bytes(ResidentBytes());
  status.set_uptime_seconds(ToSeconds(now - started_));
  v1::TimeSplit& split = *status.mutable_time_split();
  split.set_compute(compute_.value());
  split.set_wait(wait_.value());
  split.set_tally(tally_.value());
  split.set_commit(commit_.value());
  split.set_apply(apply_.value());
  split.set_worker_apply(worker_apply_.value());
  split.set_round(round_.value());

  std::map<WorkerId, round::MemberView> members;
  if (engine_ != nullptr) {
    const round::EngineView view = engine_->View(now);
    status.set_phase(ToProto(view.phase));
    status.set_attempt(view.attempt.value());
    status.set_joins(view.joins);
    status.set_losses(view.losses);
    status.set_abstentions(view.abstentions);
    status.set_late_chunks(view.late_chunks);
    status.set_duplicate_chunks(view.duplicate_chunks);
    out.attempts_reopened = view.attempts_reopened;
    out.stale_messages = view.stale_messages;
    out.scalars_refused = view.scalars_refused;
    out.digest_mismatches = view.digest_mismatches;
    for (const round::MemberView& member : view.workers) members[member.worker] = member;
  } else if (paused_ && !end_seen_) {
    status.set_phase(v1::Status::PHASE_PAUSED);
  }
  for (const auto& [id, record] : by_id_) {
    const auto member = members.find(id);
    // Bounded as the engine's books are: names that were forgotten there are shown only while connected.
    if (member == members.end() && record->link == nullptr) continue;
    v1::Worker& worker = *status.add_workers();
    worker.set_name(record->name);
    worker.set_incarnation(record->incarnation.value());
    worker.set_connected(record->link != nullptr);
    worker.set_address(record->address);
    worker.set_metrics_address(record->metrics_address);
    worker.set_agreement(record->agreement);
    worker.set_loss(record->loss);
    worker.set_joined_seconds(record->joined_seconds);
    worker.set_arrival_seconds(kNan);
    worker.set_role(v1::Worker::ROLE_OBSERVER);
    *worker.mutable_wire() = WorkerBytes(*record);
    if (member == members.end()) continue;
    const round::MemberView& view = member->second;
    worker.set_share(view.share.value());
    if (view.role == round::Role::kMember) worker.set_role(v1::Worker::ROLE_MEMBER);
    worker.set_ballots(view.ballots);
    worker.set_abstentions(view.abstentions);
    worker.set_late_chunks(view.late_chunks);
    worker.set_duplicate_chunks(view.duplicate_chunks);
    if (view.median_arrival.has_value()) worker.set_arrival_seconds(ToSeconds(*view.median_arrival));
    worker.set_has_final_digest(view.final_digest.has_value());
    worker.set_final_digest(view.final_digest.value_or(0));
  }
  *status.mutable_wire() = TotalBytes();

  out.refusals = refusals_;
  out.ties = ties_;
  if (layout_.has_value()) {
    out.tie_ratio = static_cast<double>(ties_of_last_) / static_cast<double>(layout_->coordinates());
  }
  out.applier_lag = applier_ == nullptr ? 0 : applier_->backlog();
  if (end_seen_) {
    out.not_ready_because = "the run has ended";
  } else if (engine_ == nullptr) {
    out.not_ready_because = layout_.has_value() ? "waiting for the initial parameters" : "waiting for the first worker";
  }
  out.ready = out.not_ready_because.empty();
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(CoordinatorOptions options, Clock* clock,
                                                                 FileSystem* fs) {
  SIGNVOTE_ASSIGN_OR_RETURN(v1::Direction direction, ToProto(options.direction));
  SIGNVOTE_RETURN_IF_ERROR(MakeRule(options.rule).status());
  if (options.chunk_coordinates % kChunkCoordinatesMultiple != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--chunk-coordinates ", options.chunk_coordinates,
                                                   " is not a multiple of ", kChunkCoordinatesMultiple));
  }
  std::unique_ptr<SafetensorsFile> init;
  if (!options.init_path.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(init, SafetensorsFile::Open(fs, options.init_path));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<RunLog> log,
                            RunLog::Open(fs, options.round_log_path, options.event_log_path));
  uint64_t words[4];
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string random, fs->RandomBytes(sizeof(words)));
  std::memcpy(words, random.data(), sizeof(words));
  return std::make_unique<CoordinatorImpl>(std::move(options), clock, fs, RunId::FromRandom(words[0], words[1]),
                                           std::move(direction), Rng(words[2], words[3]), std::move(log),
                                           std::move(init));
}

std::map<std::string, std::string> ExportMetadata(const RunId& run_id, Round round) {
  return {{"format", "pt"}, {"signvote.run_id", run_id.ToText()}, {"signvote.round", std::to_string(round.value())}};
}

}  // namespace signvote::rpc
