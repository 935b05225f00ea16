#pragma once
// A run that is made up: commits of every kind with chance for payloads, and a replica that moves by
// them, for the tests of the journal.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/checksum.h"
#include "common/layout.h"
#include "common/rng.h"
#include "server/commit/commit_record.h"
#include "server/journal/head.h"
#include "server/journal/segment_log.h"
#include "server/journal/snapshot.h"
#include "server/replica/move_parameters.h"
#include "signvote/v1/journal.pb.h"

namespace signvote::journal::testing {

// What of the payload is of which kind.
enum class ToyPayload { kSigns, kCounts, kSignsAndDense };

class ToyRun {
 public:
  static constexpr uint64_t kChunk = 512;
  static constexpr uint32_t kBallots = 5;

  ToyRun(uint64_t seed, ToyPayload payload, bool keeps_x0)
      : rng_(seed, 0x70), payload_(payload), run_id_(RunId::FromRandom(seed, 7)) {
    layout_ = *Layout::Make({{.name = "w", .shape = {2, 512}, .weight_decay = 0.125f},
                             {.name = "b", .shape = {300}, .step_scale = 2.0f}});
    const ChunkPlan cut(layout_.coordinates(), kChunk);
    const PayloadKind first =
        payload == ToyPayload::kCounts ? PayloadKind::kCounts : PayloadKind::kSigns;
    std::vector<PayloadRange> ranges;
    if (payload == ToyPayload::kSignsAndDense) {
      ranges.push_back({.first = ChunkIndex(0), .chunks = 2, .kind = first});
      ranges.push_back(
          {.first = ChunkIndex(2), .chunks = cut.chunks() - 2, .kind = PayloadKind::kFp32});
    } else {
      ranges.push_back({.first = ChunkIndex(0), .chunks = cut.chunks(), .kind = first});
    }
    plan_ = *PayloadPlan::Make(cut, std::move(ranges), kBallots);
    x_.resize(layout_.coordinates());
    for (float& value : x_) value = static_cast<float>(rng_.Uniform() - 0.5);
    if (keeps_x0) x0_ = x_;
    run_.set_run_id(std::string(run_id_.bytes()));
    run_.set_epoch(1);
    run_.set_next_worker_id(1);
    v1::KnownName& name = *run_.add_names();
    name.set_name("w0");
    FillLayout(layout_, &run_);
    history_[Round(0)] = {x_, {}, run_};
  }

  const RunId& run_id() const { return run_id_; }
  const Layout& layout() const { return layout_; }
  const PayloadPlan& plan() const { return plan_; }
  Round round() const { return Round(run_.engine().round()); }

  v1::JournalHead Head() const {
    v1::JournalHead head;
    *head.mutable_run() = run_;
    FillPlan(plan_, &head);
    return head;
  }

  // The next commit, which the replica has not made yet.
  LogCommit Next() {
    CommitRecord record;
    record.round = round();
    record.attempt = Attempt(static_cast<uint32_t>(rng_.Below(2)));
    record.data_step = DataStep(round().value());
    record.next_data_step = record.data_step.next();
    const uint64_t kind = rng_.Below(8);
    record.kind = kind == 0                   ? CommitKind::kNone
                  : kind == 1 && !x0_.empty() ? CommitKind::kRewind
                                              : CommitKind::kStep;
    record.gamma = static_cast<float>(1 + rng_.Below(4)) / 64;
    record.digest_due = rng_.Below(4) == 0;
    record.voters = 3;
    if (rng_.Below(2) == 0) record.loss = rng_.Uniform();
    if (record.kind == CommitKind::kStep) {
      if (!x0_.empty() && rng_.Below(4) == 0) record.rho = 0.75f;
      if (rng_.Below(4) == 0) record.decay_step = 0.25f;
      if (rng_.Below(4) == 0) record.scales = {0.5f, 2.0f};
      record.payload = WholePayload(plan_, MakePayload(&record.chunks));
    } else {
      record.reason = "a reason";
    }
    auto made = MakeCommitRecord(std::move(record), plan_, layout_.tensors().size());
    SIGNVOTE_CHECK(made.ok());
    auto after = std::make_shared<v1::RunState>();
    after->set_next_worker_id(run_.next_worker_id());
    *after->mutable_names() = run_.names();
    after->set_paused(run_.paused());
    after->mutable_engine()->set_round(round().value() + 1);
    after->mutable_engine()->set_gamma((*made)->gamma);
    after->mutable_engine()->set_rule(std::to_string(rng_.Next()));
    *after->mutable_begun() = run_.begun();
    LogCommit commit{.record = *std::move(made), .after = after, .optimizer = nullptr};
    if (payload_ == ToyPayload::kSignsAndDense) {
      auto numbers = std::make_shared<std::vector<float>>(300);
      for (float& number : *numbers) number = static_cast<float>(rng_.Uniform());
      after->set_optimizer_numbers(numbers->size());
      commit.optimizer = std::move(numbers);
    }
    return commit;
  }

