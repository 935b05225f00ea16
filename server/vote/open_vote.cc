#include "server/vote/open_vote.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace signvote {
namespace {

bool IsDense(PayloadKind kind) { return kind == PayloadKind::kFp32 || kind == PayloadKind::kBf16; }

std::shared_ptr<float> AsFloats(const std::shared_ptr<uint8_t>& bytes) {
  return {bytes, reinterpret_cast<float*>(bytes.get())};
}

OpenVote::Options WithBallots(OpenVote::Options options) {
  if (options.ballots.chunks() == 0) options.ballots = PayloadPlan(options.plan.chunk_plan());
  return options;
}

}  // namespace

OpenVote::OpenVote(Options options, TallySink* sink, BufferPool* verdicts, BufferPool* ballots,
                   BufferPool* states)
    : options_(WithBallots(std::move(options))),
      sink_(sink),
      verdicts_(verdicts),
      ballots_(ballots),
      states_(states),
      chunks_(plan().chunks()) {
  SIGNVOTE_CHECK(verdicts_->bytes() >= plan().TotalBytes());
  SIGNVOTE_CHECK(ballots_->bytes() >= options_.ballots.TotalBytes());
  for (const PayloadRange& range : plan().ranges()) {
    if (IsDense(range.kind) && !dense_first_.has_value())
      dense_first_ = plan().chunk_plan().First(range.first);
  }
  SIGNVOTE_CHECK(!dense_first_.has_value() || options_.layout != nullptr);
  ForgetOptimizer();
}

void OpenVote::ForgetOptimizer() {
  SIGNVOTE_CHECK(!open_);
  optimizer_steps_ = 0;
  scalars_ = dense_first_.has_value() ? FirstScalars(options_.optimizer) : OptimizerScalars();
  if (states_ == nullptr) return;
  const std::shared_ptr<uint8_t> zeros = states_->Acquire();
  std::fill_n(zeros.get(), states_->bytes(), uint8_t{0});
  state_ = AsFloats(zeros);
}

OpenVote::Optimizer OpenVote::SaveOptimizer() const {
  Optimizer saved{.steps = optimizer_steps_, .scalars = scalars_};
  if (dense_first_.has_value()) saved.kind = options_.optimizer.kind;
  if (state_ != nullptr)
    saved.state.assign(state_.get(), state_.get() + states_->bytes() / sizeof(float));
  return saved;
}

absl::Status OpenVote::RestoreOptimizer(const Optimizer& optimizer) {
  SIGNVOTE_CHECK(!open_);
  constexpr const char* kRemedy = "; take it up with the flags --dense… that it was saved under";
  std::optional<DenseOptimizer::Kind> kind;
  if (dense_first_.has_value()) kind = options_.optimizer.kind;
  const auto name = [](const std::optional<DenseOptimizer::Kind>& k) {
    return k.has_value() ? std::string(DenseOptimizerName(*k)) : "none";
  };
  if (optimizer.kind != kind) {
    return absl::FailedPreconditionError(absl::StrCat("the saved state's optimizer is ",
                                                      name(optimizer.kind), ", and this run's ",
                                                      name(kind), kRemedy));
  }
  const size_t floats = states_ == nullptr ? 0 : states_->bytes() / sizeof(float);
  if (optimizer.state.size() != floats) {
    return absl::FailedPreconditionError(
        absl::StrCat("the saved state has ", optimizer.state.size(),
                     " numbers of an optimizer, and this run's ", floats, kRemedy));
  }
  if (kind.has_value() && !CanBe(options_.optimizer, optimizer.scalars)) {
    return absl::DataLossError(absl::StrCat("the saved state of the optimizer ", name(kind),
                                            " is none that a run comes to; restore an older "
                                            "state of the run"));
  }
  optimizer_steps_ = optimizer.steps;
  scalars_ = optimizer.scalars;
  if (floats == 0) return absl::OkStatus();
  const std::shared_ptr<uint8_t> restored = states_->Acquire();
  std::memcpy(restored.get(), optimizer.state.data(), states_->bytes());
  state_ = AsFloats(restored);
  return absl::OkStatus();
}

DenseAttempt OpenVote::BeginDense() const {
  if (!dense_first_.has_value()) return {};
  DenseAttempt dense{.layout = options_.layout,
                     .optimizer = options_.optimizer,
                     .aggregate = options_.aggregate,
                     .step = optimizer_steps_ + 1,
                     .scalars = scalars_,
                     .first = *dense_first_,
                     .in = state_,
                     .out = nullptr};
  if (states_ == nullptr) return dense;
  const std::shared_ptr<uint8_t> next = states_->Acquire();
  dense.out = AsFloats(next);
  return dense;
}

