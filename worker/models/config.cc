#include "worker/models/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/coin_mix.h"
#include "common/exit_codes.h"
#include "common/file_kind.h"
#include "common/json_text.h"
#include "common/rng.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kConfigBytesMax = 1 << 20;

struct LlamaSize {
  const char* name;
  uint32_t vocabulary, hidden, layers, heads, intermediate, positions_max;
};
// nano to tiny read bytes; 60m to 350m are the sizes that pretraining papers compare on
// (docs/models.md).
constexpr LlamaSize kLlamaSizes[] = {
    {"nano", 256, 128, 4, 4, 344, 2048},      {"micro", 256, 64, 2, 2, 172, 2048},
    {"tiny", 256, 512, 7, 8, 1376, 2048},     {"60m", 32000, 512, 8, 8, 1376, 2048},
    {"130m", 32000, 768, 12, 12, 2048, 2048}, {"350m", 32000, 1024, 24, 16, 2736, 2048},
};

absl::Status BadConfig(const std::string& path, const std::string& what) {
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(path, ": ", what)),
                      ExitCode::kBadInput);
}

// A value as it stands in a message: a file may hold a megabyte in one.
std::string Shown(const Json& value) { return ForPeople(value.dump(), 64); }

// The file's JSON object. Nesting is bounded before anything walks the values: what writes them out
// does so by recursion.
absl::StatusOr<Json> ParseObject(const std::string& text, const std::string& path) {
  constexpr int kDepthMax = 32;
  bool too_deep = false;
  const Json::parser_callback_t callback = [&](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kDepthMax;
    return !too_deep;
  };
  Json json = Json::parse(text, callback, /*allow_exceptions=*/false);
  if (too_deep) return BadConfig(path, absl::StrCat("nests deeper than ", kDepthMax, " levels"));
  if (json.is_discarded() || !json.is_object()) {
    return BadConfig(path, BeginsAsSafetensors(text)
                               ? "a safetensors file; give the config.json that belongs to it"
                               : absl::StrCat("not a JSON object: ",
                                              JsonObjectFault(text, RepeatedKeys::kLastCounts)));
  }
  return json;
}

// Reads an integer key into *out; leaves it alone when absent and not required.
absl::Status ReadCount(const Json& json, const std::string& path, const char* key, uint32_t max,
                       bool required, uint32_t* out) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) {
    return required ? BadConfig(path, absl::StrCat("\"", key, "\" is missing")) : absl::OkStatus();
  }
  if (!it->is_number_integer() || it->get<int64_t>() < 1 || it->get<int64_t>() > int64_t{max}) {
    return BadConfig(path, absl::StrFormat("\"%s\" is %s; it must be a whole number from 1 to %d",
                                           key, Shown(*it), max));
  }
  *out = it->get<uint32_t>();
  return absl::OkStatus();
}

absl::Status ReadPositive(const Json& json, const std::string& path, const char* key, double* out) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_number() || !(it->get<double>() > 0) || !std::isfinite(it->get<double>())) {
    return BadConfig(
        path, absl::StrFormat("\"%s\" is %s; it must be a positive number", key, Shown(*it)));
  }
  *out = it->get<double>();
  return absl::OkStatus();
}

absl::Status RefuseUnlessFalse(const Json& json, const std::string& path, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null() || (it->is_boolean() && !it->get<bool>()))
    return absl::OkStatus();
  return BadConfig(path, absl::StrFormat("\"%s\" is %s; only false is supported", key, Shown(*it)));
}

// A number that, where given, must have the one value that this program computes with.
absl::Status RefuseUnless(const Json& json, const std::string& path, const char* key, double only) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null() || (it->is_number() && it->get<double>() == only))
    return absl::OkStatus();
  return BadConfig(path,
                   absl::StrFormat("\"%s\" is %s; only %g is supported", key, Shown(*it), only));
}

// How positions turn: "rope_parameters", where transformers 5 also has the base, or before it
// "rope_scaling". An object that asks for what every model does is as good as none.
absl::Status ReadRope(const Json& json, const std::string& path, const std::string& name,
                      double* rope_theta) {
  const auto it = json.find(name);
  if (it == json.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_object()) {
    return BadConfig(path, absl::StrCat("\"", name, "\" is ", Shown(*it), "; not an object"));
  }
  // "type" is what transformers 4 calls it; a file may have both.
  for (const char* const key : {"rope_type", "type"}) {
    const auto type = it->find(key);
    if (type == it->end() || type->is_null() || *type == "default") continue;
    return BadConfig(path, absl::StrCat("\"", key, "\" of \"", name, "\" is ", Shown(*type),
                                        "; only \"default\" is supported"));
  }
  // One set for each type of layer: what is looked for below would be a level deeper.
  for (const auto& [key, value] : it->items()) {
    if (!value.is_object()) continue;
    return BadConfig(path, absl::StrCat("\"", ForPeople(key, 64), "\" of \"", name,
                                        "\" is an object; only one set for all layers is "
                                        "supported"));
  }
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnless(*it, path, "factor", 1));
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnless(*it, path, "partial_rotary_factor", 1));
  return ReadPositive(*it, path, "rope_theta", rope_theta);
}

