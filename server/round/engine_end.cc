// Digests, and how a run ends: engine.h.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/round/engine.h"
#include "server/round/notices.h"

namespace signvote::round {

void Engine::On(const WorkerDigestIn& e) {
  Worker* w = members_.Live(e.worker, e.incarnation);
  if (w == nullptr) return;
  const bool final = course_.run_done() && e.round == round_;
  // A returned worker may repeat its last answer; it counts as one that has answered.
  if ((e.round > round_ || !digests_.AddWorker(e.round, e.worker, e.digest)) && !final) {
    return Stale();
  }
  if (final) w->final_digest = e.digest;
  CheckDigests();
  if (phase_ == Phase::kFinishing) CheckFinished();
}

void Engine::On(const MasterDigestIn& e) {
  if (e.round > round_) return Stale();
  digests_.AddMaster(e.round, e.digest);
  CheckDigests();
  if (phase_ == Phase::kFinishing) CheckFinished();
}

// Digests of rounds before the last: a worker that differs fetches the state again.
void Engine::CheckDigests() {
  for (const Round round : digests_.Rounds()) {
    if (course_.run_done() && round == round_) continue;
    const DigestFinding finding = digests_.Check(round, /*final=*/false);
    if (!finding.majority_against_master.empty()) {
      return End(Damaged(round, finding.majority_against_master));
    }
    for (const WorkerId id : finding.differing) {
      ++members_.totals().digest_mismatches;
      // What it has said of later rounds is of the replica that it gives up.
      digests_.TakeBack(id);
      const Worker* w = members_.Find(id);
      if (w == nullptr) continue;
      Note(NoticeLevel::kWarning,
           absl::StrFormat("the replica of %s differs after round %d", w->name, round.value()), id);
      if (!w->connected) continue;
      members_.Live(id, w->incarnation)->final_digest.reset();
      out_.push_back(Resync{id, w->incarnation, round});
    }
  }
}

absl::Status Engine::Damaged(Round round, const std::vector<WorkerId>& majority) {
  members_.totals().digest_mismatches += majority.size();
  std::vector<std::string> names;
  for (const WorkerId id : majority) names.push_back(members_.Name(id));
  return absl::DataLossError(absl::StrFormat(
      "most workers agree with each other against the server's replica after %d rounds: %s",
      round.value(), absl::StrJoin(names, ", ")));
}

void Engine::Finish() {
  phase_ = Phase::kFinishing;
  finish_until_ = now_ + config_.linger;
  if (stopping_) finish_until_ = std::min(finish_until_, *stop_end_);
  // A run that was done before this engine was made.
  if (!digests_.Expects(round_)) digests_.Expect(round_, {});
  out_.push_back(FinishRun{round_});
  CheckFinished();
}

void Engine::CheckFinished() {
  const bool all_in = digests_.HasMaster(round_) && members_.AllFinalDigestsIn();
  if (!all_in && now_ < finish_until_) return;
  if (!all_in) {
    std::vector<std::string> silent = members_.WithoutFinalDigest();
    if (!digests_.HasMaster(round_)) silent.push_back("the server itself");
    Note(NoticeLevel::kWarning,
         absl::StrFormat("no final digest within %s from: %s", Seconds(config_.linger),
                         absl::StrJoin(silent, ", ")));
  }
  const DigestFinding finding = digests_.Check(round_, /*final=*/true);
  if (!finding.majority_against_master.empty()) {
    return End(Damaged(round_, finding.majority_against_master));
  }
  for (const WorkerId id : finding.differing) {
    ++members_.totals().digest_mismatches;
    Note(NoticeLevel::kError,
         absl::StrFormat("the final replica of %s differs from the server's", members_.Name(id)));
  }
  End(absl::OkStatus());
}

void Engine::End(absl::Status status) {
  phase_ = Phase::kEnded;
  open_.reset();
  members_.Unseat();
  out_.push_back(EndRun{std::move(status)});
}

void Engine::Note(NoticeLevel level, std::string text, std::optional<WorkerId> of) {
  Say(out_, level, std::move(text), of);
}

}  // namespace signvote::round
