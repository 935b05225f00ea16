#pragma once
// The way of a commit: proposed, durable, published, applied.

#include <functional>
#include <memory>

#include "common/ids.h"
#include "server/commit/commit_consumer.h"
#include "server/commit/commit_ring.h"
#include "server/commit/durability.h"

namespace signvote {

// Knows how far the commits of a run have come and hands each on when its turn is there:
//   Propose ──▶ ring, Durability::Append ──OnDurable──▶ Publish ──▶ CommitConsumer ──OnApplied
// What the consumer has no room for waits in the ring and is handed over as it applies.
//
// Ownership:  owns nothing of what it is given; all must outlive it.
// Threads:    the run's thread only. Nothing here waits.
// Invariants: applied() ≤ published() ≤ durable() ≤ proposed(), checked at every change. Each
//             commit is published once and handed to the consumer once, both in order.
class CommitPipeline {
 public:
  // A commit is the law: tell everybody. May propose the next one; then that is published when this
  // call is over.
  using Publish = std::function<void(const std::shared_ptr<const CommitRecord>& record)>;

  // `ring` stands at the first round to propose. `durability` may answer inside Append(); its owner
  // sees to it that the answer arrives at OnDurable() on the run's thread.
  CommitPipeline(CommitRing* ring, Durability* durability, CommitConsumer* consumer,
                 Publish publish);

  // False while one more commit would push one out of the ring that is not applied yet: rounds then
  // go at the applier's pace. True again after OnApplied().
  bool CanPropose() const;
  // REQUIRES: CanPropose(), record->round == proposed().
  void Propose(std::shared_ptr<const CommitRecord> record);
  // Commits up to and including `round` are released. One that was released before changes nothing.
  // REQUIRES: round < proposed().
  void OnDurable(Round round);
  // REQUIRES: applied.next_round == this->applied().next() ≤ published().
  void OnApplied(const Applied& applied);

  // The first round that has not come so far yet.
  Round proposed() const { return ring_->next(); }
  Round durable() const { return durable_; }
  Round published() const { return published_; }
  Round applied() const { return applied_; }
  // Commits that were published and are not applied.
  uint64_t backlog() const { return published_.value() - applied_.value(); }

 private:
  void PublishDurable();
  void Feed();
  void CheckOrder() const;

  // Constant after construction.
  CommitRing* const ring_;
  Durability* const durability_;
  CommitConsumer* const consumer_;
  const Publish publish_;

  // Invariant: applied_ ≤ fed_ ≤ published_ ≤ durable_ ≤ ring_->next().
  Round durable_, published_, fed_, applied_;
  bool publishing_ = false;
};

}  // namespace signvote
