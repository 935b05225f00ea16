#include "tests/sim/checker.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace signvote::sim {

void Checker::Fail(std::string what) {
  if (failure_.has_value()) return;
  failure_ = absl::StrFormat("after %d commits: %s", log_.size(), what);
}

void Checker::Require(bool condition, const char* what) {
  if (!condition) Fail(what);
}

void Checker::OnOpen(const round::OpenRound& open) {
  Require(open.round.value() == log_.size(), "the open round is not the next one to commit");
  if (open_.has_value() && open_->round == open.round) {
    Require(open.attempt == open_->attempt.next(), "an attempt is skipped or repeated");
  } else {
    Require(open.attempt == Attempt(0), "a round does not begin with attempt 0");
  }
  Require(open.data_step.value() == open.round.value(),
          "the data step does not follow the commits");
  std::set<uint32_t> names, shares;
  uint32_t members = 0;
  for (const round::Seat& seat : open.seats) {
    Require(names.insert(seat.worker.value()).second, "one worker has two seats");
    Require(shares.insert(seat.share.value()).second, "two workers hold one share");
    Require(!evicted_.contains(seat.worker.value()), "an evicted worker has a seat");
    if (seat.role == round::Role::kMember) ++members;
  }
  Require(members > 0, "an attempt opens without members");
  Require(open.quorum >= 1 && open.quorum <= members, "the quorum is out of range");
  open_ = open;
  for (auto& closed : closed_) closed.reset();
}

void Checker::OnClose(const round::CloseChunk& close) {
  if (!open_.has_value() || close.round != open_->round || close.attempt != open_->attempt ||
      close.chunk.value() >= kChunks) {
    return Fail("a chunk closes that is not open");
  }
  auto& closed = closed_[close.chunk.value()];
  Require(!closed.has_value(), "a chunk closes twice in one attempt");
  Require(!close.voters.empty(), "a chunk closes without a ballot");
  for (size_t i = 0; i < close.voters.size(); ++i) {
    Require(i == 0 || close.voters[i - 1] < close.voters[i], "a worker is counted twice");
    const bool member =
        std::any_of(open_->seats.begin(), open_->seats.end(), [&](const auto& seat) {
          return seat.worker == close.voters[i] && seat.role == round::Role::kMember;
        });
    Require(member, "somebody is counted who is no member of the attempt");
  }
  closed = close.voters;
}

void Checker::OnCommit(const round::CommitRound& commit, uint64_t verdict_hash, uint64_t digest) {
  if (!open_.has_value() || commit.round != open_->round || commit.attempt != open_->attempt) {
    return Fail("a commit is not of the open attempt");
  }
  Require(commit.round.value() == log_.size(), "commits are not gap-free");
  Require(commit.counted.size() == kChunks, "a commit lacks counts");
  std::set<round::WorkerId> voters;
  for (uint32_t k = 0; k < kChunks; ++k) {
    if (!closed_[k].has_value()) return Fail("a commit comes before all its chunks are closed");
    Require(commit.counted[k] == closed_[k]->size(), "a commit's count is not what was tallied");
    voters.insert(closed_[k]->begin(), closed_[k]->end());
  }
  Require(std::vector<round::WorkerId>(voters.begin(), voters.end()) == commit.voters,
          "a commit's voters are not those who were tallied");
  uint32_t members = 0;
  for (const round::Seat& seat : open_->seats) members += seat.role == round::Role::kMember ? 1 : 0;
  Require(commit.members == members, "a commit's members are not those of its attempt");
  Require(commit.abstentions == members - voters.size(), "a commit's abstentions do not add up");
  for (const auto& [worker, scalars] : commit.scalars) {
    Require(voters.contains(worker), "the rule saw scalars of a worker that was not counted");
    Require(std::isfinite(scalars.loss), "the rule saw a scalar that is not finite");
  }
  Require(std::isfinite(commit.stepsize.gamma) && commit.stepsize.gamma > 0,
          "the stepsize is not positive");
  abstentions_ += commit.abstentions;
  log_.push_back(
      {commit.round, commit.attempt, commit.stepsize.gamma, verdict_hash, commit.digest_due});
  digests_.push_back(digest);
}

void Checker::OnApply(uint32_t worker, const CommitRecord& applied, uint64_t verdict_hash,
                      uint64_t digest) {
  const uint64_t t = applied.round.value();
  if (t >= log_.size())
    return Fail(absl::StrFormat("w%d applies round %d, which is not committed", worker, t));
  const CommitRecord& law = log_[t];
  if (law.gamma != applied.gamma || law.attempt != applied.attempt ||
      law.verdict_hash != verdict_hash) {
    return Fail(
        absl::StrFormat("w%d applies something else than the commit of round %d", worker, t));
  }
  if (digests_[t + 1] != digest) {
    Fail(absl::StrFormat("the replica of w%d differs after round %d", worker, t));
  }
}

void Checker::OnSnapshot(uint32_t worker, Round round, uint64_t digest) {
  if (round.value() > log_.size() || digests_[round.value()] != digest) {
    Fail(absl::StrFormat("w%d received a state that is not that of round %d", worker,
                         round.value()));
  }
}

}  // namespace signvote::sim
