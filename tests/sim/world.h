#pragma once
// What all parts of one simulated run share.

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "tests/sim/checker.h"
#include "tests/sim/model.h"
#include "tests/sim/network.h"
#include "tests/sim/options.h"
#include "tests/sim/timeline.h"

namespace signvote::sim {

struct World {
  World(const SimOptions& sim_options, const Model& sim_model, Codec* codec,
        SimCounters* sim_counters);

  bool on(Fault fault) const { return !healed && options.on(fault); }
  void Count(Fault fault) { ++counters->struck[static_cast<size_t>(fault)]; }
  // Whether a fault that befalls each message, ballot or the like strikes now; counted.
  bool Strikes(Fault fault, double rate) {
    if (!on(fault) || timeline.Uniform(0, 1) >= rate) return false;
    Count(fault);
    return true;
  }
  // For people who look at one seed.
  void Trace(std::string_view who, std::string_view what) const {
    if (options.trace) absl::PrintF("%10.3f  %-8s %s\n", timeline.Seconds(), who, what);
  }

  const SimOptions& options;
  const Model& model;
  SimCounters* const counters;
  Timeline timeline;
  Codec* const codec;
  Network network;
  Checker checker;
  bool healed = false;  // from here on nothing goes wrong any more
};

// "w3"; the name of the worker on that host.
std::string WorkerName(size_t host);

}  // namespace signvote::sim
