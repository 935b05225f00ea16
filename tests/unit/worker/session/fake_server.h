#pragma once
// A scripted server for tests of the worker session: generated code on real sockets, no logic of
// its own, so that it is also a second opinion on what the session's hand-written messages mean.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include "common/checksum.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "signvote/v1/training.grpc.pb.h"

namespace signvote::testing {

inline constexpr uint64_t kFakeMessageBytesMax = 64 << 20;
inline constexpr uint64_t kD = 5000;  // several chunks, the last one odd

inline Layout TestLayout(uint64_t d = kD) {
  std::vector<TensorSpec> tensors(2);
  tensors[0].name = "a";
  tensors[0].shape = {d - 1000};
  tensors[1].name = "b";
  tensors[1].shape = {10, 100};
  tensors[1].step_scale = 0.5f;
  tensors[1].weight_decay = 0.1f;
  return *Layout::Make(tensors);
}

inline void FillLayout(const Layout& layout, v1::Layout* out) {
  for (const TensorSpec& tensor : layout.tensors()) {
    v1::Tensor* const to = out->add_tensors();
    to->set_name(tensor.name);
    for (const uint64_t dimension : tensor.shape) to->add_shape(dimension);
    to->set_step_scale(tensor.step_scale);
    to->set_weight_decay(tensor.weight_decay);
  }
  out->set_digest(layout.digest());
}

// docs/wire_format.md, "Hash of a commit's payload", of `ballots` counted for each chunk: written
// out here, as a second opinion.
inline uint64_t HashOfVerdict(const ChunkPlan& plan, const std::vector<uint8_t>& bits,
                              uint64_t ballots) {
  std::vector<uint64_t> words;
  for (uint32_t k = 0; k < plan.chunks(); ++k) {
    words.push_back(ballots);
    words.push_back(Xxh3(bits.data() + plan.ByteOffset(ChunkIndex(k)), plan.Bytes(ChunkIndex(k))));
  }
  return Xxh3(words.data(), words.size() * sizeof(uint64_t));
}

// The server's end of one Session call.
class FakeSession {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ServerMessage, v1::WorkerMessage>;
  FakeSession(grpc::ServerContext* context, Stream* stream, RunId run_id, ChunkPlan plan)
      : context_(context), stream_(stream), run_id_(run_id), plan_(plan) {}

  // The next message of the given kind; others are kept back in order. An empty message when the
  // stream ended.
  v1::WorkerMessage Await(v1::WorkerMessage::MessageCase kind) {
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (it->message_case() == kind) {
        v1::WorkerMessage out = std::move(*it);
        kept_.erase(it);
        return out;
      }
    }
    v1::WorkerMessage message;
    while (stream_->Read(&message)) {
      order.push_back(message.message_case());
      if (message.message_case() == kind) return message;
      kept_.push_back(message);
    }
    return {};
  }
  v1::Join AwaitJoin() { return Await(v1::WorkerMessage::kJoin).join(); }

  v1::ServerMessage Welcome(v1::Welcome::State state) {
    v1::ServerMessage message;
    v1::Welcome* const welcome = message.mutable_welcome();
    welcome->set_protocol(2);
    welcome->set_software_version("fake");
    welcome->set_run_id(std::string(run_id_.bytes()));
    welcome->set_epoch(epoch);
    welcome->set_incarnation(1);
    welcome->set_ticket("0123456789abcdef");
    welcome->set_state(state);
    welcome->set_chunk_coordinates(plan_.chunk_coordinates());
    welcome->set_seed(7);
    welcome->set_main_rounds(100);
    FillLayout(TestLayout(), welcome->mutable_layout());
    welcome->set_needs_x0(needs_x0);
    welcome->set_rule("alias");
    welcome->mutable_direction()->set_kind(v1::Direction::KIND_SIGNUM);
    welcome->mutable_direction()->set_beta(0.9);
    welcome->set_digest_every(50);
    welcome->set_message_bytes_max(kFakeMessageBytesMax);
    return message;
  }
  void Send(const v1::ServerMessage& message) { stream_->Write(message); }

  // Join, welcome and ready in one; returns the Join.
  v1::Join LetIn(v1::Welcome::State state) {
    v1::Join join = AwaitJoin();
    Send(Welcome(state));
    const v1::WorkerMessage ready = Await(v1::WorkerMessage::kReady);
    if (ready.has_ready()) ready_round = ready.ready().round();
    return join;
  }

  void OpenRound(uint64_t round, uint32_t attempt = 0,
                 v1::RoundOpen::Role role = v1::RoundOpen::ROLE_MEMBER) {
    v1::ServerMessage message;
    v1::RoundOpen* const open = message.mutable_round_open();
    open->set_round(round);
    open->set_attempt(attempt);
    open->set_data_step(round + 1000);
    open->set_share(3);
    open->set_role(role);
    if (round % 2 == 1) open->add_wanted(v1::SCALAR_PROBE_L1);
    open->add_wanted(v1::SCALAR_PREV_INNER);
    open->set_members(1);
    open->set_x0_over(x0_over);
    Send(message);
  }

