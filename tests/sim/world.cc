#include "tests/sim/world.h"

#include "absl/strings/str_cat.h"

namespace signvote::sim {

World::World(const SimOptions& sim_options, const Model& sim_model, Codec* sim_codec,
             SimCounters* sim_counters)
    : options(sim_options),
      model(sim_model),
      counters(sim_counters),
      timeline(sim_options.seed),
      codec(sim_codec),
      // One host more than workers: strangers dial from there.
      network(&timeline, sim_codec, sim_options.workers + 1),
      checker(sim_model.run_layout(), sim_model.plan().chunks(), sim_options.run.quorum,
              sim_options.durability, sim_options.run.evaluate_every) {
  network.on_delay = [this] { Count(Fault::kDelay); };
  network.on_garbled = [this] { Count(Fault::kGarbled); };
  if (on(Fault::kDelay)) network.faults.delay_rate = options.message_fault_rate;
  if (on(Fault::kGarbled)) network.faults.garbled_rate = options.message_fault_rate / 20;
  network.queue_bytes_max = options.run.model.sizes.session_buffer_bytes;
}

std::string WorkerName(size_t host) { return absl::StrCat("w", host); }

}  // namespace signvote::sim