  void Apply(const LogCommit& commit) {
    MoveParameters(layout_, *commit.record, 0, layout_.coordinates(),
                   x0_.empty() ? nullptr : x0_.data(), x_.data());
    MoveOn(*commit.after, &run_);
    optimizer_ = commit.optimizer == nullptr ? std::vector<float>() : *commit.optimizer;
    history_[round()] = {x_, optimizer_, run_};
  }

  // A name came since the last commit.
  v1::JournalName AddName() {
    v1::JournalName name;
    name.mutable_name()->set_id(run_.next_worker_id());
    name.mutable_name()->set_name("w" + std::to_string(run_.next_worker_id()));
    name.mutable_name()->set_incarnation(1 + rng_.Below(3));
    run_.set_next_worker_id(run_.next_worker_id() + 1);
    name.set_next_worker_id(run_.next_worker_id());
    *run_.add_names() = name.name();
    return name;
  }

  // As it stood at that round, and everything later is forgotten. False: it never did.
  bool GoBackTo(Round round) {
    const auto then = history_.find(round);
    if (then == history_.end()) return false;
    x_ = then->second.x;
    optimizer_ = then->second.optimizer;
    run_ = then->second.run;
    history_.erase(std::next(then), history_.end());
    return true;
  }

  SnapshotView View(const v1::JournalHead* head) const {
    return {.head = head, .layout = &layout_, .x = x_, .x0 = x0_, .optimizer = optimizer_};
  }
  const std::vector<float>& x() const { return x_; }
  const std::vector<float>& x0() const { return x0_; }
  const std::vector<float>& optimizer() const { return optimizer_; }
  v1::RunState& run() { return run_; }
  const v1::RunState& run() const { return run_; }

 private:
  std::shared_ptr<const uint8_t> MakePayload(std::vector<ChunkSum>* sums) {
    std::shared_ptr<uint8_t> bytes(new uint8_t[plan_.TotalBytes()](),
                                   std::default_delete<uint8_t[]>());
    for (uint32_t k = 0; k < plan_.chunks(); ++k) {
      const ChunkIndex chunk(k);
      const auto counted = static_cast<uint32_t>(1 + rng_.Below(kBallots));
      uint8_t* const at = bytes.get() + plan_.Offset(chunk);
      const size_t size = plan_.Bytes(chunk, counted);
      if (plan_.kind(chunk) == PayloadKind::kFp32) {
        for (size_t i = 0; i < size / 4; ++i) {
          const auto value = static_cast<float>(rng_.Uniform());
          std::memcpy(at + 4 * i, &value, 4);
        }
      } else {
        // Planes of a count above the ballots say nothing that an apply could not carry out.
        for (size_t i = 0; i < size; ++i) at[i] = static_cast<uint8_t>(rng_.Next());
      }
      sums->push_back({.counted = counted, .checksum = Xxh3(at, size)});
    }
    return bytes;
  }

  struct Then {
    std::vector<float> x, optimizer;
    v1::RunState run;
  };

  Rng rng_;
  const ToyPayload payload_;
  const RunId run_id_;
  Layout layout_;
  PayloadPlan plan_;
  std::vector<float> x_, x0_, optimizer_;
  v1::RunState run_;
  std::map<Round, Then> history_;
};

inline Durability::Chunk ChunkOf(const CommitRecord& record, uint32_t k) {
  return {.round = record.round,
          .attempt = record.attempt,
          .chunk = ChunkIndex(k),
          .sum = record.chunks[k],
          .payload = record.Chunk(ChunkIndex(k)),
          .owner = record.ChunkOwner(ChunkIndex(k))};
}

}  // namespace signvote::journal::testing
