#include "server/round/engine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "server/round/arrivals.h"
#include "server/round/attempt.h"
#include "server/round/digest_board.h"
#include "server/round/shares.h"

namespace signvote::round {
namespace {

// Norms are never negative and nothing is NaN or infinite, whoever sent it.
bool Plausible(const WorkerScalars& s) {
  const auto norm = [](double v) { return std::isfinite(v) && v >= 0; };
  return std::isfinite(s.loss) && norm(s.g_l1) && norm(s.g_l2_squared) &&
         norm(s.probe_l1.value_or(0)) && std::isfinite(s.prev_inner.value_or(0));
}

std::string Seconds(Duration d) { return absl::StrFormat("%.4g s", ToSeconds(d)); }

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineConfig config, std::unique_ptr<StepsizeRule> rule, Time now)
      : config_(std::move(config)),
        rule_(std::move(rule)),
        shares_(config_.share_hold_rounds),
        now_(now),
        waiting_since_(now) {}

  Actions Step(Time now, const Event& event) override {
    if (phase_ == Phase::kEnded) return {};
    now_ = std::max(now_, now);
    std::visit([this](const auto& e) { On(e); }, event);
    return std::exchange(out_, {});
  }

  std::optional<Time> NextTick() const override {
    switch (phase_) {
      case Phase::kWaitingForWorkers:
        return waiting_since_ + config_.wait_timeout;
      case Phase::kRoundOpen: {
        Time next = open_->opened + config_.wait_timeout;
        if (open_->deadline.has_value() && !open_->deadline_passed)
          next = std::min(next, *open_->deadline);
        if (open_->AllClosed()) next = std::min(next, ScalarsUntil());
        if (stop_until_.has_value()) next = std::min(next, *stop_until_);
        return next;
      }
      case Phase::kFinishing:
        return finish_until_;
      case Phase::kPaused:
      case Phase::kEnded:
        break;
    }
    return std::nullopt;
  }

  EngineView View(Time now) const override {
    EngineView view = totals_;
    view.phase = phase_;
    view.round = round_;
    view.attempt = attempt_;
    if (open_.has_value() && open_->deadline.has_value()) {
      view.deadline_left = std::max(Duration{0}, *open_->deadline - now);
    }
    for (const auto& [id, w] : workers_) {
      MemberView member{.worker = id,
                        .name = w.name,
                        .incarnation = w.incarnation,
                        .share = shares_.Find(id).value_or(Share()),
                        .role = w.role,
                        .connected = w.connected,
                        .abstentions_in_a_row = w.abstentions_in_a_row,
                        .abstentions = w.abstentions,
                        .ballots = w.ballots,
                        .late_chunks = w.late_chunks,
                        .duplicate_chunks = w.duplicate_chunks,
                        .median_arrival = w.arrivals.Median(),
                        .final_digest = w.final_digest};
      if (open_.has_value()) {
        for (const SeatState& seat : open_->seats) {
          if (seat.seat.worker == id) member.member_of_open_round = seat.member() && seat.live;
        }
      }
      view.workers.push_back(std::move(member));
    }
    return view;
  }

 private:
  // ---- workers come and go

  void On(const WorkerReady& e) {
    auto it = workers_.find(e.worker);
    if (it == workers_.end()) {
      size_t connected = 0;
      for (const auto& [id, w] : workers_) connected += w.connected ? 1 : 0;
      if (connected >= config_.workers_max) {
        out_.push_back(Disconnect{e.worker, e.incarnation,
                                  absl::ResourceExhaustedError(absl::StrFormat(
                                      "the run is full: %d workers are connected, which is the "
                                      "limit (--workers-max)",
                                      connected))});
        return;
      }
      if (workers_.size() >= config_.workers_max) ForgetSomebody();
      it = workers_.emplace(e.worker, Worker{}).first;
    } else if (it->second.barred) {
      out_.push_back(Disconnect{e.worker, e.incarnation, Evicted(it->second)});
      return;
    } else if (e.incarnation <= it->second.incarnation) {
      ++totals_.stale_messages;
      return;
    }
    Worker& w = it->second;
    if (w.connected) MarkGone(e.worker, w);
    w.name = e.name;
    w.incarnation = e.incarnation;
    w.connected = true;
    w.leaving = false;
    w.seated = false;
    w.role = Role::kMember;
    w.abstentions_in_a_row = 0;
    w.final_digest.reset();
    ++totals_.joins;
    if (phase_ == Phase::kWaitingForWorkers) {
      TryOpen();
    } else {
      Progress();  // the older incarnation may have been the last one that was waited for
    }
  }

