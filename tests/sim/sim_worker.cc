#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/apply.h"
#include "common/checksum.h"

namespace signvote::sim {
namespace {

constexpr uint32_t kAllChunks = (1u << kChunks) - 1;

}  // namespace

SimWorker::SimWorker(World* world, uint32_t id) : world_(world), id_(id) {}

// ---- the process
// -------------------------------------------------------------------------------------------------

void SimWorker::Start() {
  if (up_ || exited_) return;
  up_ = true;
  Forget();
  Connect();
}

void SimWorker::Forget() {
  has_replica_ = damaged_ = draining_ = false;
  x_prev_.clear();
  prev_verdict_.reset();
  ballot_.reset();
  finish_.reset();
  open_.reset();
  direction_ =
      std::make_unique<Direction>(&world_->model.layout(), world_->model.plan(), DirectionConfig{});
  round_ = Round();
}

void SimWorker::Connect() {
  if (draining_) return Crash(world_->Uniform(1, 10));  // it was about to leave
  ++generation_;
  following_ = false;
  commits_.clear();
  verdicts_.clear();
  fetched_.reset();
  unanswered_ = std::exchange(open_, std::nullopt);
  voted_.reset();
  stream_ = world_->OpenStream(id_);
  world_->SendUp(*stream_, Hello{has_replica_, round_});
}

void SimWorker::Crash(double seconds_down) {
  if (stream_.has_value()) world_->CloseByWorker(*stream_);
  stream_.reset();
  ++generation_;
  up_ = false;
  hung_until_ = Time{};
  world_->After(seconds_down, [this] { Start(); });
}

void SimWorker::LoseStream(double seconds_to_notice) {
  if (!stream_.has_value()) return;
  world_->After(seconds_to_notice, [this, lost = *stream_] {
    if (stream_ != lost) return;
    world_->CloseByWorker(lost);
    stream_.reset();
    ++generation_;
    world_->After(world_->Uniform(0.1, 2), [this, generation = generation_] {
      if (up_ && !exited_ && generation == generation_) Connect();
    });
  });
}

void SimWorker::Hang(double seconds) { hung_until_ = world_->now() + FromSeconds(seconds); }

void SimWorker::BeWell() {
  Wake();
  slow_rounds_ = 0;
  abstain_next_ = bad_scalars_next_ = false;
}

bool SimWorker::Damage() {
  if (!up_ || !has_replica_ || damaged_ || exited_) return false;
  x_[world_->Below(kCoordinates)] += 0.125f;
  damaged_ = true;
  return true;
}

uint64_t SimWorker::ReplicaDigestNow() const { return ReplicaDigest(x_.data(), 0, kCoordinates); }

void SimWorker::Later(double seconds, std::function<void()> what) {
  world_->After(seconds, [this, generation = generation_, what = std::move(what)] {
    if (generation != generation_) return;
    if (hung_until_ > world_->now()) {
      Later(ToSeconds(hung_until_ - world_->now()), what);
    } else {
      what();
    }
  });
}

void SimWorker::Exit() {
  if (stream_.has_value()) world_->CloseByWorker(*stream_);
  stream_.reset();
  ++generation_;
  exited_ = true;
}

// ---- messages
// -------------------------------------------------------------------------------------------------

void SimWorker::OnMessage(size_t stream, const ToWorker& message) {
  if (stream_ != stream) return;
  if (hung_until_ > world_->now()) {
    Later(ToSeconds(hung_until_ - world_->now()),
          [this, stream, message] { OnMessage(stream, message); });
    return;
  }
  std::visit([this](const auto& m) { On(m); }, message);
}

void SimWorker::On(const State& m) {
  // An older state than the own one is of use only to a damaged replica.
  if (m.x != nullptr && (!has_replica_ || damaged_ || m.round > round_)) {
    x_ = *m.x;
    round_ = m.round;
    has_replica_ = true;
    damaged_ = false;
    x_prev_.clear();
    prev_verdict_.reset();
    fetched_.reset();
    world_->checker.OnSnapshot(id_, round_, ReplicaDigestNow());
  }
  if (!has_replica_) {  // the server took a repetition of an older greeting for this one
    world_->SendUp(*stream_, FetchState{});
    return;
  }
  if (!following_) {
    following_ = true;
    world_->SendUp(*stream_, CaughtUp{round_});
    // Its ballot may be wanted still; the server has to know that this incarnation has no seat.
    if (unanswered_.has_value() && unanswered_->round == round_) SendChunk(*unanswered_, 0, 0.02);
  }
  Advance();
}

void SimWorker::On(const Open& m) {
  if (!open_.has_value() || std::pair(open_->round, open_->attempt) < std::pair(m.round, m.attempt))
    open_ = m;
  Advance();
}

void SimWorker::On(const VerdictChunk& m) {
  if (m.round < round_) return;
  PartialVerdict& partial = verdicts_[{m.round, m.attempt}];
  const uint32_t k = m.chunk.value();
  partial.have |= 1u << k;
  std::copy(m.bits.begin(), m.bits.end(),
            partial.bits.begin() + static_cast<ptrdiff_t>(k * m.bits.size()));
  Advance();
}

void SimWorker::On(const Commit& m) {
  if (m.record.round >= round_)
    commits_.try_emplace(m.record.round, PendingCommit{m.record, std::nullopt});
  Advance();
}

void SimWorker::On(const CommitBits& m) {
  if (m.record.round >= round_) commits_[m.record.round] = {m.record, m.bits};
  Advance();
}

void SimWorker::On(const DrainNow&) {
  if (draining_) return;
  draining_ = true;
  Later(world_->Uniform(0, world_->options.compute_s), [this] { Leave(); });
}

void SimWorker::On(const Finish& m) {
  finish_ = m.rounds;
  Advance();
}

void SimWorker::On(const Bye&) { Exit(); }

void SimWorker::Leave() {
  world_->SendUp(*stream_, Leaves{});
  Later(world_->Uniform(0.05, 0.5), [this] { Crash(world_->Uniform(1, 10)); });
}

// ---- following
// -------------------------------------------------------------------------------------------------

void SimWorker::Advance() {
  if (!has_replica_) return;
  for (auto it = commits_.begin(); it != commits_.end() && it->first <= round_;) {
    if (it->first < round_) {
      it = commits_.erase(it);
      continue;
    }
    const PendingCommit commit = it->second;
    std::optional<ModelBits> bits = commit.bits;
    const auto verdict = verdicts_.find({round_, commit.record.attempt});
    if (!bits.has_value() && verdict != verdicts_.end() && verdict->second.have == kAllChunks) {
      bits = verdict->second.bits;
    }
    if (!bits.has_value() || Xxh3(bits->data(), bits->size()) != commit.record.verdict_hash) break;
    it = commits_.erase(it);
    Apply(commit.record, *bits);
  }
  // Something later than this round is known: its commit is law, and its bits can be fetched.
  const bool behind = !commits_.empty() || (open_.has_value() && open_->round > round_) ||
                      (finish_.has_value() && *finish_ > round_);
  if (behind && following_ && fetched_ != round_) {
    fetched_ = round_;
    world_->SendUp(*stream_, FetchCommit{round_});
  }
  if (finish_ == round_) {
    world_->SendUp(*stream_, Digest{round_, ReplicaDigestNow()});
    finish_.reset();
    Later(world_->Uniform(0.2, 1), [this] { Exit(); });
  }
  StartVote();
}

void SimWorker::Apply(const CommitRecord& record, const ModelBits& bits) {
  x_prev_ = x_;
  ApplyStep(world_->model.layout(), record.gamma, 0, kCoordinates, bits.data(), 0, x_.data());
  prev_verdict_ = bits;
  ++round_;
  const uint64_t digest = ReplicaDigestNow();
  if (!damaged_) world_->checker.OnApply(id_, record, Xxh3(bits.data(), bits.size()), digest);
  while (!verdicts_.empty() && verdicts_.begin()->first.first < round_)
    verdicts_.erase(verdicts_.begin());
  if (record.digest_due) world_->SendUp(*stream_, Digest{round_, digest});
}

// ---- voting
// -------------------------------------------------------------------------------------------------

void SimWorker::StartVote() {
  if (!open_.has_value() || open_->round != round_ || !following_ || draining_) return;
  const Open open = *open_;
  if (voted_ == std::pair(open.round, open.attempt)) return;
  voted_ = {open.round, open.attempt};
  double interval = 0.001;  // the same ballot again: it lies ready
  if (!ballot_.has_value() || ballot_->round != open.round || ballot_->share != open.share) {
    ballot_ = MakeBallot(open);
    interval = world_->options.compute_s * world_->Uniform(0.8, 1.2) / kChunks;
    if (slow_rounds_ > 0) {
      --slow_rounds_;
      interval *= world_->Uniform(5, 20);
    }
  }
  SendChunk(open, 0, interval);
}

SimWorker::Ballot SimWorker::MakeBallot(const Open& open) {
  Ballot ballot;
  ballot.round = open.round;
  ballot.share = open.share;
  const uint64_t seed = world_->options.seed;
  std::vector<float> g, h;
  ballot.scalars.loss = world_->model.Gradient(x_, seed, open.share, open.data_step, &g);
  const bool probe = open.probe && !x_prev_.empty();
  if (probe) world_->model.Gradient(x_prev_, seed, open.share, open.data_step, &h);
  const ChunkPlan& plan = world_->model.plan();
  if (probe) ballot.scalars.probe_l1 = 0;
  if (prev_verdict_.has_value()) ballot.scalars.prev_inner = 0;
  for (uint32_t k = 0; k < kChunks; ++k) {
    const Direction::ChunkInput input{
        .g = g.data(),
        .h = probe ? h.data() : nullptr,
        .prev_verdict = prev_verdict_.has_value() ? prev_verdict_->data() : nullptr,
        .seed = seed,
        .round = open.round,
        .share = open.share};
    const ChunkScalars s = direction_->PackChunk(
        ChunkIndex(k), input, ballot.bits.data() + plan.ByteOffset(ChunkIndex(k)));
    ballot.scalars.g_l1 += s.g_l1;
    ballot.scalars.g_l2_squared += s.g_l2_squared;
    if (probe) *ballot.scalars.probe_l1 += s.probe_l1;
    if (prev_verdict_.has_value()) *ballot.scalars.prev_inner += s.prev_inner;
  }
  ballot.scalars.samples = 1;
  if (std::exchange(bad_scalars_next_, false)) {
    world_->Count(Fault::kBadScalars);
    ballot.scalars.loss = std::numeric_limits<double>::quiet_NaN();
  }
  if (abstain_next_ && may_abstain(id_, open.round)) {
    world_->Count(Fault::kAbstain);
    abstain_next_ = false;
    ballot.abstains = true;
    ballot.chunks_sent_before = static_cast<uint32_t>(world_->Below(kChunks));
  }
  return ballot;
}

void SimWorker::SendChunk(const Open& open, uint32_t k, double interval) {
  Later(interval, [this, open, k, interval] {
    // A commit has overtaken this ballot: half of the workers drop the rest, the others are late.
    if (!ballot_.has_value() || ballot_->round != open.round ||
        (round_ > open.round && id_ % 2 == 0))
      return;
    if (ballot_->abstains && k == ballot_->chunks_sent_before) {
      world_->SendUp(*stream_, Abstain{open.round, open.attempt});
      return;
    }
    if (k == kChunks) {
      world_->SendUp(*stream_, Scalars{open.round, open.attempt, ballot_->scalars});
      return;
    }
    BallotChunk chunk{open.round, open.attempt, ChunkIndex(k), {}, true};
    const auto from = ballot_->bits.begin() + static_cast<ptrdiff_t>(k * chunk.bits.size());
    std::copy(from, from + static_cast<ptrdiff_t>(chunk.bits.size()), chunk.bits.begin());
    world_->SendUp(*stream_, chunk);
    SendChunk(open, k + 1, k + 1 == kChunks ? 0.001 : interval);
  });
}

}  // namespace signvote::sim
