#include "server/round/digest_board.h"

#include <algorithm>
#include <utility>

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
  Entry& entry = it->second;
  entry.outstanding.erase(worker);
  if (!entry.answers.emplace(worker, digest).second) return false;
  if (entry.master.has_value()) Compare(entry, worker, digest);
  return true;
}

void DigestBoard::AddMaster(Round round, uint64_t digest) {
  const auto it = entries_.find(round);
  if (it == entries_.end() || it->second.master.has_value()) return;
  it->second.master = digest;
  for (const auto& [worker, answer] : it->second.answers) Compare(it->second, worker, answer);
}

void DigestBoard::Compare(Entry& entry, WorkerId worker, uint64_t digest) {
  if (digest == *entry.master) return;
  entry.unnamed.push_back(worker);
  if (!entry.asked.contains(worker)) return;
  const size_t size = ++entry.groups[digest];
  if (size <= entry.rivals) return;
  entry.rival = digest;
  entry.rivals = size;
}

bool DigestBoard::HasMaster(Round round) const {
  const auto it = entries_.find(round);
  return it != entries_.end() && it->second.master.has_value();
}

void DigestBoard::Forget(WorkerId worker) {
  for (auto& [round, entry] : entries_) entry.outstanding.erase(worker);
}

void DigestBoard::TakeBack(WorkerId worker) {
  Forget(worker);
  for (auto& [round, entry] : entries_) {
    const auto answer = entry.answers.find(worker);
    if (answer == entry.answers.end()) continue;
    const auto group = entry.groups.find(answer->second);
    entry.answers.erase(answer);
    std::erase(entry.unnamed, worker);
    if (group == entry.groups.end() || !entry.asked.contains(worker)) continue;
    if (--group->second == 0) entry.groups.erase(group);
    entry.rivals = 0;
    for (const auto& [digest, size] : entry.groups) {
      if (size <= entry.rivals) continue;
      entry.rival = digest;
      entry.rivals = size;
    }
  }
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
  const auto is_majority = [&](size_t size) { return size >= 2 && 2 * size > entry.asked.size(); };
  if (is_majority(entry.rivals)) {
    for (const auto& [worker, digest] : entry.answers) {
      if (digest == entry.rival && entry.asked.contains(worker)) {
        finding.majority_against_master.push_back(worker);
      }
    }
    return finding;
  }
  const size_t outstanding = final ? 0 : entry.outstanding.size();
  if (outstanding > 0 && is_majority(entry.rivals + outstanding)) return finding;
  finding.differing = std::exchange(entry.unnamed, {});
  std::sort(finding.differing.begin(), finding.differing.end());
  return finding;
}

}  // namespace signvote::round
