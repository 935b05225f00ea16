#include "common/cpu.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

namespace signvote {
namespace {

using ::testing::Test;

class CpuTest : public Test {
 protected:
  void SetUp() override {
    if (const char* value = std::getenv(kVariable)) before_ = value;
  }
  void TearDown() override {
    if (before_) {
      ::setenv(kVariable, before_->c_str(), 1);
    } else {
      ::unsetenv(kVariable);
    }
  }
  static constexpr char kVariable[] = "SIGNVOTE_FORCE_KERNEL";
  std::optional<std::string> before_;
};

TEST_F(CpuTest, WithoutTheVariableTheBestKernelIsChosen) {
  ::unsetenv(kVariable);
  EXPECT_EQ(*ChooseIsa(), DetectIsa());
  ::setenv(kVariable, "", 1);
  EXPECT_EQ(*ChooseIsa(), DetectIsa());
}

TEST_F(CpuTest, TheVariableForcesAKernelThatTheMachineHas) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    ::setenv(kVariable, std::string(IsaName(isa)).c_str(), 1);
    const auto chosen = ChooseIsa();
    if (isa <= DetectIsa()) {
      EXPECT_EQ(*chosen, isa);
    } else {
      EXPECT_EQ(chosen.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST_F(CpuTest, AnUnknownKernelIsRefusedByName) {
  ::setenv(kVariable, "avx1024", 1);
  const absl::Status status = ChooseIsa().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  EXPECT_NE(message.find("avx1024"), std::string::npos) << message;
  EXPECT_NE(message.find("scalar, avx2 or avx512"), std::string::npos) << message;
}

TEST_F(CpuTest, TheActiveKernelIsOneThatTheMachineHas) { EXPECT_LE(ActiveIsa(), DetectIsa()); }

}  // namespace
}  // namespace signvote
