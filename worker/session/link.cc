#include "worker/session/link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "worker/session/dial_error.h"
#include "worker/session/messages.h"

namespace signvote {
namespace {

// Rounds whose verdicts may wait for the caller, who may be computing while others go on (an
// observer). Each costs d/8 bytes, and only when it is needed; beyond that the link stops reading
// and the server's limits apply.
constexpr size_t kVerdictSlotsMax = 16;
// Verdicts of a round and its successor may be under way at the same time.
constexpr size_t kRoundsAssembledMax = 2;
constexpr size_t kEventsMax = 4096;
// How long a finished run's server is looked for, when the connection broke before its goodbye.
constexpr Duration kFinishedServerTimeout = std::chrono::seconds(30);

// Statuses with which a server refuses this worker; a retry would only be refused again.
bool IsRefusal(absl::StatusCode code, bool welcomed) {
  switch (code) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kNotFound:
      return true;
    case absl::StatusCode::kResourceExhausted:
      return !welcomed;  // later it only says that this worker read too slowly
    default:
      return false;
  }
}

}  // namespace

Link::Link(const SessionOptions& options, Clock* clock, std::string name, std::string token,
           std::shared_ptr<grpc::ChannelCredentials> credentials, uint64_t jitter_seed)
    : options_(options),
      clock_(clock),
      name_(std::move(name)),
      token_(std::move(token)),
      credentials_(std::move(credentials)),
      backoff_(jitter_seed) {}

void Link::Start(const Layout* layout) {
  layout_ = layout;
  started_ = lost_since_ = clock_->Now();
  thread_ = std::thread([this] { Main(); });
}

void Link::Stop() {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    stop_ = true;
    stream = stream_;
  }
  changed_.NotifyAll();
  if (stream != nullptr) stream->Cancel(absl::CancelledError("the session was closed"));
  if (thread_.joinable()) thread_.join();
}

// ---- what callers ask ---------------------------------------------------------------------------

absl::StatusOr<LinkEvent> Link::Next(Time deadline, const std::string& what) {
  const Time start = clock_->Now();
  MutexLock lock(&mu_);
  while (events_.empty()) {
    if (!fatal_.ok()) return fatal_;
    if (ended_) return absl::CancelledError("the session has ended");
    const Duration left = deadline - clock_->Now();
    if (left <= Duration::zero()) {
      return WithExitCode(
          absl::DeadlineExceededError(absl::StrCat(
              "waited ", ToSeconds(deadline - start), " s for ", what,
              stream_ == nullptr ? absl::StrCat("; there is no connection to ", options_.server)
                                 : "",
              notice_.empty() ? "" : absl::StrCat("; the server says: ", notice_))),
          ExitCode::kWaitTimeout);
    }
    changed_.WaitFor(&mu_, std::min<Duration>(left, std::chrono::seconds(1)));
  }
  LinkEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

std::optional<LinkEvent> Link::TryNext() {
  MutexLock lock(&mu_);
  if (events_.empty()) return std::nullopt;
  std::optional<LinkEvent> event = std::move(events_.front());
  events_.pop_front();
  return event;
}

bool Link::Push(LinkEvent event) {
  {
    MutexLock lock(&mu_);
    if (events_.size() >= kEventsMax) return false;
    if (const auto* commit = std::get_if<CommitEvent>(&event)) received_ = commit->round.next();
    events_.push_back(std::move(event));
  }
  changed_.NotifyAll();
  return true;
}

void Link::ReleaseSlot(VerdictStore::Slot* slot) {
  verdicts_->Release(slot);
  changed_.NotifyAll();
}

absl::Status Link::status() const {
  MutexLock lock(&mu_);
  return fatal_;
}

std::shared_ptr<Stream> Link::stream() const {
  MutexLock lock(&mu_);
  return stream_;
}

bool Link::finish_current() const {
  MutexLock lock(&mu_);
  return stream_ != nullptr && finish_seen_ && finish_connection_ == connection_;
}

std::shared_ptr<grpc::Channel> Link::DialForTransfer(uint64_t connection) {
  {
    MutexLock lock(&mu_);
    if (connection_ != connection || stream_ == nullptr) return nullptr;
  }
  return DialServer(options_.server, credentials_, options_.message_bytes_max,
                    options_.connect_timeout);
}

void Link::ReplicaStandsAt(uint64_t connection, Round round) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    if (connection_ != connection || stream_ == nullptr) return;  // the next connection asks again
    received_ = round;
    stream = stream_;
  }
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_round(round.value());
  stream->Write({wire::EncodeMessage(ready)});
}

