#pragma once
// What can be seen of a running server: a snapshot taken by the engine's thread, and what is told
// about each commit.

#include <cstdint>
#include <string>

#include "signvote/v1/admin.pb.h"

namespace signvote::rpc {

// A running mean. Threads: not thread-safe.
class Mean {
 public:
  void Add(double value) {
    ++count_;
    sum_ += value;
  }
  uint64_t count() const { return count_; }
  double value() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

 private:
  uint64_t count_ = 0;
  double sum_ = 0;
};

struct ServerSnapshot {
  v1::Status status;
  bool ready = false;
  std::string not_ready_because;  // for people; empty when ready
  uint64_t refusals = 0, attempts_reopened = 0, stale_messages = 0, scalars_refused = 0,
           digest_mismatches = 0;
  uint64_t ties = 0;                    // all commits
  double tie_ratio = 0;                 // of the last commit
  uint64_t applier_lag = 0;             // rounds
  uint32_t workers_min = 0;             // as the run was started with
  double last_commit_unix_seconds = 0;  // before the first commit: of the server's start
};

// Seconds, of one commit; means over voters where there are several.
struct CommitTimes {
  double round = 0, wait = 0, tally = 0, commit = 0;
  bool has_voter_times = false;
  double compute = 0, worker_apply = 0;
};

// Who wants to hear of every commit, for histograms. Threads: called on the engine's thread; must
// not block.
class CommitObserver {
 public:
  virtual ~CommitObserver() = default;
  virtual void OnCommit(const CommitTimes& times) = 0;
  virtual void OnApplied(double seconds) = 0;
};

// Admin.Status as one JSON object with the field names of admin.proto.
std::string RenderStatusJson(const v1::Status& status);

}  // namespace signvote::rpc
