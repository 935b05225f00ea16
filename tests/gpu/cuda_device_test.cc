// The CUDA device, its kernels and its host side, under the emulator.

#include "worker/direction/cuda_device.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "common/apply.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/device_refusals.h"
#include "worker/selftest/cuda_selftest.h"
#include "worker/selftest/selftest.h"

namespace signvote {
namespace {

using emulator::Call;

constexpr uint64_t kSeeds = 12;
constexpr uint64_t kEvery = 3;  // each case under four seeds

cudaStream_t MakeStream(int ordinal) {
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaSetDevice(ordinal), cudaSuccess);
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  return stream;
}

class CudaSelftest : public testing::TestWithParam<uint64_t> {};

// The self-test's cases: bits, sums, state, replica and digest equal the definitions.
TEST_P(CudaSelftest, EqualsTheDefinitionsBitForBit) {
  emulator::Reset(GetParam());
  const int ordinal = static_cast<int>(GetParam() % 2);
  const size_t device_bytes = emulator::DeviceBytes(), host_bytes = emulator::HostBytes();
  {
    // A stream of its own, so that nothing is ordered by the default stream by chance.
    const cudaStream_t stream = MakeStream(ordinal);
    const auto device = MakeCudaDevice(ordinal, [stream]() -> void* { return stream; });
    ASSERT_TRUE(device.ok()) << Describe(device.status());
    const auto memory = MakeCudaSelftestMemory(ordinal);
    ASSERT_TRUE(memory.ok()) << Describe(memory.status());
    const auto report = RunSelftest(device->get(), memory->get(), Clock::System(),
                                    {.seed = GetParam(), .every = kEvery, .rate_coordinates = 0});
    ASSERT_TRUE(report.ok()) << Describe(report.status());
    EXPECT_GT(report->cases, 100u);
    EXPECT_EQ(report->device, ordinal == 0 ? "cuda:0 (emulated GPU 0)" : "cuda:1 (emulated GPU 1)");
    ASSERT_EQ(cudaSetDevice(ordinal), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  }
  EXPECT_EQ(emulator::DeviceBytes(), device_bytes);
  EXPECT_EQ(emulator::HostBytes(), host_bytes);
}
INSTANTIATE_TEST_SUITE_P(Seeds, CudaSelftest, testing::Range<uint64_t>(0, kSeeds));

TEST(CudaSelftestRates, AreMeasuredWithAndWithoutTheBitsWay) {
  emulator::Reset(1);
  const auto device = MakeCudaDevice(0, [] { return nullptr; });
  const auto memory = MakeCudaSelftestMemory(0);
  ASSERT_TRUE(device.ok() && memory.ok());
  const auto report =
      RunSelftest(device->get(), memory->get(), Clock::System(),
                  {.seed = 1, .every = 200, .rate_coordinates = 10000, .repetitions = 1});
  ASSERT_TRUE(report.ok()) << Describe(report.status());
  std::vector<std::string> names;
  for (const auto& rate : report->rates) {
    names.push_back(rate.name);
    EXPECT_GT(rate.bytes_per_second, 0) << rate.name;
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"copy", "pack", "apply", "pack kernel", "apply kernel"}));
}

TEST(CudaRefusals, AreThoseOfEveryDeviceAndPoisonNothing) {
  emulator::Reset(1);
  const auto device = MakeCudaDevice(0, [] { return nullptr; });
  ASSERT_TRUE(device.ok()) << Describe(device.status());
  void* values = nullptr;
  ASSERT_EQ(cudaMalloc(&values, 2000 * sizeof(float)), cudaSuccess);
  refusals::ExpectRefusals(device->get(), static_cast<float*>(values));
  EXPECT_EQ(cudaFree(values), cudaSuccess);
}

