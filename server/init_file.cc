#include "server/init_file.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model_identity.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace signvote {
namespace {

class InitFile final : public run::InitialParameters {
 public:
  InitFile(std::unique_ptr<SafetensorsFile> file, std::string path, std::string config_json)
      : file_(std::move(file)), path_(std::move(path)), config_json_(std::move(config_json)) {}

  absl::Status CopyInto(const Layout& layout, std::span<float> x) override {
    return file_->CopyInto(layout, x);
  }
  const std::string& config_json() const override { return config_json_; }
  const std::string& path() const override { return path_; }

 private:
  const std::unique_ptr<SafetensorsFile> file_;
  const std::string path_, config_json_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<run::InitialParameters>> OpenInitFile(FileSystem* fs,
                                                                     const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(fs, path));
  SIGNVOTE_RETURN_IF_ERROR(WithContext(file->RequireFinite(), "--init"));
  if (file->tensors().empty()) {
    return absl::DataLossError(absl::StrCat("--init: ", path, ": holds no tensor"));
  }
  const size_t slash = path.rfind('/');
  const std::string config_path =
      (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "config.json";
  std::string config_json;
  // Without one the first worker's config is the run's.
  if (fs->FileSize(config_path).ok()) {
    SIGNVOTE_ASSIGN_OR_RETURN(config_json,
                              fs->ReadFile(config_path, ModelIdentity::kConfigBytesMax));
  }
  return std::unique_ptr<run::InitialParameters>(
      std::make_unique<InitFile>(std::move(file), path, std::move(config_json)));
}

}  // namespace signvote
