#pragma once
// A made-up run for the pictures of `signvote top`: three workers, 128 of 300 rounds, one lost.

#include <cmath>
#include <string>

#include "ctl/top_model.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

inline constexpr double kNoon = 1764072000;  // 2025-11-25 12:00:00 UTC

inline v1::WatchReply Sample() {
  v1::WatchReply reply;
  v1::Status& status = *reply.mutable_status();
  status.set_software_version("0.1.0");
  status.set_run_id("0f8fad5b-d9cb-469f-a165-70867728950e");
  status.set_epoch(1);
  status.set_phase(v1::Status::PHASE_ROUND_OPEN);
  status.set_round(128);
  status.set_main_round(128);
  status.set_main_rounds(300);
  status.set_coordinates(857'216);
  status.set_rule("alias");
  status.set_direction("signum");
  status.set_stepsize(0.0012345);
  status.set_loss(2.84125);
  status.set_round_seconds(0.21);
  status.set_seconds_left(36.2);
  status.set_uptime_seconds(75);
  status.set_joins(4);
  status.set_losses(1);
  status.set_abstentions(2);
  status.mutable_wire()->set_ballots(383);
  status.mutable_wire()->set_up_rounds_bytes(383ull * 107'804);
  status.mutable_wire()->set_down_rounds_bytes(383ull * 108'142);
  status.mutable_wire()->set_fp32_equivalent_bytes(383ull * 857'216 * 4);
  v1::TimeSplit& split = *status.mutable_time_split();
  split.set_compute(0.18);
  split.set_wait(0.02);
  split.set_tally(0.0021);
  split.set_commit(0.0006);
  split.set_apply(0.003);
  split.set_worker_apply(0.007);
  split.set_round(0.21);
  int i = 0;
  for (const char* name : {"alice", "bob", "carol"}) {
    v1::Worker& worker = *status.add_workers();
    worker.set_name(name);
    worker.set_connected(i != 2);
    worker.set_role(i == 1 ? v1::Worker::ROLE_OBSERVER : v1::Worker::ROLE_MEMBER);
    worker.set_share(static_cast<uint32_t>(i));
    worker.set_ballots(128u - static_cast<uint32_t>(i));
    worker.set_abstentions(i == 1 ? 2 : 0);
    worker.set_agreement(0.7 + 0.01 * i);
    worker.set_loss(2.8 + 0.1 * i);
    worker.set_arrival_seconds(0.18);
    worker.set_address("ipv4:192.0.2." + std::to_string(i + 1) + ":40000");
    worker.mutable_wire()->set_up_rounds_bytes(10'000'000);
    worker.mutable_wire()->set_down_rounds_bytes(10'000'000);
    ++i;
  }
  const auto add = [&](v1::Event::Kind kind, uint64_t round, const char* worker,
                       const char* reason) {
    v1::Event& event = *reply.add_events();
    event.set_sequence(static_cast<uint64_t>(reply.events_size()));
    event.set_kind(kind);
    event.set_round(round);
    event.set_unix_time(kNoon - 60 + static_cast<double>(reply.events_size()));
    event.set_worker(worker);
    event.set_reason(reason);
  };
  add(v1::Event::KIND_JOINED, 0, "alice", "");
  add(v1::Event::KIND_MEMBER, 0, "alice", "");
  add(v1::Event::KIND_ABSTAINED, 90, "bob", "no ballot in time");
  add(v1::Event::KIND_OBSERVER, 94, "bob", "5 rounds without a ballot");
  add(v1::Event::KIND_LOST, 120, "carol", "");
  v1::RoundSeries& series = *reply.mutable_series();
  series.set_rounds_per_point(1);
  for (int r = 0; r < 128; ++r) {
    series.add_loss(static_cast<float>(2.4 + 3.1 * std::exp(-r / 20.0)));
    series.add_stepsize(0.001f);
  }
  return reply;
}

// Two answers, a second apart, so that there are rates.
inline TopModel Model(const v1::WatchReply& reply) {
  TopModel model;
  v1::WatchReply before = reply;
  if (before.status().round() > 4) {
    before.mutable_status()->set_round(before.status().round() - 4);
    before.mutable_status()->set_main_round(before.status().round());
  }
  v1::WireTotals& wire = *before.mutable_status()->mutable_wire();
  wire.set_up_rounds_bytes(wire.up_rounds_bytes() - 862'432);
  wire.set_down_rounds_bytes(wire.down_rounds_bytes() - 865'136);
  for (v1::Worker& worker : *before.mutable_status()->mutable_workers()) {
    if (!worker.connected()) continue;
    worker.mutable_wire()->set_up_rounds_bytes(worker.wire().up_rounds_bytes() - 431'216);
    worker.mutable_wire()->set_down_rounds_bytes(worker.wire().down_rounds_bytes() - 432'568);
  }
  model.OnReply(before, Time{});
  model.OnReply(reply, Time{} + std::chrono::seconds(1));
  return model;
}

}  // namespace signvote::ctl
