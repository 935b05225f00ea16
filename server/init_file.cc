#include "server/init_file.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint.h"
#include "common/model_identity.h"
#include "common/status.h"

namespace signvote {
namespace {

class InitFile final : public run::InitialParameters {
 public:
  InitFile(std::unique_ptr<Checkpoint> model, std::string path, std::string config_json)
      : model_(std::move(model)), path_(std::move(path)), config_json_(std::move(config_json)) {}

  absl::Status CheckFits(const Layout& layout) const override { return model_->CheckFits(layout); }
  absl::Status CopyInto(const Layout& layout, std::span<float> x,
                        const std::function<bool()>& give_up) const override {
    return model_->CopyInto(layout, x, give_up);
  }
  const std::string& config_json() const override { return config_json_; }
  const std::string& path() const override { return path_; }

 private:
  const std::unique_ptr<Checkpoint> model_;
  const std::string path_, config_json_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<run::InitialParameters>> OpenInitFile(
    FileSystem* fs, const std::string& path, const std::function<bool()>& give_up) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> model = Checkpoint::Open(fs, path);
  if (!model.ok()) return WithContext(model.status(), "--init");
  SIGNVOTE_RETURN_IF_ERROR(WithContext((*model)->RequireFinite(give_up), "--init"));
  if ((*model)->empty()) {
    return absl::DataLossError(absl::StrCat("--init: ", path, ": holds no tensor"));
  }
  const std::string& config_path = (*model)->config_path();
  std::string config_json;
  // Without one the first worker's config is the run's.
  if (fs->FileSize(config_path).ok()) {
    SIGNVOTE_ASSIGN_OR_RETURN(config_json,
                              fs->ReadFile(config_path, ModelIdentity::kConfigBytesMax));
  }
  return std::unique_ptr<run::InitialParameters>(
      std::make_unique<InitFile>(*std::move(model), path, std::move(config_json)));
}

}  // namespace signvote
