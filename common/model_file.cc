#include "common/model_file.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/model_identity.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::ordered_json;

constexpr uint32_t kFileMode = 0644;
constexpr char kDtype[] = "dtype";
constexpr char kTorchDtype[] = "torch_dtype";
constexpr size_t kPieceValues = size_t{1} << 20;

std::string ConfigPathBeside(const std::string& path) { return FolderPrefix(path) + "config.json"; }

const char* DtypeText(TensorDtype dtype) {
  return dtype == TensorDtype::kBf16 ? "bfloat16" : "float32";
}

bool Says(const ordered_json& config, const std::string& key) {
  const auto found = config.find(key);
  return found != config.end() && !found->is_null();
}

// What is not said stays unsaid.
void SetDtype(ordered_json* config, TensorDtype dtype) {
  for (const char* const key : {kTorchDtype, kDtype})
    if (Says(*config, key)) (*config)[key] = DtypeText(dtype);
}

// As it was laid out, where it says what is to be said.
std::string TextOf(std::string_view text, const ordered_json& before, const ordered_json& after) {
  return after == before ? std::string(text) : after.dump(2) + "\n";
}

// Of a model that has no config.json beside it yet.
absl::StatusOr<std::string> OwnConfig(std::string_view ours, TensorDtype dtype) {
  SIGNVOTE_RETURN_IF_ERROR(ModelIdentity::FromConfig(ours).status());
  const ordered_json before = ordered_json::parse(ours);
  ordered_json after = before;
  SetDtype(&after, dtype);
  return TextOf(ours, before, after);
}

absl::Status Finish(FileSystem* fs, const std::string& path, const ModelFormat& format,
                    ModelWriter* writer, std::string_view config_json) {
  SIGNVOTE_ASSIGN_OR_RETURN(const WrittenModel written, writer->Commit());
  if (written.files > 1)
    LogInfo("the model is written in shards",
            {{"index", written.path}, {"files", uint64_t{written.files}}});
  return WriteConfigBehind(fs, path, config_json, format.dtype);
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

absl::StatusOr<std::string> JoinConfigs(std::string_view there, std::string_view ours,
                                        TensorDtype dtype) {
  // An identity may say nothing, a file must be one.
  if (there.empty() || ours.empty())
    return absl::InvalidArgumentError("config.json is empty and not a JSON object");
  SIGNVOTE_ASSIGN_OR_RETURN(const ModelIdentity there_model, ModelIdentity::FromConfig(there));
  SIGNVOTE_ASSIGN_OR_RETURN(const ModelIdentity here_model, ModelIdentity::FromConfig(ours));
  if (const std::string difference = FirstContradiction(here_model, there_model);
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
  SetDtype(&after, dtype);
  return TextOf(there, before, after);
}

absl::Status RequireOwnConfig(const std::string& path, const std::optional<std::string>& there,
                              std::string_view config_json) {
  if (!there.has_value()) return absl::OkStatus();
  // Whether or not the model has a config of its own yet, this one must be one.
  const absl::Status joined =
      JoinConfigs(*there, config_json.empty() ? std::string_view("{}") : config_json,
                  TensorDtype::kF32)
          .status();
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
  SIGNVOTE_RETURN_IF_ERROR(RequireOwnIndex(fs, path));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadConfigBeside(fs, path));
  return RequireOwnConfig(path, there, config_json);
}

absl::Status WriteConfigBehind(FileSystem* fs, const std::string& path,
                               std::string_view config_json, TensorDtype dtype) {
  if (config_json.empty()) return absl::OkStatus();
  const auto write = [&]() -> absl::Status {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<std::string> there, ReadConfigBeside(fs, path));
    SIGNVOTE_RETURN_IF_ERROR(RequireOwnConfig(path, there, config_json));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, there.has_value()
                                                          ? JoinConfigs(*there, config_json, dtype)
                                                          : OwnConfig(config_json, dtype));
    if (text == there) return absl::OkStatus();
    return WriteFileAtomically(fs, ConfigPathBeside(path), text, kFileMode);
  };
  return WithContext(write(), absl::StrCat(path, " is written, config.json beside it is not"));
}

absl::Status WriteModel(FileSystem* fs, const std::string& path, const ModelFormat& format,
                        const Layout& layout, std::span<const float> x,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json) {
  SIGNVOTE_CHECK(x.size() == layout.coordinates());
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ModelWriter> writer,
                            ModelWriter::Create(fs, path, layout, format, metadata));
  SIGNVOTE_RETURN_IF_ERROR(writer->Append(x));
  return Finish(fs, path, format, writer.get(), config_json);
}

absl::Status WriteModel(FileSystem* fs, const std::string& path, const ModelFormat& format,
                        const Layout& layout, const ReadValues& read,
                        const std::map<std::string, std::string>& metadata,
                        std::string_view config_json) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ModelWriter> writer,
                            ModelWriter::Create(fs, path, layout, format, metadata));
  std::vector<float> piece(std::min<uint64_t>(kPieceValues, layout.coordinates()));
  for (uint64_t first = 0; first < layout.coordinates(); first += piece.size()) {
    const std::span<float> values =
        std::span(piece).first(std::min<uint64_t>(piece.size(), layout.coordinates() - first));
    SIGNVOTE_RETURN_IF_ERROR(read(first, values));
    SIGNVOTE_RETURN_IF_ERROR(writer->Append(values));
  }
  return Finish(fs, path, format, writer.get(), config_json);
}

}  // namespace signvote
