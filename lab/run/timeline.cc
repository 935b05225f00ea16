#include "lab/run/timeline.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace signvote::lab {
namespace {

// A life or an absence is at least this long, so that no worker comes and goes without end in no time.
constexpr double kLeastSeconds = 1e-3;
constexpr uint64_t kChurnStream = 0x6368'7572'6e00'0000;

// What undoes it; kServerKill undoes itself.
std::optional<ScenarioEventKind> OppositeOf(ScenarioEventKind kind) {
  switch (kind) {
    case ScenarioEventKind::kKill:
    case ScenarioEventKind::kLeave:
      return ScenarioEventKind::kJoin;
    case ScenarioEventKind::kPause:
      return ScenarioEventKind::kResume;
    default:
      return std::nullopt;
  }
}

}  // namespace

Timeline::Timeline(const Scenario& scenario)
    : churn_(scenario.churn.value_or(Churn{})),
      churned_(scenario.churn.has_value() ? scenario.workers : std::vector<std::string>{}) {
  for (const ScenarioEvent& event : scenario.events) Add(event);
  for (size_t i = 0; i < churned_.size(); ++i) {
    lives_.emplace_back(scenario.seed, kChurnStream + i);
    Live(i, churn_.from_seconds);
  }
}

void Timeline::Add(const ScenarioEvent& event) {
  const auto add = [&](const std::string& worker) {
    Entry entry{.action = {.kind = event.kind,
                           .worker = worker,
                           .compute_ms = event.compute_ms,
                           .link = event.link},
                .undone = event.for_seconds.has_value(),
                .undone_after = event.for_seconds.value_or(0)};
    if (event.kind == ScenarioEventKind::kServerKill)
      entry.action.for_seconds = event.for_seconds.value_or(0);
    if (event.round.has_value()) {
      by_round_.emplace(*event.round, std::move(entry));
    } else {
      by_seconds_.emplace(event.seconds.value_or(0), std::move(entry));
    }
  };
  if (event.workers.empty()) add("");
  for (const std::string& worker : event.workers) add(worker);
}

void Timeline::Undo(const Entry& entry, double at) {
  const auto opposite = OppositeOf(entry.action.kind);
  if (!entry.undone || !opposite.has_value()) return;
  by_seconds_.emplace(at + entry.undone_after,
                      Entry{.action = {.kind = *opposite, .worker = entry.action.worker}});
}

double Timeline::Drawn(size_t churned, double mean) {
  // 1 − U lies in (0, 1].
  return std::max(kLeastSeconds, -mean * std::log(1 - lives_[churned].Uniform()));
}

void Timeline::Live(size_t churned, double at) {
  const double death = at + Drawn(churned, churn_.mean_life_seconds);
  if (churn_.notice_seconds > 0) {
    by_seconds_.emplace(
        std::max(at, death - churn_.notice_seconds),
        Entry{.action = {.kind = ScenarioEventKind::kLeave, .worker = churned_[churned]}});
  }
  by_seconds_.emplace(
      death, Entry{.action = {.kind = ScenarioEventKind::kKill, .worker = churned_[churned]},
                   .churned = churned});
}

std::vector<TimelineAction> Timeline::Due(uint64_t rounds, double seconds) {
  std::vector<TimelineAction> due;
  while (!by_round_.empty() && by_round_.begin()->first <= rounds) {
    const Entry entry = std::move(by_round_.extract(by_round_.begin()).mapped());
    Undo(entry, seconds);
    due.push_back(entry.action);
  }
  while (!by_seconds_.empty() && by_seconds_.begin()->first <= seconds) {
    const auto node = by_seconds_.extract(by_seconds_.begin());
    const double at = node.key();
    const Entry& entry = node.mapped();
    Undo(entry, at);
    due.push_back(entry.action);
    if (entry.churned == SIZE_MAX) continue;
    if (entry.action.kind == ScenarioEventKind::kKill) {
      by_seconds_.emplace(
          at + Drawn(entry.churned, churn_.mean_absence_seconds),
          Entry{.action = {.kind = ScenarioEventKind::kJoin, .worker = entry.action.worker},
                .churned = entry.churned});
    } else {
      Live(entry.churned, at);
    }
  }
  return due;
}

}  // namespace signvote::lab
