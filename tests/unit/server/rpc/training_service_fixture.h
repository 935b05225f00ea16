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
#include "common/line_log.h"
#include "common/memory_budget.h"
#include "common/rng.h"
#include "common/status.h"
#include "server/init_file.h"
#include "server/rpc/grpc_server.h"
#include "server/run/run_thread.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/server/rpc/wire_client.h"

namespace signvote::rpc {

inline constexpr uint64_t kCoordinates = 300'001;  // two pieces, chunks of which the last is odd
inline constexpr Duration kLong = std::chrono::seconds(60);  // longer than a busy machine takes

inline Layout TestLayout(uint64_t d = kCoordinates) {
  return *Layout::Make({{.name = "w", .shape = {d - 1}}, {.name = "b", .shape = {1}}});
}

inline std::vector<uint8_t> RandomBits(uint64_t d, uint64_t seed) {
  std::vector<uint8_t> bits(BytesForBits(d));
  Rng rng(seed, 0);
  for (uint64_t i = 0; i < d; ++i) SetBit(bits.data(), i, rng.Next() & 1);
  return bits;
}

class TrainingServiceTest : public ::testing::Test {
 protected:
  // A run whose ballots are in time however busy the machine is, and whose worker's stream is
  // waited for.
  static run::RunOptions Options() {
    run::RunOptions options;
    options.main_rounds_max = 3;
    options.deadline.enabled = false;
    options.rule.rule = "fixed";
    options.rule.stepsize = 0.01;
    options.model.sizes.chunk_coordinates = 512 * 200;
    options.linger = kLong;
    options.roster.close_timeout = kLong;
    return options;
  }
  // Beside the run's options: set before StartServer().
  struct Around {
    std::string round_log, event_log, init;
    std::optional<run::TokenTable> tokens;
    Duration applier_delay{};
    uint64_t memory_bytes_max = uint64_t{2} << 30;
    TransferLimits transfers;
    SocketFinder find_socket = FindSocket;
    std::shared_ptr<TlsSource> tls;
  };
  void StartServer(run::RunOptions options = Options()) {
    TearDown();
    FileSystem* const fs = FileSystem::Posix();
    run::RunParts parts{.tokens = around_.tokens, .memory = [fs] { return AvailableMemory(fs); }};
    if (!around_.init.empty()) parts.init = *OpenInitFile(fs, around_.init);
    if (!around_.round_log.empty()) round_log_ = *LineLog::Open(fs, around_.round_log);
    if (!around_.event_log.empty()) event_log_ = *LineLog::Open(fs, around_.event_log);
    parts.round_log = round_log_.get();
    parts.event_log = event_log_.get();
    parts.rng = Rng(1, 2);
    options.tls = around_.tls != nullptr;
    auto run = run::RunThread::Create({.run = std::move(options),
                                       .state = {.run_id = RunId::FromRandom(3, 4)},
                                       .tally_threads = 2,
                                       .test_applier_delay = around_.applier_delay},
                                      std::move(parts), Clock::System());
    ASSERT_TRUE(run.ok()) << Describe(run.status());
    run_ = std::move(*run);
    run_->Start();
    auto server = GrpcServer::Start({.listen = "127.0.0.1:0",
                                     .tls = around_.tls,
                                     .memory_bytes_max = around_.memory_bytes_max,
                                     .transfers = around_.transfers,
                                     .find_socket = around_.find_socket},
                                    run_.get(), fs, Rng(5, 6), Clock::System());
    ASSERT_TRUE(server.ok()) << Describe(server.status());
    server_ = std::move(*server);
    address_ = "127.0.0.1:" + std::to_string(server_->port());
  }
  void TearDown() override {
    if (run_ != nullptr) run_->CloseStreams(std::chrono::seconds(3));
    if (server_ != nullptr) server_->Shutdown(std::chrono::seconds(1));
    if (run_ != nullptr) run_->Stop();
    server_.reset();
    run_.reset();
    round_log_.reset();
    event_log_.reset();
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
  run::StatusPage Look() {
    auto page = run_->Snapshot(kLong);
    EXPECT_TRUE(page.ok()) << Describe(page.status());
    return *std::move(page);
  }

  TempDir dir_;
  Around around_;
  std::unique_ptr<LineLog> round_log_, event_log_;
  std::unique_ptr<run::RunThread> run_;
  std::unique_ptr<GrpcServer> server_;
  std::string address_;
};

}  // namespace signvote::rpc
