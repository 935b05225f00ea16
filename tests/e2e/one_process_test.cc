// Goal:   LibTorch, gRPC and protobuf live in one process: no symbol of one is taken for another's.
// Method: train a small model while health checks, maps, text format and our own messages go round,
// in the program that
//         links them the way signvote-worker does.
#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "tests/e2e/one_process_rpc.h"
#include "tests/e2e/simulation.h"

namespace signvote {
namespace {

TEST(OneProcessTest, TrainingAndRemoteCallsDoNotDisturbEachOther) {
  HealthServer health;
  SimulationOptions options;
  options.model = "mlp";
  options.data.rows = 32;
  options.shares = 1;
  options.rounds = 60;
  auto simulation = Simulation::Create(options);
  ASSERT_TRUE(simulation.ok()) << simulation.status();
  const double before = *(*simulation)->HeldOutLoss();
  std::atomic<bool> trained{false};
  absl::Status status;
  std::jthread trainer([&] {
    status = (*simulation)->Run();
    trained = true;
  });
  int calls = 0;
  do {
    ASSERT_EQ(health.Check(), 1) << "call " << calls;
    ASSERT_EQ(SumThroughTextFormat(100), 4950);
    ASSERT_EQ(NameThroughWire("worker-0"), "worker-0");
    ++calls;
  } while (!trained);
  trainer.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_LT(*(*simulation)->HeldOutLoss(), before);
  EXPECT_GT(calls, 0);
}

}  // namespace
}  // namespace signvote