TEST(CudaRefusals, AChunkIsInFlightOnceFromItsStartToItsFinish) {
  emulator::Reset(1);
  const auto device = MakeCudaDevice(0, [] { return nullptr; });
  ASSERT_TRUE(device.ok()) << Describe(device.status());
  const Layout layout = *Layout::Make({{.name = "a", .shape = {1000}}});
  const auto packer = (*device)->MakePacker(&layout, ChunkPlan(1000, 512), {});
  ASSERT_TRUE(packer.ok()) << Describe(packer.status());
  const float* const no_gradient[] = {nullptr};
  std::vector<uint8_t> bits(125);
  const auto start = [&](const uint8_t* previous) {
    return (*packer)->Start(ChunkIndex(0), {.g = no_gradient, .prev_verdict = previous},
                            bits.data());
  };
  refusals::ExpectTooEarly((*packer)->Ready(ChunkIndex(0)).status());
  refusals::ExpectTooEarly((*packer)->Finish(ChunkIndex(0)).status());
  refusals::ExpectTooEarly(start(bits.data()));  // no replica was made
  ASSERT_TRUE(start(nullptr).ok());
  refusals::ExpectTooEarly(start(nullptr));
  EXPECT_TRUE((*packer)->Finish(ChunkIndex(0)).ok());
  EXPECT_TRUE(start(nullptr).ok());
  EXPECT_TRUE((*packer)->Finish(ChunkIndex(0)).ok());
}

// One small model on device 1, whose gradient is device memory.
class CudaDeviceTest : public testing::Test {
 protected:
  static constexpr uint64_t kD = 5000;

  CudaDeviceTest() { emulator::Reset(1); }
  ~CudaDeviceTest() override { Clear(); }

  // In the order in which things refer to each other.
  void Clear() {
    packer_.reset();
    replica_.reset();
    ballot_ = std::pmr::vector<uint8_t>();
    memory_.reset();
    device_.reset();
  }
  absl::Status MakeAll() {
    Clear();
    stream_ = MakeStream(1);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);  // the device sets its own wherever it is called
    SIGNVOTE_ASSIGN_OR_RETURN(device_, MakeCudaDevice(1, [this]() -> void* { return stream_; }));
    SIGNVOTE_ASSIGN_OR_RETURN(memory_, MakeCudaSelftestMemory(1));
    SIGNVOTE_ASSIGN_OR_RETURN(g_, memory_->Allocate(kD));
    SIGNVOTE_ASSIGN_OR_RETURN(x_, memory_->Allocate(kD));
    SIGNVOTE_RETURN_IF_ERROR(memory_->Write(g_.data(), std::vector<float>(kD, 0.5f)));
    SIGNVOTE_ASSIGN_OR_RETURN(replica_,
                              device_->MakeReplica(&layout_, PointersInto(layout_, x_.data())));
    SIGNVOTE_ASSIGN_OR_RETURN(packer_, device_->MakePacker(&layout_, plan_, {}));
    ballot_ = std::pmr::vector<uint8_t>(plan_.TotalBytes(), 0, device_->host_memory().get());
    return absl::OkStatus();
  }
  absl::Status Start(uint32_t k = 0) {
    const float* const gradient[] = {g_.data()};
    return packer_->Start(ChunkIndex(k), {.g = gradient},
                          ballot_.data() + plan_.ByteOffset(ChunkIndex(k)));
  }
  // Whatever an order or a copy did: a later call that waits for all of it.
  absl::Status PackAll() {
    for (uint32_t k = 0; k < plan_.chunks(); ++k) SIGNVOTE_RETURN_IF_ERROR(Start(k));
    for (uint32_t k = 0; k < plan_.chunks(); ++k)
      SIGNVOTE_RETURN_IF_ERROR(packer_->Finish(ChunkIndex(k)).status());
    return absl::OkStatus();
  }

  const Layout layout_ = *Layout::Make({{.name = "a", .shape = {kD}}});
  const ChunkPlan plan_{kD, 2048};
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<WorkerDevice> device_;
  std::unique_ptr<SelftestMemory> memory_;
  std::span<float> g_, x_;
  std::unique_ptr<ReplicaMemory> replica_;
  std::unique_ptr<BallotPacker> packer_;
  std::pmr::vector<uint8_t> ballot_;
};

