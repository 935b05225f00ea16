#pragma once
// What a person sees while a worker trains: one line that is rewritten on a terminal, or a plain
// line now and then.

#include <cstdint>
#include <optional>
#include <string>

#include "common/clock.h"
#include "common/line_writer.h"
#include "worker/session/session.h"
#include "worker/train/trainer.h"

namespace signvote {

enum class ProgressStyle { kTerminal, kLines, kOff };

// Threads: thread-compatible. Nothing waits for whoever reads what is written (a terminal that was
//          stopped by Ctrl-S, a pager, a pipe that is full) but Finish() and the destructor, a second each
//          at most: it is written by a thread of its own. Lines that are not read in time are left out,
//          and a line says how many.
class Progress {
 public:
  // Writes to the descriptor `out`. kLines prints every `interval`; kTerminal rewrites its line at most
  // ten times a second and cuts it to the terminal's width.
  Progress(ProgressStyle style, int out, Clock* clock, Duration interval, std::string name);
  void OnJoined(const RunInfo& run);
  void OnRound(const RoundReport& round, const SessionStats& stats);
  void Finish();  // ends the terminal's line, and waits until all is written

  // The line without control characters; the number behind the stroke is that of the planned main
  // rounds, where it is known. E.g.
  // "w0 round 120/300 loss 2.713 held-out 3.008±0.021 stepsize 4.6e-04 8.5k targets/s 3 members saved
  // 31x (1.2 GB) ETA 1:05"
  std::string Line(const RoundReport& round, const SessionStats& stats) const;

 private:
  const ProgressStyle style_;
  const int out_;
  Clock* const clock_;
  const Duration interval_;
  const std::string name_;

  std::optional<uint64_t> main_rounds_;
  uint64_t coordinates_ = 0;
  std::optional<HeldOutLoss> held_out_;
  std::optional<Time> last_round_;
  std::optional<Time> last_print_;
  double seconds_per_round_ = 0;  // exponential mean over some twenty rounds
  double targets_per_round_ = 0;
  std::optional<LineWriter> writer_;  // unless nothing is shown
};

// "8.5k", "1.2M"; "1.2 GB", "31 kB"; "1:05", "2:03:04".
std::string ShortCount(double value);
std::string ShortBytes(double bytes);
std::string ShortSeconds(double seconds);

}  // namespace signvote
