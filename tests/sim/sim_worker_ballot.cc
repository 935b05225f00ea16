// A SimWorker's ballots: how long they take, and what is in them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/status.h"
#include "tests/sim/sim_worker.h"
#include "worker/codec/dense_chunk.h"
#include "worker/codec/tensor_pointers.h"

namespace signvote::sim {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Local steps in the time of an ordinary ballot.
constexpr double kStepsPerBallot = 4;

// Ballots that a direction which counts them has been given; 0 with one that does not.
uint64_t StepsOf(const DirectionConfig& direction, BallotPacker* packer) {
  uint64_t steps = 0;
  const std::vector<StatePlane> planes = PlanesOf(direction, StatePlane::Holder::kPacker);
  for (size_t k = 0; k < planes.size(); ++k) {
    if (planes[k].kind != StatePlane::Kind::kSteps) continue;
    SIGNVOTE_CHECK(packer->SaveState(k, 0, std::as_writable_bytes(std::span(&steps, 1))).ok());
  }
  return steps;
}

// Σ_k scale_k⟨g_k, b_k⟩.
double InnerWith(const std::vector<uint8_t>& verdict, const Layout& layout,
                 const std::vector<float>& g) {
  double sum = 0;
  for (const TensorSpec& tensor : layout.tensors()) {
    for (uint64_t i = tensor.first; i < tensor.first + tensor.count; ++i) {
      const double sign = GetBit(verdict.data(), i) ? 1 : -1;
      sum += double{tensor.step_scale} * sign * double{g[i]};
    }
  }
  return sum;
}

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(double{a[i]} - double{b[i]});
  return sum;
}

bool TakesSteps(const RoundTicket& ticket) { return ticket.local_steps > 1 || ticket.silent(); }

}  // namespace

void SimWorker::StartVote(const RoundTicket& ticket) {
  world_->Trace(name_, absl::StrCat("votes in round ", ticket.round.value()));
  if (TakesSteps(ticket)) {
    world_->Trace(name_, absl::StrCat("steps ", ticket.local_steps, " times, start ",
                                      static_cast<int>(ticket.start)));
  }
  if (ticket.evaluate) BeginEvaluation(ticket);
  ballot_.emplace(Ballot{});
  ballot_->ticket = ticket;
  ballot_->number = ++last_ballot_;
  const uint32_t chunks = follower_->run().plan.chunks();
  ballot_->chunks.assign(chunks, false);
  double compute = world_->options.compute_s * world_->timeline.Uniform(0.8, 1.2);
  if (Is(slow_until_)) compute *= world_->timeline.Uniform(5, 20);
  double interval = compute / (chunks + 1), first = interval;
  if (TakesSteps(ticket)) {
    // Each takes its part of the usual time; then there is nothing left but to send.
    const double step = compute / kStepsPerBallot;
    ballot_->steps = ticket.local_steps;
    if (ticket.steps_until.has_value()) {
      const double until = std::ceil(ToSeconds(*ticket.steps_until - Now()) / step);
      ballot_->steps = static_cast<uint32_t>(std::clamp<double>(until, 1, ticket.local_steps));
    }
    first = step * ballot_->steps;
    interval = 0.001;
  }
  Later(first, [this, number = ballot_->number, interval] {
    if (!ballot_.has_value() || ballot_->number != number) return;
    MakeBallot(ballot_->ticket);
    HandChunk(number, 0, interval);
  });
}

