#include "common/model_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/status.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

ModelIdentity Of(std::string_view json) {
  const auto identity = ModelIdentity::FromConfig(json);
  EXPECT_TRUE(identity.ok()) << Describe(identity.status());
  return identity.value_or(ModelIdentity());
}

TEST(ModelIdentity, KeysAreSortedNullsLeftOutAndNumbersTakenByValue) {
  EXPECT_EQ(
      Of(R"({ "b": [1.0, -0.0, null], "a": {"d": null, "c": 1e4}, "e": 1e-06, "f": "x" })").json(),
      R"({"a":{"c":10000},"b":[1,0,null],"e":1e-06,"f":"x"})");
  EXPECT_EQ(Of(R"({"a": 10000})"), Of(R"({"a": 1e4})"));
  EXPECT_EQ(Of(R"({"a": 0.000001})"), Of(R"({"a": 1e-6})"));
  EXPECT_NE(Of(R"({"a": 1})"), Of(R"({"a": true})"));
  EXPECT_NE(Of(R"({"a": 1})"), Of(R"({"a": "1"})"));
  EXPECT_NE(Of(R"({"a": 0.5})"), Of(R"({"a": 0.25})"));
  EXPECT_EQ(Of(R"({"a": 9007199254740992.0})").json(), R"({"a":9007199254740992})");
}

TEST(ModelIdentity, WhatDoesNotChangeTheFunctionIsLeftOutAtTheOutermostLevelOnly) {
  for (const char* key :
       {"_name_or_path", "name_or_path", "name", "_commit_hash", "architectures", "auto_map",
        "transformers_version", "dtype", "torch_dtype", "_attn_implementation",
        "attn_implementation", "use_cache", "return_dict", "output_attentions",
        "output_hidden_states", "torchscript", "initializer_range"}) {
    EXPECT_EQ(Of("{\"" + std::string(key) + "\": \"x\", \"z\": 1}").json(), "{\"z\":1}") << key;
    EXPECT_NE(Of("{\"q\": {\"" + std::string(key) + "\": 1}}").json(), "{\"q\":{}}") << key;
  }
  for (const char* key :
       {"rope_theta", "rms_norm_eps", "model_type", "pad_token_id", "tie_word_embeddings"}) {
    EXPECT_NE(Of("{\"" + std::string(key) + "\": 1}").json(), "{}") << key;
  }
}

TEST(ModelIdentity, NothingSaidIsEqualToNothingSaidOnly) {
  EXPECT_TRUE(Of("").empty());
  EXPECT_FALSE(Of("{}").empty());
  EXPECT_NE(Of(""), Of("{}"));
  EXPECT_EQ(FirstDifference(Of(""), Of("")), "");
  EXPECT_EQ(FirstDifference(Of("{}"), Of("")), "a config.json here, none there");
  EXPECT_EQ(FirstDifference(Of(""), Of("{}")), "no config.json here, one there");
}

