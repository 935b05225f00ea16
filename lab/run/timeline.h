#pragma once
// When what happens in a scenario: from the file's events and the seeded lives and absences of its churn.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/rng.h"
#include "lab/run/scenario.h"

namespace signvote::lab {

// One thing that happens to one worker, or to the server.
struct TimelineAction {
  ScenarioEventKind kind = ScenarioEventKind::kKill;
  std::string worker;       // empty with kServerKill
  double for_seconds = 0;   // kServerKill: how long there is none
  uint32_t compute_ms = 0;  // kSlow
  LinkShape link;           // kLink
  bool operator==(const TimelineAction&) const = default;
};

// A pure function of the scenario and of what Due() is told.
// Threads: not thread-safe.
class Timeline {
 public:
  explicit Timeline(const Scenario& scenario);

  // What has become due since the last call: with so many rounds committed, and so long after the first
  // commit. First what is due by rounds, then by time, each in order; equal ones in the file's order.
  // REQUIRES: neither is less than at the call before.
  std::vector<TimelineAction> Due(uint64_t rounds, double seconds);

 private:
  struct Entry {
    TimelineAction action;
    bool undone = false;        // by its opposite, `undone_after` later
    double undone_after = 0;    // seconds
    size_t churned = SIZE_MAX;  // whose life or absence ends with it; an index of lives_
  };

  void Add(const ScenarioEvent& event);
  void Undo(const Entry& entry, double at);
  // Plans the death of a worker that is there from `at` on.
  void Live(size_t churned, double at);
  double Drawn(size_t churned, double mean);

  const Churn churn_;
  const std::vector<std::string> churned_;  // names
  std::vector<Rng> lives_;                  // of each of them
  std::multimap<uint64_t, Entry> by_round_;
  std::multimap<double, Entry> by_seconds_;
};

}  // namespace signvote::lab
