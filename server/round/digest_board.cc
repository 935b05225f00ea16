#include "server/round/digest_board.h"

namespace signvote::round {

void DigestBoard::Expect(Round round, const std::vector<WorkerId>& workers) {
  for (auto& [earlier, entry] : entries_) entry.outstanding.clear();
  Entry& entry = entries_[round];
  entry.asked.insert(workers.begin(), workers.end());
  entry.outstanding.insert(workers.begin(), workers.end());
  while (entries_.size() > kRoundsMax) entries_.erase(entries_.begin());
}

bool DigestBoard::AddWorker(Round round, WorkerId worker, uint64_t digest) {
  const auto it = entries_.find(round);
  if (it == entries_.end()) return false;
  it->second.outstanding.erase(worker);
  return it->second.answers.emplace(worker, digest).second;
}

void DigestBoard::AddMaster(Round round, uint64_t digest) {
  const auto it = entries_.find(round);
  if (it != entries_.end() && !it->second.master.has_value()) it->second.master = digest;
}

bool DigestBoard::HasMaster(Round round) const {
  const auto it = entries_.find(round);
  return it != entries_.end() && it->second.master.has_value();
}

void DigestBoard::Forget(WorkerId worker) {
  for (auto& [round, entry] : entries_) entry.outstanding.erase(worker);
}

std::vector<Round> DigestBoard::Rounds() const {
  std::vector<Round> rounds;
  for (const auto& [round, entry] : entries_) rounds.push_back(round);
  return rounds;
}

DigestFinding DigestBoard::Check(Round round, bool final) {
  DigestFinding finding;
  const auto it = entries_.find(round);
  if (it == entries_.end() || !it->second.master.has_value()) return finding;
  Entry& entry = it->second;
  std::map<uint64_t, size_t> groups;
  for (const auto& [worker, digest] : entry.answers) {
    if (digest != *entry.master && entry.asked.contains(worker)) ++groups[digest];
  }
  uint64_t rival = 0;
  size_t rivals = 0;
  for (const auto& [digest, size] : groups) {
    if (size > rivals) {
      rival = digest;
      rivals = size;
    }
  }
  const auto is_majority = [&](size_t size) { return size >= 2 && 2 * size > entry.asked.size(); };
  if (is_majority(rivals)) {
    for (const auto& [worker, digest] : entry.answers) {
      if (digest == rival && entry.asked.contains(worker)) {
        finding.majority_against_master.push_back(worker);
      }
    }
    return finding;
  }
  const size_t outstanding = final ? 0 : entry.outstanding.size();
  if (outstanding > 0 && is_majority(rivals + outstanding)) return finding;
  for (const auto& [worker, digest] : entry.answers) {
    if (digest != *entry.master && entry.named.insert(worker).second)
      finding.differing.push_back(worker);
  }
  return finding;
}

}  // namespace signvote::round