void Link::AbandonConnection(uint64_t connection, absl::Status why) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    if (connection_ == connection) stream = stream_;
  }
  if (stream != nullptr) stream->Cancel(std::move(why));
}

void Link::Send(const v1::WorkerMessage& message) {
  std::shared_ptr<Stream> to;
  {
    MutexLock lock(&mu_);
    to = stream_;
    if (to != nullptr && message.has_replica_digest()) {
      digest_connection_ = connection_;
      digest_round_ = Round(message.replica_digest().round());
    }
  }
  if (to != nullptr) to->Write({wire::EncodeMessage(message)});
}

bool Link::SayGoodbye(const std::optional<v1::WorkerMessage>& last, Goodbye goodbye,
                      Duration timeout) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    goodbye_ = true;
    stream = stream_;
  }
  changed_.NotifyAll();
  if (stream != nullptr) {
    if (last) stream->Write({wire::EncodeMessage(*last)});
    if (goodbye == Goodbye::kHalfClose) stream->HalfClose();
  }
  const Time deadline = clock_->Now() + timeout;
  MutexLock lock(&mu_);
  while (!ended_ && clock_->Now() < deadline) changed_.WaitFor(&mu_, std::chrono::milliseconds(50));
  return ended_;
}

// ---- the ballot ---------------------------------------------------------------------------------

std::optional<VoteId> Link::VoteLocked() const {
  if (stream_ == nullptr || !open_ || !ballot_.open() || open_->round != ballot_.round())
    return std::nullopt;
  return VoteId{run_.run_id, epoch_, open_->attempt};
}

void Link::OpenBallot(Round round, Time opened) {
  MutexLock lock(&mu_);
  ballot_.Open(round, opened, run_.plan);
}

absl::Status Link::SendChunk(ChunkIndex k, const uint8_t* bits) {
  if (k.value() >= run_.plan.chunks()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk ", k.value(), " of ", run_.plan.chunks()));
  }
  const uint64_t checksum = Xxh3(bits, run_.plan.Bytes(k));
  std::shared_ptr<Stream> stream;
  OutgoingMessage outgoing;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_RETURN_IF_ERROR(fatal_);
    SIGNVOTE_RETURN_IF_ERROR(ballot_.AddChunk(k, bits, checksum, clock_->Now()));
    // Without a connection, or before it opened the round, the chunk waits for the round's next
    // opening.
    const std::optional<VoteId> vote = VoteLocked();
    if (!vote) return absl::OkStatus();
    outgoing = ballot_.ChunkMessage(k, *vote);
    stream = stream_;
  }
  stream->Write(std::move(outgoing));
  return absl::OkStatus();
}

absl::Status Link::SendScalars(v1::Scalars scalars) {
  {
    MutexLock lock(&stats_mu_);
    scalars.set_apply_us(static_cast<uint64_t>(stats_.last_apply_seconds * 1e6));
  }
  std::shared_ptr<Stream> stream;
  OutgoingMessage outgoing;
  bool whole = false;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_RETURN_IF_ERROR(fatal_);
    SIGNVOTE_ASSIGN_OR_RETURN(whole, ballot_.AddScalars(std::move(scalars), clock_->Now()));
    if (const std::optional<VoteId> vote = VoteLocked()) {
      outgoing = ballot_.ScalarsMessage(*vote);
      stream = stream_;
    }
  }
  if (stream != nullptr) stream->Write(std::move(outgoing));
  if (whole) {
    MutexLock lock(&stats_mu_);
    ++stats_.rounds_voted;
  }
  return absl::OkStatus();
}

