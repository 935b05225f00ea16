#pragma once
// A worker written from training.proto and docs/wire_format.md alone: generated messages and stubs,
// blocking calls, no code of worker/. What it can do, a client in any language can.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/process.h"
#include "signvote/v1/training.grpc.pb.h"

namespace signvote::rpc {

class WireClient {
 public:
  // kFixed: what the server sends beyond HTTP/2's first 64 KiB waits until it is read.
  enum class Window : uint8_t { kUsual, kFixed };
  WireClient(
      const std::string& address, Layout layout,
      std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials(),
      Window window = Window::kUsual)
      : layout_(std::move(layout)) {
    // A connection of its own, so that a second client of this process is a second worker.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    if (window == Window::kFixed) arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = grpc::CreateCustomChannel(address, credentials, arguments);
    stub_ = v1::Training::NewStub(channel_);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    stream_ = stub_->Session(&context_);
    x.assign(layout_.coordinates(), 0.0f);
  }
  ~WireClient() { context_.TryCancel(); }

  v1::Join MakeJoin(const std::string& name) const {
    v1::Join join;
    join.set_protocol_min(2);
    join.set_protocol_max(2);
    join.set_software_version("wire-client");
    join.set_name(name);
    for (const TensorSpec& t : layout_.tensors()) {
      v1::TensorShape& out = *join.add_tensors();
      out.set_name(t.name);
      for (const uint64_t dimension : t.shape) out.add_shape(dimension);
    }
    return join;
  }

