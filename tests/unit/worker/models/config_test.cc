#include "worker/models/config.h"

#include <cmath>
#include <filesystem>
#include <set>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/rng.h"
#include "tests/support/page_vectors.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

ModelConfig Builtin(const std::string& name) {
  const auto config = LoadModelConfig(FileSystem::Posix(), name);
  EXPECT_TRUE(config.ok()) << config.status();
  return *config;
}

uint64_t Coordinates(const std::string& name) { return MakeLayout(Builtin(name))->coordinates(); }

TEST(ModelConfigTest, BuiltinModelsHaveTheSizesTheyAreNamedAfter) {
  EXPECT_EQ(Coordinates("nano"), 857216u);
  EXPECT_EQ(Coordinates("micro"), 131904u);
  EXPECT_GE(Coordinates("tiny"), 20'000'000u);
  EXPECT_NEAR(static_cast<double>(Coordinates("60m")), 58e6, 1e6);
  EXPECT_NEAR(static_cast<double>(Coordinates("130m")), 134e6, 1e6);
  EXPECT_NEAR(static_cast<double>(Coordinates("350m")), 368e6, 2e6);
}

TEST(ModelConfigTest, TensorsBearHuggingFaceNamesInTheOrderOfTheForwardPass) {
  const auto layout = MakeLayout(Builtin("nano"));
  ASSERT_TRUE(layout.ok());
  const auto tensors = layout->tensors();
  EXPECT_EQ(tensors.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(tensors[1].name, "model.layers.0.input_layernorm.weight");
  EXPECT_EQ(tensors[2].name, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(tensors[9].name, "model.layers.0.mlp.down_proj.weight");
  EXPECT_EQ(tensors[tensors.size() - 2].name, "model.norm.weight");
  EXPECT_EQ(tensors.back().name, "lm_head.weight");
  EXPECT_EQ(tensors.back().shape, (std::vector<uint64_t>{256, 128}));
  // The server says what decays.
  for (const TensorSpec& tensor : tensors) EXPECT_EQ(tensor.weight_decay, 0.0f);
}

TEST(ModelConfigTest, ConfigJsonIsReadBackAsItWasWritten) {
  for (const std::string& name : BuiltinModelNames()) {
    const ModelConfig config = Builtin(name);
    const auto again = ParseModelConfig(ModelConfigJson(config), "config.json");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ModelConfigJson(*again), ModelConfigJson(config));
    EXPECT_EQ(MakeLayout(*again)->digest(), MakeLayout(config)->digest());
  }
}

TEST(ModelConfigTest, AConfigOfTransformersIsUnderstood) {
  const auto config =
      ParseModelConfig(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2,
      "num_hidden_layers": 3, "vocab_size": 500, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": null,
      "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true, "use_cache": true})",
                       "c.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_size, 8u);
  EXPECT_EQ(config->key_value_heads, 2u);
  EXPECT_EQ(config->norm_epsilon, 1e-5);
  EXPECT_EQ(config->rope_theta, 500000.0);
  const auto layout = MakeLayout(*config);
  EXPECT_EQ(layout->tensors().back().name, "model.norm.weight");  // tied: no lm_head
  EXPECT_EQ(layout->tensors()[3].shape, (std::vector<uint64_t>{16, 64}));
}

// transformers 5 writes the base of the rotary positions into an object of its own.
TEST(ModelConfigTest, TheRotaryBaseIsFoundWhereTransformers5WritesIt) {
  const auto config = ParseModelConfig(R"({"model_type": "llama", "hidden_size": 64,
      "intermediate_size": 96, "num_attention_heads": 8, "num_hidden_layers": 3, "vocab_size": 500,
      "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
      "attention_dropout": 0.0})",
                                       "c.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 500000.0);
  const auto older = ParseModelConfig(R"({"model_type": "llama", "hidden_size": 64,
      "intermediate_size": 96, "num_attention_heads": 8, "num_hidden_layers": 3, "vocab_size": 500,
      "rope_parameters": {"type": "default", "rope_theta": 500000.0}})",
                                      "c.json");
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(older->rope_theta, 500000.0);
}

// transformers 4 writes the type of a scaling also where nothing is scaled.
TEST(ModelConfigTest, ARopeScalingThatScalesNothingIsTaken) {
  for (const char* const scaling :
       {"null", "{}", R"({"rope_type": "default"})", R"({"type": "default", "factor": 1.0})"}) {
    const auto config = ParseModelConfig(
        absl::StrCat(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 8, "num_hidden_layers": 3, "vocab_size": 500,
            "rope_theta": 500000.0, "rope_scaling": )",
                     scaling, "}"),
        "c.json");
    ASSERT_TRUE(config.ok()) << scaling << config.status();
    EXPECT_EQ(config->rope_theta, 500000.0);
  }
}

