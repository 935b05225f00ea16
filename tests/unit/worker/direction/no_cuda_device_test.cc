// What a build without CUDA answers; this program has that file in place of the real device.

#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "worker/direction/cuda_device.h"
#include "worker/selftest/cuda_selftest.h"

namespace signvote {
namespace {

TEST(NoCudaDeviceTest, ABuildWithoutCudaSaysSo) {
  for (const absl::Status& status :
       {MakeCudaDevice(3, [] { return nullptr; }).status(), MakeCudaSelftestMemory(3).status()}) {
    EXPECT_EQ(status.message(),
              "no CUDA device 3: this build has no CUDA kernels (it was configured without nvcc); "
              "use --device cpu or a machine with an NVIDIA GPU");
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kNoDevice);
  }
}

TEST(ParseDeviceTest, WordsOfTheFlag) {
  EXPECT_EQ(*ParseDevice("cpu"), std::nullopt);
  EXPECT_EQ(*ParseDevice("cuda"), 0);
  EXPECT_EQ(*ParseDevice("cuda:0"), 0);
  EXPECT_EQ(*ParseDevice("cuda:17"), 17);
  for (const char* word : {"", "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:1234", "cuda1",
                           "CPU", "cuda: 1"}) {
    EXPECT_EQ(ParseDevice(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
  EXPECT_EQ(ParseDevice("tpu").status().message(), "--device tpu: choose cpu, cuda or cuda:N");
}

}  // namespace
}  // namespace signvote