absl::Status Link::SendAbstain(v1::Abstain::Reason reason) {
  std::shared_ptr<Stream> stream;
  {
    MutexLock lock(&mu_);
    SIGNVOTE_RETURN_IF_ERROR(fatal_);
    SIGNVOTE_RETURN_IF_ERROR(ballot_.AddAbstain(reason));
    const std::optional<VoteId> vote = VoteLocked();
    if (!vote) return absl::OkStatus();
    stream = stream_;
    // Chunks not yet sent are withdrawn; those sent stand.
    std::vector<OutgoingMessage> instead;
    instead.push_back(ballot_.AbstainMessage(*vote));
    stream->ReplaceBallots(std::move(instead));
  }
  stream->Flush();
  return absl::OkStatus();
}

// What waits is withdrawn, and what gRPC still reads is waited for. That is nothing after an
// ordinary round; a late ballot on a choked connection costs the connection.
RoundTimes Link::CloseBallot() {
  RoundTimes times;
  std::shared_ptr<Stream> stream;
  std::shared_ptr<const std::atomic<bool>> released;
  {
    MutexLock lock(&mu_);
    times.opened = ballot_.opened();
    times.first_chunk = ballot_.first_chunk();
    released = ballot_.Close();
    stream = stream_;
  }
  if (released == nullptr) return times;
  if (stream != nullptr) {
    times.ballot_written = stream->ballots_written();
    stream->WithdrawBallots();
  }
  Time give_up = clock_->Now() + std::chrono::seconds(1);
  for (bool cancelled = false; !released->load(std::memory_order_acquire);) {
    if (clock_->Now() >= give_up) {
      if (cancelled) break;
      cancelled = true;
      give_up = clock_->Now() + std::chrono::seconds(5);
      if (stream != nullptr)
        stream->Cancel(absl::AbortedError("a late ballot did not get through"));
    }
    clock_->SleepFor(std::chrono::microseconds(200));
  }
  return times;
}

// ---- statistics ---------------------------------------------------------------------------------

SessionStats Link::Stats() const {
  bool connected = false;
  {
    MutexLock lock(&mu_);
    connected = open_.has_value();
  }
  MutexLock lock(&stats_mu_);
  ReadCounterLocked();
  SessionStats stats = stats_;
  stats.connected = connected;
  return stats;
}

void Link::CountApplied(Duration took) {
  MutexLock lock(&stats_mu_);
  stats_.last_apply_seconds = ToSeconds(took);
  ++stats_.rounds_applied;
}

void Link::CountTransfer(const wire::SocketBytes& moved, bool succeeded) {
  MutexLock lock(&stats_mu_);
  stats_.setup_sent_bytes += moved.sent;
  stats_.setup_received_bytes += moved.received;
  if (succeeded) ++stats_.state_transfers;
}

void Link::ReadCounterLocked() const {
  if (!counter_) return;
  const std::optional<wire::SocketBytes> now = counter_->Read();
  if (!now) return;
  (joined_rounds_ ? stats_.wire_sent_bytes : stats_.setup_sent_bytes) += now->sent - counted_.sent;
  (joined_rounds_ ? stats_.wire_received_bytes : stats_.setup_received_bytes) +=
      now->received - counted_.received;
  counted_ = *now;
}

void Link::CloseCounter() {
  MutexLock lock(&stats_mu_);
  ReadCounterLocked();
  counter_.reset();
}

// ---- the thread ---------------------------------------------------------------------------------

