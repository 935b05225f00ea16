#include "tests/sim/sim_journal.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status.h"
#include "server/commit/commit_ring.h"
#include "server/journal/recovery.h"
#include "server/journal/tool.h"
#include "server/run/run_recovery.h"

namespace signvote::sim {
namespace {

constexpr double kDiskSeconds = 0.002;  // until what was said is on the disk, at least
constexpr uint32_t kCopiesMax = 10;     // of one turn: more would never end

}  // namespace

SimJournal::SimJournal(World* world) : world_(world), disk_(world->options.seed) {}

absl::StatusOr<run::RunState> SimJournal::Open(run::RunState state, Hooks hooks) {
  const SimOptions& o = world_->options;
  if (life_ > 0) disk_.Begin(restart_);
  ++life_;
  restart_ = SimDisk::Restart::kProcess;
  hooks_ = std::move(hooks);
  journal::RecoveryOptions options;
  options.recent_max = CommitRing::kRoundsMax;
  options.recent_bytes = o.run.model.sizes.catch_up_bytes.value_or(CommitRing::kDefaultBytesMin);
  SIGNVOTE_ASSIGN_OR_RETURN(journal::Recovered recovered,
                            journal::Recover(&disk_, options, &world_->timeline));
  if (recovered.run_id.has_value()) {
    ++recoveries_;
    SIGNVOTE_ASSIGN_OR_RETURN(state, run::TakeUp(recovered));
  } else {
    state.begun = {{.epoch = state.epoch, .round = Round(0)}};
  }
  SIGNVOTE_ASSIGN_OR_RETURN(
      journal_, journal::Journal::Open(
                    &disk_, {.mode = *o.journal.mode, .segment_bytes = o.journal.segment_bytes},
                    {.run_id = state.run_id, .epoch = state.epoch, .round = state.engine.round},
                    recovered, &world_->timeline));
  snapshotter_ = std::make_unique<journal::Snapshotter>(
      &disk_,
      journal::SnapshotOptions{.every = o.journal.snapshot_every, .keep = o.journal.snapshots_kept},
      journal_.get(), recovered.snapshots, &world_->timeline);
  journal_->StartByTurns(
      [this](Round round) {
        world_->timeline.After(0.0, [this, round, life = life_] {
          if (life == life_) hooks_.released(round);
        });
      },
      [this](const absl::Status& status) {
        if (disk_.killed()) return;  // nobody is there to fail
        world_->timeline.After(0.0, [this, status, life = life_] {
          if (life == life_) hooks_.failed(status);
        });
      });
  return state;
}

absl::Status SimJournal::Cut() {
  return journal::Truncate(&disk_, &world_->timeline, [](std::string_view) {});
}

void SimJournal::SetApplier(Applier* applier) {
  applier_ = applier;
  snapshotter_->StartByTurns(
      [this, copies = uint32_t{0}, last = Time()](
          const journal::GiveUp& give_up) mutable -> absl::StatusOr<journal::Snapshotter::Copied> {
        copies = last == world_->timeline.Now() ? copies + 1 : 0;
        last = world_->timeline.Now();
        if (copies > kCopiesMax) {
          world_->checker.Fail("a snapshot's state is not there, and will never be");
          return absl::CancelledError("");
        }
        SIGNVOTE_ASSIGN_OR_RETURN(
            Applier::Snapshot copy,
            applier_->TakeSnapshot(Applier::WithX0::kYes, Duration::zero(), give_up));
        return journal::Snapshotter::Copied{
            .round = copy.round, .x = std::move(copy.x), .x0 = std::move(copy.x0)};
      });
}

void SimJournal::Look() {
  if (journal_ == nullptr || looks_) return;
  const std::optional<Time> next = journal_->NextTurn();
  const bool snapshot = applier_ != nullptr && journal_->needs_snapshot();
  if (!next.has_value() && !snapshot) return;
  looks_ = true;
  const Time now = world_->timeline.Now();
  const double seconds =
      std::max(world_->options.journal.sync_s, kDiskSeconds) * world_->timeline.Uniform(0.5, 1.5);
  world_->timeline.At(std::max(snapshot ? now : *next, now) + FromSeconds(seconds),
                      [this, life = life_] {
                        if (life != life_ || journal_ == nullptr) return;
                        looks_ = false;
                        Turn();
                      });
}

void SimJournal::Turn() {
  journal_->Turn();
  if (applier_ != nullptr) {
    (void)snapshotter_->Turn();  // it is tried again
    snapshots_ = std::max(snapshots_, snapshotter_->stats().newest.has_value() ? uint64_t{1} : 0);
    journal_->Turn();  // what waited for it, or goes because of it
  }
  if (disk_.killed()) return hooks_.killed();
  Look();
}

void SimJournal::OnApplied(const Applied& applied) {
  journal_->states()->OnApplied(applied.next_round, applied.took);
  Look();
}

void SimJournal::Finish() {
  snapshotter_->Stop();
  journal_->Stop();
}

void SimJournal::DieInWrite(uint64_t bytes, SimDisk::Restart how) {
  disk_.KillAfter(bytes);
  restart_ = how;
}

void SimJournal::Die(SimDisk::Restart how) {
  if (!disk_.killed()) restart_ = how;
  disk_.Kill();
  journal_->Abandon();
  ++life_;
  looks_ = false;
  applier_ = nullptr;
  snapshotter_.reset();
  journal_.reset();
}

}  // namespace signvote::sim