TEST_F(CudaDeviceTest, CallsMayComeFromAnyThread) {
  ASSERT_TRUE(MakeAll().ok());
  std::thread([this] { EXPECT_TRUE(Start(0).ok()); }).join();
  std::thread([this] { EXPECT_TRUE(packer_->Ready(ChunkIndex(0)).ok()); }).join();
  std::thread([this] { EXPECT_TRUE(packer_->Finish(ChunkIndex(0)).ok()); }).join();
  std::thread([this] {
    EXPECT_TRUE(replica_->ApplyStep(layout_, 0.1f, 0, kD, ballot_.data()).ok());
  }).join();
  std::thread([this] { EXPECT_TRUE(replica_->Digest().ok()); }).join();
  std::thread([this] {
    std::vector<std::byte> state(4 * kD);
    EXPECT_TRUE(packer_->SaveState(0, 0, state).ok());
    EXPECT_TRUE(packer_->RestoreState(0, 0, state).ok());
    EXPECT_TRUE(packer_->Reset().ok());
  }).join();
}

TEST_F(CudaDeviceTest, AStepOfCountsIsThatOfTheHost) {
  ASSERT_TRUE(MakeAll().ok());
  std::vector<float> expected(kD);
  ASSERT_TRUE(replica_->Read(0, expected).ok());
  std::vector<uint8_t> planes(3 * ((kD + 7) / 8));
  for (size_t i = 0; i < planes.size(); ++i) planes[i] = static_cast<uint8_t>(i * 37 + i / 256);
  // In chunks, each with its own number of ballots: what has room for three planes takes one too.
  for (const auto& [first, count, ballots] :
       {std::tuple<uint64_t, uint64_t, uint32_t>{0, 2048, 7}, {2048, kD - 2048, 1}}) {
    const CountsView counts{.planes = planes.data() + first / 8,
                            .plane_bytes = (kD + 7) / 8,
                            .ballots = ballots,
                            .first = first};
    for (const auto& [from, part] :
         {std::pair<uint64_t, uint64_t>{first, 77}, {first + 77, count - 77}}) {
      ASSERT_TRUE(replica_->ApplyCounts(layout_, {.gamma = 0.1f}, from, part, counts).ok());
      ApplyCounts(layout_, {.gamma = 0.1f}, from, part, counts, nullptr, expected.data() + from);
    }
  }
  std::vector<float> got(kD);
  ASSERT_TRUE(replica_->Read(0, got).ok());
  EXPECT_EQ(got, expected);
  EXPECT_EQ(replica_->ApplyCounts(layout_, {.gamma = 0.1f}, 0, kD, {.ballots = 0}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaDeviceTest, ADenseStepIsThatOfTheHostAndGradientsTravel) {
  ASSERT_TRUE(MakeAll().ok());
  std::vector<float> expected(kD), got(kD), values(kD);
  ASSERT_TRUE(replica_->Read(0, expected).ok());
  for (uint64_t i = 0; i < kD; ++i) values[i] = static_cast<float>(i % 13) - 6.0f;
  const DenseView dense{.values = reinterpret_cast<const uint8_t*>(values.data())};
  for (const auto& [first, count] : {std::pair<uint64_t, uint64_t>{0, 77}, {77, kD - 77}}) {
    ASSERT_TRUE(replica_->ApplyDense(layout_, {.gamma = 0.1f}, first, count, dense).ok());
    ApplyDense(layout_, {.gamma = 0.1f}, first, count, dense, nullptr, expected.data() + first);
  }
  ASSERT_TRUE(replica_->Read(0, got).ok());
  EXPECT_EQ(got, expected);
  // x lies in the device's memory as a gradient does.
  std::vector<float> part(100);
  ASSERT_TRUE(device_->CopyToHost(x_.data() + 50, part).ok());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + 50));
}

TEST_F(CudaDeviceTest, AChunkGetsReadyWithoutAnybodyWaiting) {
  ASSERT_TRUE(MakeAll().ok());
  ASSERT_TRUE(Start().ok());
  int asked = 0;
  for (bool ready = false; !ready; ++asked) {
    ASSERT_LT(asked, 1000);
    const auto answer = packer_->Ready(ChunkIndex(0));
    ASSERT_TRUE(answer.ok());
    ready = *answer;
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // "not ready" leaves no error behind
  }
  ASSERT_TRUE(packer_->Finish(ChunkIndex(0)).ok());
  EXPECT_EQ(ballot_[0], 0xFF);
}

