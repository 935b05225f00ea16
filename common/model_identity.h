#pragma once
// What function a model computes, as far as its Hugging Face style config.json tells: two workers whose
// tensors have the same names and shapes still train different models when, say, rope_theta differs.
//
// The canonical form is the config with
//   - keys sorted by their bytes, no white space;
//   - keys with the value null left out, at every depth (transformers writes nulls for what is not set);
//   - numbers by value: 10000, 10000.0 and 1e4 are one number, −0 is 0;
//   - these keys of the outermost object left out, because they change neither the function nor its
//     gradient, or are told by the tensors' names already:
//       what the model is called    _name_or_path, name_or_path, name, _commit_hash
//       which class loads it        architectures, auto_map
//       who wrote the file          transformers_version
//       how numbers are stored      dtype, torch_dtype
//       how it is run               _attn_implementation, attn_implementation, use_cache, return_dict,
//                                   output_attentions, output_hidden_states, torchscript
//       how it was initialised      initializer_range (the uploader's parameters are everybody's)
// docs/wire_format.md, "Identity".

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

// Immutable once made. Threads: thread-compatible.
class ModelIdentity {
 public:
  static constexpr size_t kConfigBytesMax = size_t{1} << 20;
  static constexpr size_t kDepthMax = 32;

  // Of a model about which nothing is said: equal to itself only.
  ModelIdentity() = default;
  // "" gives the identity about which nothing is said. INVALID_ARGUMENT: not a JSON object, not UTF-8,
  // more than kConfigBytesMax bytes, or nested deeper than kDepthMax; the message says what it is
  // instead, or line and column.
  static absl::StatusOr<ModelIdentity> FromConfig(std::string_view config_json);

  // The canonical form; "" when nothing is said.
  const std::string& json() const { return json_; }
  bool empty() const { return json_.empty(); }
  bool operator==(const ModelIdentity&) const = default;

 private:
  std::string json_;
};

// "" when equal; else one sentence part that names the first key that differs, in order of the keys,
// with both values: `"rope_theta" is 10000 here, 500000 there`. Values are cut to 64 bytes.
std::string FirstDifference(const ModelIdentity& here, const ModelIdentity& there);

// The same of two configs of which each may say more than the other: another program's config.json has
// keys that ours has not, and the other way round. Of two of which one says nothing, FirstDifference().
// What counts:
//   - keys that stand in both;
//   - of those that stand in one, attention_bias, mlp_bias, attention_dropout, partial_rotary_factor,
//     hidden_act where they are not what a model without them has, and rope_scaling in any case;
//   - rope_parameters (transformers 5) as what it says: rope_theta, partial_rotary_factor, and
//     rope_scaling where its rope_type, or the older type, is not "default".
std::string FirstContradiction(const ModelIdentity& here, const ModelIdentity& there);

}  // namespace signvote