void Link::Main() {
  for (;;) {
    auto stream =
        std::make_shared<Stream>(DialServer(options_.server, credentials_,
                                            options_.message_bytes_max, options_.connect_timeout),
                                 clock_);
    {
      MutexLock lock(&mu_);
      if (stop_) break;
      stream_ = stream;
      ++connection_;
      open_.reset();
    }
    welcomed_ = false;
    receive_error_ = absl::OkStatus();
    absl::Status status = stream->Run(wire::EncodeMessage(JoinMessage()), options_.connect_timeout,
                                      [this](grpc::ByteBuffer& buffer) { OnMessage(buffer); });
    CloseCounter();
    DropAssembled();
    bool end = false;
    {
      MutexLock lock(&mu_);
      stream_.reset();
      open_.reset();
      // With every worker's last digest the server closes in good order, perhaps before the caller
      // asks for the next round: nothing is left to say, and nobody to say it to.
      const bool parted = status.ok() && finish_seen_ && finish_connection_ == connection_ &&
                          digest_connection_ == connection_ && digest_round_ >= finish_round_;
      end = stop_ || goodbye_ || parted;
    }
    stream.reset();
    changed_.NotifyAll();
    if (end) break;
    status = AfterConnection(std::move(status));
    if (!status.ok()) {
      MutexLock lock(&mu_);
      if (!finish_seen_) fatal_ = status;
      break;
    }
    const Time wake = clock_->Now() + backoff_.Next();
    MutexLock lock(&mu_);
    while (!stop_ && !goodbye_ && clock_->Now() < wake)
      changed_.WaitFor(&mu_, wake - clock_->Now());
    if (stop_ || goodbye_) break;
  }
  {
    MutexLock lock(&mu_);
    ended_ = true;
  }
  changed_.NotifyAll();
}

absl::Status Link::AfterConnection(absl::Status status) {
  if (status.ok()) status = absl::UnavailableError("the server closed the session");
  if (welcomed_) lost_since_ = clock_->Now();
  hang_ups_in_a_row_ = HungUpBeforeUsable(status) ? hang_ups_in_a_row_ + 1 : 0;
  if (IsRefusal(status.code(), welcomed_)) {
    return WithExitCode(
        WithContext(
            status,
            receive_error_.ok()
                ? absl::StrCat("server ", options_.server, " refused worker ", name_)
                : absl::StrCat("worker ", name_, " cannot work with server ", options_.server)),
        ExitCode::kRefused);
  }
  if (!ever_welcomed_) {
    // A server that was there before is looked for however it fails: it may be on its way back.
    SIGNVOTE_RETURN_IF_ERROR(ExplainDialFailure(
        status, {options_.server, options_.insecure, options_.tls_ca, options_.tls_certificate},
        hang_ups_in_a_row_));
  }
  bool finish_seen = false;
  {
    MutexLock lock(&mu_);
    finish_seen = finish_seen_;
  }
  const Duration patience = finish_seen      ? kFinishedServerTimeout
                            : ever_welcomed_ ? options_.server_timeout
                                             : options_.connect_timeout;
  if (clock_->Now() - lost_since_ >= patience) {
    if (finish_seen)
      LogWarning("the finished run's server did not come back", {{"server", options_.server}});
    return absl::UnavailableError(
        absl::StrCat(ever_welcomed_ ? "lost server " : "could not reach server ", options_.server,
                     ever_welcomed_ ? "; it did not come back within " : " within ",
                     ToSeconds(patience), " s (last error: ", Describe(status), ")"));
  }
  if (welcomed_) {
    LogWarning("lost the server, reconnecting",
               {{"server", options_.server}, {"reason", Describe(status)}});
    MutexLock lock(&stats_mu_);
    ++stats_.reconnects;
  }
  return absl::OkStatus();
}

v1::WorkerMessage Link::JoinMessage() {
  v1::WorkerMessage message;
  v1::Join* const join = message.mutable_join();
  join->set_protocol_min(wire::kProtocolVersion);
  join->set_protocol_max(wire::kProtocolVersion);
  join->set_software_version(SoftwareVersion());
  join->set_name(name_);
  join->set_token(token_);
  FillLayout(*layout_, join->mutable_layout());
  join->set_model_config_json(options_.model_config_json);
  join->set_metrics_address(options_.metrics_address);
  MutexLock lock(&mu_);
  if (run_known_) {
    join->set_run_id(std::string(run_.run_id.bytes()));
  } else if (options_.run_id) {
    join->set_run_id(std::string(options_.run_id->bytes()));
  }
  if (received_) {
    join->set_round(received_->value());
    join->set_epoch(last_commit_epoch_.value());
  }
  return message;
}