// A framework may put a gradient elsewhere in every round, or have none.
TEST_F(CudaDeviceTest, TheGradientOfEachRoundIsReadWhereItLies) {
  ASSERT_TRUE(MakeAll().ok());
  const auto other = memory_->Allocate(kD);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(memory_->Write(other->data(), std::vector<float>(kD, -3.0f)).ok());
  const auto pack = [&](const float* gradient) -> double {
    const float* const pointers[] = {gradient};
    EXPECT_TRUE(packer_->Start(ChunkIndex(0), {.g = pointers}, ballot_.data()).ok());
    return packer_->Finish(ChunkIndex(0))->g_l1;
  };
  EXPECT_EQ(pack(g_.data()), 2048 * 0.5);
  EXPECT_EQ(ballot_[0], 0xFF);
  EXPECT_EQ(pack(other->data()), 2048 * 3.0);
  EXPECT_EQ(ballot_[0], 0x00);
  EXPECT_EQ(pack(nullptr), 0.0);
  EXPECT_EQ(pack(g_.data()), 2048 * 0.5);
}

TEST_F(CudaDeviceTest, TheBallotIsLeftAloneOnceThePackerIsGone) {
  for (uint64_t seed = 0; seed < 16; ++seed) {
    emulator::Reset(seed);
    ASSERT_TRUE(MakeAll().ok());
    ASSERT_TRUE(Start().ok());
    packer_.reset();
    std::fill(ballot_.begin(), ballot_.end(), uint8_t{0x3C});
    emulator::Reset(seed);  // runs what was still queued
    EXPECT_EQ(std::count(ballot_.begin(), ballot_.end(), 0x3C),
              static_cast<ptrdiff_t>(ballot_.size()));
  }
}

TEST_F(CudaDeviceTest, NoDeviceIsOneLineWithItsExitCode) {
  const auto none = [] { return nullptr; };
  const auto expect = [](const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.message(), text);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kNoDevice);
  };
  expect(MakeCudaDevice(2, none).status(),
         "no CUDA device 2: there are 2; use --device cpu or a machine with an NVIDIA GPU");
  emulator::SetDeviceCount(0);
  expect(MakeCudaDevice(0, none).status(),
         "no CUDA device 0: no CUDA-capable device is detected; use --device cpu or a machine with "
         "an NVIDIA GPU");
  emulator::SetDeviceCount(0, cudaErrorInsufficientDriver);
  expect(
      MakeCudaSelftestMemory(0).status(),
      "no CUDA device 0: no NVIDIA driver was found, or one too old for CUDA 13; use --device cpu "
      "or a machine with an NVIDIA GPU");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

// Each call that can fail while things are made, failing once: no crash, no leak, the right code.
TEST_F(CudaDeviceTest, EveryFailureToMakeIsReportedAndFreesAll) {
  const size_t device_bytes = emulator::DeviceBytes(), host_bytes = emulator::HostBytes();
  int failures = 0;
  for (const Call call : {Call::kMalloc, Call::kHostAlloc, Call::kCopy, Call::kMemset, Call::kEvent,
                          Call::kStream, Call::kSynchronize}) {
    for (uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 100u);
      emulator::Reset(n);
      const bool memory_call = call == Call::kMalloc || call == Call::kHostAlloc;
      emulator::FailNext(call, call == Call::kStream ? n + 1 : n,
                         memory_call ? cudaErrorMemoryAllocation : cudaErrorLaunchFailure);
      const absl::Status status = MakeAll();
      Clear();
      EXPECT_EQ(emulator::DeviceBytes(), device_bytes);
      EXPECT_EQ(emulator::HostBytes(), host_bytes);
      if (status.ok()) break;
      ++failures;
      EXPECT_EQ(status.code(),
                memory_call ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal);
      EXPECT_EQ(status.message().find("CUDA: cuda"), 0u) << status;
      EXPECT_NE(status.message().find(memory_call ? "out of memory" : "unspecified launch failure"),
                absl::string_view::npos)
          << status;
    }
  }
  EXPECT_GT(failures, 20);
}