TEST(ModelIdentity, WhatIsNoJsonObjectIsRefused) {
  for (const char* bad : {"[1]", "1", "null", "\"x\"", "{", "{}x", "{\"a\": nan}", "{\"a\": 1e999}",
                          "{\"a\": \"\xff\"}", "  "}) {
    const absl::Status status = ModelIdentity::FromConfig(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(Describe(status), HasSubstr("config.json is not a JSON object: ")) << bad;
  }
}

TEST(ModelIdentity, SizeAndDepthAreBounded) {
  const auto of_size = [](size_t bytes) {
    return "{\"a\":\"" + std::string(bytes - 8, 'x') + "\"}";
  };
  ASSERT_EQ(of_size(100).size(), 100u);
  EXPECT_TRUE(ModelIdentity::FromConfig(of_size(1 << 20)).ok());
  EXPECT_THAT(
      std::string(ToStd(ModelIdentity::FromConfig(of_size((1 << 20) + 1)).status().message())),
      HasSubstr("1048577 bytes"));
  const auto nested = [](size_t depth) {
    std::string text;
    for (size_t i = 0; i < depth; ++i) text += "{\"a\":";
    return text + "1" + std::string(depth, '}');
  };
  EXPECT_TRUE(ModelIdentity::FromConfig(nested(ModelIdentity::kDepthMax)).ok());
  EXPECT_THAT(
      std::string(ToStd(
          ModelIdentity::FromConfig(nested(ModelIdentity::kDepthMax + 1)).status().message())),
      HasSubstr("deeper than 32 levels"));
  EXPECT_FALSE(ModelIdentity::FromConfig(std::string(1 << 20, '[')).ok());
}

TEST(ModelIdentity, TheFirstKeyThatDiffersIsNamedWithBothValues) {
  const auto differ = [](std::string_view a, std::string_view b) {
    return FirstDifference(Of(a), Of(b));
  };
  EXPECT_EQ(
      differ(R"({"a": 1, "rope_theta": 10000, "z": 1})", R"({"z": 2, "rope_theta": 5e5, "a": 1})"),
      "\"rope_theta\" is 10000 here, 500000 there");
  EXPECT_EQ(differ(R"({"r": {"x": 1, "y": [1, 2]}})", R"({"r": {"x": 1, "y": [1, 3]}})"),
            "\"r.y\" is [1,2] here, [1,3] there");
  EXPECT_EQ(differ(R"({"b": 1})", R"({"a": "q", "b": 1})"),
            "\"a\" is missing here and \"q\" there");
  EXPECT_EQ(differ(R"({"b": 1, "c": 2})", R"({"b": 1})"), "\"c\" is 2 here and missing there");
  EXPECT_EQ(differ(R"({"b": 1})", R"({"b": {"a": 1}})"), "\"b\" is 1 here, {\"a\":1} there");
  EXPECT_EQ(differ("{\"b\": \"" + std::string(200, 'x') + "\"}", R"({"b": 1})"),
            "\"b\" is \"" + std::string(63, 'x') + "… here, 1 there");
}

TEST(ModelIdentity, AConfigMaySayMoreThanAnotherButNotTheContrary) {
  const auto contradict = [](std::string_view a, std::string_view b) {
    return FirstContradiction(Of(a), Of(b));
  };
  const std::string ours =
      R"({"model_type": "llama", "rope_theta": 10000, "attention_bias": false, "head_dim": 8})";
  for (const char* theirs :
       {"{}", R"({"bos_token_id": 1, "pretraining_tp": 1, "attention_dropout": 0.0})",
        R"({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "mlp_bias": false})",
        R"({"rope_parameters": {"type": "default"}, "hidden_act": "silu"})",
        R"({"partial_rotary_factor": 1.0, "rope_scaling": null})", R"({"rope_scaling": {}})",
        R"({"rope_scaling": {"rope_type": "default"}})",
        R"({"rope_scaling": {"type": "default", "factor": 1.0}})"}) {
    EXPECT_EQ(contradict(ours, theirs), "") << theirs;
    EXPECT_EQ(contradict(theirs, ours), "") << theirs;
  }
  EXPECT_EQ(contradict(ours, R"({"bos_token_id": 1, "head_dim": 16})"),
            "\"head_dim\" is 8 here, 16 there");
  EXPECT_EQ(contradict(ours, R"({"rope_parameters": {"rope_theta": 5e5}})"),
            "\"rope_theta\" is 10000 here, 500000 there");
  EXPECT_EQ(contradict(ours, R"({"rope_scaling": {"factor": 2}})"),
            "\"rope_scaling\" is missing here and {\"factor\":2} there");
  EXPECT_EQ(contradict(ours, R"({"rope_parameters": {"rope_type": "default", "factor": 2}})"),
            "\"rope_scaling\" is missing here and {\"factor\":2,\"rope_type\":\"default\"} there");
  EXPECT_EQ(contradict(ours, R"({"rope_parameters": {"type": "linear", "factor": 2}})"),
            "\"rope_scaling\" is missing here and {\"factor\":2,\"type\":\"linear\"} there");
  EXPECT_EQ(contradict(ours, R"({"attention_bias": true})"),
            "\"attention_bias\" is false here, true there");
  EXPECT_EQ(contradict(ours, R"({"mlp_bias": true})"),
            "\"mlp_bias\" is missing here and true there");
  EXPECT_EQ(contradict(R"({"hidden_act": "gelu"})", ours),
            "\"hidden_act\" is \"gelu\" here and missing there");
  EXPECT_EQ(contradict(ours, R"({"rope_parameters": {"partial_rotary_factor": 0.5}})"),
            "\"partial_rotary_factor\" is missing here and 0.5 there");
  EXPECT_EQ(FirstContradiction(Of(""), Of("{}")), "no config.json here, one there");
  EXPECT_EQ(FirstContradiction(Of(""), Of("")), "");
}

}  // namespace
}  // namespace signvote