  // Collects `chunks` chunks of a ballot and checks their headers; returns the packed bits.
  std::vector<uint8_t> AwaitChunks(uint64_t round, uint32_t attempt, uint32_t chunks) {
    std::vector<uint8_t> bits(plan_.TotalBytes());
    for (uint32_t i = 0; i < chunks; ++i) {
      const v1::BallotChunk chunk = Await(v1::WorkerMessage::kBallotChunk).ballot_chunk();
      EXPECT_EQ(chunk.run_id(), run_id_.bytes());
      EXPECT_EQ(chunk.epoch(), epoch);
      EXPECT_EQ(chunk.round(), round);
      EXPECT_EQ(chunk.attempt(), attempt);
      if (chunk.chunk() >= plan_.chunks()) return {};
      EXPECT_EQ(chunk.payload().size(), plan_.Bytes(ChunkIndex(chunk.chunk())));
      EXPECT_EQ(chunk.checksum(), Xxh3(chunk.payload().data(), chunk.payload().size()));
      std::copy(chunk.payload().begin(), chunk.payload().end(),
                bits.begin() + static_cast<ptrdiff_t>(plan_.ByteOffset(ChunkIndex(chunk.chunk()))));
    }
    return bits;
  }

  void SendVerdict(uint64_t round, uint32_t attempt, const std::vector<uint8_t>& bits) {
    for (uint32_t k = 0; k < plan_.chunks(); ++k) SendVerdictChunk(round, attempt, k, bits);
  }
  void SendVerdictChunk(uint64_t round, uint32_t attempt, uint32_t k,
                        const std::vector<uint8_t>& bits) {
    v1::ServerMessage message;
    v1::VerdictChunk* const chunk = message.mutable_verdict_chunk();
    chunk->set_run_id(std::string(run_id_.bytes()));
    chunk->set_epoch(epoch);
    chunk->set_round(round);
    chunk->set_attempt(attempt);
    chunk->set_chunk(k);
    const uint8_t* const from = bits.data() + plan_.ByteOffset(ChunkIndex(k));
    chunk->set_payload(from, plan_.Bytes(ChunkIndex(k)));
    chunk->set_checksum(Xxh3(from, plan_.Bytes(ChunkIndex(k))));
    Send(message);
  }
  v1::ServerMessage Commit(uint64_t round, uint32_t attempt, const std::vector<uint8_t>& bits,
                           float stepsize) {
    v1::ServerMessage message;
    v1::Commit* const commit = message.mutable_commit();
    commit->set_run_id(std::string(run_id_.bytes()));
    commit->set_epoch(epoch);
    commit->set_round(round);
    commit->set_attempt(attempt);
    commit->set_kind(v1::Commit::KIND_STEP);
    commit->set_stepsize(stepsize);
    commit->set_rho(1.0f);
    for (uint32_t k = 0; k < plan_.chunks(); ++k) commit->add_counted(1);
    commit->set_payload_hash(HashOfVerdict(plan_, bits, 1));
    commit->set_data_step(round + 1000);
    commit->set_next_data_step(round + 1001);
    commit->set_main_round(round + 1);
    commit->set_loss(2.5);
    commit->set_voters(1);
    return message;
  }
  // A commit without a payload.
  v1::ServerMessage CommitOf(uint64_t round, v1::Commit::Kind kind) {
    v1::ServerMessage message;
    v1::Commit* const commit = message.mutable_commit();
    commit->set_run_id(std::string(run_id_.bytes()));
    commit->set_epoch(epoch);
    commit->set_round(round);
    commit->set_kind(kind);
    commit->set_reason("because of this");
    commit->set_next_data_step(round + 1001);
    return message;
  }
  // Verdict and commit of a whole round.
  void Decide(uint64_t round, uint32_t attempt, const std::vector<uint8_t>& bits, float stepsize) {
    SendVerdict(round, attempt, bits);
    Send(Commit(round, attempt, bits, stepsize));
  }
  void Finish(uint64_t rounds) {
    v1::ServerMessage message;
    message.mutable_finish()->set_rounds(rounds);
    Send(message);
  }
  // Waits until the worker has read everything that was sent before.
  void AwaitRead() {
    v1::ServerMessage message;
    message.mutable_ping()->set_nonce(++nonce_);
    Send(message);
    EXPECT_EQ(Await(v1::WorkerMessage::kPong).pong().nonce(), nonce_);
  }
  void Notice(const std::string& text) {
    v1::ServerMessage message;
    message.mutable_notice()->set_text(text);
    Send(message);
  }
  // Waits until the other side has gone.
  void AwaitEnd() {
    v1::WorkerMessage message;
    while (stream_->Read(&message)) kept_.push_back(message);
  }

  const std::deque<v1::WorkerMessage>& kept() const { return kept_; }
  grpc::ServerContext* context() { return context_; }

