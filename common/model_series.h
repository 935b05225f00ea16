#pragma once
// Copies of a model that is still being trained, written behind the training: FOLDER/NAME.round-R.EXT
// beside FOLDER/NAME.EXT, the last few of which are kept.

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/model_writer.h"
#include "common/mutex.h"

namespace signvote {

// A model of its own at one round, with what is written of it.
struct ModelCopy {
  Layout layout;
  Round round;
  std::vector<float> x;
  std::map<std::string, std::string> metadata;
  std::string config_json;  // "": none is written
};

// Ownership:  does not own the file system, which must outlive it.
// Threads:    methods: one thread at a time, none of which waits for a disk but Finish() and the
//             destructor. The copies are taken and written on a thread of its own, one at a time. It
//             is there from the beginning: none need be made when memory is short.
// Durability: as of ModelWriter: a model of the series is whole, or not there.
// Failure:    a copy that cannot be taken or written is told in the log, and the next one is tried;
//             files that are there stay. One whose taking is CANCELLED is left out.
// Invariants: removes only files that it has written itself, the oldest first, and only once a newer
//             one is written; at most `keep` of them are left.
class ModelSeries {
 public:
  struct Options {
    std::string path;   // of the model at the end; the series is named after it
    uint32_t keep = 2;  // > 0
    ModelFormat format;
  };
  ModelSeries(FileSystem* fs, Options options);
  ~ModelSeries();

  // Whether a copy is being taken or written. Who wants another one now says so in the log, by
  // TellBusy(), and goes on without.
  bool busy() ABSL_LOCKS_EXCLUDED(mu_);
  void TellBusy() const;
  // Takes a copy by calling `take`, once and on the other thread, and writes it. REQUIRES: not busy().
  using Take = std::function<absl::StatusOr<ModelCopy>()>;
  void Write(Take take) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until what Write() began is done.
  void Finish() ABSL_LOCKS_EXCLUDED(mu_);

  // /models/a.safetensors, round 40: /models/a.round-00000040.safetensors
  static std::string PathOf(const std::string& path, Round round);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  void TakeAndWrite(Take& take);

  // Constant after construction.
  FileSystem* const fs_;
  const Options options_;

  Mutex mu_;
  CondVar changed_;
  std::optional<Take> next_ ABSL_GUARDED_BY(mu_);  // until the thread has it
  bool writing_ ABSL_GUARDED_BY(mu_) = false;      // from Write() on until it is done
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::deque<std::string> written_;  // the thread's
  std::thread thread_;               // after all that it uses
};

}  // namespace signvote
