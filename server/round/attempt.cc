#include "server/round/attempt.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "common/check.h"
#include "server/stepsize/robust_mean.h"

namespace signvote::round {
namespace {

constexpr uint32_t kWordBits = 64;

uint32_t CountMembers(const std::vector<Seat>& seats) {
  return static_cast<uint32_t>(std::count_if(seats.begin(), seats.end(), IsCounted));
}

}  // namespace

OpenAttempt::OpenAttempt(AttemptPlan plan)
    : plan_(std::move(plan)),
      words_((size_t{plan_.chunks} + kWordBits - 1) / kWordBits),
      members_(CountMembers(plan_.seats)),
      records_(plan_.seats.size()),
      in_(plan_.seats.size() * words_, 0),
      scalars_(plan_.seats.size()),
      phases_(plan_.chunks, ChunkPhase::kOpen),
      ballots_(plan_.chunks, 0),
      tallies_(plan_.chunks),
      waited_(plan_.chunks, members_),
      willing_(plan_.chunks, members_),
      empty_(plan_.chunks) {
  SIGNVOTE_CHECK(plan_.chunks > 0);
  seat_of_.reserve(plan_.seats.size());
  for (uint32_t s = 0; s < records_.size(); ++s) {
    seat_of_.emplace(plan_.seats[s].worker, s);
    records_[s].member = IsCounted(plan_.seats[s]);
    Count(records_[s], 1);
  }
}

std::optional<uint32_t> OpenAttempt::Find(WorkerId worker, Incarnation incarnation) const {
  const auto it = seat_of_.find(worker);
  if (it == seat_of_.end() || plan_.seats[it->second].incarnation != incarnation) {
    return std::nullopt;
  }
  return it->second;
}

// `by` is 1, or 2^32 − 1 to take away.
void OpenAttempt::Count(const SeatRecord& record, uint32_t by) {
  if (!record.member) return;
  const bool whole = record.in == plan_.chunks;
  const bool here = record.presence == Presence::kHere;
  if (record.abstained) census_.abstained += by;
  if (here || whole || record.abstained) census_.can_answer += by;
  if (!Waited(record)) return;
  census_.waited += by;
  if (record.in_time > 0 && !record.scalars_came) {
    (whole ? census_.owing_whole : census_.owing_partial) += by;
  }
}

template <typename Change>
void OpenAttempt::Recount(uint32_t seat, Change change) {
  SeatRecord& record = records_[seat];
  Count(record, UINT32_MAX);
  change(record);
  Count(record, 1);
}

template <typename F>
void OpenAttempt::ForOpenChunksOf(uint32_t seat, F f) const {
  for (size_t word = 0; word < words_; ++word) {
    for (uint64_t bits = in_[seat * words_ + word]; bits != 0; bits &= bits - 1) {
      const uint32_t chunk =
          static_cast<uint32_t>(word) * kWordBits + static_cast<uint32_t>(std::countr_zero(bits));
      if (phases_[chunk] <= ChunkPhase::kRipe) f(chunk);
    }
  }
}

Took OpenAttempt::AddChunk(uint32_t seat, ChunkIndex index, Time now) {
  const uint32_t chunk = index.value();
  if (chunk >= plan_.chunks || records_[seat].abstained ||
      records_[seat].presence == Presence::kGone) {
    return Took::kStale;
  }
  if (Has(seat, chunk)) return Took::kDuplicate;
  in_[seat * words_ + chunk / kWordBits] |= uint64_t{1} << (chunk % kWordBits);
  const bool open = phases_[chunk] <= ChunkPhase::kRipe;
  Recount(seat, [&](SeatRecord& r) {
    ++r.in;
    if (open) ++r.in_time;
    r.last_chunk = now;
  });
  const SeatRecord& record = records_[seat];
  if (record.member) {
    if (open) {
      if (ballots_[chunk]++ == 0) --empty_;
      willing_.Increment(chunk);
      if (Waited(record)) waited_.Increment(chunk);
      if (Ripe(chunk)) AddRipe(chunk);
    }
    if (record.in == plan_.chunks && !first_complete_.has_value()) first_complete_ = now;
  }
  return open ? Took::kTaken : Took::kLate;
}

Took OpenAttempt::AddScalars(uint32_t seat, const WorkerScalars& scalars, Duration compute) {
  if (records_[seat].scalars_came || records_[seat].presence == Presence::kGone) {
    return Took::kStale;
  }
  const bool usable = Plausible(scalars, plan_.wanted) && scalars.local_steps <= plan_.local.steps;
  Recount(seat, [&](SeatRecord& r) {
    r.scalars_came = true;
    r.scalars_usable = usable;
    r.steps = scalars.local_steps > 0 ? std::min(scalars.local_steps, plan_.local.steps)
                                      : plan_.local.steps;
    r.compute = compute;
  });
  if (!usable) return Took::kRefused;
  scalars_[seat] = scalars;
  return Took::kTaken;
}

Took OpenAttempt::AddAbstention(uint32_t seat, AbstainReason reason) {
  const SeatRecord& record = records_[seat];
  if (record.abstained || Complete(seat) || record.presence == Presence::kGone) {
    return Took::kStale;
  }
  const bool waited = Waited(record);
  Recount(seat, [&](SeatRecord& r) {
    r.abstained = true;
    r.reason = reason;
  });
  if (!record.member) return Took::kTaken;
  if (reason == AbstainReason::kNonFiniteLoss) ++nonfinite_losses_;
  if (reason == AbstainReason::kNonFiniteGradient) ++nonfinite_gradients_;
  ForOpenChunksOf(seat, [&](uint32_t chunk) {
    willing_.Decrement(chunk);
    if (waited) waited_.Decrement(chunk);
  });
  FindRipe();
  return Took::kTaken;
}

void OpenAttempt::SetPresence(uint32_t seat, Presence presence) {
  const SeatRecord& record = records_[seat];
  if (presence <= record.presence) return;
  const bool waited = Waited(record);
  Recount(seat, [&](SeatRecord& r) { r.presence = presence; });
  if (!waited) return;
  ForOpenChunksOf(seat, [&](uint32_t chunk) { waited_.Decrement(chunk); });
  FindRipe();
}

void OpenAttempt::PassDeadline() {
  deadline_passed_ = true;
  for (uint32_t k = 0; k < plan_.chunks; ++k) {
    if (phases_[k] == ChunkPhase::kOpen && Ripe(k)) AddRipe(k);
  }
}

bool OpenAttempt::AddTally(const ChunkTallied& tally) {
  const uint32_t chunk = tally.chunk.value();
  if (chunk >= plan_.chunks || phases_[chunk] != ChunkPhase::kClosed) return false;
  phases_[chunk] = ChunkPhase::kTallied;
  tallies_[chunk] = {tally.counted, tally.checksum};
  ++tallied_;
  return true;
}

bool OpenAttempt::Ripe(uint32_t chunk) const {
  if (ballots_[chunk] == 0) return false;
  if (waited_.count(chunk) == census_.waited) return true;
  return deadline_passed_ && willing_.count(chunk) + census_.abstained >= plan_.quorum;
}

void OpenAttempt::AddRipe(uint32_t chunk) {
  if (phases_[chunk] != ChunkPhase::kOpen) return;
  phases_[chunk] = ChunkPhase::kRipe;
  ripe_.push_back(chunk);
}

// One member fewer is waited for, or one more has answered everything: the chunks that lacked just
// that one lie in one bucket each.
void OpenAttempt::FindRipe() {
  FindRipeIn(waited_, census_.waited);
  if (deadline_passed_ && census_.abstained <= plan_.quorum) {
    FindRipeIn(willing_, plan_.quorum - census_.abstained);
  }
}

void OpenAttempt::FindRipeIn(const ChunkBuckets& buckets, uint32_t count) {
  for (uint32_t k = buckets.First(count); k != ChunkBuckets::kNone; k = buckets.Next(k)) {
    if (Ripe(k)) AddRipe(k);
  }
}

Standing OpenAttempt::standing() const {
  if (tallied_ == plan_.chunks) return Standing::kTallied;
  if (closed_ == plan_.chunks) return Standing::kTallying;
  if (census_.can_answer < plan_.quorum) return Standing::kShort;
  const bool all_answered =
      census_.waited == 0 || (deadline_passed_ && census_.abstained >= plan_.quorum);
  return empty_ > 0 && all_answered ? Standing::kNoBallot : Standing::kCounting;
}

void OpenAttempt::CloseRipe(Time now, Actions& out) {
  if (ripe_.empty()) return;
  std::sort(ripe_.begin(), ripe_.end());
  for (const uint32_t chunk : ripe_) out.push_back(Close(chunk, now));
  ripe_.clear();
}

CloseChunk OpenAttempt::Close(uint32_t chunk, Time now) {
  CloseChunk action{
      .round = plan_.round, .attempt = plan_.attempt, .chunk = ChunkIndex(chunk), .voters = {}};
  action.voters.reserve(ballots_[chunk]);
  for (uint32_t s = 0; s < records_.size(); ++s) {
    if (records_[s].member && Has(s, chunk)) action.voters.push_back(plan_.seats[s].worker);
  }
  waited_.Remove(chunk);
  willing_.Remove(chunk);
  phases_[chunk] = ChunkPhase::kClosed;
  ++closed_;
  last_closed_ = now;
  return action;
}

bool OpenAttempt::ScalarsSettled(bool overrun) const {
  return census_.owing_whole == 0 && (overrun || census_.owing_partial == 0);
}

void OpenAttempt::Summarise(Verdict verdict, uint64_t coordinates, CommitRound& commit) {
  commit.round = plan_.round;
  commit.attempt = plan_.attempt;
  commit.members = members_;
  commit.asked = plan_.wanted;
  commit.local.plan = plan_.local;
  if (verdict == Verdict::kDropped) return;
  SIGNVOTE_CHECK(tallied_ == plan_.chunks);
  commit.chunks = std::move(tallies_);
  std::vector<double> losses, norms, densities;
  for (uint32_t s = 0; s < records_.size(); ++s) {
    const SeatRecord& record = records_[s];
    if (!record.member || record.in_time == 0) continue;
    commit.voters.push_back(plan_.seats[s].worker);
    if (!record.scalars_usable) continue;
    const WorkerScalars& scalars = scalars_[s];
    losses.push_back(scalars.loss);
    norms.push_back(scalars.g_l1);
    if (scalars.g_l2_squared > 0) {
      densities.push_back(scalars.g_l1 * scalars.g_l1 /
                          (static_cast<double>(coordinates) * scalars.g_l2_squared));
    }
    commit.scalars_from.push_back({plan_.seats[s].worker, plan_.seats[s].share});
    commit.scalars.push_back(std::move(scalars_[s]));
  }
  commit.loss = RobustMean(losses);
  commit.gradient.l1 = RobustMean(norms);
  commit.gradient.density = RobustMean(densities);
}

}  // namespace signvote::round