TEST_F(CudaDeviceTest, APackerThatFailedStaysFailed) {
  for (const Call call : {Call::kLaunch, Call::kCopy, Call::kEvent, Call::kSynchronize}) {
    for (uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 100u);
      emulator::Reset(n);
      ASSERT_TRUE(MakeAll().ok());
      emulator::FailNext(call, n, cudaErrorIllegalAddress);
      const absl::Status status = PackAll();
      if (status.ok()) break;
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_NE(status.message().find("an illegal memory access"), absl::string_view::npos);
      EXPECT_EQ(packer_->Finish(ChunkIndex(0)).status(), status);
      EXPECT_EQ(packer_->Ready(ChunkIndex(0)).status(), status);
      std::vector<std::byte> state(4 * kD);
      EXPECT_EQ(packer_->SaveState(0, 0, state), status);
      EXPECT_EQ(packer_->RestoreState(0, 0, state), status);
      EXPECT_EQ(packer_->Reset(), status);
    }
  }
}

TEST_F(CudaDeviceTest, AReplicaThatFailedStaysFailed) {
  const auto use = [this]() -> absl::Status {
    std::vector<float> values(kD, 1.0f);
    SIGNVOTE_RETURN_IF_ERROR(replica_->Write(0, values));
    SIGNVOTE_RETURN_IF_ERROR(replica_->ApplyStep(layout_, 0.1f, 0, kD, ballot_.data()));
    SIGNVOTE_RETURN_IF_ERROR(replica_->KeepX0());
    SIGNVOTE_RETURN_IF_ERROR(replica_->WriteX0(0, values));
    SIGNVOTE_RETURN_IF_ERROR(replica_->Rewind(0, kD));
    const float* const gradient[] = {g_.data()};
    SIGNVOTE_RETURN_IF_ERROR(replica_->SumsAboutX0(layout_, gradient).status());
    SIGNVOTE_RETURN_IF_ERROR(replica_->Digest().status());
    SIGNVOTE_RETURN_IF_ERROR(replica_->ReadX0(0, values));
    return replica_->Read(0, values);
  };
  int failures = 0;
  for (const Call call : {Call::kLaunch, Call::kCopy, Call::kEvent, Call::kSynchronize}) {
    for (uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 100u);
      emulator::Reset(n);
      ASSERT_TRUE(MakeAll().ok());
      emulator::FailNext(call, n, cudaErrorLaunchFailure);
      const absl::Status status = use();
      if (status.ok()) break;
      ++failures;
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_EQ(use(), status);
      EXPECT_EQ(replica_->Digest().status(), status);
    }
  }
  EXPECT_GT(failures, 8);
}

TEST_F(CudaDeviceTest, BallotsLieInPageLockedMemoryOrInOrdinaryWhereThereIsNone) {
  ASSERT_TRUE(MakeAll().ok());
  const size_t before = emulator::HostBytes();
  {
    const std::pmr::vector<uint8_t> bits(1000, 0, device_->host_memory().get());
    EXPECT_EQ(emulator::HostBytes(), before + 1000);
    emulator::FailNext(Call::kHostAlloc, 1, cudaErrorMemoryAllocation);
    std::pmr::vector<uint8_t> ordinary(1000, 0, device_->host_memory().get());
    EXPECT_EQ(emulator::HostBytes(), before + 1000);
    ordinary[999] = 1;
  }
  EXPECT_EQ(emulator::HostBytes(), before);
}

TEST_F(CudaDeviceTest, AnotherLayoutThanItsOwnIsRefused) {
  ASSERT_TRUE(MakeAll().ok());
  const Layout other = *Layout::Make({{.name = "b", .shape = {kD}}});
  refusals::ExpectInvalid(replica_->ApplyStep(other, 0.1f, 0, kD, ballot_.data()));
  EXPECT_TRUE(replica_->ApplyStep(layout_, 0.1f, 0, kD, ballot_.data()).ok()) << "and no other is";
}

}  // namespace
}  // namespace signvote
