#pragma once
// Takes a model as a server streams it, a safetensors file of fp32 tensors in parts of any size, and
// writes it in the format that is asked for.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/model_writer.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

// What an export has made.
struct Exported {
  uint64_t round = 0;  // the model has all commits before this round
  WrittenModel model;
  bool has_config = false;  // config.json was written beside it
};

// Ownership: does not own the file system, which must outlive it. Holds one part of the model, never
//            the whole.
// Threads:   thread-compatible.
// Failure:   DATA_LOSS: the parts are not one model, or not all of it. After any failure nothing is
//            written, and what stood there before stays; but for one about config.json, which says so.
class ExportReceiver {
 public:
  ExportReceiver(FileSystem* fs, std::string path, const ModelFormat& format);

  // The next part. The first brings round, size and config.json, which is refused here when it is of
  // another model than the one that lies there.
  absl::Status Take(const v1::ExportChunk& chunk);
  // After the last part.
  absl::StatusOr<Exported> Finish();

 private:
  absl::Status Begin(const v1::ExportChunk& chunk);
  absl::Status TakeHeader(std::span<const std::byte>* data);
  absl::Status TakeValues(std::span<const std::byte> data);
  absl::Status Damaged(const std::string& what) const;

  // Constant after construction.
  FileSystem* const fs_;
  const std::string path_;
  const ModelFormat format_;

  std::optional<uint64_t> round_;  // once begun
  uint64_t total_bytes_ = 0, received_bytes_ = 0;
  std::string config_json_;
  std::string header_;                   // as far as it is there, its length included
  std::string rest_;                     // of a value that goes on in the next part
  std::unique_ptr<ModelWriter> writer_;  // once the header is whole
};

}  // namespace signvote::ctl