void Link::OnMessage(grpc::ByteBuffer& buffer) {
  const std::shared_ptr<Stream> from = stream();
  {
    MutexLock lock(&stats_mu_);
    if (!counter_) {
      counter_.emplace(from->context().peer(), 0);
      counted_ = {};
      joined_rounds_ = false;
    }
  }
  receive_error_ = Receive(buffer);
  buffer.Clear();
  if (!receive_error_.ok()) from->Cancel(receive_error_);
}

absl::Status Link::Receive(const grpc::ByteBuffer& buffer) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<wire::VoteView> verdict,
                            wire::DecodeVote(wire::BulkKind::kVerdictChunk, buffer));
  v1::ServerMessage message;
  if (!verdict) SIGNVOTE_RETURN_IF_ERROR(wire::ParseMessage(buffer, &message));
  const v1::ServerMessage::MessageCase kind =
      verdict ? v1::ServerMessage::kVerdictChunk : message.message_case();
  if (!welcomed_ && kind != v1::ServerMessage::kWelcome && kind != v1::ServerMessage::kNotice &&
      kind != v1::ServerMessage::kPing) {
    return absl::InvalidArgumentError("the server spoke before its welcome");
  }
  switch (kind) {
    case v1::ServerMessage::kVerdictChunk:
      return verdict ? OnVerdictChunk(*verdict, buffer)
                     : absl::InvalidArgumentError("malformed verdict chunk");
    case v1::ServerMessage::kCommit:
      return OnCommit(message.commit());
    case v1::ServerMessage::kRoundOpen:
      return OnRoundOpen(message.round_open());
    case v1::ServerMessage::kWelcome:
      return OnWelcome(message.welcome());
    case v1::ServerMessage::kResync:
      return OnResync(message.resync());
    case v1::ServerMessage::kPing: {
      v1::WorkerMessage pong;
      pong.mutable_pong()->set_nonce(message.ping().nonce());
      Send(pong);
      return absl::OkStatus();
    }
    case v1::ServerMessage::kDrain:
      Push(DrainEvent{message.drain().reason()});
      return absl::OkStatus();
    case v1::ServerMessage::kFinish: {
      {
        MutexLock lock(&mu_);
        finish_seen_ = true;
        finish_connection_ = connection_;
        finish_round_ = Round(message.finish().rounds());
      }
      Push(FinishEvent{Round(message.finish().rounds())});
      return absl::OkStatus();
    }
    case v1::ServerMessage::kNotice: {
      LogInfo("the server says", {{"text", message.notice().text()}});
      std::shared_ptr<Stream> from;
      {
        MutexLock lock(&mu_);
        notice_ = message.notice().text();
        from = stream_;
      }
      if (!welcomed_) from->SetTimeout(options_.wait_timeout);
      return absl::OkStatus();
    }
    default:
      return absl::OkStatus();  // a later version's message, which says nothing that this one needs
  }
}

absl::Status Link::OnWelcome(const v1::Welcome& welcome) {
  if (welcomed_) return absl::InvalidArgumentError("the server welcomes twice");
  const std::shared_ptr<Stream> from = stream();
  if (!options_.insecure && !wire::PeerOf(from->context()).HasRole(wire::Role::kServer)) {
    return absl::PermissionDeniedError(
        "its certificate lacks the server's role (URI signvote:role:server), so it may be another "
        "worker");
  }
  SIGNVOTE_ASSIGN_OR_RETURN(RunInfo run,
                            RunFrom(welcome, layout_->coordinates(), options_.message_bytes_max));
  std::optional<Round> kept;
  StateEvent state;
  {
    MutexLock lock(&mu_);
    if (!run_known_) {
      run_ = run;
      verdicts_ = std::make_unique<VerdictStore>(run_.plan, kVerdictSlotsMax, options_.bits_memory);
      run_known_ = true;
    } else if (run.run_id != run_.run_id || run.seed != run_.seed ||
               run.plan.chunk_coordinates() != run_.plan.chunk_coordinates()) {
      return absl::FailedPreconditionError(
          "the server came back as another run, or with other chunks or seed");
    }
    epoch_ = Epoch(welcome.epoch());
    if (welcome.state() != v1::Welcome::STATE_KEEP) received_.reset();
    kept = received_;
    state.connection = connection_;
  }
  {
    MutexLock lock(&stats_mu_);
    stats_.incarnation = welcome.incarnation();
  }
  welcomed_ = true;
  ever_welcomed_ = true;
  transfer_ticket_ = welcome.ticket();
  state.ticket = transfer_ticket_;
  from->SetTimeout(std::nullopt);
  switch (welcome.state()) {
    case v1::Welcome::STATE_KEEP:
      if (!kept)
        return absl::InvalidArgumentError(
            "the server wants a replica kept that this worker has not");
      ReplicaStandsAt(state.connection, *kept);
      return absl::OkStatus();
    case v1::Welcome::STATE_FETCH:
      state.kind = StateEvent::Kind::kFetch;
      break;
    case v1::Welcome::STATE_UPLOAD:
      state.kind = StateEvent::Kind::kUpload;
      break;
    default:
      return absl::InvalidArgumentError(
          "the server's welcome does not say what becomes of the replica");
  }
  Push(std::move(state));
  return absl::OkStatus();
}

