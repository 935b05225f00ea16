#include "server/run/tensor_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace signvote::run {
namespace {

using ::testing::HasSubstr;

std::vector<TensorSpec> Tensors() {
  return {{.name = "model.embed_tokens.weight", .shape = {256, 64}, .weight_decay = 0.1f},
          {.name = "model.layers.0.mlp.up_proj.weight", .shape = {172, 64}, .weight_decay = 0.1f},
          {.name = "model.norm.weight", .shape = {64}},
          {.name = "lm_head.weight", .shape = {256, 64}, .weight_decay = 0.1f}};
}

std::vector<TensorSpec> With(const absl::StatusOr<std::vector<TensorRule>>& rules) {
  EXPECT_TRUE(rules.ok()) << rules.status();
  std::vector<TensorSpec> tensors = Tensors();
  const absl::Status status = ApplyTensorRules(*rules, &tensors);
  EXPECT_TRUE(status.ok()) << status;
  return tensors;
}

TEST(TensorRulesTest, NoRuleChangesNothing) {
  EXPECT_EQ(With(ParseTensorScales("")), Tensors());
  EXPECT_EQ(With(ParseTensorDecays("")), Tensors());
  EXPECT_EQ(With(ParseTensorTreatments("")), Tensors());
}

TEST(TensorRulesTest, APatternIsOfTheWholeNameAndTheLastThatFitsCounts) {
  const auto tensors = With(ParseTensorScales("*=2,model.*=0.5,lm_hea?.weight=0.25"));
  EXPECT_EQ(tensors[0].step_scale, 0.5f);
  EXPECT_EQ(tensors[1].step_scale, 0.5f);
  EXPECT_EQ(tensors[2].step_scale, 0.5f);
  EXPECT_EQ(tensors[3].step_scale, 0.25f);
}

TEST(TensorRulesTest, AScaleMayComeFromTheInputsOfAMatrix) {
  const auto tensors = With(ParseTensorScales("*=fan-in"));
  EXPECT_EQ(tensors[0].step_scale, 0.125f);
  EXPECT_EQ(tensors[2].step_scale, 1.0f) << "no matrix";
  EXPECT_EQ(With(ParseTensorScales("*=fan-in,*norm*=3"))[2].step_scale, 3.0f);
}

// A filter's inputs are its channels times its area.
TEST(TensorRulesTest, TheInputsOfAConvolutionAreAllItsDimensionsButTheFirst) {
  std::vector<TensorSpec> tensors = {{.name = "conv.weight", .shape = {64, 32, 3, 3}},
                                     {.name = "line.weight", .shape = {16, 8, 2}}};
  ASSERT_TRUE(ApplyTensorRules(*ParseTensorScales("*=fan-in"), &tensors).ok());
  EXPECT_EQ(tensors[0].step_scale, static_cast<float>(1 / std::sqrt(288.0)));
  EXPECT_EQ(tensors[1].step_scale, 0.25f);
}

TEST(TensorRulesTest, DecayAndTreatmentAreSetByNameToo) {
  const auto decays = With(ParseTensorDecays("lm_head.weight=0,*norm.weight=0.5"));
  EXPECT_EQ(decays[3].weight_decay, 0.0f);
  EXPECT_EQ(decays[2].weight_decay, 0.5f);
  EXPECT_EQ(decays[0].weight_decay, 0.1f) << "as before";
  const auto treated = With(ParseTensorTreatments("*=sparse,lm_head.*=plain,*norm*=usual"));
  EXPECT_EQ(treated[0].treatment, TensorTreatment::kSparse);
  EXPECT_EQ(treated[2].treatment, TensorTreatment::kUsual);
  EXPECT_EQ(treated[3].treatment, TensorTreatment::kPlain);
}

TEST(TensorRulesTest, WhatIsNoRuleIsRefusedWithWhatTheFlagTakes) {
  for (const char* bad : {"lm_head.weight", "=2", "a=", "a=x", "a=0", "a=-1", "a=nan", "a=inf",
                          "a=1000001", "a=3e38", "a=1,", "a=1,,b=2"}) {
    const absl::Status status = ParseTensorScales(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("give PATTERN=a number above 0 and at most 1e6, or fan-in"))
        << bad;
  }
  for (const char* bad : {"a=2", "a=-0.1", "a=fan-in"})
    EXPECT_THAT(std::string(ParseTensorDecays(bad).status().message()),
                HasSubstr("a number from 0 to 1"))
        << bad;
  EXPECT_THAT(std::string(ParseTensorTreatments("a=dense").status().message()),
              HasSubstr("--tensor-treatment a=dense: give PATTERN=usual, sparse or plain"));
}

TEST(TensorRulesTest, APatternThatFitsNoTensorIsRefusedWithSomeOfTheNames) {
  std::vector<TensorSpec> tensors = Tensors();
  const absl::Status status = ApplyTensorRules(*ParseTensorScales("head=0.5"), &tensors);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(status.message()),
            "--tensor-scale head=…: no tensor of this model has such a name "
            "(model.embed_tokens.weight, model.layers.0.mlp.up_proj.weight, model.norm.weight, …); "
            "start the server with patterns of its names");
}

TEST(TensorRulesTest, TensorsOfAPatternAreDense) {
  const auto some = With(ParseDense("lm_head*,*norm*"));
  EXPECT_FALSE(some[0].dense);
  EXPECT_TRUE(some[2].dense);
  EXPECT_TRUE(some[3].dense);
  EXPECT_EQ(some[3].weight_decay, 0.1f) << "as before";
  EXPECT_EQ(With(ParseDense("")), Tensors());
  EXPECT_TRUE(AnyDense(*ParseDense("*")));
  EXPECT_FALSE(AnyDense(*ParseTensorScales("*=2")));
  for (const char* bad : {",", "a,", "a,,b"}) {
    EXPECT_EQ(std::string(ParseDense(bad).status().message()),
              std::string("--dense ") + bad + ": give PATTERN, several with commas");
  }
  std::vector<TensorSpec> tensors = Tensors();
  EXPECT_THAT(std::string(ApplyTensorRules(*ParseDense("*,head"), &tensors).message()),
              HasSubstr("--dense head: no tensor of this model has such a name"));
}

TEST(TensorRulesTest, ADenseTensorIsNotTreatedInAnotherWay) {
  std::vector<TensorRule> rules = *ParseTensorTreatments("*=usual,lm_head*=sparse");
  rules.push_back(ParseDense("*norm*")->front());
  std::vector<TensorSpec> tensors = Tensors();
  EXPECT_TRUE(ApplyTensorRules(rules, &tensors).ok());
  rules.push_back(ParseDense("lm_head*")->front());
  tensors = Tensors();
  const absl::Status status = ApplyTensorRules(rules, &tensors);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tensor lm_head.weight is dense (--dense) and cannot have a "
                        "--tensor-treatment as well"));
}

}  // namespace
}  // namespace signvote::run