  bool Send(const v1::WorkerMessage& message) { return stream_->Write(message); }
  bool SendJoin(const v1::Join& join) {
    v1::WorkerMessage message;
    *message.mutable_join() = join;
    return Send(message);
  }
  bool SendReady(uint64_t at) {
    v1::WorkerMessage message;
    message.mutable_ready()->set_round(at);
    return Send(message);
  }
  // The next message; false when the stream has ended. Answers pings and remembers Welcome,
  // verdicts and RoundOpen.
  bool Read(v1::ServerMessage* message) {
    while (stream_->Read(message)) {
      if (message->has_ping()) {
        ++pings;
        if (answer_pings) {
          v1::WorkerMessage pong;
          pong.mutable_pong()->set_nonce(message->ping().nonce());
          Send(pong);
        }
        continue;
      }
      if (message->has_welcome()) {
        welcome = message->welcome();
        plan = ChunkPlan(layout_.coordinates(), welcome.chunk_coordinates());
        verdict.assign(plan.TotalBytes(), 0);
      }
      if (message->has_round_open()) open = message->round_open();
      if (message->has_verdict_chunk()) {
        const v1::VerdictChunk& chunk = message->verdict_chunk();
        const ChunkIndex k(chunk.chunk());
        // What a dense chunk's update is, nobody here applies.
        if (chunk.payload().size() == plan.Bytes(k)) {
          std::memcpy(verdict.data() + plan.ByteOffset(k), chunk.payload().data(),
                      chunk.payload().size());
        }
      }
      return true;
    }
    return false;
  }
  // Reads until a message of `kind`; false when the stream ended first.
  bool ReadUntil(v1::ServerMessage::MessageCase kind, v1::ServerMessage* message) {
    while (Read(message)) {
      if (message->message_case() == kind) return true;
    }
    return false;
  }
  bool ReadWelcome() {
    v1::ServerMessage message;
    return ReadUntil(v1::ServerMessage::kWelcome, &message);
  }
  // Joins and brings x to a round; x is the initial model when this worker is asked for it.
  bool JoinRun(const std::string& name, const std::string& token = "") {
    v1::Join join = MakeJoin(name);
    join.set_token(token);
    if (!SendJoin(join) || !ReadWelcome()) return false;
    if (welcome.state() == v1::Welcome::STATE_UPLOAD) return Upload().ok() && SendReady(0);
    if (welcome.state() == v1::Welcome::STATE_FETCH) return Fetch().ok() && SendReady(round);
    return SendReady(round);
  }
  grpc::Status Upload() {
    grpc::ClientContext context;
    v1::UploadStateReply reply;
    auto writer = stub_->UploadState(&context, &reply);
    v1::UploadStateRequest request;
    request.set_ticket(welcome.ticket());
    bool good = writer->Write(request);
    for (uint64_t first = 0; good && first < x.size(); first += 100'000) {
      const uint64_t count = std::min<uint64_t>(100'000, x.size() - first);
      v1::StateChunk& chunk = *request.mutable_chunk();
      chunk.set_first(first);
      chunk.set_count(count);
      chunk.set_payload(x.data() + first, count * sizeof(float));
      chunk.set_checksum(Xxh3(chunk.payload().data(), chunk.payload().size()));
      good = writer->Write(request);
    }
    writer->WritesDone();
    return writer->Finish();
  }
  grpc::Status Fetch() {
    grpc::ClientContext context;
    v1::FetchStateRequest request;
    request.set_ticket(welcome.ticket());
    auto reader = stub_->FetchState(&context, request);
    v1::StateChunk chunk;
    pieces.clear();
    round = ~uint64_t{0};
    while (reader->Read(&chunk)) {
      if (Xxh3(chunk.payload().data(), chunk.payload().size()) != chunk.checksum()) {
        return {grpc::StatusCode::DATA_LOSS, "state chunk checksum"};
      }
      std::memcpy(x.data() + chunk.first(), chunk.payload().data(), chunk.payload().size());
      pieces.push_back({chunk.first(), chunk.count(), chunk.round()});
      round = std::min(round, chunk.round());
    }
    return reader->Finish();
  }
  v1::BallotChunk MakeChunk(uint32_t k, const std::vector<uint8_t>& bits) const {
    v1::BallotChunk chunk;
    chunk.set_run_id(welcome.run_id());
    chunk.set_epoch(welcome.epoch());
    chunk.set_round(open.round());
    chunk.set_attempt(open.attempt());
    chunk.set_chunk(k);
    chunk.set_payload(bits.data() + plan.ByteOffset(ChunkIndex(k)), plan.Bytes(ChunkIndex(k)));
    chunk.set_checksum(Xxh3(chunk.payload().data(), chunk.payload().size()));
    return chunk;
  }
  bool SendChunk(const v1::BallotChunk& chunk) {
    v1::WorkerMessage message;
    *message.mutable_ballot_chunk() = chunk;
    return Send(message);
  }
  bool SendScalars(double loss, double g_l1 = 1, double g_l2_squared = 1) {
    v1::WorkerMessage message;
    v1::Scalars& scalars = *message.mutable_scalars();
    scalars.set_round(open.round());
    scalars.set_attempt(open.attempt());
    scalars.set_loss(loss);
    scalars.set_g_l1(g_l1);
    scalars.set_g_l2_squared(g_l2_squared);
    scalars.set_compute_us(1000);
    return Send(message);
  }
  bool Vote(const std::vector<uint8_t>& bits, double loss = 1) {
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      if (!SendChunk(MakeChunk(k, bits))) return false;
    }
    return SendScalars(loss);
  }
  // Applies the commit to the pieces that stand at its round. False: the verdict at hand is not the
  // committed one.
  bool Apply(const v1::Commit& commit) {
    const bool step = commit.kind() == v1::Commit::KIND_STEP;
    if (step) {
      std::vector<ChunkSum> sums;
      for (uint32_t k = 0; k < plan.chunks(); ++k) {
        const ChunkIndex chunk(k);
        sums.push_back(
            {.counted = commit.counted(static_cast<int>(k)),
             .checksum = Xxh3(verdict.data() + plan.ByteOffset(chunk), plan.Bytes(chunk))});
      }
      if (PayloadHash(sums) != commit.payload_hash()) return false;
    }
    if (pieces.empty()) pieces.push_back({0, x.size(), round});
    for (Piece& piece : pieces) {
      if (piece.round != commit.round()) continue;
      if (step) {
        ApplyStep(layout_, commit.stepsize(), piece.first, piece.count, verdict.data(), 0,
                  x.data() + piece.first);
      }
      ++piece.round;
    }
    round = commit.round() + 1;
    return true;
  }
  uint64_t Digest() const { return ReplicaDigest(x.data(), 0, x.size()); }
  bool SendDigest() {
    v1::WorkerMessage message;
    message.mutable_replica_digest()->set_round(round);
    message.mutable_replica_digest()->set_digest(Digest());
    return Send(message);
  }
  grpc::Status Finish() {
    v1::ServerMessage message;
    while (Read(&message)) {
    }
    return stream_->Finish();
  }
  void Cancel() { context_.TryCancel(); }
  v1::Training::Stub* stub() { return stub_.get(); }

  struct Piece {
    uint64_t first, count, round;
  };

  std::vector<float> x;
  uint64_t round = 0;  // x holds all commits before it
  std::vector<Piece> pieces;
  v1::Welcome welcome;
  v1::RoundOpen open;
  ChunkPlan plan;
  std::vector<uint8_t> verdict;
  bool answer_pings = true;
  std::atomic<int> pings = 0;  // seen; another thread may look

 private:
  const Layout layout_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Training::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::ServerMessage>> stream_;
};

}  // namespace signvote::rpc
