#pragma once
// A small run, as its server's messages say it: for tests of what a worker makes of them.

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/layout.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/types.h"

namespace signvote::testing {

inline const RunId kSmallRun = RunId::FromRandom(1, 2);

inline Layout SmallLayout() {
  return *Layout::Make({{.name = "a", .shape = {1000}, .step_scale = 0.5f, .weight_decay = 0.25f},
                        {.name = "b", .shape = {50, 10}}});
}
inline const ChunkPlan kSmallPlan(1500, 512);  // chunks of 64, 64 and 60 bytes

// The model of SmallLayout(), which lists its tensors in another order.
inline ModelDescription SmallModel() {
  ModelDescription model;
  model.tensors = {{.name = "b", .shape = {50, 10}}, {.name = "a", .shape = {1000}}};
  return model;
}

inline void FillRunLayout(const Layout& layout, v1::Layout* out) {
  out->Clear();
  for (const TensorSpec& tensor : layout.tensors()) {
    v1::Tensor* const to = out->add_tensors();
    to->set_name(tensor.name);
    for (const uint64_t dimension : tensor.shape) to->add_shape(dimension);
    to->set_step_scale(tensor.step_scale);
    to->set_weight_decay(tensor.weight_decay);
  }
  out->set_digest(layout.digest());
}

inline v1::ServerMessage WelcomeMessage(v1::Welcome::State state) {
  v1::ServerMessage message;
  v1::Welcome* const welcome = message.mutable_welcome();
  welcome->set_protocol(2);
  welcome->set_run_id(std::string(kSmallRun.bytes()));
  welcome->set_epoch(1);
  welcome->set_incarnation(1);
  welcome->set_ticket("ticket");
  welcome->set_state(state);
  welcome->set_chunk_coordinates(512);
  welcome->set_seed(7);
  welcome->set_digest_every(50);
  welcome->set_evaluate_every(40);
  welcome->set_message_bytes_max(1 << 20);
  welcome->mutable_direction()->set_kind(v1::Direction::KIND_SIGNUM);
  welcome->mutable_direction()->set_beta(0.9);
  FillRunLayout(SmallLayout(), welcome->mutable_layout());
  return message;
}

// A step whose payload's hash is 0.
inline v1::ServerMessage CommitMessage(uint64_t round, uint64_t epoch = 1) {
  v1::ServerMessage message;
  v1::Commit* const commit = message.mutable_commit();
  commit->set_run_id(std::string(kSmallRun.bytes()));
  commit->set_epoch(epoch);
  commit->set_round(round);
  commit->set_kind(v1::Commit::KIND_STEP);
  commit->set_stepsize(0.25f);
  commit->set_rho(1.0f);
  for (uint32_t k = 0; k < kSmallPlan.chunks(); ++k) commit->add_counted(3);
  return message;
}

inline v1::ServerMessage OpenMessage(uint64_t round, uint32_t attempt) {
  v1::ServerMessage message;
  v1::RoundOpen* const open = message.mutable_round_open();
  open->set_round(round);
  open->set_attempt(attempt);
  open->set_data_step(round);
  open->set_role(v1::RoundOpen::ROLE_MEMBER);
  return message;
}

}  // namespace signvote::testing
