#include "tests/sim/checker.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/checksum.h"
#include "tests/sim/model.h"

namespace signvote::sim {

Checker::Checker(Layout layout, uint32_t chunks, uint32_t quorum, bool sees_proposals,
                 uint64_t evaluate_every)
    : layout_(std::move(layout)),
      chunks_(chunks),
      quorum_(quorum),
      sees_proposals_(sees_proposals),
      evaluate_every_(evaluate_every) {}

void Checker::Fail(std::string what) {
  if (failure_.has_value()) return;
  failure_ = absl::StrFormat("after %d commits: %s", published_.value(), what);
}

// ---- the run

void Checker::Begin(std::span<const float> x0) {
  x_.assign(x0.begin(), x0.end());
  x0_ = x_;
  digests_ = {ReplicaDigest(x_.data(), 0, x_.size())};
}

void Checker::OnEpoch(Round round) {
  open_.reset();
  patience_ends_.reset();
  Require(round == applied_ && round == published_,
          "a run goes on elsewhere than where the last one stood");
  proposed_ = released_ = round;
}

bool Checker::OnRecovered(const run::RunState& state, bool disk_lied) {
  open_.reset();
  patience_ends_.reset();
  const Round round = state.engine.round;
  const bool lost = round < published_;
  if ((lost && !disk_lied) || round > proposed_) {
    Fail(absl::StrFormat("a run of which %d commits were told and %d proposed is recovered with %d",
                         published_.value(), proposed_.value(), round.value()));
    return lost;
  }
  if (round < handed_) {  // from here on it is other commits that are the law
    x_ = *state.x;
    digests_.resize(round.value() + 1);
    early_.clear();
    law_.erase(law_.lower_bound(round.value()), law_.end());
    handed_ = round;
  }
  // What was on the disk and nobody had heard of.
  for (const std::shared_ptr<const CommitRecord>& record : state.recent) {
    if (record->round < handed_) continue;
    Require(record->payload_hash == behind_.at(record->round.next().value()).payload_hash,
            "another commit is recovered than was proposed");
    released_ = std::max(released_, record->round.next());
    OnHandedOver(*record);
  }
  if (handed_ != round) {
    Fail("commits are missing between what is told and is recovered");
    return lost;
  }
  Require(ReplicaDigest(state.x->data(), 0, state.x->size()) == digests_.back(),
          "the recovered replica is not what was committed");
  Require(state.engine.course.main_rounds == behind_.at(round.value()).main_round,
          "the recovered run counts other main rounds");
  std::erase_if(evicted_, [&](const auto& entry) {
    const auto& [name, since] = entry;
    const bool known = std::any_of(
        state.roster.names.begin(), state.roster.names.end(),
        [&name = name](const auto& worker) { return worker.name == name && worker.evicted; });
    // It is synced with the next commit.
    Require(known || lost || published_ <= since, "an eviction is forgotten");
    return !known;
  });
  applied_ = published_ = released_ = proposed_ = round;
  behind_.resize(round.value() + 1);
  at_ = behind_.back();
  return lost;
}

// ---- streams

void Checker::OnRoundOpen(uint64_t peer, const std::string& name, const v1::RoundOpen& open,
                          Time now) {
  const Round round(open.round());
  const Attempt attempt(open.attempt());
  Require(round == published_ && round == proposed_, "a round opens before the last is the law");
  Require(!evicted_.contains(name), "an evicted worker has a seat");
  if (!open_ || open_->round != round || open_->attempt != attempt) {
    // An attempt of which nobody could be told in time is not seen here.
    if (open_ && open_->round == round) {
      ++reopenings_;
      Require(attempt > open_->attempt, "an attempt is repeated");
    }
    const bool again = open_ && open_->round == round;
    if (!again) CountUnasked();
    const bool could_ask = again && open_->could_ask, was_asked = again && open_->was_asked;
    Require(open.data_step() == at_.next_data_step, "the data step does not follow the commits");
    open_ = Open{.round = round, .attempt = attempt, .opened = now};
    open_->go = goes_;
    open_->could_ask = could_ask;
    open_->was_asked = was_asked;
    if (open.deadline_ms() != 0) open_->deadline = std::chrono::milliseconds(open.deadline_ms());
    open_->data_step = open.data_step();
    open_->minibatches = std::max(open.local_steps(), 1u);
    open_->silent =
        open.start() == v1::RoundOpen::START_CONTINUE || open.start() == v1::RoundOpen::START_X0;
    open_->members = open.members();
    Require(open.members() > 0, "an attempt opens without members");
    open_->quorum = quorum_ == 0 ? (open.members() + 1) / 2 : std::min(quorum_, open.members());
  }
  Require(open.members() == open_->members, "two members of an attempt are told of other numbers");
  if (open.evaluate()) {
    Require(evaluate_every_ > 0 && able_.contains(peer), "one is asked who cannot measure");
    Require(!open_->asked.has_value() || open_->asked == peer, "two are asked at once");
    if (!open_->asked.has_value() && evaluator_ != name) {
      evaluators_changed_ += evaluator_.empty() ? 0 : 1;
      evaluator_ = name;
    }
    open_->asked = peer;
    open_->was_asked = true;
    asked_last_ = peer;
    unasked_ = 0;
  }
  if (attempt == Attempt(0) && goes_ == open_->go) {
    ++open_->told_at_once;
    open_->able_at_once |= able_.contains(peer);
    // One alone may have heard of it late: nothing here says when it opened. Two that hear of it late
    // are sent a commit each before.
    open_->could_ask |= open_->told_at_once > 1 && open_->able_at_once;
  }
  // One that is warmed up is waited for as little as an observer, and counts as little.
  const bool member = open.role() == v1::RoundOpen::ROLE_MEMBER && !open.uncounted();
  uncounted_ += open.uncounted() ? 1 : 0;
  if (const auto told = open_->seats.find(peer); told != open_->seats.end()) {
    // Told again, behind a state that it had to fetch.
    return Require(told->second.member == member && told->second.share == open.share(),
                   "a seat changes while its round is open");
  }
  Require(open_->names.insert(name).second, "one worker has two seats");
  Require(open_->shares.insert(open.share()).second, "two workers hold one share");
  open_->seats.emplace(peer, Seat{.member = member, .share = open.share()});
}

void Checker::CountUnasked() {
  if (!open_ || evaluate_every_ == 0) return;
  if (open_->could_ask && !open_->was_asked) ++unasked_;
  Require(unasked_ <= evaluate_every_, "nobody measures the held-out loss although one can");
}

Checker::Seat* Checker::Find(uint64_t peer, Round round, Attempt attempt) {
  if (!open_ || open_->round != round || open_->attempt != attempt) return nullptr;
  const auto it = open_->seats.find(peer);
  return it == open_->seats.end() ? nullptr : &it->second;
}

void Checker::OnChunk(uint64_t peer, Round round, Attempt attempt, ChunkIndex chunk,
                      uint64_t checksum) {
  if (Seat* const seat = Find(peer, round, attempt)) {
    Require(seat->chunks.emplace(chunk.value(), checksum).second, "a chunk is taken twice");
  }
}

void Checker::OnAbstain(uint64_t peer, Round round, Attempt attempt, bool nonfinite_loss) {
  Seat* const seat = Find(peer, round, attempt);
  if (seat == nullptr || !seat->member) return;
  if (!seat->abstained) ++open_->abstained;
  seat->abstained = true;
  if (!nonfinite_loss) open_->other_abstention = true;
}

void Checker::OnStreamEnd(uint64_t peer) {
  if (peer == asked_last_) {
    // The next takes over within a period from here; the open round was still this one's.
    unasked_ = 0;
    if (open_) open_->could_ask = false;
  }
  if (!open_) return;
  const auto it = open_->seats.find(peer);
  if (it == open_->seats.end()) return;
  it->second.live = false;
  // Its name may be back, with the same share, in this attempt's next opening only.
}

void Checker::OnCommitSent(const v1::Commit& commit) {
  ++goes_;
  const Round round(commit.round());
  if (!sees_proposals_ && round >= proposed_) {
    Learn({.round = round,
           .attempt = Attempt(commit.attempt()),
           .kind = commit.kind() == v1::Commit::KIND_STEP     ? CommitKind::kStep
                   : commit.kind() == v1::Commit::KIND_REWIND ? CommitKind::kRewind
                                                              : CommitKind::kNone,
           .gamma = commit.stepsize(),
           .data_step = commit.data_step(),
           .next_data_step = commit.next_data_step(),
           .main_round = commit.main_round(),
           .voters = commit.voters(),
           .counted = {commit.counted().begin(), commit.counted().end()},
           .has_payload = commit.payload_hash() != 0,
           .payload_hash = commit.payload_hash()});
  }
  Require(round < released_, "somebody is told of a commit that is not released");
  Require(round <= published_, "commits are told out of order");
  const auto [it, first] = law_.emplace(round.value(), commit.payload_hash());
  Require(it->second == commit.payload_hash(), "two workers are told of different commits");
  if (round == published_) published_ = round.next();
}

// ---- held-out losses

void Checker::OnHeldOut(Round round, double loss, uint64_t windows) {
  Require(round <= handed_, "a held-out loss is of a round that is not committed");
  if (failure_.has_value()) return;
  Require(loss == Model::HeldOutLoss(digest(round), windows),
          "a held-out loss is not that of its round's replica");
}

// ---- a closed chunk

void Checker::OnTally(Round round, Attempt attempt, ChunkIndex chunk,
                      std::span<const std::pair<uint64_t, uint64_t>> ballots, Time now) {
  if (!open_ || round != open_->round || attempt != open_->attempt || chunk.value() >= chunks_) {
    return Fail("a chunk closes that is not open");
  }
  const auto count = static_cast<uint32_t>(ballots.size());
  Require(open_->closed.emplace(chunk.value(), count).second,
          "a chunk closes twice in one attempt");
  Require(count > 0, "a chunk closes without a ballot");
  std::set<uint64_t> counted;
  for (const auto& [peer, checksum] : ballots) {
    Require(counted.insert(peer).second, "a worker is counted twice");
    open_->voters.insert(peer);
    const auto it = open_->seats.find(peer);
    if (it == open_->seats.end() || !it->second.member) {
      return Fail("somebody is counted who is no member of the attempt");
    }
    const auto given = it->second.chunks.find(chunk.value());
    if (given == it->second.chunks.end()) return Fail("a chunk is counted that did not come");
    Require(given->second == checksum, "what is counted is not the ballot that came first");
  }
  uint32_t answered = 0, silent = 0;
  for (const auto& [peer, seat] : open_->seats) {
    if (!seat.member) continue;
    if (seat.abstained || seat.chunks.contains(chunk.value())) {
      ++answered;
    } else if (seat.live) {
      ++silent;
    }
  }
  if (answered < open_->quorum) {
    Fail(absl::StrFormat("chunk %d closes with %d answers of %d members; the quorum is %d",
                         chunk.value(), answered, open_->members, open_->quorum));
  }
  if (silent > 0) {
    const bool overdue = open_->deadline.has_value() &&
                         now - open_->opened + std::chrono::milliseconds(1) >= *open_->deadline;
    Require(overdue || (patience_ends_.has_value() && now >= *patience_ends_),
            "a chunk closes before its deadline while a live member has not answered");
  }
}

// ---- commits

void Checker::OnProposed(const CommitRecord& record) {
  Law law{.round = record.round,
          .attempt = record.attempt,
          .kind = record.kind,
          .gamma = record.gamma,
          .data_step = record.data_step.value(),
          .next_data_step = record.next_data_step.value(),
          .main_round = record.main_round,
          .voters = record.voters,
          .has_payload = !record.payload.empty(),
          .payload_hash = record.payload_hash};
  for (const ChunkSum& chunk : record.chunks) law.counted.push_back(chunk.counted);
  Learn(law);
}

void Checker::Learn(const Law& law) {
  Require(law.round == proposed_, "commits are not proposed in order");
  if (!open_ || law.round != open_->round || law.attempt != open_->attempt) {
    return Fail("a commit is not of the open attempt");
  }
  Require(law.data_step == open_->data_step, "a commit is of another minibatch");
  Require(std::isfinite(law.gamma) && law.gamma >= 0, "the stepsize is no number");
  if (open_->silent && law.attempt >= Attempt(1)) ++silent_reopened_;
  if (law.kind == CommitKind::kStep) {
    ++steps_;
    Require(!open_->silent, "a round in which nobody votes has a step");
    bool partial = false;
    Require(open_->closed.size() == chunks_ && law.counted.size() == chunks_,
            "a step comes before all its chunks are closed");
    for (uint32_t k = 0; k < law.counted.size(); ++k) {
      const auto it = open_->closed.find(k);
      Require(it != open_->closed.end() && it->second == law.counted[k],
              "a commit's count is not what was tallied");
      partial = partial || law.counted[k] < open_->members;
    }
    partial_ += partial ? 1 : 0;
    Require(law.voters == open_->voters.size(), "a commit's voters are not those tallied");
    at_.nonfinite_in_a_row = 0;
  } else if (law.kind == CommitKind::kRewind) {
    ++rewinds_;
    Require(!law.has_payload && law.counted.empty(), "a rewind has a payload");
    at_.nonfinite_in_a_row = 0;
  } else {
    nones_ += open_->silent ? 0 : 1;
    Require(!law.has_payload && law.counted.empty(), "a commit of kind none has a payload");
    // With local steps a step needs their lengths, beside the votes.
    const bool all_voted = open_->closed.size() == chunks_;
    const bool no_length = open_->minibatches > 1 && all_voted;
    silent_ += open_->silent ? 1 : 0;
    Require(open_->silent || no_length || law.attempt >= Attempt(1),
            "a round ends without a step before it opened again");
    Require(law.next_data_step == law.data_step + open_->minibatches,
            "a round without a step does not go past its minibatches");
    // That of a step is then 1, and any other's the inner one.
    const bool local = open_->silent || open_->minibatches > 1;
    Require(local || law.gamma == at_.gamma, "a round without a step changes the stepsize");
    Require(law.main_round == at_.main_round, "a round without a step counts as a main round");
    Require(open_->silent ? open_->closed.empty() : no_length || !all_voted,
            "a round ends without a step though all was voted");
    if (open_->abstained > 0 && !open_->other_abstention) {
      ++at_.nonfinite_in_a_row;
    } else {
      at_.nonfinite_in_a_row = 0;
    }
  }
  Require(law.main_round == at_.main_round || law.main_round == at_.main_round + 1,
          "main rounds are not counted one by one");
  at_.gamma = law.gamma;
  at_.main_round = law.main_round;
  at_.next_data_step = law.next_data_step;
  at_.payload_hash = law.payload_hash;
  behind_.resize(law.round.next().value() + 1);
  behind_.back() = at_;
  proposed_ = law.round.next();
  if (!sees_proposals_) released_ = proposed_;
}

void Checker::OnReleased(Round round) {
  Require(round < proposed_, "a commit is released that was not proposed");
  released_ = std::max(released_, round.next());
}

void Checker::OnHandedOver(const CommitRecord& record) {
  Require(record.round == handed_, "the applier gets commits out of order");
  if (!sees_proposals_ && record.round >= proposed_) OnProposed(record);
  Require(record.round < released_, "the applier gets a commit that is not released");
  published_ = std::max(published_, record.round.next());
  handed_ = record.round.next();
  switch (record.kind) {
    case CommitKind::kStep: {
      const StepArguments step{.gamma = record.gamma,
                               .rho = record.rho,
                               .decay_step = record.decay_step,
                               .scales = record.scales};
      const ChunkPlan& chunks = record.plan.chunk_plan();
      bool averaged = false, dense = false;
      for (ChunkIndex k; k.value() < chunks.chunks(); ++k) {
        const uint64_t first = chunks.First(k);
        const uint8_t* const payload = record.Chunk(k).data();
        if (record.plan.kind(k) == PayloadKind::kSigns) {
          ApplyStep(layout_, step, first, chunks.Count(k), payload, first, x0_.data() + first,
                    x_.data() + first);
        } else if (record.plan.kind(k) != PayloadKind::kCounts) {
          ApplyDense(layout_, step, first, chunks.Count(k),
                     {.values = payload,
                      .bf16 = record.plan.kind(k) == PayloadKind::kBf16,
                      .first = first},
                     x0_.data() + first, x_.data() + first);
          dense = true;
        } else {
          ApplyCounts(layout_, step, first, chunks.Count(k),
                      {.planes = payload,
                       .plane_bytes = chunks.Bytes(k),
                       .ballots = record.chunks[k.value()].counted,
                       .first = first},
                      x0_.data() + first, x_.data() + first);
          averaged = true;
        }
      }
      averages_ += averaged ? 1 : 0;
      dense_ += dense ? 1 : 0;
      break;
    }
    case CommitKind::kRewind:
      if (record.reason.find("the race chose") != std::string::npos) ++races_;
      x_ = x0_;
      break;
    case CommitKind::kNone:
      break;
  }
  digests_.push_back(ReplicaDigest(x_.data(), 0, x_.size()));
  const auto it = early_.find(handed_.value());
  if (it == early_.end()) return;
  Require(it->second == digests_.back(), "a replica differs from what was committed");
  early_.erase(it);
}

void Checker::OnApplied(const Applied& applied) {
  Require(applied.next_round == applied_.next(), "commits are applied out of order");
  Require(applied.next_round <= handed_, "a commit is applied that was not published");
  applied_ = applied.next_round;
  if (applied.digest) OnReplica("the server", applied_, *applied.digest);
}

// ---- replicas

void Checker::OnReplica(const std::string& whose, Round round, uint64_t digest) {
  if (round > published_) {
    return Fail(absl::StrFormat("the replica of %s holds round %d, which is not committed", whose,
                                round.value() - 1));
  }
  if (round.value() >= digests_.size()) {
    const auto [it, first] = early_.emplace(round.value(), digest);
    Require(it->second == digest, "two replicas of one round differ");
    return;
  }
  if (digests_[round.value()] != digest) {
    Fail(absl::StrFormat("the replica of %s differs after %d commits", whose, round.value()));
  }
}

}  // namespace signvote::sim
