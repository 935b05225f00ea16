#include "common/model_file.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/model_identity.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr uint32_t kFileMode = 0644;
constexpr char kRopeTheta[] = "rope_theta";
constexpr char kRopeParameters[] = "rope_parameters";
constexpr char kRopeScaling[] = "rope_scaling";
constexpr char kDtype[] = "dtype";
constexpr char kTorchDtype[] = "torch_dtype";
constexpr char kWrittenDtype[] = "float32";

std::string ConfigPathBeside(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "config.json";
}

// What tells the function, with rope_theta where it can be compared.
absl::StatusOr<json> Function(std::string_view config) {
  // An identity may say nothing, a file must be one.
  if (config.empty())
    return absl::InvalidArgumentError("config.json is empty and not a JSON object");
  SIGNVOTE_ASSIGN_OR_RETURN(const ModelIdentity identity, ModelIdentity::FromConfig(config));
  json function = json::parse(identity.empty() ? "{}" : identity.json());
  const auto rope = function.find(kRopeParameters);
  if (rope != function.end() && rope->is_object() && !function.contains(kRopeTheta)) {
    if (const auto theta = rope->find(kRopeTheta); theta != rope->end()) {
      const json value = *theta;
      function[kRopeTheta] = value;
    }
  }
  return function;
}

// The keys that are compared: those of both, and one that says by being there that it is another
// function.
json Compared(const json& from, const json& other) {
  json kept = json::object();
  for (const auto& [key, value] : from.items()) {
    if (other.contains(key) || key == kRopeScaling) kept[key] = value;
  }
  return kept;
}

bool Says(const ordered_json& config, const std::string& key) {
  const auto found = config.find(key);
  return found != config.end() && !found->is_null();
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ReadConfigBeside(FileSystem* fs,
                                                            const std::string& path) {
  absl::StatusOr<std::string> text =
      fs->ReadFile(ConfigPathBeside(path), ModelIdentity::kConfigBytesMax);
  if (absl::IsNotFound(text.status())) return std::optional<std::string>();
  SIGNVOTE_RETURN_IF_ERROR(WithExitCode(text.status(), ExitCode::kBadInput));
  return std::optional(*std::move(text));
}

absl::StatusOr<std::string> JoinConfigs(std::string_view there, std::string_view ours) {
  SIGNVOTE_ASSIGN_OR_RETURN(const json theirs_function, Function(there));
  SIGNVOTE_ASSIGN_OR_RETURN(const json ours_function, Function(ours));
  SIGNVOTE_ASSIGN_OR_RETURN(
      const ModelIdentity here_model,
      ModelIdentity::FromConfig(Compared(ours_function, theirs_function).dump()));
  SIGNVOTE_ASSIGN_OR_RETURN(
      const ModelIdentity there_model,
      ModelIdentity::FromConfig(Compared(theirs_function, ours_function).dump()));
  if (const std::string difference = FirstDifference(here_model, there_model);
      !difference.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("is of another model: ", difference));
  }
  const ordered_json before = ordered_json::parse(there);
  const ordered_json model = ordered_json::parse(ours);
  ordered_json after = before;
  for (const auto& [key, value] : model.items()) {
    const bool said = Says(before, key) || ((key == kTorchDtype || key == kDtype) &&
                                            (Says(before, kTorchDtype) || Says(before, kDtype)));
    if (!said && !value.is_null()) after[key] = value;
  }
  for (const char* const key : {kTorchDtype, kDtype}) {
    if (Says(after, key)) after[key] = kWrittenDtype;
  }
  // As the user laid it out, where nothing is to be said besides.
  return after == before ? std::string(there) : after.dump(2) + "\n";
}

absl::Status RequireOwnConfig(const std::string& path, const std::optional<std::string>& there,
                              std::string_view config_json) {
  if (!there.has_value()) return absl::OkStatus();
  // Whether or not the model has a config of its own yet, this one must be one.
  const absl::Status joined =
      JoinConfigs(*there, config_json.empty() ? std::string_view("{}") : config_json).status();
  if (joined.ok()) return absl::OkStatus();
  return WithExitCode(
      absl::Status(joined.code(),
                   absl::StrCat(ConfigPathBeside(path), " ", std::string(joined.message()),
                                "; it is left as it is: give another folder, or move it away")),
      ExitCode::kBadInput);
}

absl::Status RequireModelTarget(FileSystem* fs, const std::string& path,
                                std::string_view config_json) {
  SIGNVOTE_RETURN_IF_ERROR(RequireWritable(fs, path));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadConfigBeside(fs, path));
  return RequireOwnConfig(path, there, config_json);
}

absl::Status WriteConfigBehind(FileSystem* fs, const std::string& path,
                               std::string_view config_json) {
  if (config_json.empty()) return absl::OkStatus();
  const auto write = [&]() -> absl::Status {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadConfigBeside(fs, path));
    SIGNVOTE_RETURN_IF_ERROR(RequireOwnConfig(path, there, config_json));
    std::string text(config_json);
    if (there.has_value()) {
      SIGNVOTE_ASSIGN_OR_RETURN(text, JoinConfigs(*there, config_json));
      if (text == *there) return absl::OkStatus();
    }
    return WriteFileAtomically(fs, ConfigPathBeside(path), text, kFileMode);
  };
  return WithContext(write(), absl::StrCat(path, " is written, config.json beside it is not"));
}

absl::Status WriteModel(FileSystem* fs, const std::string& path, const Layout& layout,
                        std::span<const float> x,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json) {
  SIGNVOTE_RETURN_IF_ERROR(WriteSafetensors(fs, path, layout, x, metadata));
  return WriteConfigBehind(fs, path, config_json);
}

absl::Status WriteModel(FileSystem* fs, const std::string& path, const Layout& layout,
                        const ReadValues& read, const std::map<std::string, std::string>& metadata,
                        std::string_view config_json) {
  SIGNVOTE_RETURN_IF_ERROR(WriteSafetensors(fs, path, layout, read, metadata));
  return WriteConfigBehind(fs, path, config_json);
}

}  // namespace signvote
