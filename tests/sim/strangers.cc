#include "tests/sim/strangers.h"

#include <memory>
#include <utility>

namespace signvote::sim {

v1::WorkerMessage Strangers::Join(const std::string& worker) const {
  v1::WorkerMessage message;
  v1::Join* const join = message.mutable_join();
  join->set_protocol_min(2);
  join->set_protocol_max(2);
  join->set_name(worker);
  for (const TensorSpec& tensor : world_->model.tensors()) {
    v1::TensorShape* const shape = join->add_tensors();
    shape->set_name(tensor.name);
    for (const uint64_t size : tensor.shape) shape->add_shape(size);
  }
  return message;
}

void Strangers::Come() {
  Timeline& timeline = world_->timeline;
  const uint64_t many = 1 + (timeline.OneIn(8) ? timeline.Below(50) : timeline.Below(3));
  for (uint64_t i = 0; i < many; ++i) {
    const ConnectionId id = world_->network.Dial(world_->options.workers);
    // Before the run knows its model whoever comes first may say what it is.
    open_[id] = world_->checker.begun();
    v1::WorkerMessage message = Join("stranger");
    v1::Join* const join = message.mutable_join();
    switch (timeline.Below(9)) {
      case 0:
        continue;  // says nothing
      case 1:
        join->set_protocol_min(9);
        join->set_protocol_max(9);
        break;
      case 2:
        join->set_run_id(std::string(16, 'x'));
        break;
      case 3:
        join->mutable_tensors(0)->set_name("other");
        break;
      case 4:
        join->clear_tensors();
        break;
      case 5:
        join->set_name("a name\nthat is none\u009b");
        break;
      case 6:
        join->set_model_config_json("[");
        break;
      case 7:
        join->set_identity_text("another loss");
        join->mutable_tensors(1)->add_shape(uint64_t{1} << 50);
        break;
      default:
        message.mutable_ready()->set_round(3);  // no Join at all
        break;
    }
    world_->network.SendUp(id, std::make_shared<const v1::WorkerMessage>(std::move(message)));
  }
}

void Strangers::JoinAs(const std::string& worker) {
  const ConnectionId id = world_->network.Dial(world_->options.workers);
  open_[id] = false;
  world_->network.SendUp(id, std::make_shared<const v1::WorkerMessage>(Join(worker)));
}

void Strangers::OnDown(ConnectionId id, DownFrame frame) {
  const auto* message = std::get_if<std::shared_ptr<const v1::ServerMessage>>(&frame);
  if (message == nullptr || !(*message)->has_welcome()) return;
  const auto it = open_.find(id);
  if (it == open_.end()) return;
  world_->checker.Require(!it->second, "a stranger was let in");
  // The name's own process is not there, or does not answer. What a process that was started by
  // mistake does then: it ends.
  open_.erase(it);
  world_->network.CloseByHost(id);
}

void Strangers::OnClosed(ConnectionId id, const absl::Status& status) {
  open_.erase(id);
  if (status.code() == absl::StatusCode::kAlreadyExists) ++world_->counters->second_sessions;
}

}  // namespace signvote::sim