absl::Status CheckShape(const ModelConfig& config, const std::string& path) {
  if (config.kind != ModelKind::kLlama) return absl::OkStatus();
  if (config.heads % config.key_value_heads != 0) {
    return BadConfig(
        path, absl::StrFormat("num_key_value_heads %d does not divide num_attention_heads %d",
                              config.key_value_heads, config.heads));
  }
  if (config.head_size % 2 != 0) {
    return BadConfig(path,
                     absl::StrFormat("the head size %d is odd; rotary positions need an even one",
                                     config.head_size));
  }
  return absl::OkStatus();
}

bool IsMatrix(const TensorSpec& tensor) { return tensor.shape.size() >= 2; }

}  // namespace

std::vector<std::string> BuiltinModelNames() {
  std::vector<std::string> names;
  for (const LlamaSize& size : kLlamaSizes) names.emplace_back(size.name);
  names.emplace_back("mlp");
  return names;
}

absl::StatusOr<ModelConfig> LoadModelConfig(FileSystem* fs, const std::string& name_or_path) {
  for (const LlamaSize& size : kLlamaSizes) {
    if (name_or_path != size.name) continue;
    ModelConfig config;
    config.name = size.name;
    config.vocabulary = size.vocabulary;
    config.hidden = size.hidden;
    config.layers = size.layers;
    config.heads = config.key_value_heads = size.heads;
    config.head_size = size.hidden / size.heads;
    config.intermediate = size.intermediate;
    config.positions_max = size.positions_max;
    return config;
  }
  if (name_or_path == "mlp") {
    ModelConfig config;
    config.kind = ModelKind::kMlp;
    config.name = "mlp";
    config.layers = 2;
    return config;
  }
  std::string path = name_or_path;
  if (const absl::StatusOr<bool> folder = fs->IsDirectory(path); folder.ok() && *folder)
    path += path.ends_with('/') ? "config.json" : "/config.json";
  const absl::StatusOr<std::string> text = fs->ReadFile(path, kConfigBytesMax);
  if (!text.ok()) {
    if (path == name_or_path && absl::IsNotFound(text.status()) &&
        name_or_path.find('/') == std::string::npos &&
        name_or_path.find('.') == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model ", name_or_path, ": no such model; choose one of ",
                       absl::StrJoin(BuiltinModelNames(), ", "),
                       ", or give the path of a config.json or of its folder"));
    }
    if (absl::IsResourceExhausted(text.status()))
      return BadConfig(absl::StrCat("--model ", path),
                       "too large for a config.json; give that file");
    return WithContext(text.status(), "--model");
  }
  return ParseModelConfig(*text, path);
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, path));
  const auto type = json.find("model_type");
  if (type == json.end() || !type->is_string()) return BadConfig(path, "\"model_type\" is missing");
  ModelConfig config;
  config.name = path;
  if (*type == "mlp") {
    config.kind = ModelKind::kMlp;
    config.layers = 2;
    SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "features", 1 << 20, true, &config.features));
    SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "hidden_size", 1 << 20, true, &config.hidden));
    SIGNVOTE_RETURN_IF_ERROR(
        ReadCount(json, path, "num_hidden_layers", 1 << 10, false, &config.layers));
    SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "classes", 1 << 20, true, &config.classes));
    return config;
  }
  if (*type != "llama") {
    return BadConfig(path, absl::StrCat("\"model_type\" is ", Shown(*type),
                                        "; only \"llama\" and \"mlp\" are known"));
  }
  SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "vocab_size", 1 << 24, true, &config.vocabulary));
  SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "hidden_size", 1 << 20, true, &config.hidden));
  SIGNVOTE_RETURN_IF_ERROR(
      ReadCount(json, path, "num_hidden_layers", 1 << 10, true, &config.layers));
  SIGNVOTE_RETURN_IF_ERROR(
      ReadCount(json, path, "num_attention_heads", 1 << 10, true, &config.heads));
  SIGNVOTE_RETURN_IF_ERROR(
      ReadCount(json, path, "intermediate_size", 1 << 20, true, &config.intermediate));
  config.key_value_heads = config.heads;
  SIGNVOTE_RETURN_IF_ERROR(
      ReadCount(json, path, "num_key_value_heads", 1 << 10, false, &config.key_value_heads));
  const auto head_dim = json.find("head_dim");
  if ((head_dim == json.end() || head_dim->is_null()) && config.hidden % config.heads != 0) {
    return BadConfig(path, absl::StrFormat("num_attention_heads %d does not divide hidden_size %d",
                                           config.heads, config.hidden));
  }
  config.head_size = std::max(1u, config.hidden / config.heads);
  SIGNVOTE_RETURN_IF_ERROR(ReadCount(json, path, "head_dim", 1 << 16, false, &config.head_size));
  SIGNVOTE_RETURN_IF_ERROR(
      ReadCount(json, path, "max_position_embeddings", 1 << 24, false, &config.positions_max));
  SIGNVOTE_RETURN_IF_ERROR(ReadPositive(json, path, "rms_norm_eps", &config.norm_epsilon));
  SIGNVOTE_RETURN_IF_ERROR(ReadPositive(json, path, "rope_theta", &config.rope_theta));
  SIGNVOTE_RETURN_IF_ERROR(ReadPositive(json, path, "initializer_range", &config.init_std));
  SIGNVOTE_RETURN_IF_ERROR(ReadRope(json, path, "rope_parameters", &config.rope_theta));
  SIGNVOTE_RETURN_IF_ERROR(ReadRope(json, path, "rope_scaling", &config.rope_theta));
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnless(json, path, "partial_rotary_factor", 1));
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnless(json, path, "attention_dropout", 0));
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnlessFalse(json, path, "attention_bias"));
  SIGNVOTE_RETURN_IF_ERROR(RefuseUnlessFalse(json, path, "mlp_bias"));
  if (const auto act = json.find("hidden_act"); act != json.end() && *act != "silu") {
    return BadConfig(
        path, absl::StrCat("\"hidden_act\" is ", Shown(*act), "; only \"silu\" is supported"));
  }
  if (const auto tied = json.find("tie_word_embeddings"); tied != json.end() && !tied->is_null()) {
    if (!tied->is_boolean())
      return BadConfig(path, "\"tie_word_embeddings\" must be true or false");
    config.tied = tied->get<bool>();
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckShape(config, path));
  return config;
}

