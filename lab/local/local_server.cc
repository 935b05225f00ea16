#include "lab/local/local_server.h"

#include <algorithm>
#include <utility>

#include <google/protobuf/io/coded_stream.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace signvote::lab {

uint64_t ChunkMessageBytes(const ChunkOf& of, uint64_t payload_bytes) {
  // A field of bytes: tag, length, and the bytes. All tags are one byte, as both kinds' fields are: wire
  // holds them to that.
  const auto field = [](uint64_t bytes) {
    return 1 + google::protobuf::io::CodedOutputStream::VarintSize64(bytes) + bytes;
  };
  v1::BallotChunk header;
  header.set_run_id(of.run_id.bytes().data(), of.run_id.bytes().size());
  header.set_epoch(of.epoch.value());
  header.set_round(of.round.value());
  header.set_attempt(of.attempt.value());
  header.set_chunk(of.chunk.value());
  header.set_checksum(1);
  return field(header.ByteSizeLong() + field(payload_bytes));
}

// A stream as the run sees it. What it sends is delivered before anything else happens, so that nothing
// is ever queued.
class LocalServer::LocalPeer final : public run::Peer {
 public:
  LocalPeer(LocalServer* server, run::PeerId id, LocalEnd* end)
      : server_(server), id_(id), end_(end) {
    identity_.host = absl::StrCat("local-", id.value());
    identity_.address = absl::StrCat(identity_.host, ":0");
    ticket_ = absl::StrCat("local ", id.value());
    ticket_.resize(16, ' ');
  }

  run::PeerId id() const override { return id_; }
  const run::PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return ticket_; }

  void Send(const v1::ServerMessage& message) override {
    if (closed_) return;
    bytes_.sent += message.ByteSizeLong();
    server_->mail_.push_back({id_, message});
  }
  void SendVerdict(const run::VerdictHeader& header, std::span<const uint8_t> payload,
                   std::shared_ptr<const void> owner) override {
    if (closed_) return;
    bytes_.sent += ChunkMessageBytes({server_->run_->run_id(), server_->run_->epoch(), header.round,
                                      header.attempt, header.chunk},
                                     payload.size());
    server_->mail_.push_back({id_, Verdict{header, payload, std::move(owner)}});
  }
  void Admit(std::shared_ptr<BallotSlots> slots) override { slots_ = std::move(slots); }
  size_t queued_bytes() const override { return 0; }
  void NotifyWhenBelow(size_t) override {
    if (!closed_) server_->Tell(id_, run::RoomIn{});
  }
  void Close(absl::Status status) override {
    if (std::exchange(closed_, true)) return;
    server_->Tell(id_, run::GoneIn{.reason = Describe(status),
                                   .ended_by_us = !status.ok() && !absl::IsCancelled(status)});
    server_->Tell(id_, run::StreamDone{});
    server_->mail_.push_back({id_, std::move(status)});
  }
  void Cancel() override { Close(absl::CancelledError("broken off")); }
  run::PeerBytes bytes() const override { return bytes_; }

  LocalEnd* end() const { return end_; }
  bool closed() const { return closed_; }
  // Whatever is still said to it is said to nobody.
  void EndGone() { end_ = nullptr; }

  absl::StatusOr<run::StreamWhat> Read(v1::WorkerMessage message) {
    bytes_.received += message.ByteSizeLong();
    SIGNVOTE_ASSIGN_OR_RETURN(run::StreamWhat what, run::InputFrom(std::move(message), joined_));
    joined_ = true;
    return what;
  }
  absl::StatusOr<run::StreamWhat> Read(Round round, Attempt attempt, ChunkIndex chunk,
                                       std::span<const uint8_t> bits) {
    bytes_.received += ChunkMessageBytes(
        {server_->run_->run_id(), server_->run_->epoch(), round, attempt, chunk}, bits.size());
    if (slots_ == nullptr || chunk.value() >= slots_->plan().chunks() ||
        bits.size() != slots_->payload().Bytes(chunk, 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk ", chunk.value(), " of a ballot fits no chunk of the run"));
    }
    std::span<uint8_t> place;
    switch (slots_->Begin(round, attempt, chunk, &place)) {
      case BallotSlots::Place::kNotOpen:
        return absl::InvalidArgumentError("a ballot was sent before its round was opened");
      case BallotSlots::Place::kNotNeeded:
        break;
      case BallotSlots::Place::kWrite:
        std::copy(bits.begin(), bits.end(), place.begin());
        // False: closed meanwhile. The engine hears of it all the same and counts it as late.
        (void)slots_->End(round, attempt, chunk, /*good=*/true);
        break;
    }
    return run::BallotIn{round, attempt, chunk};
  }

 private:
  // Constant after construction.
  LocalServer* const server_;
  const run::PeerId id_;
  run::PeerIdentity identity_;
  std::string ticket_;

  LocalEnd* end_;  // null: gone
  std::shared_ptr<BallotSlots> slots_;
  run::PeerBytes bytes_;
  bool joined_ = false, closed_ = false;
};

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Create(LocalServerOptions options) {
  run::RunParts parts;
  run::RunState state{.run_id = options.run_id};
  run::RunOptions run_options = options.run;
  parts.round_log = options.round_log;
  parts.event_log = options.event_log;
  parts.memory =
      options.memory ? std::move(options.memory) : [] { return std::optional<MemoryLimit>(); };
  parts.init = std::move(options.init);
  parts.rule = std::move(options.rule);
  // Of tickets and nonces, which nobody here would guess.
  parts.rng = Rng(run_options.seed, /*stream=*/1);
  auto server = std::unique_ptr<LocalServer>(new LocalServer());
  parts.clock = &server->clock_;
  parts.host = server.get();
  parts.tally = &server->tally_;
  SIGNVOTE_ASSIGN_OR_RETURN(server->run_, run::Run::Create(std::move(run_options), std::move(parts),
                                                           std::move(state), server->clock_.Now()));
  return server;
}

