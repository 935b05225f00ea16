#include "common/model_identity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "common/json_text.h"
#include "common/text.h"

namespace signvote {
namespace {

using Json = nlohmann::json;  // objects keep their keys sorted by bytes

constexpr size_t kValueBytesMax = 64;
constexpr char kRopeParameters[] = "rope_parameters";
constexpr char kRopeScaling[] = "rope_scaling";

// The header says why each is left out. Sorted.
constexpr auto kLeftOut = std::to_array<std::string_view>(
    {"_attn_implementation", "_commit_hash", "_name_or_path", "architectures",
     "attn_implementation", "auto_map", "dtype", "initializer_range", "name", "name_or_path",
     "output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "torchscript",
     "transformers_version", "use_cache"});
static_assert(std::is_sorted(kLeftOut.begin(), kLeftOut.end()));

// A whole number below 2^53 is an integer, whatever way it was written; other numbers are doubles.
Json CanonicalNumber(const Json& in) {
  constexpr double kExactMax = 9007199254740992.0;  // 2^53
  if (!in.is_number_float()) return in;
  const double value = in.get<double>();
  if (std::trunc(value) == value && std::fabs(value) <= kExactMax) {
    return static_cast<int64_t>(value);  // −0 becomes 0
  }
  return value;
}

Json Canonical(const Json& in) {
  if (in.is_object()) {
    Json out = Json::object();
    for (const auto& [key, value] : in.items()) {
      if (!value.is_null()) out[key] = Canonical(value);
    }
    return out;
  }
  if (in.is_array()) {
    Json out = Json::array();
    for (const Json& value : in) out.push_back(Canonical(value));
    return out;
  }
  return in.is_number() ? CanonicalNumber(in) : in;
}

std::string ValueText(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= kValueBytesMax ? ForPeople(text, text.size())
                                       : ForPeople(text, kValueBytesMax) + "…";
}

std::string KeyText(const std::string& key) { return "\"" + ForPeople(key, kValueBytesMax) + "\""; }

// The first difference of two objects, "" when there is none.
std::string Difference(const Json& here, const Json& there, const std::string& path) {
  auto a = here.begin();
  auto b = there.begin();
  while (a != here.end() || b != there.end()) {
    if (a == here.end() || (b != there.end() && b.key() < a.key())) {
      return KeyText(path + b.key()) + " is missing here and " + ValueText(*b) + " there";
    }
    if (b == there.end() || a.key() < b.key()) {
      return KeyText(path + a.key()) + " is " + ValueText(*a) + " here and missing there";
    }
    if (*a != *b) {
      if (a->is_object() && b->is_object()) return Difference(*a, *b, path + a.key() + ".");
      return KeyText(path + a.key()) + " is " + ValueText(*a) + " here, " + ValueText(*b) +
             " there";
    }
    ++a;
    ++b;
  }
  return "";
}

// Whether an object that speaks of rotary positions asks for more than every model's.
bool Scales(const Json& rope) {
  for (const char* const key : {"rope_type", "type"})
    if (const auto type = rope.find(key); type != rope.end() && *type != "default") return true;
  const auto factor = rope.find("factor");
  return factor != rope.end() && *factor != 1;
}

// A canonical form with what rope_parameters says where an older config says it, and without a
// scaling that scales nothing.
Json Function(const std::string& canonical) {
  Json function = Json::parse(canonical);
  if (const auto scaling = function.find(kRopeScaling);
      scaling != function.end() && scaling->is_object() && !Scales(*scaling))
    function.erase(scaling);
  const auto found = function.find(kRopeParameters);
  if (found == function.end() || !found->is_object()) return function;
  Json rope = *found;
  function.erase(found);
  const bool scaled = Scales(rope);
  for (const char* const key : {"rope_theta", "partial_rotary_factor"}) {
    const auto value = rope.find(key);
    if (value == rope.end()) continue;
    if (!function.contains(key)) function[key] = *value;
    rope.erase(value);
  }
  if (scaled && !function.contains(kRopeScaling)) function[kRopeScaling] = std::move(rope);
  return function;
}

// The keys of `from` that are to be compared with `other`'s.
Json Compared(const Json& from, const Json& other) {
  static const Json* const unless_said = new Json{{"attention_bias", false},
                                                  {"mlp_bias", false},
                                                  {"attention_dropout", 0},
                                                  {"partial_rotary_factor", 1},
                                                  {"hidden_act", "silu"}};
  Json kept = Json::object();
  for (const auto& [key, value] : from.items()) {
    const auto usual = unless_said->find(key);
    const bool unusual = usual != unless_said->end() && *usual != value;
    if (other.contains(key) || unusual || key == kRopeScaling) kept[key] = value;
  }
  return kept;
}

}  // namespace

absl::StatusOr<ModelIdentity> ModelIdentity::FromConfig(std::string_view config_json) {
  if (config_json.empty()) return ModelIdentity();
  if (config_json.size() > kConfigBytesMax) {
    return absl::InvalidArgumentError("config.json has " + std::to_string(config_json.size()) +
                                      " bytes; at most 1 MiB is taken");
  }
  bool too_deep = false;
  // Deeper parts are not kept: they would be walked by recursion.
  const auto keep = [&too_deep](int depth, Json::parse_event_t event, Json&) {
    const bool opens =
        event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && static_cast<size_t>(depth) >= kDepthMax) too_deep = true;
    return !too_deep;
  };
  const Json json = Json::parse(config_json, keep, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError("config.json is nested deeper than " +
                                      std::to_string(kDepthMax) + " levels");
  }
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError("config.json is not a JSON object: " +
                                      JsonObjectFault(config_json, RepeatedKeys::kLastCounts));
  }
  Json canonical = Canonical(json);
  for (const std::string_view key : kLeftOut) canonical.erase(std::string(key));
  ModelIdentity identity;
  identity.json_ = canonical.dump();
  return identity;
}

std::string FirstContradiction(const ModelIdentity& here, const ModelIdentity& there) {
  if (here.empty() || there.empty()) return FirstDifference(here, there);
  const Json a = Function(here.json());
  const Json b = Function(there.json());
  return Difference(Compared(a, b), Compared(b, a), "");
}

std::string FirstDifference(const ModelIdentity& here, const ModelIdentity& there) {
  if (here == there) return "";
  if (here.empty()) return "no config.json here, one there";
  if (there.empty()) return "a config.json here, none there";
  return Difference(Json::parse(here.json()), Json::parse(there.json()), "");
}

}  // namespace signvote
