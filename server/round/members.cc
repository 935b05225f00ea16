#include "server/round/members.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/round/notices.h"

namespace signvote::round {
namespace {

constexpr Duration kStepsUntilMin = std::chrono::milliseconds(1);
constexpr uint64_t kGivenPercent = 90;  // of the chunks, so that a ballot counts as given

absl::Status Evicted(const Worker& w) {
  return absl::PermissionDeniedError(
      absl::StrFormat("worker '%s' was evicted by the operator for the rest of this run", w.name));
}

// "41 of 48 chunks (85 %), no scalars"
std::string Part(const SeatRecord& record, uint32_t chunks) {
  return absl::StrFormat("%d of %d chunks (%d %%)%s", record.in_time, chunks,
                         uint64_t{record.in_time} * 100 / chunks,
                         record.scalars_came ? "" : ", no scalars");
}

}  // namespace

bool Given(const SeatRecord& record, uint32_t chunks) {
  return record.scalars_came && uint64_t{record.in_time} * 100 >= uint64_t{chunks} * kGivenPercent;
}

Members::Members(const EngineConfig& config, const EngineState& state)
    : deadline_(config.deadline),
      workers_max_(config.workers_max),
      observer_after_(config.observer_after),
      chunks_(config.chunks),
      shares_(config.share_hold_rounds, state.shares),
      rounds_(kArrivalsOverall, state.arrivals),
      local_rounds_(kArrivalsOverall, state.local),
      totals_(state.totals) {
  for (const WorkerState& s : state.workers) {
    Worker w(s.arrivals, s.local);
    w.name = s.name;
    w.incarnation = s.incarnation;
    w.evicted = s.evicted;
    w.growth_noticed = s.growth_noticed;
    w.role = s.role;
    w.last_seen = s.last_seen;
    w.abstentions_in_a_row = s.abstentions_in_a_row;
    w.abstentions = s.abstentions;
    w.ballots = s.ballots;
    w.late_chunks = s.late_chunks;
    w.duplicate_chunks = s.duplicate_chunks;
    workers_.insert_or_assign(s.id, std::move(w));
  }
}

// ---- come and go

Members::Joined Members::Join(const WorkerReady& e, std::optional<uint32_t> warm_in, Round round,
                              Actions& out) {
  Joined result;
  auto it = workers_.find(e.worker);
  if (it != workers_.end()) {
    if (it->second.evicted) {
      out.push_back(Disconnect{e.worker, e.incarnation, Evicted(it->second)});
      return result;
    }
    if (e.incarnation <= it->second.incarnation) {
      ++totals_.stale_messages;
      return result;
    }
    if (it->second.connected) {
      result.replaced = it->second.incarnation;
      Lose(e.worker, it->second, round, out);
    }
  }
  if (connected_ >= workers_max_) {
    out.push_back(Disconnect{
        e.worker, e.incarnation,
        absl::ResourceExhaustedError(absl::StrFormat(
            "the run is full: %d workers are connected, which is the limit (--workers-max)",
            connected_))});
    return result;
  }
  if (it == workers_.end()) {
    if (workers_.size() >= workers_max_) Forget(out);
    it = workers_.emplace(e.worker, Worker()).first;
  }
  Worker& w = it->second;
  if (w.role == Role::kObserver) {
    w.role = Role::kMember;
    out.push_back(RoleChanged{e.worker, Role::kMember, "it joined anew"});
  }
  w.name = e.name;
  w.incarnation = e.incarnation;
  w.connected = true;
  w.leaving = false;
  w.admitted = false;
  if (warm_in.has_value()) w.warm_in = *warm_in;
  w.scalars_refused = false;
  w.abstentions_in_a_row = 0;
  w.arrived_in.reset();
  w.final_digest.reset();
  // What is reserved for it is its own from now on, though it gets its seat only later.
  if (shares_.Find(e.worker).has_value()) shares_.Assign(e.worker, out);
  ++connected_;
  ++totals_.joins;
  result.joined = true;
  return result;
}

Worker* Members::Live(WorkerId id, Incarnation incarnation) {
  const auto it = workers_.find(id);
  if (it == workers_.end() || !it->second.connected || it->second.incarnation != incarnation) {
    ++totals_.stale_messages;
    return nullptr;
  }
  return &it->second;
}

void Members::Lose(WorkerId id, Worker& w, Round round, Actions& out) {
  if (!w.leaving && !w.evicted && !w.final_digest.has_value()) {
    ++totals_.losses;
    Say(out, NoticeLevel::kWarning, absl::StrFormat("lost %s in round %d", w.name, round.value()),
        id);
  }
  w.connected = false;
  w.last_seen = round;
  --connected_;
  shares_.Reserve(id, round);
}

std::optional<Incarnation> Members::Evict(WorkerId id, Round round, Actions& out) {
  const auto it = workers_.find(id);
  if (it == workers_.end() || it->second.evicted) return std::nullopt;
  Worker& w = it->second;
  w.evicted = true;
  out.push_back(EvictionMade{id});
  Say(out, NoticeLevel::kInfo, absl::StrFormat("%s is evicted for the rest of the run", w.name));
  std::optional<Incarnation> gone;
  if (w.connected) {
    gone = w.incarnation;
    out.push_back(Disconnect{id, w.incarnation, Evicted(w)});
    Lose(id, w, round, out);
  }
  shares_.Forget(id, out);
  return gone;
}

// Drops the name that has been away for longest. Who has a seat in the open attempt stays until it
// closes, and who is evicted stays.
void Members::Forget(Actions& out) {
  auto oldest = workers_.end();
  for (auto it = workers_.begin(); it != workers_.end(); ++it) {
    const Worker& w = it->second;
    if (w.connected || w.evicted || w.seat.has_value()) continue;
    if (oldest == workers_.end() || w.last_seen < oldest->second.last_seen) oldest = it;
  }
  if (oldest == workers_.end()) return;
  shares_.Forget(oldest->first, out);
  workers_.erase(oldest);
}

const Worker* Members::Find(WorkerId id) const {
  const auto it = workers_.find(id);
  return it != workers_.end() ? &it->second : nullptr;
}

std::string Members::Name(WorkerId id) const {
  const Worker* w = Find(id);
  return w != nullptr ? w->name : absl::StrFormat("worker number %d", id.value());
}

size_t Members::ready() const {
  return static_cast<size_t>(std::count_if(workers_.begin(), workers_.end(),
                                           [](const auto& entry) { return entry.second.ready(); }));
}

bool Members::AnyReadyWithoutSeat() const {
  return std::any_of(workers_.begin(), workers_.end(), [](const auto& entry) {
    const Worker& w = entry.second;
    return w.ready() && w.seat != w.incarnation;
  });
}

bool Members::AllFinalDigestsIn() const {
  return std::none_of(workers_.begin(), workers_.end(), [](const auto& entry) {
    return entry.second.ready() && !entry.second.final_digest.has_value();
  });
}

std::vector<std::string> Members::WithoutFinalDigest() const {
  std::vector<std::string> names;
  for (const auto& [id, w] : workers_) {
    if (w.ready() && !w.final_digest.has_value()) names.push_back(w.name);
  }
  return names;
}

// ---- an attempt

std::vector<Seat> Members::SeatEverybody(Round round, Actions& out) {
  shares_.Expire(round, out);
  const bool any_member = std::any_of(workers_.begin(), workers_.end(), [](const auto& entry) {
    return entry.second.ready() && entry.second.role == Role::kMember;
  });
  std::vector<Seat> seats;
  seats.reserve(connected_);
  for (auto& [id, w] : workers_) {
    if (!w.ready()) continue;
    // With observers only, somebody has to be waited for.
    if (!any_member) BecomeMember(id, w, "no other member is connected", out);
    const Share share = shares_.Assign(id, out);
    if (!std::exchange(w.admitted, true)) {
      Say(out, NoticeLevel::kInfo,
          absl::StrFormat("%s joins with share %d from round %d on%s", w.name, share.value(),
                          round.value(),
                          w.warm_in == 0 ? ""
                                         : absl::StrFormat("; its ballots of the first %d rounds "
                                                           "warm it up and are not counted",
                                                           w.warm_in)),
          id);
    }
    w.seat = w.incarnation;
    seats.push_back({.worker = id,
                     .incarnation = w.incarnation,
                     .share = share,
                     .role = w.role,
                     .uncounted = w.warm_in > 0});
  }
  return seats;
}

void Members::Unseat() {
  for (auto& [id, w] : workers_) w.seat.reset();
}

Duration Members::Wait(const LocalSteps& local, std::vector<Seat>& seats, Actions& out) {
  std::vector<Pace> paces;
  std::vector<WorkerId> ids;
  for (const Seat& seat : seats) {
    if (!IsCounted(seat)) continue;
    const Worker& w = workers_.at(seat.worker);
    paces.push_back(local.is_vote() ? Pace{w.arrivals.Median(), w.arrivals.FirstMedian()}
                                    : w.local.PaceOf(local));
    ids.push_back(seat.worker);
  }
  Pace overall{rounds_.Median(), rounds_.FirstMedian()};
  DeadlineConfig deadline = deadline_;
  if (!local.is_vote()) {
    overall = local_rounds_.PaceOf(local);
    const int64_t steps = local.steps;
    deadline.initial = local_rounds_.step().has_value()
                           ? deadline_.initial + *local_rounds_.step() * steps
                           : deadline_.initial * steps;
  }
  const WaitPlan plan = PlanWait(deadline, paces, overall);
  for (Seat& seat : seats) {
    if (local.is_vote()) continue;
    // Of who was not seen yet: as all of them together.
    const LocalArrivals& arrivals = workers_.at(seat.worker).local;
    const auto known = [](std::optional<Duration> own, std::optional<Duration> of_all) {
      return own.has_value() ? *own : of_all.value_or(Duration{0});
    };
    const Duration sending =
        local.is_silent() ? Duration{0} : known(arrivals.sending(), local_rounds_.sending());
    seat.steps_until = std::max(kStepsUntilMin,
                                plan.wait - sending - known(arrivals.step(), local_rounds_.step()));
  }
  for (const size_t i : plan.outgrown) {
    Worker& w = workers_.at(ids[i]);
    if (std::exchange(w.growth_noticed, true)) continue;
    Say(out, NoticeLevel::kWarning,
        absl::StrFormat("%s is waited for no longer than %s: its ballots take more than %.4g times "
                        "as long as its first %d (--deadline-growth)",
                        w.name, Seconds(plan.wait), deadline_.growth, ArrivalHistory::kFirstMax));
  }
  return plan.wait;
}

// ---- a commit

void Members::Account(const SeatReport& report, Round round, Actions& out) {
  const WorkerId id = report.seat.worker;
  Worker& w = workers_.at(id);  // who has a seat is never forgotten
  const bool current = w.connected && w.incarnation == report.seat.incarnation;
  if (current && report.arrival.has_value()) {
    w.arrivals.Add(*report.arrival);
    w.arrived_in = round;
  }
  if (current && report.local.has_value()) w.local.Add(*report.local);
  if (current && w.warm_in > 0) --w.warm_in;
  if (report.seat.role == Role::kObserver) {
    if (current && report.given) BecomeMember(id, w, "its ballot came in time", out);
    return;
  }
  if (report.seat.uncounted) return;
  if (report.given) {
    ++w.ballots;
    if (current) w.abstentions_in_a_row = 0;
    return;
  }
  ++w.abstentions;
  ++totals_.abstentions;
  if (current && !w.leaving) Abstained(id, w, report.record, round, out);
}

void Members::Abstained(WorkerId id, Worker& w, const SeatRecord& record, Round round,
                        Actions& out) {
  const std::string part = Part(record, chunks_);
  if (w.abstentions_in_a_row++ == 0 && record.in_time > 0) {
    Say(out, NoticeLevel::kWarning,
        absl::StrFormat("the ballot of %s counts as an abstention in round %d: %s", w.name,
                        round.value(), part),
        id);
  }
  if (w.abstentions_in_a_row < observer_after_) return;
  w.role = Role::kObserver;
  const std::string reason = absl::StrFormat("%d rounds in a row without a ballot in time, last %s",
                                             w.abstentions_in_a_row, part);
  out.push_back(RoleChanged{id, Role::kObserver, reason});
  Say(out, NoticeLevel::kWarning,
      absl::StrFormat("%s is an observer from round %d on: %s", w.name, round.value() + 1, reason),
      id);
}

void Members::BecomeMember(WorkerId id, Worker& w, const std::string& reason, Actions& out) {
  w.role = Role::kMember;
  w.abstentions_in_a_row = 0;
  out.push_back(RoleChanged{id, Role::kMember, reason});
  Say(out, NoticeLevel::kInfo, absl::StrFormat("%s is a member again: %s", w.name, reason), id);
}

void Members::WarmUpAll() {
  for (auto& [id, w] : workers_) w.warm_in = 0;
}

void Members::AddRound(std::vector<Duration> arrivals) {
  if (!arrivals.empty()) rounds_.Add(UpperMedian(std::move(arrivals)));
}

void Members::AddLocalRound(const std::vector<LocalArrivals::Part>& parts) {
  std::vector<Duration> steps, sendings;
  for (const LocalArrivals::Part& part : parts) {
    steps.push_back(part.step);
    if (part.sending.has_value()) sendings.push_back(*part.sending);
  }
  if (steps.empty()) return;
  LocalArrivals::Part middle{.step = UpperMedian(std::move(steps)), .sending = std::nullopt};
  if (!sendings.empty()) middle.sending = UpperMedian(std::move(sendings));
  local_rounds_.Add(middle);
}

void Members::AddLateChunk(Worker& w, Round round, std::optional<Duration> arrival) {
  ++w.late_chunks;
  ++totals_.late_chunks;
  if (!arrival.has_value() || (w.arrived_in.has_value() && round < *w.arrived_in)) return;
  if (w.arrived_in == round) {
    w.arrivals.ReplaceLast(*arrival);
  } else {
    w.arrivals.Add(*arrival);
    w.arrived_in = round;
  }
}

// ---- copies

std::vector<MemberView> Members::View() const {
  std::vector<MemberView> views;
  views.reserve(workers_.size());
  for (const auto& [id, w] : workers_) {
    views.push_back({.worker = id,
                     .name = w.name,
                     .incarnation = w.incarnation,
                     .share = shares_.Find(id).value_or(Share()),
                     .role = w.role,
                     .connected = w.connected,
                     .member_of_open_round = false,
                     .abstentions_in_a_row = w.abstentions_in_a_row,
                     .abstentions = w.abstentions,
                     .ballots = w.ballots,
                     .late_chunks = w.late_chunks,
                     .duplicate_chunks = w.duplicate_chunks,
                     .median_arrival = w.arrivals.Median(),
                     .final_digest = w.final_digest});
  }
  return views;
}

void Members::Save(Round round, EngineState& state) const {
  for (const auto& [id, w] : workers_) {
    state.workers.push_back({.id = id,
                             .name = w.name,
                             .incarnation = w.incarnation,
                             .role = w.role,
                             .evicted = w.evicted,
                             .last_seen = w.connected ? round : w.last_seen,
                             .abstentions_in_a_row = w.abstentions_in_a_row,
                             .abstentions = w.abstentions,
                             .ballots = w.ballots,
                             .late_chunks = w.late_chunks,
                             .duplicate_chunks = w.duplicate_chunks,
                             .arrivals = w.arrivals.State(),
                             .growth_noticed = w.growth_noticed,
                             .local = w.local.State()});
  }
  state.shares = shares_.State(round);
  state.arrivals = rounds_.State();
  state.local = local_rounds_.State();
  state.totals = totals_;
}

}  // namespace signvote::round