  uint64_t epoch = 1;
  bool needs_x0 = false;
  bool x0_over = false;  // said by rounds that open
  std::optional<uint64_t> ready_round;
  std::vector<v1::WorkerMessage::MessageCase> order;  // every message received

 private:
  grpc::ServerContext* const context_;
  Stream* const stream_;
  const RunId run_id_;
  const ChunkPlan plan_;
  std::deque<v1::WorkerMessage> kept_;
  uint64_t nonce_ = 0;
};

class FakeServer : public v1::Training::Service {
 public:
  using Script = std::function<grpc::Status(FakeSession&)>;
  using FetchScript = std::function<grpc::Status(grpc::ServerWriter<v1::StateChunk>*)>;

  // `scripts[i]` plays connection i; further connections are refused as unavailable.
  FakeServer(
      ChunkPlan plan, std::vector<Script> scripts,
      std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials(),
      int port = 0)
      : plan_(plan), scripts_(std::move(scripts)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), credentials, &port_);
    builder.SetMaxReceiveMessageSize(kFakeMessageBytesMax);
    builder.RegisterService(this);
    MutexLock lock(&mu_);  // scripts see what the test wrote before
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { Stop(); }
  // Cuts every call and closes the port.
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
    // What the scripts wrote is the test's to read from here on.
    MutexLock lock(&mu_);
  }

  // Waits until every script has returned and the worker has been told, then closes the port: for
  // tests of a session that ends in good order.
  void StopAfterCalls() {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(60));
    Stop();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }
  int connections() const {
    MutexLock lock(&mu_);
    return connections_;
  }
  std::vector<float> uploaded() const {
    MutexLock lock(&mu_);
    return uploaded_;
  }
  RunId run_id() const { return run_id_; }

  // How the state is sent.
  void SetFetch(FetchScript fetch) {
    MutexLock lock(&mu_);
    fetch_ = std::move(fetch);
  }

  // Called when an upload has begun; it goes on when that returns.
  void SetUpload(std::function<void()> upload) {
    MutexLock lock(&mu_);
    upload_ = std::move(upload);
  }

  grpc::Status Session(grpc::ServerContext* context, FakeSession::Stream* stream) override {
    Script script;
    {
      MutexLock lock(&mu_);
      const auto i = static_cast<size_t>(connections_++);
      if (i < scripts_.size()) script = scripts_[i];
    }
    if (script == nullptr) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no script");
    FakeSession session(context, stream, run_id_, plan_);
    const grpc::Status status = script(session);
    MutexLock lock(&mu_);
    return status;
  }
  grpc::Status FetchState(grpc::ServerContext*, const v1::FetchStateRequest* request,
                          grpc::ServerWriter<v1::StateChunk>* writer) override {
    FetchScript fetch;
    {
      MutexLock lock(&mu_);
      fetch = fetch_;
    }
    if (request->ticket() != "0123456789abcdef") {
      return {grpc::StatusCode::FAILED_PRECONDITION, "wrong ticket"};
    }
    return fetch ? fetch(writer)
                 : grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "nothing to fetch");
  }
  grpc::Status UploadState(grpc::ServerContext* context,
                           grpc::ServerReader<v1::UploadStateRequest>* reader,
                           v1::UploadStateReply* reply) override {
    std::function<void()> upload;
    {
      MutexLock lock(&mu_);
      upload = upload_;
    }
    if (upload) upload();
    v1::UploadStateRequest request;
    std::vector<float> values;
    std::string ticket;
    while (reader->Read(&request)) {
      if (request.has_chunk()) {
        const v1::StateChunk& chunk = request.chunk();
        EXPECT_EQ(chunk.first(), values.size());
        EXPECT_EQ(chunk.payload().size(), chunk.count() * 4);
        EXPECT_EQ(chunk.checksum(), Xxh3(chunk.payload().data(), chunk.payload().size()));
        values.resize(values.size() + chunk.count());
        std::copy(chunk.payload().begin(), chunk.payload().end(),
                  reinterpret_cast<char*>(values.data() + chunk.first()));
      } else {
        ticket = request.ticket();
      }
    }
    if (context->IsCancelled()) return grpc::Status::CANCELLED;
    EXPECT_EQ(ticket, "0123456789abcdef");
    reply->set_coordinates(values.size());
    MutexLock lock(&mu_);
    uploaded_ = std::move(values);
    return grpc::Status::OK;
  }

 private:
  const ChunkPlan plan_;
  const RunId run_id_ = RunId::FromRandom(1, 2);
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;

  mutable Mutex mu_;
  const std::vector<Script> scripts_;
  int connections_ ABSL_GUARDED_BY(mu_) = 0;
  FetchScript fetch_ ABSL_GUARDED_BY(mu_);
  std::function<void()> upload_ ABSL_GUARDED_BY(mu_);
  std::vector<float> uploaded_ ABSL_GUARDED_BY(mu_);
};

}  // namespace signvote::testing
