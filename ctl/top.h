#pragma once
// `signvote top`: asks a server again and again and shows what it answers, on a full screen or as
// lines.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "ctl/admin_client.h"
#include "ctl/render.h"

namespace signvote::ctl {

enum class TopMode {
  kScreen,  // falls back to kLines where there is no terminal
  kLines,
  kJson,  // one object a line
  kOnce,  // one picture as text
};

struct TopOptions {
  TopMode mode = TopMode::kScreen;
  Duration interval = std::chrono::seconds(1);
  // kLines, kJson: how long a lost server is looked for
  Duration server_timeout = std::chrono::minutes(10);
  std::string server;  // for people
  Colour colour = Colour::kOff;
};

// Signals as a file descriptor, so that nothing of ours runs inside a handler. Threads inherit what
// is blocked here: construct it before the first thread, and before anything of gRPC.
class TopSignals {
 public:
  // INTERNAL: the system gives no descriptor.
  static absl::StatusOr<std::unique_ptr<TopSignals>> Create();
  virtual ~TopSignals() = default;
  virtual int fd() const = 0;
  // The next signal that came; 0: none.
  virtual int Next() = 0;
};

// Returns OK when the operator ends it (q, SIGINT, SIGTERM, SIGHUP), or, without a screen, when the
// run has ended.
// UNAVAILABLE: nobody answered the first call, or a lost server did not come back in
// `server_timeout` (without a screen; on one it is looked for until the operator ends it). Else the
// server's refusal.
absl::Status RunTop(const TopOptions& options, AdminClient* client, TopSignals* signals,
                    Clock* clock);

}  // namespace signvote::ctl
