#include "tests/bench/grpc_floor.h"

#include <deque>
#include <thread>
#include <vector>

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "common/mutex.h"
#include "proto/wire/socket_bytes.h"
#include "worker/session/stream.h"

namespace signvote::bench {
namespace {

// A message of this size or less is a greeting, not a chunk.
constexpr size_t kGreetingBytes = 16;
constexpr int kMessageBytesMax = 64 << 20;

class FloorService;

class FloorReactor final : public grpc::ServerGenericBidiReactor {
 public:
  explicit FloorReactor(FloorService* service) : service_(service) { StartRead(&incoming_); }
  void Send(const grpc::ByteBuffer& message) {
    const grpc::ByteBuffer* next = nullptr;
    {
      MutexLock lock(&mu_);
      queue_.push_back(message);
      if (queue_.size() == 1) next = &queue_.front();
    }
    if (next != nullptr) StartWrite(next);
  }
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool) override {
    const grpc::ByteBuffer* next = nullptr;
    {
      MutexLock lock(&mu_);
      queue_.pop_front();
      if (!queue_.empty()) next = &queue_.front();
    }
    if (next != nullptr) StartWrite(next);
  }
  void OnDone() override { delete this; }

 private:
  FloorService* const service_;
  grpc::ByteBuffer incoming_;
  uint64_t chunks_read_ = 0;
  Mutex mu_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mu_);
};

class FloorService final : public grpc::CallbackGenericService {
 public:
  FloorService(uint32_t chunks, uint32_t clients) : clients_(clients), come_(chunks, 0) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    auto* const reactor = new FloorReactor(this);
    MutexLock lock(&mu_);
    reactors_.push_back(reactor);
    return reactor;
  }
  void Come(uint64_t message, const grpc::ByteBuffer& chunk) {
    {
      MutexLock lock(&mu_);
      uint32_t& come = come_[message % come_.size()];
      if (++come < clients_) return;
      come = 0;
    }
    // The list is complete once chunks flow.
    for (FloorReactor* reactor : reactors_) reactor->Send(chunk);
  }

 private:
  const uint32_t clients_;
  Mutex mu_;
  std::vector<FloorReactor*> reactors_;
  std::vector<uint32_t> come_ ABSL_GUARDED_BY(mu_);
};

void FloorReactor::OnReadDone(bool ok) {
  if (!ok) return Finish(grpc::Status::OK);
  if (incoming_.Length() > kGreetingBytes) service_->Come(chunks_read_++, incoming_);
  incoming_.Clear();
  StartRead(&incoming_);
}

}  // namespace

void RunFloorServer(const std::shared_ptr<grpc::ServerCredentials>& credentials,
                    const ChunkPlan& plan, uint32_t clients, SharedCount* port) {
  FloorService service(plan.chunks(), clients);
  int bound = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", credentials, &bound);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             1000);  // DialServer pings
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  SIGNVOTE_CHECK(server != nullptr);
  port->Set(static_cast<uint32_t>(bound));
  server->Wait();
}

void RunFloorClient(const std::string& server,
                    const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                    const ChunkPlan& plan, uint32_t index, Turns* turns) {
  Clock* const clock = Clock::System();
  const std::vector<uint8_t> bits(plan.TotalBytes(), 0x5a);
  Stream stream(DialServer(server, credentials, std::chrono::seconds(10),
                           wire::SocketByteCounter::kMarkFirst),
                clock);
  Turns::Seen* const seen = &turns->seen[index];
  uint64_t received = 0;
  std::atomic<int64_t> cpu_at_start{0};
  std::thread link([&] {
    const grpc::Slice greeting(std::string(kGreetingBytes, 'x'));
    const absl::Status status = stream.Run(
        grpc::ByteBuffer(&greeting, 1), std::chrono::hours(1), [&](const grpc::ByteBuffer&) {
          if (received++ % plan.chunks() == 0) seen->first_verdict = clock->Now().ns;
          if (received % plan.chunks() == 0) {
            seen->committed = seen->end = clock->Now().ns;
            seen->cpu = CpuNanoseconds(getpid()) - cpu_at_start.load();
            turns->commits.Increment();
            turns->arrived.Increment();
          }
          return Stream::Taken::kYes;
        });
    if (!status.ok()) turns->failed.Increment();
  });
  turns->arrived.Increment();
  for (uint32_t turn = 0;;) {
    turn = turns->Await(turn);
    if (turns->command == Turns::kLeave) break;
    cpu_at_start = CpuNanoseconds(getpid());
    seen->first_byte = clock->Now().ns;
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      const grpc::Slice slice(bits.data() + plan.ByteOffset(ChunkIndex(k)),
                              plan.Bytes(ChunkIndex(k)), grpc::Slice::STATIC_SLICE);
      stream.Write({grpc::ByteBuffer(&slice, 1), MessageKind::kBallot});
    }
  }
  stream.Cancel(absl::OkStatus());
  link.join();
}

}  // namespace signvote::bench