absl::Status Link::OnResync(const v1::Resync& resync) {
  LogWarning("the server asks for a resync",
             {{"round", resync.round()}, {"reason", resync.reason()}});
  StateEvent state;
  {
    MutexLock lock(&mu_);
    received_.reset();
    open_.reset();
    state.connection = connection_;
  }
  state.ticket = transfer_ticket_;
  Push(std::move(state));
  return absl::OkStatus();
}

VerdictStore::Slot* Link::SlotFor(Round round) {
  for (VerdictStore::Slot* slot : assembled_) {
    if (slot->round == round) return slot;
  }
  // The caller computes and all slots wait for it: the stream is read on when it has applied what
  // is there.
  VerdictStore::Slot* slot = nullptr;
  while ((slot = verdicts_->Acquire(round)) == nullptr) {
    MutexLock lock(&mu_);
    if (stop_) return nullptr;
    changed_.WaitFor(&mu_, std::chrono::milliseconds(20));
  }
  slot->first_chunk = clock_->Now();
  assembled_.push_back(slot);
  return slot;
}

VerdictStore::Slot* Link::TakeSlot(Round round) {
  VerdictStore::Slot* taken = nullptr;
  std::vector<VerdictStore::Slot*> later;
  for (VerdictStore::Slot* slot : assembled_) {
    if (slot->round == round) {
      taken = slot;
    } else if (slot->round < round) {
      verdicts_->Release(slot);
    } else {
      later.push_back(slot);
    }
  }
  assembled_ = std::move(later);
  return taken;
}

void Link::DropAssembled() {
  for (VerdictStore::Slot* slot : assembled_) verdicts_->Release(slot);
  assembled_.clear();
}

absl::Status Link::OnVerdictChunk(const wire::VoteView& view, const grpc::ByteBuffer& buffer) {
  const wire::VoteHeader& header = view.header;
  if (header.run_id != run_.run_id) return absl::InvalidArgumentError("a verdict of another run");
  {
    MutexLock lock(&mu_);
    // Rounds that this replica does not need, or cannot use without those before.
    if (!received_ || header.round < *received_ ||
        header.round.value() - received_->value() >= kRoundsAssembledMax) {
      return absl::OkStatus();
    }
  }
  if (header.chunk.value() >= run_.plan.chunks() ||
      view.payload_bytes != run_.plan.Bytes(header.chunk)) {
    return absl::InvalidArgumentError(absl::StrCat("verdict chunk ", header.chunk.value(), " of ",
                                                   run_.plan.chunks(), " with ", view.payload_bytes,
                                                   " bytes"));
  }
  VerdictStore::Slot* const slot = SlotFor(header.round);
  if (slot == nullptr) return absl::CancelledError("the session was closed");
  VerdictStore::Slot::Origin& origin = slot->chunks[header.chunk.value()];
  origin.present = false;
  const absl::Status copied = wire::CopyPayloadChecked(
      buffer, view.payload_offset, header.checksum,
      {slot->bits.data() + run_.plan.ByteOffset(header.chunk), run_.plan.Bytes(header.chunk)});
  if (copied.code() == absl::StatusCode::kDataLoss) {
    return OnMismatch(header.round,
                      absl::StrCat("chunk ", header.chunk.value(), " fails its checksum"));
  }
  SIGNVOTE_RETURN_IF_ERROR(copied);
  origin = {.present = true, .epoch = header.epoch, .attempt = header.attempt};
  return absl::OkStatus();
}

