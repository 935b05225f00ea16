#pragma once
// What the lab trains on: a model and its data by one name, small enough that hundreds of runs are a
// matter of hours, and all from seeds. docs/lab.md, "Tasks".

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "lab/tasks/plain_mlp.h"
#include "worker/data/dataset.h"
#include "worker/models/model.h"

namespace signvote::lab {

// Of a minibatch: what the largest models of the tasks still compute in some hundred MB.
inline constexpr uint32_t kRowsMax = 1u << 16;

struct TaskOptions {
  std::string name;  // of TaskNames()
  // In place of what the task makes up. text: a file or folder; cnn, vit: a folder of pictures.
  std::string data;
  uint32_t rows = 0;       // of a micro-batch; 0: the task's own
  uint64_t init_seed = 1;  // of the parameters
  uint64_t task_seed = 1;  // of the teacher, plane, glyphs or text
  uint32_t threads = 1;    // of LibTorch, process-wide
};

struct Task {
  std::unique_ptr<Model> model;
  std::unique_ptr<Dataset> data;
  uint64_t eval_rows = 64;  // held-out windows that one pass takes
};

struct TaskInfo {
  std::string name, text;  // one line
};
// All there are, in order.
const std::vector<TaskInfo>& Tasks();

// What LibTorch does here; null in programs without it.
struct TorchMakers {
  // MakeTorchModel().
  std::function<absl::StatusOr<std::unique_ptr<Model>>(const ModelConfig& config,
                                                       const ModelOptions& options)>
      network;
  SourceMaker source;  // MakeTorchSource()
};

// INVALID_ARGUMENT names what there is; or says that --data is not for this task. UNIMPLEMENTED: it needs
// LibTorch, and `torch` has none. What the file at `data` is refused with is returned as it is.
absl::StatusOr<Task> MakeTask(FileSystem* fs, const TaskOptions& options, const TorchMakers& torch);

}  // namespace signvote::lab
