#include "common/memory_reserve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "common/exit_codes.h"
#include "common/process.h"
#include "common/status.h"
#include "tests/support/address_space.h"

namespace signvote {
namespace {

constexpr size_t kBlock = size_t{1} << 20;

TEST(MemoryReserveTest, WhatFitsIsZeros) {
  std::vector<float> values = {1, 2, 3};
  ASSERT_TRUE(TryResize(&values, 5).ok());
  EXPECT_EQ(values, std::vector<float>(5, 0.0f));
  EXPECT_TRUE(TryResize(&values, 0).ok());
  EXPECT_TRUE(MemoryReserveStatus().ok());
}

TEST(MemoryReserveTest, MoreThanThereCanBeIsAnError) {
  std::vector<float> values = {1};
  const absl::Status status = TryResize(&values, uint64_t{1} << 62);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("4611686018427387904 numbers"));
  EXPECT_TRUE(values.empty());
}

// Sanitizers have allocators of their own, and need the address space.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Takes blocks until a stop is requested. The exit code, 0: all is well.
int RunShort() {
  InstallStopSignals();
  ReserveMemory(32 * kBlock);
  if (!LimitAddressSpace(8 * kBlock)) return 20;
  std::vector<float> copy;
  if (TryResize(&copy, 64 * kBlock / sizeof(float)).ok()) return 21;
  if (StopRequested() || !MemoryReserveStatus().ok()) return 22;  // it can do without
  std::vector<std::unique_ptr<char[]>> taken;
  taken.reserve(1024);
  while (!StopRequested() && taken.size() < 1024) taken.push_back(std::make_unique<char[]>(kBlock));
  if (!StopRequested()) return 23;
  const absl::Status status = MemoryReserveStatus();
  if (ExitCodeFor(status) != ExitCode::kNoMemory) return 24;
  // Half of the reserve is there for what a stop takes.
  for (int i = 0; i < 16; ++i) taken.push_back(std::make_unique<char[]>(kBlock));
  return 0;
}

TEST(MemoryReserveDeathTest, TheFirstThatGetsNothingStopsTheProgramAndGetsItsMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::_Exit(RunShort()), testing::ExitedWithCode(0), "");
}

void UseUp() {
  InstallStopSignals();
  ReserveMemory(8 * kBlock);
  if (!LimitAddressSpace(8 * kBlock)) std::_Exit(20);
  std::vector<std::unique_ptr<char[]>> taken;
  while (true) taken.push_back(std::make_unique<char[]>(kBlock));
}

TEST(MemoryReserveDeathTest, OnceTheReserveIsGoneOneLineAndTheCodeSaySo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(UseUp(), testing::ExitedWithCode(static_cast<int>(ExitCode::kNoMemory)),
              "out of memory, the reserve included: the process ends at once\n");
}
#endif

}  // namespace
}  // namespace signvote
