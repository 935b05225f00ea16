#pragma once
// What a run leaves behind for programs: one JSON object per line for every commit (round log) and
// for every change of membership and the like (event log). docs/operations.md, "Logs of a run".

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"
#include "common/ids.h"
#include "server/round/types.h"

namespace signvote::rpc {

// A JSON object built by hand, so that floating-point numbers appear with stated digits.
// Not-a-number and infinities become null.
// Threads: not thread-safe.
class JsonLine {
 public:
  JsonLine& Text(std::string_view key, std::string_view value);
  JsonLine& Count(std::string_view key, uint64_t value);
  JsonLine& Number(std::string_view key, double value);   // 17 significant digits: exact
  JsonLine& Stepsize(std::string_view key, float value);  // 9 significant digits: exact for fp32
  JsonLine& Raw(std::string_view key, std::string_view json);  // as is
  JsonLine& Counts(std::string_view key, const std::vector<uint32_t>& values);
  std::string Object() const { return "{" + body_ + "}"; }

 private:
  void Key(std::string_view key);
  std::string body_;
};

// Everything about one commit that the engine's action does not carry.
struct RoundLogExtras {
  struct Voter {
    std::string name;
    Share share;
    WorkerScalars scalars;
    uint64_t incarnation = 0;
    double compute_seconds = 0;
    double apply_seconds = 0;
  };
  std::vector<Voter> voters;  // those whose scalars the rule saw
  std::vector<std::string> counted_workers;
  std::vector<std::string> members;
  double unix_seconds = 0;
  double tally_seconds = 0;
  double commit_seconds = 0;
  uint64_t ties = 0;
  uint64_t verdict_hash = 0;
  uint64_t up_rounds_bytes = 0;  // so far, all sessions
  uint64_t down_rounds_bytes = 0;
};

// Threads: not thread-safe.
// Failure: the first failed write is logged once; the run goes on without that log.
class RunLog {
 public:
  // Empty paths: no log. NOT_FOUND, PERMISSION_DENIED: the path cannot be opened.
  static absl::StatusOr<std::unique_ptr<RunLog>> Open(FileSystem* fs, const std::string& round_path,
                                                      const std::string& event_path);

  bool wants_rounds() const { return rounds_ != nullptr; }
  void Round(const round::CommitRound& commit, const RoundLogExtras& extras);
  // `line` gets nothing added.
  void Event(const JsonLine& line);

 private:
  void Write(std::unique_ptr<LogFile>* file, const JsonLine& line);
  std::unique_ptr<LogFile> rounds_, events_;
};

}  // namespace signvote::rpc
