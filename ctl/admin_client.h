#pragma once
// The operator's connection to a server: the Admin service behind absl::Status.

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/model_writer.h"
#include "ctl/export_receiver.h"
#include "proto/wire/security.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

struct AdminClientOptions {
  std::string server;  // host:port
  // plaintext; a server takes admin calls without TLS only when it runs --insecure itself
  bool insecure = false;
  wire::TlsFiles tls;                           // required unless insecure
  Duration timeout = std::chrono::seconds(10);  // of a call; of each step of a stream
};

// Threads: one call at a time; Cancel() from any thread.
// Failure: UNAVAILABLE, naming server and remedy, when it cannot be reached in time; else the
// server's status.
class AdminClient {
 public:
  // INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION for unusable options, files or
  // certificates; nothing is dialled yet.
  static absl::StatusOr<std::unique_ptr<AdminClient>> Create(FileSystem* fs,
                                                             const AdminClientOptions& options,
                                                             int64_t now_unix_seconds);
  virtual ~AdminClient() = default;

  virtual absl::StatusOr<v1::Status> GetStatus() = 0;
  // Answered after `wait`, or as soon as the run ends; the timeout is added on top.
  virtual absl::StatusOr<v1::WatchReply> Watch(uint64_t events_after, Duration wait) = 0;
  // The call in progress and every later one but Export end with CANCELLED.
  virtual void Cancel() = 0;
  virtual absl::Status Pause() = 0;
  virtual absl::Status Resume() = 0;
  virtual absl::Status Drain(const std::string& worker) = 0;
  virtual absl::Status Evict(const std::string& worker) = 0;

  // Writes the master replica to `path`, whole or in shards, and the model's config.json beside it if
  // the server has one; the model first. Nothing is asked of the server when `path` cannot be written
  // (RequireModelTarget()). DATA_LOSS: the stream ended early or its parts disagree; what stood at
  // `path` is then untouched.
  virtual absl::StatusOr<Exported> Export(FileSystem* fs, const std::string& path,
                                          const ModelFormat& format) = 0;
};

}  // namespace signvote::ctl
