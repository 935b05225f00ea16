#pragma once
// What a run leaves behind for programs: one JSON object per line for every commit (round log) and
// for every change of membership and the like (event log). docs/operations.md, "Logs of a run".

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/line_sink.h"
#include "server/round/types.h"
#include "server/run/history.h"

namespace signvote::run {

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
  JsonLine& Floats(std::string_view key, const std::vector<float>& values);  // as Stepsize()
  JsonLine& Texts(std::string_view key, const std::vector<std::string>& values);
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
    double compute_seconds = 0;  // both clamped: VoterTimes
    double apply_seconds = 0;
  };
  std::vector<Voter> voters;      // those whose scalars the rule saw
  std::vector<HeldOut> held_out;  // that came since the commit before
  std::vector<std::string> counted_workers;
  std::vector<std::string> members;
  double unix_seconds = 0;
  double tally_seconds = 0;
  double commit_seconds = 0;
  uint64_t payload_hash = 0;
  uint64_t up_rounds_bytes = 0;  // so far, all sessions
  uint64_t down_rounds_bytes = 0;
};

// The line of one commit.
std::string RoundLine(const round::CommitRound& commit, const RoundLogExtras& extras);

}  // namespace signvote::run