// The committed bits are asked for again by a new session at the same round; when that does not
// help, the whole state.
absl::Status Link::OnMismatch(Round round, const std::string& why) {
  LogWarning("verdict does not match its commit", {{"round", round.value()}, {"reason", why}});
  {
    MutexLock lock(&stats_mu_);
    ++stats_.verdict_mismatches;
  }
  if (++mismatches_in_a_row_ > 1) {
    MutexLock lock(&mu_);
    received_.reset();
  }
  return absl::AbortedError(
      absl::StrCat("verdict of round ", round.value(), " does not match its commit: ", why));
}

absl::Status Link::OnCommit(const v1::Commit& commit) {
  if (commit.run_id() != run_.run_id.bytes())
    return absl::InvalidArgumentError("a commit of another run");
  const Round round(commit.round());
  {
    MutexLock lock(&mu_);
    if (!received_ || round < *received_) return absl::OkStatus();
    if (round > *received_) {
      return absl::AbortedError(
          absl::StrCat("commit ", round.value(), " came where ", received_->value(), " was due"));
    }
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckCommit(commit));
  VerdictStore::Slot* const slot = TakeSlot(round);
  if (slot == nullptr) return OnMismatch(round, "no verdict chunk came");
  if (!slot->Holds(Epoch(commit.epoch()), Attempt(commit.attempt()), commit.verdict_hash())) {
    verdicts_->Release(slot);
    return OnMismatch(round, "hash, attempt or chunks differ");
  }
  mismatches_in_a_row_ = 0;
  backoff_.Reset();
  CommitEvent event;
  event.round = round;
  event.stepsize = commit.stepsize();
  event.loss = commit.loss();
  event.voters = commit.voters();
  event.digest_due = commit.digest_due();
  event.slot = slot;
  event.times.first_verdict = slot->first_chunk;
  event.times.committed = clock_->Now();
  {
    MutexLock lock(&stats_mu_);
    if (joined_rounds_) ++stats_.rounds_received;
  }
  {
    MutexLock lock(&mu_);
    last_commit_epoch_ = Epoch(commit.epoch());
  }
  if (!Push(std::move(event))) {
    verdicts_->Release(slot);
    return absl::ResourceExhaustedError("the server sends more than this worker handles");
  }
  return absl::OkStatus();
}

absl::Status Link::OnRoundOpen(const v1::RoundOpen& open) {
  OpenEvent event;
  event.at = clock_->Now();
  event.ticket = TicketFrom(open);
  {
    MutexLock lock(&stats_mu_);
    // What came before was handshake, join and catching up.
    if (!joined_rounds_) {
      ReadCounterLocked();
      joined_rounds_ = true;
      if (stats_.join_seconds == 0) stats_.join_seconds = ToSeconds(clock_->Now() - started_);
    }
  }
  std::shared_ptr<Stream> to;
  {
    MutexLock lock(&mu_);
    open_ = OpenAttempt{Round(open.round()), Attempt(open.attempt())};
    notice_.clear();
    to = stream_;
    // Another attempt of a round whose ballot is under way, or a new connection: the same ballot
    // again. Under the lock, because what the caller hands over from now on is sent for this
    // attempt and must not be withdrawn with the rest.
    if (const std::optional<VoteId> vote = VoteLocked()) {
      to->ReplaceBallots(ballot_.AllMessages(*vote));
    }
  }
  to->Flush();
  backoff_.Reset();
  if (!Push(std::move(event))) {
    return absl::ResourceExhaustedError("the server sends more than this worker handles");
  }
  return absl::OkStatus();
}

}  // namespace signvote
