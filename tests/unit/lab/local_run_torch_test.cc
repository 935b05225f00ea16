// Goal:   as local_run_test.cc, for what needs LibTorch: its models, and directions that sign more than a
//         coordinate at a time.
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/lab/local_run.h"

namespace signvote::lab {
namespace {

class LocalTorchRunTest : public testing::TestWithParam<LocalRunCase> {};

TEST_P(LocalTorchRunTest, EndsInTheBitsOfTheSameRunOverGrpc) {
  ExpectSameBits(GetParam(), {.network = MakeTorchModel, .source = MakeTorchSource});
}

INSTANTIATE_TEST_SUITE_P(
    Runs, LocalTorchRunTest,
    testing::Values(
        LocalRunCase{"muon_mlp_3", "mlp", 3, {"--direction", "muon", "--rule", "alias"}},
        LocalRunCase{"feedback_mlp_2",
                     "mlp",
                     2,
                     {"--direction", "signsgd", "--error-feedback", "--rule", "fixed"}},
        LocalRunCase{"text_2",
                     "text",
                     2,
                     {"--rule", "alias", "--alias-probe", "previous", "--max-rounds", "12"}},
        LocalRunCase{"cnn_2", "cnn", 2, {"--rule", "alias", "--max-rounds", "12"}},
        LocalRunCase{"vit_2", "vit", 2, {"--rule", "lever", "--max-rounds", "12"}}),
    [](const testing::TestParamInfo<LocalRunCase>& param) {
      return std::string(param.param.name);
    });

}  // namespace
}  // namespace signvote::lab
