#include "server/run/run_books.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/text.h"
#include "server/stepsize/robust_mean.h"

namespace signvote::run {
namespace {

// Commits whose distance gives the pace of rounds.
constexpr size_t kPaceCommits = 17;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

PagePhase ToPage(round::Phase phase) {
  switch (phase) {
    case round::Phase::kRoundOpen:
    case round::Phase::kCommitting:
      return PagePhase::kRoundOpen;
    case round::Phase::kPaused:
      return PagePhase::kPaused;
    case round::Phase::kFinishing:
      return PagePhase::kFinishing;
    case round::Phase::kEnded:
      return PagePhase::kEnded;
    case round::Phase::kWaitingForRoom:
      return PagePhase::kWaitingForApplier;
    case round::Phase::kBackingOff:
      return PagePhase::kBackingOff;
    case round::Phase::kWaitingForWorkers:
      break;
  }
  return PagePhase::kWaitingForWorkers;
}

}  // namespace

RunBooks::RunBooks(Options options, Moment start)
    : options_(std::move(options)),
      start_(start),
      budget_(RateLimit::Options{}),
      // One worker's are limited; those of many are not, each of which did something.
      paced_({.all = std::nullopt}),
      last_commit_unix_seconds_(start.unix_seconds),
      round_(options_.round) {}

RunBooks::Page* RunBooks::FindPage(WorkerId worker) {
  const auto it = pages_.find(worker);
  return it == pages_.end() ? nullptr : &it->second;
}

const RunBooks::Page* RunBooks::FindPage(WorkerId worker) const {
  const auto it = pages_.find(worker);
  return it == pages_.end() ? nullptr : &it->second;
}

std::string RunBooks::NameOf(WorkerId worker) const {
  const Page* const page = FindPage(worker);
  return page == nullptr ? absl::StrCat("worker ", worker.value()) : page->name;
}

JsonLine RunBooks::EventLine(Moment at, std::string_view kind) const {
  JsonLine line;
  line.Text("kind", kind)
      .Count("round", round_.value())
      .Number("unix_time", at.unix_seconds)
      .Number("seconds", ToSeconds(at.now - start_.now));
  return line;
}

void RunBooks::WriteEvent(const JsonLine& line) {
  if (options_.event_log == nullptr) return;
  (void)options_.event_log->Write(line.Object());  // false: dropped, and the sink counts it
}

bool RunBooks::OnEvent(Moment at, EventKind kind, const About& about) {
  uint64_t held_back = 0;
  if (MadeByPeers(kind) || PacedByRounds(kind)) {
    const std::string_view who = about.who.empty() ? about.worker : about.who;
    RateLimit& budget = MadeByPeers(kind) ? budget_ : paced_;
    const std::optional<uint64_t> told =
        budget.Take(absl::StrCat(std::string(Words(kind)), " ",
                                 std::string(who.substr(0, RunHistory::kTextBytesMax))),
                    at.now);
    if (!told.has_value()) return false;
    held_back = *told;
  }
  Event event;
  event.kind = kind;
  event.round = round_.value();
  event.unix_seconds = at.unix_seconds;
  event.worker = std::string(about.worker);
  event.reason = WithHeldBack(about.reason, held_back);
  const Event& added = history_.Add(std::move(event));
  JsonLine line = EventLine(at, Words(kind));
  if (!added.worker.empty()) line.Text("worker", added.worker);
  if (about.incarnation.has_value()) line.Count("incarnation", about.incarnation->value());
  if (!added.reason.empty()) line.Text("reason", added.reason);
  WriteEvent(line);
  return true;
}

void RunBooks::OnJoined(WorkerId worker, std::string name, Incarnation incarnation,
                        std::string address, std::string metrics_address) {
  Page& page = pages_[worker];
  page.name = std::move(name);
  page.incarnation = incarnation;
  page.address = std::move(address);
  page.metrics_address = std::move(metrics_address);
  page.live = true;
  page.abstaining = false;
  page.abstain_reason.clear();
  page.joined_seconds = kNan;
}

void RunBooks::OnSeated(WorkerId worker, Duration since_join) {
  Page* const page = FindPage(worker);
  if (page != nullptr && std::isnan(page->joined_seconds)) {
    page->joined_seconds = ToSeconds(since_join);
  }
}

void RunBooks::OnGone(WorkerId worker) {
  Page* const page = FindPage(worker);
  if (page == nullptr || !page->live) return;
  page->wire.up_rounds_bytes += std::exchange(page->session_up, 0);
  page->wire.down_rounds_bytes += std::exchange(page->session_down, 0);
  page->live = false;
}

void RunBooks::Forget(WorkerId worker) { pages_.erase(worker); }

void RunBooks::OnAbstain(WorkerId worker, std::string_view reason) {
  if (Page* const page = FindPage(worker)) page->abstain_reason = std::string(reason);
}

void RunBooks::OnHeldOut(WorkerId worker, HeldOut held_out) {
  Page* const page = FindPage(worker);
  if (page == nullptr) return;
  held_out.worker = page->name;
  page->held_out = held_out;
  page->held_out_logged = false;
  if (!held_out.own) history_.AddHeldOut(std::move(held_out));
}

double RunBooks::Clamped(uint64_t micros, double seconds_max) {
  const double seconds = static_cast<double>(micros) * 1e-6;
  if (seconds <= seconds_max) return seconds;
  ++implausible_times_;
  return seconds_max;
}

void RunBooks::NoteTimes(Moment at, const round::CommitRound& commit, const CommitNotes& notes,
                         CommitTimes* out) {
  // What one worker says, whatever it says, moves the mean of several but a little.
  std::vector<double> compute, apply;
  // Nobody computes for longer than the round has been open, or applies for longer than the commit is
  // known.
  const Duration known =
      commit_times_.empty() ? commit.opened_for : at.now - commit_times_.back().committed;
  const double apply_max = std::min(kApplySecondsMax, ToSeconds(known));
  for (const auto& [worker, times] : notes.times) {
    const double compute_seconds = Clamped(times.compute_us, ToSeconds(commit.opened_for));
    const double apply_seconds = Clamped(times.apply_us, apply_max);
    compute.push_back(compute_seconds);
    apply.push_back(apply_seconds);
    if (Page* const page = FindPage(worker)) {
      page->compute_seconds = compute_seconds;
      page->apply_seconds = apply_seconds;
    }
  }
  out->has_voter_times = !compute.empty();
  if (!out->has_voter_times) return;
  out->compute = *RobustMean(compute);
  out->worker_apply = *RobustMean(apply);
  means_.compute.Add(out->compute);
  means_.worker_apply.Add(out->worker_apply);
}

void RunBooks::NoteAbstentions(Moment at, const round::CommitRound& commit,
                               const CommitNotes& notes) {
  for (const round::Seat& seat : notes.seats) {
    if (!round::IsCounted(seat)) continue;
    Page* const page = FindPage(seat.worker);
    if (page == nullptr) continue;
    // Both lists are in order of WorkerId.
    const bool counted =
        std::binary_search(commit.voters.begin(), commit.voters.end(), seat.worker);
    // One that is gone has its own event; one that stays away round after round is told once.
    if (!counted && !page->abstaining && page->live) {
      (void)OnEvent(
          at, EventKind::kAbstained,  // false: held back, and counted
          {.worker = page->name,
           .reason = page->abstain_reason.empty() ? "no ballot in time"
                                                  : std::string_view(page->abstain_reason),
           .incarnation = page->incarnation});
    }
    page->abstaining = !counted;
    page->abstain_reason.clear();
  }
}

void RunBooks::WriteRound(Moment at, const round::CommitRound& commit, const CommitNotes& notes) {
  if (options_.round_log == nullptr) return;
  RoundLogExtras extras;
  std::map<WorkerId, Share> shares;
  for (const round::Seat& seat : notes.seats) {
    shares[seat.worker] = seat.share;
    if (round::IsCounted(seat)) extras.members.push_back(NameOf(seat.worker));
  }
  for (size_t i = 0; i < commit.scalars_from.size() && i < commit.scalars.size(); ++i) {
    const WorkerId worker = commit.scalars_from[i].worker;
    RoundLogExtras::Voter voter;
    voter.name = NameOf(worker);
    if (const auto share = shares.find(worker); share != shares.end()) voter.share = share->second;
    voter.scalars = commit.scalars[i];
    if (const Page* const page = FindPage(worker)) {
      voter.incarnation = page->incarnation.value();
      voter.compute_seconds = page->compute_seconds;
      voter.apply_seconds = page->apply_seconds;
    }
    extras.voters.push_back(std::move(voter));
  }
  for (auto& [worker, page] : pages_) {
    if (!std::exchange(page.held_out_logged, true)) extras.held_out.push_back(*page.held_out);
  }
  for (const WorkerId worker : commit.voters) extras.counted_workers.push_back(NameOf(worker));
  extras.unix_seconds = at.unix_seconds;
  extras.tally_seconds = notes.tally_seconds;
  extras.commit_seconds = notes.commit_seconds;
  extras.payload_hash = notes.payload_hash;
  extras.up_rounds_bytes = total_.up_rounds_bytes;
  extras.down_rounds_bytes = total_.down_rounds_bytes;
  (void)options_.round_log->Write(RoundLine(commit, extras));  // false: dropped, counted there
}

void RunBooks::NoteMinibatches(const round::CommitRound& commit) {
  size_t i = 0;  // both lists are in order of WorkerId
  for (const WorkerId voter : commit.voters) {
    uint64_t taken = commit.local.plan.steps;
    while (i < commit.scalars_from.size() && commit.scalars_from[i].worker < voter) ++i;
    const bool told = i < commit.scalars_from.size() && i < commit.scalars.size() &&
                      commit.scalars_from[i].worker == voter && commit.scalars[i].local_steps > 0;
    if (told) taken = commit.scalars[i].local_steps;
    total_.minibatches += taken;
    if (Page* const page = FindPage(voter)) page->wire.minibatches += taken;
  }
}

void RunBooks::OnCommit(Moment at, const round::CommitRound& commit, const CommitNotes& notes) {
  round_ = commit.round.next();
  NoteAbstentions(at, commit, notes);
  CommitTimes times;
  times.round = ToSeconds(commit.opened_for);
  times.wait = ToSeconds(commit.wait);
  times.tally = notes.tally_seconds;
  times.commit = notes.commit_seconds;
  NoteTimes(at, commit, notes, &times);
  means_.round.Add(times.round);
  means_.wait.Add(times.wait);
  means_.tally.Add(times.tally);
  means_.commit.Add(times.commit);
  for (size_t i = 0; i < commit.scalars_from.size() && i < commit.scalars.size(); ++i) {
    if (Page* const page = FindPage(commit.scalars_from[i].worker))
      page->loss = commit.scalars[i].loss;
  }
  WriteRound(at, commit, notes);
  NoteMinibatches(commit);
  commit_times_.push_back({.committed = at.now, .minibatches = commit.local.plan.steps});
  if (commit_times_.size() > kPaceCommits) commit_times_.pop_front();
  last_commit_unix_seconds_ = at.unix_seconds;
  history_.AddRound(commit.round.value(), commit.loss.value_or(kNan),
                    static_cast<double>(commit.gamma));
  last_commit_ = commit;
  // A round without a verdict has none.
  if (!commit.rule.state.empty()) rule_numbers_ = commit.rule.state;
  if (options_.listener != nullptr) options_.listener->OnCommit(times);
}

void RunBooks::OnStatistics(const OpenVote::Statistics& statistics, const RunPayloads& payloads) {
  const ChunkPlan& plan = payloads.commits.chunk_plan();
  if (statistics.coordinates > 0) {
    tie_ratio_ = static_cast<double>(statistics.ties) / static_cast<double>(statistics.coordinates);
    const uint64_t voted_on = plan.coordinates() - payloads.DenseCoordinates();
    ties_ += static_cast<uint64_t>(std::llround(tie_ratio_ * static_cast<double>(voted_on)));
  }
  for (const OpenVote::Statistics::Worker& worker : statistics.workers) {
    Page* const page = FindPage(worker.worker);
    if (page == nullptr) continue;
    if (worker.coordinates > 0) {
      page->agreement =
          static_cast<double>(worker.agreeing) / static_cast<double>(worker.coordinates);
    }
    if (worker.chunks != plan.chunks()) continue;
    const WireTotals whole{.fp32_equivalent_bytes = 4 * plan.coordinates(), .ballots = 1};
    page->wire += whole;
    total_ += whole;
  }
}

void RunBooks::OnApplied(Moment at, const AppliedNote& applied) {
  means_.apply.Add(applied.seconds);
  if (options_.listener != nullptr) options_.listener->OnApplied(applied.seconds);
  if (!applied.digest.has_value()) return;
  master_.digest = *applied.digest;
  master_.round = applied.next_round;
  WriteEvent(EventLine(at, "digest")
                 .Text("worker", "")
                 .Count("digest_round", applied.next_round.value())
                 .Text("digest", absl::StrFormat("%016x", *applied.digest)));
}

void RunBooks::OnDigest(Moment at, WorkerId worker, Round round, uint64_t digest) {
  WriteEvent(EventLine(at, "digest")
                 .Text("worker", NameOf(worker))
                 .Count("digest_round", round.value())
                 .Text("digest", absl::StrFormat("%016x", digest)));
}

void RunBooks::SetSessionBytes(WorkerId worker, uint64_t up, uint64_t down) {
  Page* const page = FindPage(worker);
  if (page == nullptr || !page->live) return;
  // A counter never falls; one that cannot be read any more keeps its last value.
  const uint64_t more_up = up > page->session_up ? up - page->session_up : 0;
  const uint64_t more_down = down > page->session_down ? down - page->session_down : 0;
  page->session_up += more_up;
  page->session_down += more_down;
  total_.up_rounds_bytes += more_up;
  total_.down_rounds_bytes += more_down;
}

void RunBooks::AddSetupBytes(std::optional<WorkerId> worker, uint64_t up, uint64_t down) {
  const WireTotals more{.up_setup_bytes = up, .down_setup_bytes = down};
  total_ += more;
  Page* const page = worker.has_value() ? FindPage(*worker) : nullptr;
  if (page != nullptr) page->wire += more;
}

WireTotals RunBooks::BytesOf(WorkerId worker) const {
  const Page* const page = FindPage(worker);
  if (page == nullptr) return {};
  WireTotals out = page->wire;
  out.up_rounds_bytes += page->session_up;
  out.down_rounds_bytes += page->session_down;
  return out;
}

Health RunBooks::HealthNow(const LiveFacts& facts) const {
  Health out;
  if (facts.ended) {
    out.not_ready_because = "the run has ended";
  } else if (!facts.journal.ok()) {
    out.not_ready_because =
        absl::StrCat("the journal cannot be written: ", facts.journal.message());
  } else if (!facts.complete) {
    out.not_ready_because =
        facts.layout_known ? "waiting for the initial parameters" : "waiting for the first worker";
  } else {
    out.not_ready_because = facts.waits_for;
  }
  out.ready = out.not_ready_because.empty();
  out.round = round_;
  out.applier_lag = facts.applier_lag;
  out.last_commit_unix_seconds = last_commit_unix_seconds_;
  return out;
}

double RunBooks::SecondsLeft(const StatusPage& page) const {
  if (page.main_rounds < page.main_round || page.main_rounds == 0) return kNan;
  const double of_race = page.round_seconds * static_cast<double>(page.race.rounds_left());
  if (!options_.local_steps.on())
    return page.round_seconds * static_cast<double>(page.main_rounds - page.main_round) + of_race;
  // Rounds differ in length, and minibatches do not.
  uint64_t minibatches = 0;
  for (size_t i = 1; i < commit_times_.size(); ++i) minibatches += commit_times_[i].minibatches;
  const double seconds = page.round_seconds * static_cast<double>(commit_times_.size() - 1);
  const uint64_t left = page.minibatches_planned - options_.local_steps.Before(page.main_round);
  return seconds / static_cast<double>(minibatches) * static_cast<double>(left) + of_race;
}

StatusPage RunBooks::Snapshot(Moment at, const Roster& roster, const LiveFacts& facts) const {
  StatusPage out;
  out.run_id = options_.run_id;
  out.rule = options_.rule;
  out.direction = options_.direction;
  out.epoch = options_.epoch;
  out.main_rounds = options_.main_rounds;
  out.minibatches_planned =
      options_.local_steps.on() ? options_.local_steps.minibatches() : options_.main_rounds;
  out.workers_min = options_.workers_min;
  out.round = round_;
  out.coordinates = facts.coordinates;
  out.layout_digest = facts.layout_digest;
  out.uptime_seconds = ToSeconds(at.now - start_.now);
  if (last_commit_.has_value()) {
    out.main_round = last_commit_->main_rounds;
    out.minibatches = last_commit_->local.minibatches;
    out.stepsize = static_cast<double>(last_commit_->gamma);
    out.rho = static_cast<double>(last_commit_->rho);
    out.stepsize_warning = last_commit_->rule.warning;
    out.rule_numbers = rule_numbers_;
    out.race = last_commit_->rule.race;
    out.loss = last_commit_->loss.value_or(kNan);
    out.g_l1 = last_commit_->gradient.l1.value_or(kNan);
    out.density = last_commit_->gradient.density.value_or(kNan);
  }
  std::map<WorkerId, const round::MemberView*> members;
  if (facts.engine != nullptr) {
    const round::EngineView& view = *facts.engine;
    out.phase = ToPage(view.phase);
    out.attempt = view.attempt;
    out.main_round = view.main_rounds;
    out.minibatches = view.minibatches;
    out.race = view.race;
    out.joins = view.totals.joins;
    out.losses = view.totals.losses;
    out.abstentions = view.totals.abstentions;
    out.late_chunks = view.totals.late_chunks;
    out.duplicate_chunks = view.totals.duplicate_chunks;
    out.attempts_reopened = view.totals.attempts_reopened;
    out.stale_messages = view.totals.stale_messages;
    out.scalars_refused = view.totals.scalars_refused;
    out.digest_mismatches = view.totals.digest_mismatches;
    for (const round::MemberView& member : view.workers) members[member.worker] = &member;
  } else if (facts.paused) {
    out.phase = PagePhase::kPaused;
  }
  if (facts.ended) out.phase = PagePhase::kEnded;
  if (commit_times_.size() > 1) {
    out.round_seconds =
        ToSeconds(commit_times_.back().committed - commit_times_.front().committed) /
        static_cast<double>(commit_times_.size() - 1);
    out.seconds_left = SecondsLeft(out);
  } else if (means_.round.count() > 0) {
    out.round_seconds = means_.round.value();
  }
  out.split = {.compute = means_.compute.value(),
               .wait = means_.wait.value(),
               .tally = means_.tally.value(),
               .commit = means_.commit.value(),
               .apply = means_.apply.value(),
               .worker_apply = means_.worker_apply.value(),
               .round = means_.round.value()};
  out.wire = total_;
  if (total_.minibatches > 0 && out.coordinates > 0) {
    const double numbers =
        static_cast<double>(total_.minibatches) * static_cast<double>(out.coordinates);
    out.up_bits = 8 * static_cast<double>(total_.up_rounds_bytes) / numbers;
    out.down_bits = 8 * static_cast<double>(total_.down_rounds_bytes) / numbers;
  }
  for (const auto& [id, known] : roster.workers()) {
    const auto member = members.find(id);
    // Names that the engine has forgotten are shown only while connected.
    if (member == members.end() && !known->live.has_value()) continue;
    WorkerPage worker;
    worker.name = known->name;
    worker.incarnation = known->incarnation;
    worker.connected = known->live.has_value();
    if (const Page* const page = FindPage(id)) {
      worker.address = page->address;
      worker.metrics_address = page->metrics_address;
      worker.agreement = page->agreement;
      worker.loss = page->loss;
      worker.joined_seconds = page->joined_seconds;
      worker.wire = BytesOf(id);
      worker.held_out = page->held_out;
    }
    if (member != members.end()) {
      const round::MemberView& view = *member->second;
      worker.share = view.share;
      // One that came back and still fetches the state has its old role only by name.
      const bool takes_part = view.connected && view.incarnation == known->incarnation;
      worker.member = view.role == round::Role::kMember && (!worker.connected || takes_part);
      worker.ballots = view.ballots;
      worker.abstentions = view.abstentions;
      worker.late_chunks = view.late_chunks;
      worker.duplicate_chunks = view.duplicate_chunks;
      if (view.median_arrival.has_value()) {
        worker.arrival_seconds = ToSeconds(*view.median_arrival);
      }
      worker.final_digest = view.final_digest;
    }
    out.workers.push_back(std::move(worker));
  }
  out.master_digest = master_.digest;
  out.master_digest_round = master_.round;
  out.ahead = ahead_;
  out.refusals = refusals_;
  out.ties = ties_;
  out.tie_ratio = tie_ratio_;
  out.implausible_times = implausible_times_;
  if (!history_.held_out().empty()) out.held_out = history_.held_out().back();
  if (facts.evaluator.has_value()) out.evaluator = NameOf(*facts.evaluator);
  out.events_held_back = budget_.held_back() + paced_.held_back();
  for (const LineSink* const sink : {options_.round_log, options_.event_log}) {
    if (sink != nullptr) out.log_lines_dropped += sink->dropped();
  }
  out.health = HealthNow(facts);
  return out;
}

bool RunBooks::Watch(uint64_t events_after, Duration wait, Time now, WatchDone&& done) {
  if (wait <= Duration::zero() || watchers_.size() >= kWatchersMax) return false;
  watchers_.push_back({.events_after = events_after,
                       .due = now + std::min(wait, kWatchMax),
                       .done = std::move(done)});
  return true;
}

std::optional<Time> RunBooks::NextWatcher() const {
  std::optional<Time> next;
  for (const Watcher& watcher : watchers_) {
    next = next.has_value() ? std::min(*next, watcher.due) : watcher.due;
  }
  return next;
}

void RunBooks::AnswerWatchers(Time due, const std::function<StatusPage()>& status) {
  const auto late = std::stable_partition(watchers_.begin(), watchers_.end(),
                                          [due](const Watcher& w) { return w.due > due; });
  if (late == watchers_.end()) return;
  // An answer may make its receiver watch again: that one waits for its own time.
  std::vector<Watcher> answered(std::make_move_iterator(late),
                                std::make_move_iterator(watchers_.end()));
  watchers_.erase(late, watchers_.end());
  const StatusPage page = status();
  for (Watcher& watcher : answered) watcher.done(View(watcher.events_after, page));
}

WatchView RunBooks::View(uint64_t events_after, StatusPage status) const {
  WatchView view;
  view.status = std::move(status);
  view.events = history_.EventsAfter(events_after);
  if (history_.has_rounds()) view.series = history_.Series();
  view.held_out = history_.held_out();
  return view;
}

void RunBooks::RefuseWatchers(const absl::Status& status) {
  std::vector<Watcher> refused = std::exchange(watchers_, {});
  for (Watcher& watcher : refused) watcher.done(status);
}

}  // namespace signvote::run