TEST(ModelConfigTest, AFolderStandsForTheConfigInIt) {
  FileSystem* const fs = FileSystem::Posix();
  TempDir dir;
  const auto none = LoadModelConfig(fs, dir.path());
  EXPECT_EQ(ExitCodeFor(none.status()), ExitCode::kBadInput);
  EXPECT_NE(none.status().message().find("--model: " + dir.path() + "/config.json: "),
            absl::string_view::npos)
      << none.status();
  ASSERT_TRUE(
      WriteFileAtomically(fs, dir / "config.json", ModelConfigJson(Builtin("micro")), 0644).ok());
  std::filesystem::resize_file(dir / "config.json", 2 << 20);
  const auto weights = LoadModelConfig(fs, dir / "config.json");
  EXPECT_EQ(ExitCodeFor(weights.status()), ExitCode::kBadInput);
  EXPECT_NE(weights.status().message().find("too large for a config.json"), absl::string_view::npos)
      << weights.status();
  ASSERT_TRUE(
      WriteFileAtomically(fs, dir / "config.json", ModelConfigJson(Builtin("micro")), 0644).ok());
  for (const std::string& path : {dir.path(), dir / "", dir / "config.json"}) {
    const auto config = LoadModelConfig(fs, path);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->name, dir / "config.json");
    EXPECT_EQ(MakeLayout(*config)->digest(), MakeLayout(Builtin("micro"))->digest());
  }
}

TEST(ModelConfigTest, AConfigThatCannotBeComputedIsRefusedByName) {
  const std::string head =
      R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 10,)";
  const struct {
    std::string json;
    const char* message;
  } cases[] = {
      {"[1]", "c.json: not a JSON object: a JSON array"},
      {"{\n\"model_type\" \"llama\"}", "c.json: not a JSON object: line 2, column 20"},
      {"<!DOCTYPE html>", "c.json: not a JSON object: a web page"},
      {std::string("\x40\0\0\0\0\0\0\0{", 9), "c.json: a safetensors file"},
      {"{}", "\"model_type\" is missing"},
      {R"({"model_type": "gpt2"})", "only \"llama\" and \"mlp\""},
      {head + R"("num_attention_heads": 4})", "\"intermediate_size\" is missing"},
      {head + R"("num_attention_heads": 0, "intermediate_size": 8})",
       "\"num_attention_heads\" is 0"},
      {head + R"("num_attention_heads": 7, "intermediate_size": 8})",
       "7 does not divide hidden_size 64"},
      {head + R"("num_attention_heads": 64, "intermediate_size": 8})", "head size 1 is odd"},
      {head + R"("num_attention_heads": 4, "num_key_value_heads": 3, "intermediate_size": 8})",
       "3 does not divide"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "attention_bias": true})",
       "only false"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})",
       "\"rope_type\" of \"rope_scaling\" is \"llama3\""},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_scaling": {"type": "default", "factor": 2.0}})",
       "\"factor\" is 2.0"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "rope_scaling": 8})",
       "\"rope_scaling\" is 8; not an object"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}})",
       "\"rope_type\" of \"rope_parameters\" is \"llama3\""},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"type": "linear", "factor": 8.0}})",
       "\"type\" of \"rope_parameters\" is \"linear\""},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"rope_type": "default", "type": "yarn"}})",
       "\"type\" of \"rope_parameters\" is \"yarn\""},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"full_attention": {"rope_theta": 1000000.0}}})",
       "\"full_attention\" of \"rope_parameters\" is an object"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"factor": 8.0}})",
       "\"factor\" is 8.0"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "rope_parameters": 3})",
       "\"rope_parameters\" is 3"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8,
                 "rope_parameters": {"partial_rotary_factor": 0.5}})",
       "\"partial_rotary_factor\" is 0.5"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "attention_dropout": 0.1})",
       "\"attention_dropout\" is 0.1"},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "hidden_act": "gelu"})",
       "only \"silu\""},
      {head + R"("num_attention_heads": 4, "intermediate_size": 8, "rms_norm_eps": -1})",
       "positive number"},
      {head + R"("num_attention_heads": 4, "intermediate_size": "8"})", "must be a whole number"},
  };
  for (const auto& c : cases) {
    const auto config = ParseModelConfig(c.json, "c.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << c.json;
    EXPECT_EQ(ExitCodeFor(config.status()), ExitCode::kBadInput) << c.json;
    EXPECT_NE(config.status().message().find(c.message), absl::string_view::npos)
        << config.status();
  }
  const auto unknown = LoadModelConfig(FileSystem::Posix(), "giant");
  EXPECT_EQ(ExitCodeFor(unknown.status()), ExitCode::kUsage);
  EXPECT_NE(unknown.status().message().find("nano, micro, tiny"), absl::string_view::npos)
      << unknown.status();
  const auto missing = LoadModelConfig(FileSystem::Posix(), "/nowhere/config.json");
  EXPECT_EQ(ExitCodeFor(missing.status()), ExitCode::kBadInput);
}