std::string ModelConfigJson(const ModelConfig& config) {
  Json json;
  if (config.kind == ModelKind::kMlp) {
    json["model_type"] = "mlp";
    json["features"] = config.features;
    json["hidden_size"] = config.hidden;
    json["num_hidden_layers"] = config.layers;
    json["classes"] = config.classes;
    return json.dump(2) + "\n";
  }
  if (config.kind == ModelKind::kCnn || config.kind == ModelKind::kVit) {
    const bool vit = config.kind == ModelKind::kVit;
    json["model_type"] = vit ? "signvote-vit" : "signvote-cnn";
    json["image_size"] = config.side;
    json["hidden_size"] = config.hidden;
    json["classes"] = config.classes;
    if (!vit) return json.dump(2) + "\n";
    json["patch_size"] = config.patch;
    json["num_hidden_layers"] = config.layers;
    json["num_attention_heads"] = config.heads;
    json["intermediate_size"] = config.intermediate;
    return json.dump(2) + "\n";
  }
  json["architectures"] = {"LlamaForCausalLM"};
  json["model_type"] = "llama";
  json["vocab_size"] = config.vocabulary;
  json["hidden_size"] = config.hidden;
  json["intermediate_size"] = config.intermediate;
  json["num_hidden_layers"] = config.layers;
  json["num_attention_heads"] = config.heads;
  json["num_key_value_heads"] = config.key_value_heads;
  json["head_dim"] = config.head_size;
  json["max_position_embeddings"] = config.positions_max;
  json["rms_norm_eps"] = config.norm_epsilon;
  json["rope_theta"] = config.rope_theta;
  json["initializer_range"] = config.init_std;
  json["tie_word_embeddings"] = config.tied;
  json["hidden_act"] = "silu";
  json["attention_bias"] = false;
  json["mlp_bias"] = false;
  json["torch_dtype"] = "float32";
  return json.dump(2) + "\n";
}

