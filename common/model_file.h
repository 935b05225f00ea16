#pragma once
// A trained model as it is left for others: PATH (safetensors, whole or in shards:
// common/model_writer.h) and config.json in the same folder, whichever program writes it.
// docs/models.md, "What is written".
//
// A config.json that lies there already is the user's: its keys stay, those that the model has
// besides are added, and one of another model is never touched. What it must not contradict, and
// when it does, is decided by key:
//   - it must not contradict the model (FirstContradiction(), common/model_identity.h);
//   - the number format (torch_dtype, dtype) becomes what is written, float32 or bfloat16;
//   - every other key of the user's stays as it is.
// Nothing is written when the result says what the file says.

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"
#include "common/model_writer.h"
#include "common/safetensors.h"

namespace signvote {

// config.json beside `path`; nullopt when there is none. Errors name the file.
absl::StatusOr<std::optional<std::string>> ReadConfigBeside(FileSystem* fs,
                                                            const std::string& path);

// What config.json is to say, where `there` is what it says and `ours` is the model's.
// FAILED_PRECONDITION: it is another model's; the message names the first key with both values
// ("here": the model's, "there": the file's). INVALID_ARGUMENT: one of them is no JSON object.
absl::StatusOr<std::string> JoinConfigs(std::string_view there, std::string_view ours,
                                        TensorDtype dtype);

// OK when a model with this config could be written at `path` now, in whatever format; "" when its
// config is not known yet. For what is written at a program's end, so that it is told at its beginning. Errors carry the
// exit code kBadInput.
absl::Status RequireModelTarget(FileSystem* fs, const std::string& path,
                                std::string_view config_json);

// The same of a config.json that was read before. `there` nullopt: there is none.
absl::Status RequireOwnConfig(const std::string& path, const std::optional<std::string>& there,
                              std::string_view config_json);

// The second half of WriteModel(), for whoever has written `path` by other means: writes what
// JoinConfigs() gives, atomically, and nothing where config_json is "".
absl::Status WriteConfigBehind(FileSystem* fs, const std::string& path,
                               std::string_view config_json, TensorDtype dtype);

// Writes `x` as `path` by a ModelWriter, then config.json. A status about config.json means that the
// model itself is written: it says so. Logs where a model in shards lies.
absl::Status WriteModel(FileSystem* fs, const std::string& path, const ModelFormat& format,
                        const Layout& layout, std::span<const float> x,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json);
// The same of values that are read piece by piece: no second copy of the model is made. `read` fills
// values with those from `first` on; its failure is returned, and nothing is written.
using ReadValues = std::function<absl::Status(uint64_t first, std::span<float> values)>;
absl::Status WriteModel(FileSystem* fs, const std::string& path, const ModelFormat& format,
                        const Layout& layout, const ReadValues& read,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json);

}  // namespace signvote
