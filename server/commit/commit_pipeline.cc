#include "server/commit/commit_pipeline.h"

#include <utility>

#include "common/check.h"

namespace signvote {

CommitPipeline::CommitPipeline(CommitRing* ring, Durability* durability, CommitConsumer* consumer,
                               Publish publish)
    : ring_(ring),
      durability_(durability),
      consumer_(consumer),
      publish_(std::move(publish)),
      durable_(ring->next()),
      published_(ring->next()),
      fed_(ring->next()),
      applied_(ring->next()) {}

bool CommitPipeline::CanPropose() const {
  return proposed().value() - applied_.value() < ring_->rounds_kept();
}

void CommitPipeline::Propose(std::shared_ptr<const CommitRecord> record) {
  SIGNVOTE_CHECK(CanPropose());
  ring_->Push(record);  // checks the round
  CheckOrder();
  durability_->Append(std::move(record));
}

void CommitPipeline::OnDurable(Round round) {
  SIGNVOTE_CHECK(round < proposed());
  if (round < durable_) return;
  durable_ = round.next();
  CheckOrder();
  PublishDurable();
}

void CommitPipeline::OnApplied(const Applied& applied) {
  SIGNVOTE_CHECK(applied.next_round == applied_.next());
  applied_ = applied.next_round;
  CheckOrder();
  Feed();
}

void CommitPipeline::PublishDurable() {
  // A commit that is proposed and released by what `publish_` does waits for its turn: the loop
  // below comes to it.
  if (publishing_) return;
  publishing_ = true;
  while (published_ < durable_) {
    const std::shared_ptr<const CommitRecord> record = ring_->Find(published_);
    SIGNVOTE_CHECK(record != nullptr);
    ++published_;
    CheckOrder();
    publish_(record);
  }
  publishing_ = false;
  Feed();
}

void CommitPipeline::Feed() {
  while (fed_ < published_) {
    const std::shared_ptr<const CommitRecord> record = ring_->Find(fed_);
    SIGNVOTE_CHECK(record != nullptr);
    if (!consumer_->TryPush(record)) return;
    ++fed_;
  }
}

void CommitPipeline::CheckOrder() const {
  SIGNVOTE_CHECK(applied_ <= fed_ && fed_ <= published_);
  SIGNVOTE_CHECK(published_ <= durable_ && durable_ <= proposed());
}

}  // namespace signvote
