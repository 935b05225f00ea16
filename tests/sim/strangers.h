#pragma once
// Whoever else dials the server: streams that say nothing, that join with nonsense, and second
// processes under the name of a live worker.

#include <map>

#include "tests/sim/world.h"

namespace signvote::sim {

class Strangers final : public HostEnd {
 public:
  explicit Strangers(World* world) : world_(world) {
    world_->network.Attach(world_->options.workers, this);
  }

  // One or more of them come.
  void Come();
  // Another process joins under this worker's name.
  void JoinAs(const std::string& worker);
  // Those whose connections are still open. The server is to end them by itself.
  size_t here() const { return open_.size(); }

  void OnDown(ConnectionId id, DownFrame frame) override;
  void OnClosed(ConnectionId id, const absl::Status& status) override;

 private:
  v1::WorkerMessage Join(const std::string& worker) const;

  World* const world_;
  std::map<ConnectionId, bool> open_;  // true: it is to be refused, whatever it said
};

}  // namespace signvote::sim
