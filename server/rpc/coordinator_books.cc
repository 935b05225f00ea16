#include "server/rpc/coordinator_impl.h"

#include <algorithm>
#include <utility>

namespace signvote::rpc {
namespace {

// Calls that wait for their time; further ones are answered at once.
constexpr size_t kWatchersMax = 64;
constexpr Duration kWatchMax = std::chrono::minutes(1);

v1::Status::Phase ToProto(round::Phase phase) {
  switch (phase) {
    case round::Phase::kWaitingForWorkers:
      return v1::Status::PHASE_WAITING_FOR_WORKERS;
    case round::Phase::kRoundOpen:
      return v1::Status::PHASE_ROUND_OPEN;
    case round::Phase::kPaused:
      return v1::Status::PHASE_PAUSED;
    case round::Phase::kFinishing:
      return v1::Status::PHASE_FINISHING;
    case round::Phase::kEnded:
      break;
  }
  return v1::Status::PHASE_ENDED;
}

}  // namespace

void AddBytes(const v1::WireTotals& in, v1::WireTotals* out) {
  out->set_up_rounds_bytes(out->up_rounds_bytes() + in.up_rounds_bytes());
  out->set_down_rounds_bytes(out->down_rounds_bytes() + in.down_rounds_bytes());
  out->set_up_setup_bytes(out->up_setup_bytes() + in.up_setup_bytes());
  out->set_down_setup_bytes(out->down_setup_bytes() + in.down_setup_bytes());
  out->set_fp32_equivalent_bytes(out->fp32_equivalent_bytes() + in.fp32_equivalent_bytes());
  out->set_ballots(out->ballots() + in.ballots());
}

WorkerRecord* CoordinatorImpl::FindWorker(const std::string& name) {
  const auto it = workers_.find(name);
  return it == workers_.end() ? nullptr : it->second.get();
}

WorkerRecord* CoordinatorImpl::FindOrAddWorker(const std::string& name) {
  if (WorkerRecord* known = FindWorker(name)) return known;
  if (workers_.size() >= options_.names_max) ForgetOldestName();
  auto record = std::make_unique<WorkerRecord>();
  record->id = WorkerId(next_worker_id_++);
  record->name = name;
  WorkerRecord* raw = record.get();
  by_id_[raw->id] = raw;
  workers_[name] = std::move(record);
  return raw;
}

bool CoordinatorImpl::HasSeat(WorkerId worker) const {
  return open_.has_value() &&
         std::any_of(open_->seats.begin(), open_->seats.end(),
                     [worker](const round::Seat& seat) { return seat.worker == worker; });
}

void CoordinatorImpl::ForgetOldestName() {
  auto oldest = workers_.end();
  for (auto it = workers_.begin(); it != workers_.end(); ++it) {
    const WorkerRecord& record = *it->second;
    if (record.link != nullptr || record.held != nullptr || record.evicted || HasSeat(record.id))
      continue;
    if (oldest == workers_.end() || record.last_seen < oldest->second->last_seen) oldest = it;
  }
  if (oldest == workers_.end()) return;
  AddBytes(oldest->second->wire, &forgotten_wire_);
  by_id_.erase(oldest->second->id);
  workers_.erase(oldest);
}

void CoordinatorImpl::CountBytes(Link* link) {
  if (!link->counter.has_value()) return;
  if (const std::optional<wire::SocketBytes> now = link->counter->Read()) link->last = *now;
}

v1::WireTotals CoordinatorImpl::SessionBytes(const Link& link) {
  v1::WireTotals out;
  out.set_up_rounds_bytes(link.last.received - link.baseline.received);
  out.set_down_rounds_bytes(link.last.sent - link.baseline.sent);
  return out;
}

v1::WireTotals CoordinatorImpl::WorkerBytes(const WorkerRecord& record) const {
  v1::WireTotals out = record.wire;
  if (record.link != nullptr) AddBytes(SessionBytes(*record.link), &out);
  return out;
}

v1::WireTotals CoordinatorImpl::TotalBytes() const {
  v1::WireTotals out = forgotten_wire_;
  for (const auto& [name, record] : workers_) AddBytes(WorkerBytes(*record), &out);
  return out;
}

JsonLine CoordinatorImpl::EventLine(std::string_view kind) const {
  JsonLine line;
  line.Text("kind", kind)
      .Count("round", ring_ == nullptr ? 0 : ring_->next().value())
      .Number("unix_time", UnixSeconds(*clock_))
      .Number("seconds", ToSeconds(clock_->Now() - started_));
  return line;
}

void CoordinatorImpl::Event(v1::Event::Kind kind, const EventAbout& about) {
  JsonLine line = EventLine(EventWord(kind));
  if (!about.worker.empty()) line.Text("worker", about.worker);
  if (about.incarnation.has_value()) line.Count("incarnation", about.incarnation->value());
  if (!about.reason.empty()) line.Text("reason", about.reason);
  log_->Event(line);
  v1::Event event;
  event.set_kind(kind);
  event.set_round(ring_ == nullptr ? 0 : ring_->next().value());
  event.set_unix_time(UnixSeconds(*clock_));
  event.set_worker(std::string(about.worker));
  event.set_reason(std::string(about.reason));
  history_.Add(std::move(event));
}

void CoordinatorImpl::NoteAbstentions(const round::CommitRound& commit,
                                      const std::vector<round::Seat>& seats) {
  for (const round::Seat& seat : seats) {
    if (seat.role != round::Role::kMember) continue;
    const auto it = by_id_.find(seat.worker);
    if (it == by_id_.end()) continue;
    WorkerRecord* record = it->second;
    const bool counted =
        std::find(commit.voters.begin(), commit.voters.end(), seat.worker) != commit.voters.end();
    // One that is gone has its own event; one that stays away round after round is told once.
    if (!counted && !record->abstaining && record->link != nullptr) {
      Event(
          v1::Event::KIND_ABSTAINED,
          {.worker = record->name,
           .reason = record->abstain_reason.empty() ? "no ballot in time" : record->abstain_reason,
           .incarnation = record->incarnation});
    }
    record->abstaining = !counted;
    record->abstain_reason = {};
  }
}

v1::WatchReply CoordinatorImpl::WatchNow(uint64_t events_after) {
  v1::WatchReply reply;
  *reply.mutable_status() = SnapshotNow().status;
  history_.Fill(events_after, &reply);
  return reply;
}

void CoordinatorImpl::Watch(uint64_t events_after, Duration wait, WatchDone done) {
  if (wait <= Duration::zero() || end_seen_ || refuse_all_ || watchers_.size() >= kWatchersMax) {
    return done(WatchNow(events_after));
  }
  watchers_.push_back({.events_after = events_after,
                       .due = clock_->Now() + std::min(wait, kWatchMax),
                       .done = std::move(done)});
}

void CoordinatorImpl::AnswerWatchers(Time due) {
  const auto late = std::stable_partition(watchers_.begin(), watchers_.end(),
                                          [due](const Watcher& w) { return w.due > due; });
  for (auto it = late; it != watchers_.end(); ++it) it->done(WatchNow(it->events_after));
  watchers_.erase(late, watchers_.end());
}

ServerSnapshot CoordinatorImpl::SnapshotNow() {
  ServerSnapshot out;
  v1::Status& status = out.status;
  const Time now = clock_->Now();
  status.set_software_version(SoftwareVersion());
  status.set_run_id(run_id_.ToText());
  status.set_epoch(epoch_.value());
  status.set_phase(end_seen_ ? v1::Status::PHASE_ENDED : v1::Status::PHASE_WAITING_FOR_WORKERS);
  status.set_rounds_max(options_.rounds_max);
  if (layout_.has_value()) {
    status.set_coordinates(layout_->coordinates());
    status.set_layout_digest(layout_->digest());
  }
  status.set_rule(options_.rule.rule);
  status.set_direction(options_.direction.kind);
  status.set_loss(kNan);
  status.set_g_l1(kNan);
  status.set_density(kNan);
  status.set_seconds_left(kNan);
  if (last_commit_.has_value()) {
    status.set_stepsize(static_cast<double>(last_commit_->stepsize.gamma));
    status.set_loss(last_commit_->loss.value_or(kNan));
    status.set_g_l1(last_commit_->g_l1.value_or(kNan));
    status.set_density(last_commit_->density.value_or(kNan));
  }
  status.set_round(ring_ == nullptr ? 0 : ring_->next().value());
  if (commit_times_.size() > 1) {
    const double mean = ToSeconds(commit_times_.back() - commit_times_.front()) /
                        static_cast<double>(commit_times_.size() - 1);
    status.set_round_seconds(mean);
    status.set_seconds_left(mean * static_cast<double>(options_.rounds_max - status.round()));
  } else if (round_.count() > 0) {
    status.set_round_seconds(round_.value());
  }
  status.set_master_digest(master_digest_);
  status.set_master_digest_round(master_digest_round_.value());
  status.set_resident_bytes(ResidentBytes());
  status.set_uptime_seconds(ToSeconds(now - started_));
  v1::TimeSplit& split = *status.mutable_time_split();
  split.set_compute(compute_.value());
  split.set_wait(wait_.value());
  split.set_tally(tally_.value());
  split.set_commit(commit_.value());
  split.set_apply(apply_.value());
  split.set_worker_apply(worker_apply_.value());
  split.set_round(round_.value());

  std::map<WorkerId, round::MemberView> members;
  if (engine_ != nullptr) {
    const round::EngineView view = engine_->View(now);
    status.set_phase(ToProto(view.phase));
    status.set_attempt(view.attempt.value());
    status.set_joins(view.joins);
    status.set_losses(view.losses);
    status.set_abstentions(view.abstentions);
    status.set_late_chunks(view.late_chunks);
    status.set_duplicate_chunks(view.duplicate_chunks);
    out.attempts_reopened = view.attempts_reopened;
    out.stale_messages = view.stale_messages;
    out.scalars_refused = view.scalars_refused;
    out.digest_mismatches = view.digest_mismatches;
    for (const round::MemberView& member : view.workers) members[member.worker] = member;
  } else if (paused_ && !end_seen_) {
    status.set_phase(v1::Status::PHASE_PAUSED);
  }
  for (const auto& [id, record] : by_id_) {
    const auto member = members.find(id);
    // Bounded as the engine's books are: names that were forgotten there are shown only while
    // connected.
    if (member == members.end() && record->link == nullptr) continue;
    v1::Worker& worker = *status.add_workers();
    worker.set_name(record->name);
    worker.set_incarnation(record->incarnation.value());
    worker.set_connected(record->link != nullptr);
    worker.set_address(record->address);
    worker.set_metrics_address(record->metrics_address);
    worker.set_agreement(record->agreement);
    worker.set_loss(record->loss);
    worker.set_joined_seconds(record->joined_seconds);
    worker.set_arrival_seconds(kNan);
    worker.set_role(v1::Worker::ROLE_OBSERVER);
    *worker.mutable_wire() = WorkerBytes(*record);
    if (member == members.end()) continue;
    const round::MemberView& view = member->second;
    worker.set_share(view.share.value());
    if (view.role == round::Role::kMember) worker.set_role(v1::Worker::ROLE_MEMBER);
    worker.set_ballots(view.ballots);
    worker.set_abstentions(view.abstentions);
    worker.set_late_chunks(view.late_chunks);
    worker.set_duplicate_chunks(view.duplicate_chunks);
    if (view.median_arrival.has_value())
      worker.set_arrival_seconds(ToSeconds(*view.median_arrival));
    worker.set_has_final_digest(view.final_digest.has_value());
    worker.set_final_digest(view.final_digest.value_or(0));
  }
  *status.mutable_wire() = TotalBytes();

  out.refusals = refusals_;
  out.ties = ties_;
  if (layout_.has_value()) {
    out.tie_ratio =
        static_cast<double>(ties_of_last_) / static_cast<double>(layout_->coordinates());
  }
  out.applier_lag = applier_ == nullptr ? 0 : applier_->backlog();
  out.workers_min = options_.workers_min;
  out.last_commit_unix_seconds = last_commit_unix_seconds_;
  if (end_seen_) {
    out.not_ready_because = "the run has ended";
  } else if (engine_ == nullptr) {
    out.not_ready_because =
        layout_.has_value() ? "waiting for the initial parameters" : "waiting for the first worker";
  }
  out.ready = out.not_ready_because.empty();
  return out;
}

}  // namespace signvote::rpc
