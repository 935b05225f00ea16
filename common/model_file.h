#pragma once
// A trained model as it is left for others: PATH (safetensors) and config.json in the same folder,
// whichever program writes it. docs/models.md, "What is written".
//
// A config.json that lies there already is the user's: its keys stay, those that the model has
// besides are added, and one of another model is never touched. What it must not contradict, and
// when it does, is decided by key:
//   - of the keys that tell the function (common/model_identity.h) and stand in both, the values must
//     be equal; rope_theta counts wherever it stands, outermost or in rope_parameters, and a
//     rope_scaling of one side alone is a difference;
//   - the number format (torch_dtype, dtype) becomes float32, which is what is written;
//   - every other key of the user's stays as it is.
// Nothing is written when the result says what the file says.

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/layout.h"
#include "common/safetensors.h"

namespace signvote {

// config.json beside `path`; nullopt when there is none. Errors name the file.
absl::StatusOr<std::optional<std::string>> ReadConfigBeside(FileSystem* fs,
                                                            const std::string& path);

// What config.json is to say, where `there` is what it says and `ours` is the model's.
// FAILED_PRECONDITION: it is another model's; the message names the first key with both values
// ("here": the model's, "there": the file's). INVALID_ARGUMENT: one of them is no JSON object.
absl::StatusOr<std::string> JoinConfigs(std::string_view there, std::string_view ours);

// OK when a model with this config could be written at `path` now; "" when its config is not known
// yet. For what is written at a program's end, so that it is told at its beginning. Errors carry the
// exit code kBadInput.
absl::Status RequireModelTarget(FileSystem* fs, const std::string& path,
                                std::string_view config_json);

// The same of a config.json that was read before. `there` nullopt: there is none.
absl::Status RequireOwnConfig(const std::string& path, const std::optional<std::string>& there,
                              std::string_view config_json);

// The second half of WriteModel(), for whoever has written `path` by other means: writes what
// JoinConfigs() gives, atomically, and nothing where config_json is "".
absl::Status WriteConfigBehind(FileSystem* fs, const std::string& path,
                               std::string_view config_json);

// Writes `x` as `path`, atomically, then config.json. A status about config.json means that the model
// itself is written: it says so.
absl::Status WriteModel(FileSystem* fs, const std::string& path, const Layout& layout,
                        std::span<const float> x,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json);
// The same of values that are read piece by piece (common/safetensors.h).
absl::Status WriteModel(FileSystem* fs, const std::string& path, const Layout& layout,
                        const ReadValues& read, const std::map<std::string, std::string>& metadata,
                        std::string_view config_json);

}  // namespace signvote
