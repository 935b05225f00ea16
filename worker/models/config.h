#pragma once
// What a model is made of, without LibTorch: its numbers, its tensors in layout order, its initial
// parameters.
//
// A LLaMA is described by the config.json of Hugging Face transformers and its tensors bear the
// names they have there ("model.layers.0.self_attn.q_proj.weight"), so that an exported file loads
// in either place. Sizes: docs/models.md.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"

namespace signvote {

enum class ModelKind { kLlama, kMlp, kCnn, kVit };

struct ModelConfig {
  ModelKind kind = ModelKind::kLlama;
  std::string name;  // the built-in name or the path it was read from; for logs only

  // kLlama
  uint32_t vocabulary = 256;
  uint32_t hidden = 128;
  uint32_t layers = 4;
  uint32_t heads = 4;
  uint32_t key_value_heads = 4;  // divides heads
  uint32_t head_size = 32;       // even
  uint32_t intermediate = 344;
  uint32_t positions_max = 2048;
  double norm_epsilon = 1e-6;
  double rope_theta = 10000.0;
  double init_std = 0.02;  // of every matrix; norms start at 1
  bool tied = false;       // lm_head is the embedding matrix

  // kMlp: features → hidden (layers times, ReLU) → classes. Without a layer it is softmax regression.
  uint32_t features = 64;
  uint32_t classes = 10;  // kCnn and kVit too

  // kCnn, kVit: grey pictures of side × side numbers. No config.json of these is read: the lab makes
  // them (docs/lab.md).
  uint32_t side = 16;  // a multiple of 4 and of patch
  // kCnn: convolutions with `hidden` and 2·hidden channels. kVit: hidden, layers, heads, intermediate
  // as above, and
  uint32_t patch = 4;  // side of what is one token

  // The network computes f(x / parameter_divisor) and starts from parameter_divisor · x_0: the same
  // function of other units. A power of two changes no bit of the gradients' signs. For checks of
  // stepsize rules; 1 otherwise.
  float parameter_divisor = 1.0f;
};

// Built-in names: nano, micro, tiny, 60m, 130m, 350m, mlp. Anything else is the path of a
// config.json, or of a folder that holds one. INVALID_ARGUMENT lists the names; NOT_FOUND names the
// file; INVALID_ARGUMENT with exit code kBadInput names the line and column of a config.json that is
// not JSON, or the key that is missing, out of range, or asks for something that this program does
// not compute.
absl::StatusOr<ModelConfig> LoadModelConfig(FileSystem* fs, const std::string& name_or_path);
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& path);
std::vector<std::string> BuiltinModelNames();
// config.json as transformers reads it (LLaMA), or the same idea for the others.
std::string ModelConfigJson(const ModelConfig& config);

// The order of coordinates is the order of the forward pass: embedding first, lm_head last.
// Backward therefore finishes the highest chunks first and ballots can leave while it goes on.
// Scales and decays are left at their defaults: the server says them.
absl::StatusOr<Layout> MakeLayout(const ModelConfig& config);

// x ← x_0, a pure function of (config, init_seed), the same bits on every machine: no libm function
// is involved, and the stream is of a domain of its own (kInitDomain): a run of the same seed casts
// other coins. Matrices are bell-shaped (the sum of four 16-bit uniforms) with the configured
// deviation, norms 1, biases 0.
void InitializeParameters(const ModelConfig& config, const Layout& layout, uint64_t init_seed,
                          std::span<float> x);

}  // namespace signvote
