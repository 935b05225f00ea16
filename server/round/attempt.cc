#include "server/round/attempt.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace signvote::round {

SeatState* OpenAttempt::Find(WorkerId id) {
  const auto it =
      std::lower_bound(seats.begin(), seats.end(), id,
                       [](const SeatState& s, WorkerId w) { return s.seat.worker < w; });
  return it != seats.end() && it->seat.worker == id ? &*it : nullptr;
}

CloseChunk OpenAttempt::Close(ChunkIndex chunk, Time now) {
  const uint32_t k = chunk.value();
  SIGNVOTE_CHECK(!closed[k]);
  CloseChunk action{.round = round, .attempt = attempt, .chunk = chunk, .voters = {}};
  for (SeatState& seat : seats) {
    if (!seat.member() || !seat.ballot.in[k]) continue;
    ++seat.ballot.counted;
    action.voters.push_back(seat.seat.worker);
  }
  closed[k] = true;
  counted[k] = static_cast<uint32_t>(action.voters.size());
  ++closed_count;
  last_closed = now;
  return action;
}

CommitRound OpenAttempt::Summary(uint64_t coordinates) const {
  CommitRound commit;
  commit.round = round;
  commit.attempt = attempt;
  commit.data_step = DataStep(round.value());
  commit.counted = counted;
  commit.members = members;
  std::vector<double> losses, norms, densities;
  for (const SeatState& seat : seats) {
    if (!seat.member()) continue;
    if (seat.ballot.counted == 0) {
      ++commit.abstentions;
      continue;
    }
    commit.voters.push_back(seat.seat.worker);
    if (!seat.ballot.scalars.has_value()) continue;
    const WorkerScalars& s = *seat.ballot.scalars;
    commit.scalars.emplace_back(seat.seat.worker, s);
    losses.push_back(s.loss);
    norms.push_back(s.g_l1);
    if (s.g_l2_squared > 0) {
      densities.push_back(s.g_l1 * s.g_l1 / (static_cast<double>(coordinates) * s.g_l2_squared));
    }
  }
  commit.loss = RobustMean(losses);
  commit.g_l1 = RobustMean(norms);
  commit.density = RobustMean(densities);
  return commit;
}

}  // namespace signvote::round
