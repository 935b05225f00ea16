#pragma once
// The whole server in one process behind real gRPC, for tests that talk to it as workers do.

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"
#include "common/status.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/probe.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/server/rpc/wire_client.h"

namespace signvote::rpc {

inline constexpr uint64_t kCoordinates = 300'001;  // two pieces, chunks of which the last is odd
inline constexpr Duration kLong = std::chrono::seconds(60);  // longer than a busy machine takes

inline Layout TestLayout(uint64_t d = kCoordinates) {
  return *Layout::Make(
      {{.name = "w", .shape = {d - 1}, .weight_decay = 0.01f}, {.name = "b", .shape = {1}}});
}

inline std::vector<uint8_t> RandomBits(uint64_t d, uint64_t seed) {
  std::vector<uint8_t> bits(BytesForBits(d));
  Rng rng(seed, 0);
  for (uint64_t i = 0; i < d; ++i) SetBit(bits.data(), i, rng.Next() & 1);
  return bits;
}

class TrainingServiceTest : public ::testing::Test {
 protected:
  // Without deadlines a ballot is in time however busy the machine is.
  enum class Deadlines { kOff, kOn };
  void StartServer(CoordinatorOptions options = {}, Deadlines deadlines = Deadlines::kOff) {
    if (options.rounds_max == 0) options.rounds_max = 3;
    options.deadline.enabled = deadlines == Deadlines::kOn;
    options.rule.rule = "fixed";
    options.rule.stepsize = 0.01;
    options.chunk_coordinates = 512 * 200;
    options.linger = options.close_timeout = kLong;
    auto coordinator =
        Coordinator::Create(std::move(options), Clock::System(), FileSystem::Posix());
    ASSERT_TRUE(coordinator.ok()) << Describe(coordinator.status());
    coordinator_ = std::move(*coordinator);
    coordinator_->Start();
    auto server = GrpcServer::Start({.listen = "127.0.0.1:0"}, coordinator_.get());
    ASSERT_TRUE(server.ok()) << Describe(server.status());
    server_ = std::move(*server);
    address_ = "127.0.0.1:" + std::to_string(server_->port());
  }
  void TearDown() override {
    if (coordinator_ == nullptr) return;
    coordinator_->CloseSessions(std::chrono::seconds(3));
    if (server_ != nullptr) server_->Shutdown(std::chrono::seconds(1));
    coordinator_->Stop();
  }
  std::unique_ptr<WireClient> NewClient(uint64_t d = kCoordinates) {
    return std::make_unique<WireClient>(address_, TestLayout(d));
  }
  // Waits for what must come.
  template <typename Condition>
  bool Eventually(Condition condition) {
    const Time deadline = Clock::System()->Now() + kLong;
    while (!condition()) {
      if (Clock::System()->Now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return true;
  }
  ServerSnapshot Look() {
    auto snapshot = coordinator_->Snapshot(kLong);
    EXPECT_TRUE(snapshot.ok()) << Describe(snapshot.status());
    return *std::move(snapshot);
  }

  TempDir dir_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<GrpcServer> server_;
  std::string address_;
};

}  // namespace signvote::rpc
