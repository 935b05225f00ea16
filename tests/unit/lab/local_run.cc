#include "tests/unit/lab/local_run.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/mutex.h"
#include "lab/cell.h"
#include "lab/local/virtual_workers.h"
#include "server/rpc/grpc_server.h"
#include "server/run/run_thread.h"
#include "worker/train/trainer.h"

namespace signvote::lab {
namespace {

constexpr Duration kLong = std::chrono::minutes(5);

std::vector<float> Parameters(Model* model) {
  std::vector<float> x;
  const TensorPointers parameters = model->parameters();
  for (size_t k = 0; k < parameters.size(); ++k) {
    const uint64_t count = model->layout().tensors()[k].count;
    x.insert(x.end(), parameters[k], parameters[k] + count);
  }
  return x;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

run::RunOptions OptionsOf(const LocalRunCase& run) {
  std::vector<std::string> flags = run.flags;
  for (const auto& [flag, value] :
       {std::pair("--max-rounds", "60"), std::pair("--seed", "11"), std::pair("--eval-every", "20"),
        std::pair("--digest-every", "7"), std::pair("--deadline", "off"),
        std::pair("--weight-decay", "0.01")}) {
    if (std::find(run.flags.begin(), run.flags.end(), flag) == run.flags.end())
      flags.insert(flags.end(), {flag, value});
  }
  const absl::StatusOr<ServerFlags> read = ReadRunFlags(FileSystem::Posix(), flags, run.workers);
  EXPECT_TRUE(read.ok()) << run.name << ": " << read.status();
  return read.ok() ? read->run : run::RunOptions();
}

Task MustMakeTask(const std::string& name, const TorchMakers& torch) {
  absl::StatusOr<Task> task = MakeTask(FileSystem::Posix(), {.name = name}, torch);
  EXPECT_TRUE(task.ok()) << task.status();
  return *std::move(task);
}

LocalRunOutcome RunLocally(const std::string& task_name, const run::RunOptions& options,
                           const TorchMakers& torch, uint32_t accumulate) {
  Task task = MustMakeTask(task_name, torch);
  auto server = LocalServer::Create({.run = options, .run_id = RunId::FromRandom(1, 2)});
  EXPECT_TRUE(server.ok()) << server.status();
  VirtualWorkers workers(
      server->get(), task.model.get(), task.data.get(), Clock::System(),
      {.workers = options.workers_min, .accumulate = accumulate, .eval_rows = task.eval_rows});
  LocalRunOutcome out;
  size_t backlog = 0;
  workers.set_on_round([&](const LocalRound& round) {
    out.stepsizes.push_back(round.stepsize);
    out.losses.push_back(round.loss);
    out.kinds.push_back(round.kind);
    backlog = std::max(backlog, (*server)->backlog());
  });
  const absl::Status status = workers.Run({});
  EXPECT_TRUE(status.ok()) << status;
  const LocalReport& report = workers.report();
  if (!status.ok()) return out;
  out.x = Parameters(task.model.get());
  EXPECT_FALSE(report.stopped);
  out.digest = *report.digest;
  out.bytes_up = report.bytes_up;
  out.bytes_down = report.bytes_down;
  out.held_out_first = report.held_out_first->loss;
  out.held_out_last = report.held_out_last->loss;
  // The server's own replica followed, all along.
  EXPECT_LE(backlog, 1u);
  EXPECT_EQ((*server)->replica()->Digest(), out.digest);
  return out;
}

LocalRunOutcome RunOverGrpc(const std::string& task_name, const run::RunOptions& options,
                            const TorchMakers& torch, uint32_t accumulate) {
  Clock* const clock = Clock::System();
  auto thread = run::RunThread::Create(
      {.run = options, .state = {.run_id = RunId::FromRandom(1, 2)}, .tally_threads = 1},
      {.memory = [] { return std::optional<MemoryLimit>(); }}, clock);
  EXPECT_TRUE(thread.ok()) << thread.status();
  (*thread)->Start();
  auto server = rpc::GrpcServer::Start({.listen = "127.0.0.1:0"}, thread->get(),
                                       FileSystem::Posix(), Rng(1, 2), clock);
  EXPECT_TRUE(server.ok()) << server.status();
  (*server)->SetServing(true);
  Mutex mu;
  LocalRunOutcome out;
  {
    std::vector<std::jthread> workers;
    for (uint32_t k = 0; k < options.workers_min; ++k) {
      workers.emplace_back([&, k] {
        Task task = MustMakeTask(task_name, torch);
        SessionOptions session_options;
        session_options.server = "127.0.0.1:" + std::to_string((*server)->port());
        session_options.name = "worker-" + std::to_string(k);
        session_options.insecure = true;
        session_options.connect_timeout = session_options.server_timeout = kLong;
        auto session = Session::Create(session_options, clock);
        ASSERT_TRUE(session.ok()) << session.status();
        HostDevice device;
        Trainer trainer(session->get(), task.model.get(), &device, task.data.get(), clock,
                        {.accumulate = accumulate,
                         .evaluate = Evaluate::kWhenAsked,
                         .eval_rows = task.eval_rows});
        std::vector<float> stepsizes;
        std::vector<double> losses;
        std::vector<CommitKind> kinds;
        trainer.set_on_round([&](const RoundReport& round) {
          stepsizes.push_back(round.stepsize);
          losses.push_back(round.run_loss);
          kinds.push_back(round.kind);
        });
        const absl::Status status = trainer.Run();
        EXPECT_TRUE(status.ok()) << status;
        MutexLock lock(&mu);
        const TrainerReport& report = trainer.report();
        // Every worker ends with the same bits; those who measured, with the same losses.
        const std::vector<float> x = Parameters(task.model.get());
        EXPECT_TRUE(out.x.empty() || SameBits(out.x, x));
        out.x = x;
        out.digest = report.digest.value_or(0);
        out.stepsizes = stepsizes;
        out.losses = losses;
        out.kinds = kinds;
        if (report.held_out_first.has_value() && report.held_out_first->round == Round(0))
          out.held_out_first = report.held_out_first->loss;
        if (report.held_out_last.has_value()) out.held_out_last = report.held_out_last->loss;
      });
    }
    // What a server's process does when its run is over, and what workers wait for.
    EXPECT_TRUE((*thread)->WaitUntilEnded(kLong));
    (*thread)->CloseStreams(std::chrono::seconds(5));
  }
  (*server)->SetServing(false);
  server->reset();
  (*thread)->Stop();
  return out;
}

void ExpectSameBits(const LocalRunCase& run, const TorchMakers& torch) {
  const run::RunOptions options = OptionsOf(run);
  const LocalRunOutcome local = RunLocally(run.task, options, torch, run.accumulate);
  const LocalRunOutcome remote = RunOverGrpc(run.task, options, torch, run.accumulate);
  ASSERT_FALSE(local.x.empty());
  EXPECT_TRUE(SameBits(local.x, remote.x));
  EXPECT_EQ(local.digest, remote.digest);
  // With local steps the lab tells η, a worker its commit's: 1.
  if (!options.local_steps.on()) EXPECT_EQ(local.stepsizes, remote.stepsizes);
  EXPECT_EQ(local.losses, remote.losses);
  EXPECT_EQ(local.kinds, remote.kinds);
  // A worker measures in slices beside its rounds, the lab at once; a pass of fewer rows may round
  // otherwise (a convolution on AVX-512 does). The last loss is measured at once by both.
  EXPECT_NEAR(local.held_out_first, remote.held_out_first, 1e-5 * remote.held_out_first);
  EXPECT_EQ(local.held_out_last, remote.held_out_last);
}

}  // namespace signvote::lab