void SimWorker::MakeBallot(const RoundTicket& ticket) {
  const RunInfo& run = follower_->run();
  Ballot& ballot = *ballot_;
  if (ticket.x0_over && replica_->round() == ticket.round) replica_->LetGoOfX0();
  ballot.bits.assign(run.ballot_plan.TotalBytes(), 0);
  const std::optional<Round>& nonfinite_from = world_->options.nonfinite_from;
  if (nonfinite_from.has_value() && ticket.round >= *nonfinite_from) {
    abstain_next_ = AbstainReason::kNonFiniteLoss;
  }
  if (abstain_next_.has_value()) {
    ballot.abstains = std::exchange(abstain_next_, std::nullopt);
    // A loss is known before the first chunk leaves.
    if (*ballot.abstains != AbstainReason::kNonFiniteLoss) {
      ballot.abstains_at = static_cast<uint32_t>(world_->timeline.Below(run.plan.chunks()));
    }
  }
  if (replica_->round() != ticket.round || !replica_->level()) {
    ForgetPrevious();  // committed meanwhile: these bits are late anyway
    prev_verdict_.reset();
  }
  if (measurement_.has_value() && measurement_->report.round < ticket.round &&
      --measurement_->ballots_left == 0) {
    ballot.scalars.held_out = std::exchange(measurement_, std::nullopt)->report;
  }
  if (TakesSteps(ticket)) return MakeLocalBallot(ticket);
  std::vector<float> g, h;
  ballot.scalars.loss = world_->model.Gradient(x_, run.seed, ticket.share, ticket.data_step, &g);
  const bool wants_h = ticket.Wants(ScalarKind::kProbeL1) || ticket.Wants(ScalarKind::kProbeInner);
  const bool probe = wants_h && !x_prev_.empty();
  if (probe) (void)world_->model.Gradient(x_prev_, run.seed, ticket.share, ticket.data_step, &h);
  const std::vector<const float*> g_by_tensor = PointersInto<const float>(run.layout, g.data());
  const std::vector<const float*> h_by_tensor =
      probe ? PointersInto<const float>(run.layout, h.data()) : std::vector<const float*>();
  double probe_l1 = 0, prev_inner = 0;
  const uint64_t steps_before = StepsOf(run.direction, packer_.get());
  SIGNVOTE_CHECK(packer_->Begin().ok());
  for (uint32_t k = 0; k < run.plan.chunks(); ++k) {
    const ChunkIndex chunk(k);
    const absl::Status started =
        packer_->Start(chunk,
                       {.g = g_by_tensor,
                        .h = h_by_tensor,
                        .prev_verdict = prev_verdict_ == nullptr ? nullptr : prev_verdict_->data(),
                        .seed = run.seed,
                        .round = ticket.round,
                        .share = ticket.share},
                       ballot.bits.data() + run.ballot_plan.Offset(chunk));
    SIGNVOTE_CHECK(started.ok());
    const ChunkScalars s = packer_->Finish(chunk).value();
    if (const PayloadKind kind = run.ballot_plan.kind(chunk); kind != PayloadKind::kSigns) {
      uint8_t* const payload = ballot.bits.data() + run.ballot_plan.Offset(chunk);
      const std::vector<uint8_t> packed(payload, payload + run.plan.Bytes(chunk));
      const auto begin = g.begin() + static_cast<ptrdiff_t>(run.plan.First(chunk));
      std::vector<float> values(begin, begin + static_cast<ptrdiff_t>(run.plan.Count(chunk)));
      SIGNVOTE_CHECK(
          MakeDenseChunk(run.layout, kind, run.plan.First(chunk), packed.data(), values, payload));
    }
    ballot.scalars.g_l1 += s.g_l1;
    ballot.scalars.g_l2_squared += s.g_l2_squared;
    probe_l1 += s.probe_l1;
    prev_inner += s.prev_inner;
  }
  if (run.direction.kind == DirectionKind::kAdam) {
    world_->checker.Require(StepsOf(run.direction, packer_.get()) == steps_before + 1,
                            "a ballot is not one step of its direction");
  }
  ballot.scalars.samples = 1;
  std::optional<X0Sums> x0_sums;
  const bool about_x0 = ticket.Wants(ScalarKind::kX0Inner) || ticket.Wants(ScalarKind::kX0Distance);
  if (about_x0 && memory_->keeps_x0())
    x0_sums = memory_->SumsAboutX0(run.layout, g_by_tensor).value();
  for (const ScalarKind kind : ticket.wanted) {
    double value = kNaN;  // this worker cannot tell
    if (kind == ScalarKind::kProbeInner && probe && prev_verdict_ != nullptr)
      value = InnerWith(*prev_verdict_, run.layout, h);
    if (kind == ScalarKind::kChangeL1 && !g_prev_.empty()) value = Distance(g, g_prev_);
    if (kind == ScalarKind::kGradientMax) value = double{*std::max_element(g.begin(), g.end())};
    if (kind == ScalarKind::kGradientMin) value = double{*std::min_element(g.begin(), g.end())};
    if (kind == ScalarKind::kX0Inner && x0_sums.has_value()) value = x0_sums->inner;
    if (kind == ScalarKind::kX0Distance && x0_sums.has_value())
      value = std::sqrt(x0_sums->distance_squared);
    if (kind == ScalarKind::kProbeL1 && probe) value = probe_l1;
    if (kind == ScalarKind::kPrevInner && prev_verdict_ != nullptr) value = prev_inner;
    ballot.scalars.wanted.push_back(value);
  }
  x_prev_ = x_;
  g_prev_ = std::move(g);
}