TEST(ModelConfigTest, ValuesOfAnyDepthOrLengthAreRefusedInAShortSentence) {
  const std::string head = R"({"model_type": "mlp", "features": )";
  const std::string deep = std::string(400'000, '[') + std::string(400'000, ']');
  const auto nested = ParseModelConfig(head + deep + "}", "c.json");
  EXPECT_EQ(nested.status().message(), "c.json: nests deeper than 32 levels");
  const auto longer = ParseModelConfig(head + '"' + std::string(400'000, 'x') + "\"}", "c.json");
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(longer.status().message().size(), 200u);
}

TEST(ModelConfigTest, InitialParametersAreTheSameOnEveryMachine) {
  const ModelConfig config = Builtin("nano");
  const auto layout = MakeLayout(config);
  std::vector<float> x(layout->coordinates()), other(x.size());
  InitializeParameters(config, *layout, 1, x);
  InitializeParameters(config, *layout, 2, other);
  EXPECT_NE(x, other);
  // Pins the bits: a change here changes every run that starts from this program's own parameters.
  EXPECT_EQ(ReplicaDigest(x.data(), 0, x.size()), 4157190410725824753u);
  double sum = 0, squares = 0;
  const TensorSpec& embedding = layout->tensors()[0];
  for (uint64_t i = 0; i < embedding.count; ++i) {
    sum += x[i];
    squares += static_cast<double>(x[i]) * x[i];
  }
  const double n = static_cast<double>(embedding.count);
  EXPECT_NEAR(sum / n, 0.0, 4 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 0.0005);
  EXPECT_EQ(x[layout->tensors()[1].first], 1.0f);  // a norm
}

TEST(ModelConfigTest, AParameterDivisorScalesTheStartExactly) {
  ModelConfig config = Builtin("micro");
  const auto layout = MakeLayout(config);
  std::vector<float> x(layout->coordinates()), scaled(x.size());
  InitializeParameters(config, *layout, 1, x);
  config.parameter_divisor = 128.0f;
  InitializeParameters(config, *layout, 1, scaled);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(scaled[i], 128.0f * x[i]) << i;
}

// Equal seeds are common; a first parameter that follows the coin of a round would be a pattern.
TEST(ModelConfigTest, InitialParametersAreOfADomainOfTheirOwn) {
  const ModelConfig config = Builtin("micro");
  const auto layout = MakeLayout(config);
  std::vector<float> x(layout->coordinates());
  InitializeParameters(config, *layout, 1, x);
  Rng shared(1, 0), own(DomainSeed(kInitDomain, 1), 0);
  EXPECT_NE(x[0], static_cast<float>(shared.Bell() * config.init_std));
  EXPECT_EQ(x[0], static_cast<float>(own.Bell() * config.init_std));
}

TEST(ModelConfigTest, EveryTestVectorOfThePageIsTrue) {
  const ModelConfig config = Builtin("mlp");
  const auto layout = MakeLayout(config);
  ASSERT_TRUE(layout.ok());
  int seen = 0;
  for (const PageVector& vector : PageVectors(SIGNVOTE_SOURCE_DIR "/docs/models.md")) {
    ASSERT_EQ(vector.kind, "mlp");
    std::vector<float> x(layout->coordinates());
    InitializeParameters(config, *layout, vector.number("init_seed"), x);
    EXPECT_EQ(absl::StrCat(absl::Hex(layout->digest(), absl::kZeroPad16), " ",
                           absl::Hex(ReplicaDigest(x.data(), 0, x.size()), absl::kZeroPad16)),
              vector.result)
        << vector.line;
    ++seen;
  }
  EXPECT_GT(seen, 0);
}

}  // namespace
}  // namespace signvote
