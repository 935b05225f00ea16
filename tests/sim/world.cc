#include "tests/sim/world.h"

#include <algorithm>
#include <utility>

namespace signvote::sim {

World::World(const SimOptions& sim_options, const Model& sim_model, SimCounters* sim_counters)
    : options(sim_options),
      model(sim_model),
      counters(sim_counters),
      rng_(sim_options.seed, /*stream=*/2) {}

void World::After(double seconds, std::function<void()> what) {
  queue_.push({now_ + FromSeconds(seconds), sequence_++, std::move(what)});
}

bool World::RunOne() {
  if (queue_.empty()) return false;
  // The item is moved out before it is popped: top() is const only to protect the order, which
  // `what` is no part of.
  std::function<void()> what = std::move(const_cast<Item&>(queue_.top()).what);
  now_ = queue_.top().at;
  queue_.pop();
  what();
  ++counters->events;
  return true;
}

bool World::StrikesMessage(Fault fault) {
  if (healed || !options.on(fault) || rng_.Uniform() >= options.message_fault_rate) return false;
  Count(fault);
  return true;
}

size_t World::OpenStream(uint32_t worker) {
  Stream stream;
  stream.worker = worker;
  stream.last_up = stream.last_down = now_;
  streams_.push_back(stream);
  return streams_.size() - 1;
}

Time World::Arrival(Time* last) {
  const Time at = now_ + FromSeconds(Uniform(0.001, 0.01));
  if (StrikesMessage(Fault::kReorder)) return at + FromSeconds(Uniform(0, 2));
  *last = std::max(*last, at);
  return *last;
}

void World::DeliverUp(size_t id, const ToServer& message) {
  if (streams_[id].black_hole) return;
  if (!streams_[id].server_open) {
    const bool counts = std::holds_alternative<BallotChunk>(message) ||
                        std::holds_alternative<Scalars>(message) ||
                        std::holds_alternative<Digest>(message);
    if (!counts || healed || !options.on(Fault::kGhost) || streams_[id].incarnation == 0) return;
    Count(Fault::kGhost);
  }
  on_up(id, message);
}

void World::CloseByWorker(size_t id) {
  if (!streams_[id].worker_open) return;
  streams_[id].worker_open = false;
  // Half of the losses are known before what is still under way has arrived.
  const double wait = Below(2) == 0 ? 0 : Uniform(0.01, healed ? 0.1 : 2);
  After(wait, [this, id] { on_lost(id); });
}

void World::SendUp(size_t id, ToServer message) {
  if (streams_[id].black_hole || !streams_[id].worker_open) return;
  const double delay = ToSeconds(Arrival(&streams_[id].last_up) - now_);
  const bool twice = StrikesMessage(Fault::kDuplicate);
  After(delay, [this, id, twice, message = std::move(message)] {
    DeliverUp(id, message);
    if (!twice) return;
    ToServer again = message;
    if (BallotChunk* ballot = std::get_if<BallotChunk>(&again)) {
      for (uint8_t& byte : ballot->bits) byte = static_cast<uint8_t>(~byte);
      ballot->genuine = false;
    }
    After(Uniform(0, 1), [this, id, again = std::move(again)] { DeliverUp(id, again); });
  });
}

void World::SendDown(size_t id, ToWorker message) {
  if (streams_[id].black_hole || !streams_[id].server_open) return;
  if (std::holds_alternative<VerdictChunk>(message) && StrikesMessage(Fault::kVerdictLoss)) return;
  const double delay = ToSeconds(Arrival(&streams_[id].last_down) - now_);
  const bool twice = StrikesMessage(Fault::kDuplicate);
  auto deliver = [this, id, message = std::move(message)] {
    if (streams_[id].worker_open && !streams_[id].black_hole) on_down(id, message);
  };
  if (twice) After(delay + Uniform(0, 1), deliver);
  After(delay, std::move(deliver));
}

}  // namespace signvote::sim