LocalServer::LocalServer()
    : tally_(&clock_, [this](ChunkTallied tallied) { inbox_.emplace_back(std::move(tallied)); }) {}

LocalServer::~LocalServer() = default;

// ---- a worker's side ----------------------------------------------------------------------------

run::PeerId LocalServer::Open(LocalEnd* end) {
  ++last_peer_;
  auto peer = std::make_shared<LocalPeer>(this, last_peer_, end);
  peers_[last_peer_] = peer;
  Tell(last_peer_, run::StreamOpened{std::move(peer)});
  return last_peer_;
}

void LocalServer::Tell(run::PeerId peer, run::StreamWhat what) {
  inbox_.emplace_back(run::StreamInput{.peer = peer, .what = std::move(what)});
}

void LocalServer::Say(run::PeerId peer, v1::WorkerMessage message) {
  const auto found = peers_.find(peer);
  if (found == peers_.end() || found->second->closed()) return;
  absl::StatusOr<run::StreamWhat> what = found->second->Read(std::move(message));
  if (!what.ok()) return found->second->Close(what.status());
  Tell(peer, *std::move(what));
}

void LocalServer::SayChunk(run::PeerId peer, Round round, Attempt attempt, ChunkIndex chunk,
                           std::span<const uint8_t> bits) {
  const auto found = peers_.find(peer);
  if (found == peers_.end() || found->second->closed()) return;
  absl::StatusOr<run::StreamWhat> what = found->second->Read(round, attempt, chunk, bits);
  if (!what.ok()) return found->second->Close(what.status());
  Tell(peer, *std::move(what));
}

void LocalServer::Close(run::PeerId peer) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  found->second->EndGone();
  found->second->Close(absl::CancelledError("the worker closed its side of the stream"));
}

// ---- the driver's side --------------------------------------------------------------------------

bool LocalServer::Turn() {
  if (run_->ended() && !std::exchange(streams_closed_, true)) run_->CloseStreams(clock_.Now());
  if (!mail_.empty()) {
    Mail mail = std::move(mail_.front());
    mail_.pop_front();
    Deliver(std::move(mail));
    return true;
  }
  // Before whatever else the run is told: workers turn the server no further than they wait for, and
  // commits would pile up.
  if (applier_ != nullptr) {
    if (std::optional<Applied> applied = applier_->ApplyNext(); applied.has_value()) {
      run_->Handle(clock_.Now(), *std::move(applied));
      return true;
    }
  }
  if (!inbox_.empty()) {
    run::Input input = std::move(inbox_.front());
    inbox_.pop_front();
    run_->Handle(clock_.Now(), std::move(input));
    return true;
  }
  const std::optional<Time> tick = run_->NextTick();
  if (!tick.has_value()) return false;
  if (*tick > clock_.Now()) clock_.Advance(*tick - clock_.Now());
  run_->Handle(clock_.Now(), run::TickIn{});
  return true;
}

void LocalServer::Deliver(Mail mail) {
  const auto found = peers_.find(mail.peer);
  if (found == peers_.end()) return;
  LocalEnd* const end = found->second->end();
  if (end == nullptr) return;
  if (const auto* message = std::get_if<v1::ServerMessage>(&mail.what)) {
    end->OnMessage(*message);
  } else if (const auto* verdict = std::get_if<Verdict>(&mail.what)) {
    end->OnVerdict(run_->epoch(), verdict->header, verdict->payload);
  } else {
    found->second->EndGone();
    end->OnClosed(std::get<absl::Status>(mail.what));
  }
}

run::PeerBytes LocalServer::bytes() const {
  run::PeerBytes sum;
  for (const auto& [id, peer] : peers_) {
    sum.received += peer->bytes().received;
    sum.sent += peer->bytes().sent;
  }
  return sum;
}

// ---- those who work for the run -----------------------------------------------------------------

CommitConsumer* LocalServer::StartApplier(const std::shared_ptr<MasterReplica>& replica,
                                          size_t backlog_max) {
  SIGNVOTE_CHECK(applier_ == nullptr);
  replica_ = replica;
  applier_ = std::make_unique<Applier>(replica.get(), &clock_, backlog_max);
  return applier_.get();
}

void LocalServer::DropX0From(Round round) { applier_->DropX0From(round); }

void LocalServer::LoadInitial(std::unique_ptr<run::InitialParameters> init,
                              std::shared_ptr<MasterReplica> replica) {
  inbox_.emplace_back(run::LoadInitial(*init, *replica, [] { return false; }));
}

}  // namespace signvote::lab