  void On(const WorkerLost& e) {
    Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    MarkGone(e.worker, *w);
    Progress();
  }

  void On(const WorkerLeaves& e) {
    Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr || w->leaving) return;
    w->leaving = true;
    digests_.Forget(e.worker);
    if (SeatState* seat = FindSeat(e.worker, e.incarnation)) seat->live = false;
    Note(NoticeLevel::kInfo, absl::StrFormat("%s leaves in round %d", w->name, round_.value()));
    Progress();
  }

  void On(const DrainRequested& e) {
    const auto it = workers_.find(e.worker);
    if (it == workers_.end() || !it->second.connected) {
      Note(NoticeLevel::kWarning,
           absl::StrFormat("cannot drain worker number %d: it is not connected", e.worker.value()));
      return;
    }
    out_.push_back(AskToDrain{e.worker, it->second.incarnation});
  }

  void On(const EvictRequested& e) {
    const auto it = workers_.find(e.worker);
    if (it == workers_.end()) return;  // not ready yet, or long gone: the caller keeps it out
    Worker& w = it->second;
    if (w.barred) return;
    w.barred = true;
    Note(NoticeLevel::kInfo, absl::StrFormat("%s is evicted for the rest of the run", w.name));
    if (w.connected) {
      out_.push_back(Disconnect{e.worker, w.incarnation, Evicted(w)});
      MarkGone(e.worker, w);
    }
    shares_.Forget(e.worker);
    Progress();
  }

  static absl::Status Evicted(const Worker& w) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "worker '%s' was evicted by the operator for the rest of this run", w.name));
  }

  // The worker if this is its current, connected incarnation; else counts a stale message.
  Worker* Live(WorkerId id, Incarnation incarnation) {
    const auto it = workers_.find(id);
    if (it == workers_.end() || !it->second.connected || it->second.incarnation != incarnation) {
      ++totals_.stale_messages;
      return nullptr;
    }
    return &it->second;
  }

  void MarkGone(WorkerId id, Worker& w) {
    const bool answered_the_end = phase_ == Phase::kFinishing && w.final_digest.has_value();
    if (!w.leaving && !w.barred && !answered_the_end) {
      ++totals_.losses;
      Note(NoticeLevel::kWarning, absl::StrFormat("lost %s in round %d", w.name, round_.value()));
    }
    w.connected = false;
    w.lost_in = round_;
    shares_.Reserve(id, round_);
    digests_.Forget(id);
    if (SeatState* seat = FindSeat(id, w.incarnation)) seat->live = false;
  }

  // Drops the disconnected worker that has been away for longest. Who has a seat in the open
  // attempt stays until it closes, and who is evicted stays: neither keeps a newcomer out.
  void ForgetSomebody() {
    auto oldest = workers_.end();
    for (auto it = workers_.begin(); it != workers_.end(); ++it) {
      const Worker& w = it->second;
      if (w.connected || w.barred || SeatOf(it->first) != nullptr) continue;
      if (oldest == workers_.end() || w.lost_in < oldest->second.lost_in) oldest = it;
    }
    if (oldest == workers_.end()) return;
    shares_.Forget(oldest->first);
    workers_.erase(oldest);
  }

  // ---- ballots

  void On(const BallotChunkIn& e) {
    Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    if (e.round < round_) {
      ++w->late_chunks;
      ++totals_.late_chunks;
      return;
    }
    SeatState* seat = SeatFor(e);
    if (seat == nullptr || e.chunk.value() >= config_.chunks || seat->ballot.abstained) {
      ++totals_.stale_messages;
      return;
    }
    Ballot& ballot = seat->ballot;
    if (ballot.in[e.chunk.value()]) {
      ++w->duplicate_chunks;
      ++totals_.duplicate_chunks;
      return;
    }
    ballot.in[e.chunk.value()] = true;
    ++ballot.in_count;
    if (seat->member() && open_->closed[e.chunk.value()]) {
      ++w->late_chunks;
      ++totals_.late_chunks;
    }
    if (seat->complete(config_.chunks)) {
      // In a later attempt survivors only resend what they have: that says nothing about how long a
      // ballot takes.
      if (attempt_ == Attempt(0)) {
        const Duration arrival = now_ - open_->opened;
        w->arrivals.Add(arrival);
        if (seat->member()) overall_arrivals_.Add(arrival);
      }
      if (seat->member() && !open_->first_complete.has_value()) open_->first_complete = now_;
    }
    if (seat->member()) Progress();
  }

  void On(const ScalarsIn& e) {
    Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    SeatState* seat = SeatFor(e);
    if (seat == nullptr || seat->ballot.scalars_answered) {
      ++totals_.stale_messages;
      return;
    }
    seat->ballot.scalars_answered = true;
    if (Plausible(e.scalars)) {
      seat->ballot.scalars = e.scalars;
      w->scalars_refused = false;
    } else {
      ++totals_.scalars_refused;
      if (!std::exchange(w->scalars_refused, true)) {
        Note(NoticeLevel::kWarning,
             absl::StrFormat(
                 "%s sent scalars that are not finite in round %d: left out of the stepsize",
                 w->name, round_.value()));
      }
    }
    Progress();
  }

  void On(const AbstainIn& e) {
    const Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    SeatState* seat = SeatFor(e);
    if (seat == nullptr || seat->complete(config_.chunks) || seat->ballot.abstained) {
      ++totals_.stale_messages;
      return;
    }
    seat->ballot.abstained = true;
    seat->ballot.reason = e.reason;
    if (seat->member() && w->abstentions_in_a_row == 0) {
      Note(NoticeLevel::kWarning, absl::StrFormat("%s abstains in round %d: %s", w->name,
                                                  round_.value(), Words(e.reason)));
    }
    Progress();
  }

  SeatState* SeatOf(WorkerId id) { return open_.has_value() ? open_->Find(id) : nullptr; }
  SeatState* FindSeat(WorkerId id, Incarnation incarnation) {
    SeatState* seat = SeatOf(id);
    return seat != nullptr && seat->seat.incarnation == incarnation ? seat : nullptr;
  }
  // The seat that this message speaks for in the open attempt.
  template <typename Message>
  SeatState* SeatFor(const Message& e) {
    if (e.round != round_ || e.attempt != attempt_) return nullptr;
    return FindSeat(e.worker, e.incarnation);
  }

  // ---- one attempt: from its opening to its commit

  void TryOpen() {
    if (stopping_) return End(Stopped());
    if (paused_) {
      phase_ = Phase::kPaused;
      return;
    }
    size_t ready = 0;
    for (const auto& [id, w] : workers_) ready += w.ready() ? 1 : 0;
    const bool first = round_ == Round(0) && attempt_ == Attempt(0);
    const size_t wanted = first ? config_.workers_min : 1;
    if (ready >= wanted) return Open();
    if (phase_ != Phase::kWaitingForWorkers) {
      phase_ = Phase::kWaitingForWorkers;
      waiting_since_ = now_;
      Note(NoticeLevel::kWarning,
           absl::StrFormat("round %d waits for workers: none is connected", round_.value()));
    }
  }

  void Open() {
    const bool any_member = std::any_of(workers_.begin(), workers_.end(), [](const auto& entry) {
      return entry.second.ready() && entry.second.role == Role::kMember;
    });
    OpenAttempt open;
    open.round = round_;
    open.attempt = attempt_;
    open.opened = now_;
    open.probe = rule_->WantsProbe(round_);
    open.closed.assign(config_.chunks, false);
    open.counted.assign(config_.chunks, 0);
    std::vector<std::optional<Duration>> medians;
    for (auto& [id, w] : workers_) {
      if (!w.ready()) continue;
      // With observers only, somebody has to be waited for.
      if (!any_member) BecomeMember(id, w, "no other member is connected");
      const Share share = shares_.Assign(id, round_);
      if (!w.seated) {
        w.seated = true;
        Note(NoticeLevel::kInfo, absl::StrFormat("%s joins with share %d from round %d on", w.name,
                                                 share.value(), round_.value()));
      }
      SeatState seat{.seat = {id, w.incarnation, share, w.role}, .live = true, .ballot = {}};
      seat.ballot.in.assign(config_.chunks, false);
      open.seats.push_back(std::move(seat));
      if (w.role == Role::kMember) {
        ++open.members;
        medians.push_back(w.arrivals.Median());
      }
    }
    open.quorum =
        config_.quorum == 0 ? (open.members + 1) / 2 : std::min(config_.quorum, open.members);

    OpenRound action{.round = round_,
                     .attempt = attempt_,
                     .data_step = DataStep(round_.value()),
                     .probe = open.probe,
                     .quorum = open.quorum,
                     .deadline = std::nullopt,
                     .seats = {}};
    if (config_.deadline.enabled) {
      action.deadline = AttemptWait(config_.deadline, medians, overall_arrivals_.Median());
      open.deadline = now_ + *action.deadline;
    }
    for (const SeatState& seat : open.seats) action.seats.push_back(seat.seat);
    if (!first_opened_.has_value()) first_opened_ = now_;
    open_ = std::move(open);
    phase_ = Phase::kRoundOpen;
    out_.push_back(std::move(action));
  }

  // Closes what can be closed, commits what can be committed, and reopens what never can be; after
  // every event.
  void Progress() {
    CheckDigests();
    if (phase_ == Phase::kFinishing) return CheckFinished();
    if (phase_ != Phase::kRoundOpen) return;
    if (!open_->AllClosed()) {
      uint32_t live = 0;
      uint32_t gone_but_answered = 0;
      for (const SeatState& seat : open_->seats) {
        if (!seat.member()) continue;
        if (seat.live) {
          ++live;
        } else if (seat.complete(config_.chunks) || seat.ballot.abstained) {
          ++gone_but_answered;
        }
      }
      if (live + gone_but_answered < open_->quorum) return Reopen(live);
      for (uint32_t k = 0; k < config_.chunks; ++k) {
        if (open_->closed[k]) continue;
        uint32_t ballots = 0;
        uint32_t answered = 0;
        bool all_answered = true;
        for (const SeatState& seat : open_->seats) {
          if (!seat.member()) continue;
          const bool voted = seat.ballot.in[k];
          ballots += voted ? 1 : 0;
          answered += voted || seat.ballot.abstained ? 1 : 0;
          if (seat.live && !voted && !seat.ballot.abstained) all_answered = false;
        }
        if (ballots == 0) {
          if (!all_answered) continue;
          return live > 0 ? End(Diverged()) : Reopen(live);
        }
        if (all_answered || (open_->deadline_passed && answered >= open_->quorum))
          out_.push_back(open_->Close(ChunkIndex(k), now_));
      }
    }
    if (open_->AllClosed() && ScalarsSettled()) Commit();
  }

  // Scalars follow the last chunk: when a ballot is completed after the deadline, they still get
  // the shortest grace.
  Time ScalarsUntil() const {
    if (!open_->deadline.has_value()) return open_->opened + config_.wait_timeout;
    return std::max(*open_->deadline, open_->last_closed + config_.deadline.grace_floor);
  }

  bool ScalarsSettled() const {
    if (now_ >= ScalarsUntil()) return true;
    const bool overrun = open_->deadline.has_value() && now_ >= *open_->deadline;
    return std::none_of(open_->seats.begin(), open_->seats.end(), [&](const SeatState& seat) {
      return seat.live && seat.ballot.counted > 0 && !seat.ballot.scalars_answered &&
             !seat.ballot.abstained && (!overrun || seat.complete(config_.chunks));
    });
  }

  void Reopen(uint32_t live) {
    if (stopping_) return End(Stopped());
    Note(NoticeLevel::kWarning,
         absl::StrFormat(
             "round %d opens again as attempt %d: %d of %d members are left, the quorum is %d",
             round_.value(), attempt_.value() + 1, live, open_->members, open_->quorum));
    ++attempt_;
    ++totals_.attempts_reopened;
    open_.reset();
    // A pause lets the open round complete, in whatever attempt.
    const bool paused = std::exchange(paused_, false);
    TryOpen();
    paused_ = paused;
    if (paused_ && phase_ == Phase::kWaitingForWorkers) phase_ = Phase::kPaused;
  }

  void Commit() {
    CommitRound commit = open_->Summary(config_.coordinates);
    commit.opened_for = now_ - *first_opened_;
    commit.wait = now_ - open_->first_complete.value_or(now_);
    std::vector<WorkerScalars> workers;
    for (const auto& [id, scalars] : commit.scalars) workers.push_back(scalars);
    commit.stepsize = rule_->Decide({.round = round_,
                                     .rounds_max = config_.rounds_max,
                                     .x0_max_abs = config_.x0_max_abs,
                                     .step_scale_max = config_.step_scale_max,
                                     .workers = workers});
    const uint64_t committed = round_.value() + 1;
    const bool last = committed == config_.rounds_max;
    commit.digest_due = last || (config_.digest_every > 0 && committed % config_.digest_every == 0);
    if (commit.digest_due) ExpectDigests(Round(committed));
    out_.push_back(std::move(commit));

    const OpenAttempt closed = *std::exchange(open_, std::nullopt);
    for (const SeatState& seat : closed.seats) Account(seat);
    ++round_;
    attempt_ = Attempt(0);
    first_opened_.reset();
    if (last) return Finish();
    TryOpen();
  }

  // The record of one seat in the round that was just committed, and the role that follows from it.
  void Account(const SeatState& seat) {
    Worker& w = workers_.at(seat.seat.worker);  // a seated worker is never forgotten
    const bool current = w.connected && w.incarnation == seat.seat.incarnation;
    if (!seat.member()) {
      if (current && seat.complete(config_.chunks)) {
        BecomeMember(seat.seat.worker, w, "its ballot came in time");
      }
      return;
    }
    if (seat.ballot.counted > 0) {
      ++w.ballots;
      if (current) w.abstentions_in_a_row = 0;
      return;
    }
    ++w.abstentions;
    ++totals_.abstentions;
    if (!current || w.leaving) return;
    ++w.abstentions_in_a_row;
    if (w.abstentions_in_a_row < config_.observer_after) return;
    w.role = Role::kObserver;
    const std::string reason =
        absl::StrFormat("%d rounds in a row without a counted ballot", w.abstentions_in_a_row);
    out_.push_back(ChangeRole{seat.seat.worker, Role::kObserver, reason});
    Note(NoticeLevel::kWarning, absl::StrFormat("%s is an observer from round %d on: %s", w.name,
                                                round_.value() + 1, reason));
  }

  void BecomeMember(WorkerId id, Worker& w, const std::string& reason) {
    w.role = Role::kMember;
    w.abstentions_in_a_row = 0;
    out_.push_back(ChangeRole{id, Role::kMember, reason});
    Note(NoticeLevel::kInfo, absl::StrFormat("%s is a member again: %s", w.name, reason));
  }

  absl::Status Diverged() const {
    std::vector<std::string> who;
    for (const SeatState& seat : open_->seats) {
      if (seat.member() && seat.ballot.abstained) {
        who.push_back(
            absl::StrFormat("%s (%s)", Name(seat.seat.worker), Words(seat.ballot.reason)));
      }
    }
    return absl::AbortedError(
        absl::StrFormat("diverged in round %d: every live worker abstained: %s", round_.value(),
                        absl::StrJoin(who, ", ")));
  }

  // ---- time

  void On(const Tick&) {
    if (phase_ == Phase::kWaitingForWorkers && now_ >= waiting_since_ + config_.wait_timeout) {
      return End(absl::DeadlineExceededError(absl::StrFormat(
          "waited %s for workers in round %d", Seconds(config_.wait_timeout), round_.value())));
    }
    if (phase_ == Phase::kFinishing) return CheckFinished();
    if (phase_ != Phase::kRoundOpen) return;

    const bool wait_is_over = now_ >= open_->opened + config_.wait_timeout;
    const bool deadline_is_over = open_->deadline.has_value() && now_ >= *open_->deadline;
    const bool stop_is_over = stop_until_.has_value() && now_ >= *stop_until_;
    if (wait_is_over || deadline_is_over || stop_is_over) open_->deadline_passed = true;
    const Round round = round_;
    Progress();
    if (phase_ != Phase::kRoundOpen || round_ != round || open_->AllClosed()) return;
    if (stop_is_over) return End(Stopped());
    if (wait_is_over) {
      return End(absl::DeadlineExceededError(absl::StrFormat(
          "waited %s for ballots in round %d; silent: %s", Seconds(config_.wait_timeout),
          round_.value(), absl::StrJoin(Silent(), ", "))));
    }
    if (deadline_is_over && !std::exchange(open_->silence_noticed, true)) {
      Note(NoticeLevel::kWarning,
           absl::StrFormat(
               "round %d waits past its deadline: the quorum is %d of %d members; silent: %s",
               round_.value(), open_->quorum, open_->members, absl::StrJoin(Silent(), ", ")));
    }
  }

  std::vector<std::string> Silent() const {
    std::vector<std::string> names;
    for (const SeatState& seat : open_->seats) {
      if (seat.member() && seat.live && !seat.ballot.abstained && !seat.complete(config_.chunks)) {
        names.push_back(Name(seat.seat.worker));
      }
    }
    return names;
  }

  void On(const PauseRequested&) {
    if (std::exchange(paused_, true)) return;
    Note(NoticeLevel::kInfo,
         absl::StrFormat("paused by the operator after round %d", round_.value()));
    if (phase_ == Phase::kWaitingForWorkers) phase_ = Phase::kPaused;
  }

  void On(const ResumeRequested&) {
    if (!std::exchange(paused_, false)) return;
    Note(NoticeLevel::kInfo, "resumed by the operator");
    if (phase_ != Phase::kPaused) return;
    phase_ = Phase::kWaitingForWorkers;
    waiting_since_ = now_;
    TryOpen();
  }

  void On(const StopRequestedEvent&) {
    if (std::exchange(stopping_, true)) return;
    Note(NoticeLevel::kInfo, absl::StrFormat("stopping in round %d", round_.value()));
    if (phase_ == Phase::kFinishing)
      return;  // every round is committed; the linger time bounds what is left
    if (phase_ != Phase::kRoundOpen) return End(Stopped());
    stop_until_ = open_->deadline.value_or(now_ + config_.deadline.initial);
    if (now_ >= *stop_until_) End(Stopped());
  }

  absl::Status Stopped() const {
    return absl::CancelledError(
        absl::StrFormat("stopped by the operator after %d rounds", round_.value()));
  }

  // ---- digests and the end

  void On(const WorkerDigestIn& e) {
    Worker* w = Live(e.worker, e.incarnation);
    if (w == nullptr) return;
    if (e.round > round_ || !digests_.AddWorker(e.round, e.worker, e.digest)) {
      // A returned worker may repeat its last answer; it counts as one that has answered.
      if (phase_ != Phase::kFinishing || e.round != round_) {
        ++totals_.stale_messages;
        return;
      }
    }
    if (e.round.value() == config_.rounds_max) w->final_digest = e.digest;
    Progress();
  }

  void On(const MasterDigestIn& e) {
    if (e.round > round_) return;
    digests_.AddMaster(e.round, e.digest);
    Progress();
  }

  void ExpectDigests(Round round) {
    std::vector<WorkerId> expected;
    for (const SeatState& seat : open_->seats) {
      if (seat.live) expected.push_back(seat.seat.worker);
    }
    digests_.Expect(round, expected);
  }

  bool IsFinal(Round round) const { return round.value() == config_.rounds_max; }

  // Digests of rounds before the last: a worker that differs fetches the state again.
  void CheckDigests() {
    for (const Round round : digests_.Rounds()) {
      if (IsFinal(round)) continue;
      const DigestFinding finding = digests_.Check(round, /*final=*/false);
      if (!finding.majority_against_master.empty())
        return End(Damaged(round, finding.majority_against_master));
      for (const WorkerId id : finding.differing) {
        ++totals_.digest_mismatches;
        const auto it = workers_.find(id);
        if (it == workers_.end()) continue;
        Note(NoticeLevel::kWarning, absl::StrFormat("the replica of %s differs after round %d",
                                                    it->second.name, round.value()));
        if (it->second.connected) out_.push_back(Resync{id, it->second.incarnation, round});
      }
    }
  }

  absl::Status Damaged(Round round, const std::vector<WorkerId>& majority) {
    totals_.digest_mismatches += majority.size();
    std::vector<std::string> names;
    for (const WorkerId id : majority) names.push_back(Name(id));
    return absl::DataLossError(absl::StrFormat(
        "most workers agree with each other against the server's replica after %d rounds: %s",
        round.value(), absl::StrJoin(names, ", ")));
  }

  void Finish() {
    phase_ = Phase::kFinishing;
    finish_until_ = now_ + config_.linger;
    out_.push_back(FinishRun{round_});
    CheckFinished();
  }

  void CheckFinished() {
    std::vector<std::string> silent;
    for (const auto& [id, w] : workers_) {
      if (w.ready() && !w.final_digest.has_value()) silent.push_back(w.name);
    }
    if (!digests_.HasMaster(round_)) silent.push_back("the server itself");
    if (!silent.empty() && now_ < finish_until_) return;
    if (!silent.empty()) {
      Note(NoticeLevel::kWarning,
           absl::StrFormat("no final digest within %s from: %s", Seconds(config_.linger),
                           absl::StrJoin(silent, ", ")));
    }
    const DigestFinding finding = digests_.Check(round_, /*final=*/true);
    if (!finding.majority_against_master.empty())
      return End(Damaged(round_, finding.majority_against_master));
    for (const WorkerId id : finding.differing) {
      ++totals_.digest_mismatches;
      Note(NoticeLevel::kError,
           absl::StrFormat("the final replica of %s differs from the server's", Name(id)));
    }
    End(absl::OkStatus());
  }

  void End(absl::Status status) {
    phase_ = Phase::kEnded;
    out_.push_back(EndRun{std::move(status)});
  }

  void Note(NoticeLevel level, std::string text) { out_.push_back(Notice{level, std::move(text)}); }

  std::string Name(WorkerId id) const {
    const auto it = workers_.find(id);
    return it != workers_.end() ? it->second.name : absl::StrFormat("worker number %d", id.value());
  }

  // Constant after construction.
  const EngineConfig config_;
  const std::unique_ptr<StepsizeRule> rule_;

  // At most workers_max connected ones, as many that left a seat in the open attempt, and those
  // who are evicted.
  std::map<WorkerId, Worker> workers_;
  ShareTable shares_;
  DigestBoard digests_;
  OverallArrivals overall_arrivals_;

  Time now_;
  Phase phase_ = Phase::kWaitingForWorkers;
  Round round_;  // the next to commit
  Attempt attempt_;
  std::optional<Time> first_opened_;  // of the round's first attempt
  std::optional<OpenAttempt>
      open_;  // Invariant: set exactly while phase_ is kRoundOpen, or once it has ended
  Time waiting_since_;
  Time finish_until_;
  bool paused_ = false;
  bool stopping_ = false;
  std::optional<Time> stop_until_;

  EngineView totals_;  // only its counters
  Actions out_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineConfig config,
                                                       std::unique_ptr<StepsizeRule> rule,
                                                       Time now) {
  if (absl::Status status = ValidateConfig(config); !status.ok()) return status;
  SIGNVOTE_CHECK(rule != nullptr);
  return std::make_unique<EngineImpl>(std::move(config), std::move(rule), now);
}

}  // namespace signvote::round