absl::StatusOr<Layout> MakeLayout(const ModelConfig& config) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](std::string name, std::vector<uint64_t> shape) {
    TensorSpec tensor;
    tensor.name = std::move(name);
    tensor.shape = std::move(shape);
    tensors.push_back(std::move(tensor));
  };
  if (config.kind == ModelKind::kMlp) {
    for (uint32_t k = 0; k <= config.layers; ++k) {
      const uint64_t in = k == 0 ? config.features : config.hidden;
      const uint64_t out = k == config.layers ? config.classes : config.hidden;
      add(absl::StrCat("layers.", k, ".weight"), {out, in});
      add(absl::StrCat("layers.", k, ".bias"), {out});
    }
    return Layout::Make(std::move(tensors));
  }
  const uint64_t hidden = config.hidden;
  if (config.kind == ModelKind::kCnn) {
    const uint64_t left = config.side / 4;
    add("conv.0.weight", {hidden, 1, 3, 3});
    add("conv.0.bias", {hidden});
    add("conv.1.weight", {2 * hidden, hidden, 3, 3});
    add("conv.1.bias", {2 * hidden});
    add("head.weight", {config.classes, 2 * hidden * left * left});
    add("head.bias", {config.classes});
    return Layout::Make(std::move(tensors));
  }
  if (config.kind == ModelKind::kVit) {
    const uint64_t tokens_across = config.side / config.patch;
    add("patches.weight", {hidden, uint64_t{config.patch} * config.patch});
    add("patches.bias", {hidden});
    add("places.weight", {tokens_across * tokens_across, hidden});
    for (uint32_t n = 0; n < config.layers; ++n) {
      const std::string layer = absl::StrCat("layers.", n, ".");
      add(layer + "attention_norm.weight", {hidden});
      add(layer + "qkv.weight", {3 * hidden, hidden});
      add(layer + "out.weight", {hidden, hidden});
      add(layer + "mlp_norm.weight", {hidden});
      add(layer + "up.weight", {config.intermediate, hidden});
      add(layer + "down.weight", {hidden, config.intermediate});
    }
    add("norm.weight", {hidden});
    add("head.weight", {config.classes, hidden});
    add("head.bias", {config.classes});
    return Layout::Make(std::move(tensors));
  }
  const uint64_t query_rows = uint64_t{config.heads} * config.head_size;
  const uint64_t key_rows = uint64_t{config.key_value_heads} * config.head_size;
  add("model.embed_tokens.weight", {config.vocabulary, hidden});
  for (uint32_t n = 0; n < config.layers; ++n) {
    const std::string layer = absl::StrCat("model.layers.", n, ".");
    add(layer + "input_layernorm.weight", {hidden});
    add(layer + "self_attn.q_proj.weight", {query_rows, hidden});
    add(layer + "self_attn.k_proj.weight", {key_rows, hidden});
    add(layer + "self_attn.v_proj.weight", {key_rows, hidden});
    add(layer + "self_attn.o_proj.weight", {hidden, query_rows});
    add(layer + "post_attention_layernorm.weight", {hidden});
    add(layer + "mlp.gate_proj.weight", {config.intermediate, hidden});
    add(layer + "mlp.up_proj.weight", {config.intermediate, hidden});
    add(layer + "mlp.down_proj.weight", {hidden, config.intermediate});
  }
  add("model.norm.weight", {hidden});
  if (!config.tied) add("lm_head.weight", {config.vocabulary, hidden});
  return Layout::Make(std::move(tensors));
}

void InitializeParameters(const ModelConfig& config, const Layout& layout, uint64_t init_seed,
                          std::span<float> x) {
  SIGNVOTE_CHECK(x.size() == layout.coordinates());
  const double divisor = static_cast<double>(config.parameter_divisor);
  for (size_t k = 0; k < layout.tensors().size(); ++k) {
    const TensorSpec& tensor = layout.tensors()[k];
    const std::span<float> values = x.subspan(tensor.first, tensor.count);
    if (!IsMatrix(tensor)) {
      const float start = tensor.name.ends_with("bias") ? 0.0f : config.parameter_divisor;
      std::fill(values.begin(), values.end(), start);
      continue;
    }
    // MLP, CNN: deviation sqrt(2 / inputs) (He et al. 2015); std::sqrt is exactly rounded everywhere.
    const uint64_t inputs = tensor.count / tensor.shape.front();
    const bool he = config.kind == ModelKind::kMlp || config.kind == ModelKind::kCnn;
    const double deviation = he ? std::sqrt(2.0 / static_cast<double>(inputs)) : config.init_std;
    Rng rng(DomainSeed(kInitDomain, init_seed), k);
    for (float& value : values) value = static_cast<float>(rng.Bell() * deviation * divisor);
  }
}

}  // namespace signvote