void OpenVote::Open(Round round, Attempt attempt, std::vector<Voter> voters) {
  Abandon();
  if (share_ != nullptr) old_shares_.push_back(std::move(share_));
  std::erase_if(old_shares_, [](const auto& share) { return share->idle(); });
  open_ = true;
  round_ = round;
  attempt_ = attempt;
  voters_ = std::move(voters);
  counted_of_.assign(voters_.size(), 0);
  voter_sets_.clear();
  chunks_.assign(plan().chunks(), Chunk{});
  closed_chunks_ = tallied_chunks_ = 0;
  tally_time_ = Duration::zero();
  place_of_.clear();
  std::vector<std::shared_ptr<const uint8_t>> ballots;
  for (const Voter& voter : voters_) {
    const auto place = static_cast<uint32_t>(ballots.size());
    SIGNVOTE_CHECK(place_of_.emplace(voter.worker, place).second);
    OpenSlots(voter);
    ballots.push_back(voter.slots->buffer());
  }
  share_ = std::make_shared<TallyShare>(std::move(ballots), verdicts_->Acquire(), BeginDense());
}

void OpenVote::OpenSlots(const Voter& voter) {
  const std::shared_ptr<const uint8_t> buffer = voter.slots->buffer();
  const bool read = std::any_of(old_shares_.begin(), old_shares_.end(),
                                [&](const auto& share) { return share->Holds(buffer.get()); });
  if (read) {
    voter.slots->OpenIn(ballots_->Acquire(), round_, attempt_);
  } else {
    voter.slots->Open(round_, attempt_);
  }
}

void OpenVote::Close(ChunkIndex k, std::span<const round::WorkerId> voters) {
  SIGNVOTE_CHECK(open_ && k.value() < chunks_.size());
  Chunk& chunk = chunks_[k.value()];
  SIGNVOTE_CHECK(!chunk.closed);
  chunk.closed = true;
  ++closed_chunks_;
  if (voter_sets_.empty() || !std::ranges::equal(voter_sets_.back(), voters))
    voter_sets_.emplace_back(voters.begin(), voters.end());
  chunk.voters = voter_sets_.size() - 1;
  std::vector<bool> full;
  full.reserve(voters_.size());
  for (const Voter& voter : voters_) full.push_back(voter.slots->Close(k));
  std::vector<uint32_t> places;
  places.reserve(voters.size());
  for (const round::WorkerId worker : voters) {
    const auto it = place_of_.find(worker);
    SIGNVOTE_CHECK(it != place_of_.end() && full[it->second]);
    ++counted_of_[it->second];
    places.push_back(it->second);
  }
  sink_->Submit({.round = round_,
                 .attempt = attempt_,
                 .chunk = k,
                 .share = share_,
                 .places = std::move(places),
                 .plan = plan().chunk_plan(),
                 .kind = plan().kind(k),
                 .ballot_offset = options_.ballots.Offset(k),
                 .payload_offset = plan().Offset(k),
                 .seed = options_.seed});
}

bool OpenVote::Take(const ChunkTallied& tallied) {
  if (!open_ || tallied.round != round_ || tallied.attempt != attempt_) return false;
  Chunk& chunk = chunks_.at(tallied.chunk.value());
  if (!chunk.closed || chunk.tallied) return false;
  chunk.tallied = true;
  chunk.sum = {.counted = tallied.counted, .checksum = tallied.checksum};
  chunk.q = tallied.q;
  ++tallied_chunks_;
  tally_time_ += tallied.took;
  return true;
}

OpenVote::Result OpenVote::Finish() {
  SIGNVOTE_CHECK(complete());
  open_ = false;
  Result result{.round = round_, .attempt = attempt_, .tally_time = tally_time_};
  result.chunks.reserve(chunks_.size());
  for (const Chunk& chunk : chunks_) {
    result.chunks.push_back(chunk.sum);
    const std::vector<round::WorkerId>& voters = voter_sets_[chunk.voters];
    if (result.counted.empty() || result.counted.back().voters != voters)
      result.counted.push_back({.chunks = 0, .voters = voters});
    ++result.counted.back().chunks;
  }
  result.payload = share_->verdict();
  if (dense_first_.has_value()) {
    double q = 0;
    for (const Chunk& chunk : chunks_) q += chunk.q;
    scalars_ = NextScalars(options_.optimizer, ++optimizer_steps_, scalars_, q);
    state_ = share_->dense().out;
  }
  return result;
}

void OpenVote::Abandon() {
  if (!open_) return;
  open_ = false;
  sink_->DropWaiting();
}

OpenVote::Statistics OpenVote::statistics() const {
  Statistics statistics;
  if (share_ == nullptr) return statistics;
  const VoteStatistics sampled = share_->sampled();
  statistics.coordinates = sampled.coordinates;
  statistics.ties = sampled.ties;
  for (size_t place = 0; place < voters_.size(); ++place) {
    if (counted_of_[place] == 0) continue;
    statistics.workers.push_back({.worker = voters_[place].worker,
                                  .coordinates = sampled.ballots[place].coordinates,
                                  .agreeing = sampled.ballots[place].agreeing,
                                  .chunks = counted_of_[place]});
  }
  return statistics;
}

}  // namespace signvote