void SimWorker::MakeLocalBallot(const RoundTicket& ticket) {
  const RunInfo& run = follower_->run();
  Ballot& ballot = *ballot_;
  ForgetPrevious();
  if (ticket.silent() && ballot.abstains.has_value()) ballot.abstains_at = 0;
  const std::vector<float> before = x_;
  // Committed meanwhile: nobody waits for these bits, and what they would be of is gone.
  bool can = replica_->round() == ticket.round && replica_->level();
  if (can) {
    const absl::Status begun = steps_->Begin(ticket);
    if (!begun.ok())
      world_->checker.Fail(absl::StrCat(name_, " takes no steps: ", Describe(begun)));
    can = begun.ok() && steps_->CanVote();
  }
  if (!can) {
    world_->Trace(name_, "has no steps to go on from");
    world_->checker.Require(steps_->EndSteps().ok(), "local steps cannot be given up");
    ballot.abstains = lost_of_ == ticket.round ? lost_ : AbstainReason::kOther;
    ballot.abstains_at = 0;
    return;
  }
  std::vector<float> g;
  BallotScalars& scalars = ballot.scalars;
  for (uint32_t h = 0; h < ballot.steps; ++h) {
    const DataStep step(ticket.data_step.value() + h);
    scalars.loss += world_->model.Gradient(x_, run.seed, ticket.share, step, &g) / ballot.steps;
    const std::vector<const float*> by_tensor = PointersInto<const float>(run.layout, g.data());
    const ChunkScalars sums = packer_->Sums(by_tensor, nullptr).value();
    scalars.g_l1 += sums.g_l1 / ballot.steps;
    scalars.g_l2_squared += sums.g_l2_squared / ballot.steps;
    SIGNVOTE_CHECK(steps_->TakeGradient(h, {.g = by_tensor, .l2_squared = sums.g_l2_squared}).ok());
  }
  SIGNVOTE_CHECK(steps_->EndSteps().ok());
  world_->checker.Require(x_ == before, "local steps have moved a replica");
  ++world_->counters->local_ballots;
  if (ballot.steps < ticket.local_steps) ++world_->counters->steps_cut_short;
  scalars.samples = scalars.local_steps = ballot.steps;
  for (const ScalarKind kind : ticket.wanted) scalars.wanted.push_back(steps_->Scalar(kind));
  const std::span<const float> means = steps_->displacement_mean();
  scalars.displacement_mean.assign(means.begin(), means.end());
  if (ticket.silent()) return;
  for (uint32_t k = 0; k < run.plan.chunks(); ++k) {
    const ChunkIndex chunk(k);
    uint8_t* const payload = ballot.bits.data() + run.ballot_plan.Offset(chunk);
    SIGNVOTE_CHECK(steps_->PackChunk(chunk, payload).ok());
    const PayloadKind kind = run.ballot_plan.kind(chunk);
    if (kind == PayloadKind::kSigns) continue;
    const std::vector<uint8_t> packed(payload, payload + run.plan.Bytes(chunk));
    std::vector<float> values(run.plan.Count(chunk));
    SIGNVOTE_CHECK(steps_->Displacement(run.plan.First(chunk), values).ok());
    SIGNVOTE_CHECK(
        MakeDenseChunk(run.layout, kind, run.plan.First(chunk), packed.data(), values, payload));
  }
}

void SimWorker::ForgetPrevious() {
  x_prev_.clear();
  g_prev_.clear();
}

}  // namespace signvote::sim
