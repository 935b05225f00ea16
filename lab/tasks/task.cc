#include "lab/tasks/task.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "lab/tasks/pictures.h"
#include "lab/tasks/plain_mlp.h"
#include "lab/tasks/samples.h"
#include "lab/tasks/text.h"

namespace signvote::lab {
namespace {

constexpr uint64_t kTextBytes = 400'000;
constexpr uint64_t kTextLength = 48;
constexpr double kPlaneCondition = 1e4;

// ---- those in plain loops

absl::StatusOr<Task> MakePlain(ModelConfig config, std::unique_ptr<SampleSource> source,
                               uint32_t rows, const TaskOptions& options,
                               const TorchMakers& torch) {
  config.kind = ModelKind::kMlp;
  config.name = options.name;
  config.features = static_cast<uint32_t>(source->features());
  config.classes = static_cast<uint32_t>(source->classes());
  Task task;
  SIGNVOTE_ASSIGN_OR_RETURN(task.model, MakePlainMlp(config, options.init_seed, torch.source));
  task.data = MakeSampleDataset(std::move(source), {.rows = rows, .held_out = 2048});
  task.eval_rows = 256;
  return task;
}

absl::StatusOr<Task> MakeLogistic(FileSystem*, const TaskOptions& options, uint32_t rows,
                                  const TorchMakers& torch) {
  ModelConfig config;
  config.layers = 0;
  return MakePlain(config, MakePlaneSource(/*features=*/64, kPlaneCondition, options.task_seed),
                   rows, options, torch);
}

absl::StatusOr<Task> MakeMlp(FileSystem*, const TaskOptions& options, uint32_t rows,
                             const TorchMakers& torch) {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 64;
  return MakePlain(config, MakeTeacherSource(/*features=*/32, /*classes=*/10, options.task_seed),
                   rows, options, torch);
}

// ---- those of LibTorch

absl::StatusOr<std::unique_ptr<Model>> MakeNetwork(const ModelConfig& config,
                                                   const TaskOptions& options,
                                                   const TorchMakers& torch) {
  if (!torch.network) {
    return absl::UnimplementedError(absl::StrCat(
        "task ", options.name, " needs LibTorch, which this program was built without"));
  }
  return torch.network(config, {.threads = options.threads, .init_seed = options.init_seed});
}

absl::StatusOr<Task> MakeText(FileSystem* fs, const TaskOptions& options, uint32_t rows,
                              const TorchMakers& torch) {
  ModelConfig config;
  config.name = options.name;
  config.vocabulary = 256;
  config.hidden = 48;
  config.layers = 2;
  config.heads = config.key_value_heads = 3;
  config.head_size = 16;
  config.intermediate = 128;
  config.init_std = 0.05;
  Task task;
  if (options.data.empty()) {
    task.data =
        MakeTextDataset(MadeUpText(kTextBytes, options.task_seed),
                        {.rows = rows,
                         .length = kTextLength,
                         .held_out = 128,
                         .description = absl::StrCat("text: ", kTextBytes, " made-up bytes, seed ",
                                                     options.task_seed)});
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(task.data, OpenDataset(fs, {.format = DataFormat::kText,
                                                          .path = options.data,
                                                          .rows = rows,
                                                          .length = kTextLength,
                                                          .eval_targets = 128 * kTextLength,
                                                          .eval_length = kTextLength}));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(task.model, MakeNetwork(config, options, torch));
  task.eval_rows = 32;
  return task;
}

absl::StatusOr<Task> MakePictures(FileSystem* fs, ModelConfig config, const TaskOptions& options,
                                  uint32_t rows, const TorchMakers& torch) {
  constexpr uint64_t kHeldOut = 1024;
  config.name = options.name;
  config.side = 16;
  config.classes = 10;
  Task task;
  if (options.data.empty()) {
    task.data = MakeSampleDataset(MakeGlyphSource(config.side, config.classes, options.task_seed),
                                  {.rows = rows, .held_out = kHeldOut});
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(
        Pictures pictures,
        OpenPictures(fs, options.data, {.side = config.side, .rows = rows, .held_out = kHeldOut}));
    task.data = std::move(pictures.data);
    config.classes = pictures.classes;
  }
  SIGNVOTE_ASSIGN_OR_RETURN(task.model, MakeNetwork(config, options, torch));
  return task;
}

absl::StatusOr<Task> MakeCnn(FileSystem* fs, const TaskOptions& options, uint32_t rows,
                             const TorchMakers& torch) {
  ModelConfig config;
  config.kind = ModelKind::kCnn;
  config.hidden = 8;
  return MakePictures(fs, config, options, rows, torch);
}

absl::StatusOr<Task> MakeVit(FileSystem* fs, const TaskOptions& options, uint32_t rows,
                             const TorchMakers& torch) {
  ModelConfig config;
  config.kind = ModelKind::kVit;
  config.hidden = 48;
  config.layers = 2;
  config.heads = 3;
  config.intermediate = 96;
  config.patch = 4;
  config.init_std = 0.1;
  return MakePictures(fs, config, options, rows, torch);
}

struct TaskRow {
  TaskInfo info;
  uint32_t rows = 16;  // of a micro-batch
  bool takes_data = false;
  absl::StatusOr<Task> (*make)(FileSystem* fs, const TaskOptions& options, uint32_t rows,
                               const TorchMakers& torch) = nullptr;
};

const std::vector<TaskRow>& Rows() {
  static const auto* const rows = new std::vector<TaskRow>{
      {{"logistic", "softmax regression of 64 features whose scales differ a hundredfold"},
       32,
       false,
       MakeLogistic},
      {{"mlp", "a perceptron 32-64-64-10 learns what a random teacher sees"}, 16, false, MakeMlp},
      {{"text", "a LLaMA of two layers reads bytes: a made-up text, or --data"}, 2, true, MakeText},
      {{"cnn", "a convolutional network tells ten glyphs of 16 x 16 apart, or pictures of --data"},
       16,
       true,
       MakeCnn},
      {{"vit", "a vision transformer of two layers tells the same glyphs apart, or --data"},
       8,
       true,
       MakeVit},
  };
  return *rows;
}

}  // namespace

const std::vector<TaskInfo>& Tasks() {
  static const auto* const tasks = [] {
    auto* infos = new std::vector<TaskInfo>;
    for (const TaskRow& row : Rows()) infos->push_back(row.info);
    return infos;
  }();
  return *tasks;
}

absl::StatusOr<Task> MakeTask(FileSystem* fs, const TaskOptions& options,
                              const TorchMakers& torch) {
  std::string names;
  for (const TaskRow& row : Rows()) {
    if (row.info.name != options.name) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", row.info.name);
      continue;
    }
    if (!options.data.empty() && !row.takes_data) {
      return absl::InvalidArgumentError(absl::StrCat("--data is for the tasks text, cnn and vit; ",
                                                     options.name,
                                                     " makes its own; leave it away"));
    }
    if (options.rows > kRowsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("--batch ", options.rows, " is above ", kRowsMax,
                       "; minibatches of --accumulate are computed one after the other"));
    }
    return row.make(fs, options, options.rows == 0 ? row.rows : options.rows, torch);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--task ", options.name, ": there is none; choose one of ", names));
}

}  // namespace signvote::lab
