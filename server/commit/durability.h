#pragma once
// When a commit may be told to anybody: the policy of durability behind one interface.

#include <functional>
#include <memory>
#include <utility>

#include "common/ids.h"
#include "server/commit/commit_record.h"

namespace signvote {

// Threads: Append() is called by the run's thread, in order of the rounds, and never waits.
class Durability {
 public:
  // Every commit up to and including `round` is released to be published. Rounds grow from call to
  // call. An implementation says which thread calls it.
  using Released = std::function<void(Round round)>;

  virtual ~Durability() = default;
  // Takes the record and answers through Released, now or later. A record that cannot be made
  // durable is never answered.
  virtual void Append(std::shared_ptr<const CommitRecord> record) = 0;
};

// Durability `none`: a commit is released as soon as it is proposed; a crash of the server loses
// the run unless its workers saved their replicas.
// Threads: Released runs inside Append().
class NoDurability final : public Durability {
 public:
  explicit NoDurability(Released released) : released_(std::move(released)) {}
  void Append(std::shared_ptr<const CommitRecord> record) override { released_(record->round); }

 private:
  const Released released_;
};

}  // namespace signvote
