#pragma once
// Voters with ballots of random bits, for the tests of the vote.

#include <cstring>
#include <memory>
#include <vector>

#include "common/bits.h"
#include "common/check.h"
#include "common/rng.h"
#include "server/tally/tally.h"
#include "server/vote/ballot_slots.h"
#include "server/vote/open_vote.h"

namespace signvote::testing {

inline void FillRandom(std::span<uint8_t> bytes, uint64_t coordinates, Rng* rng) {
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng->Next());
  for (uint64_t i = coordinates; i < bytes.size() * 8; ++i) SetBit(bytes.data(), i, false);
}

// Sends chunk k as a session would; returns its bits. REQUIRES: the slot is free.
inline std::vector<uint8_t> Send(BallotSlots* slots, Round round, Attempt attempt, ChunkIndex k,
                                 Rng* rng) {
  std::span<uint8_t> out;
  SIGNVOTE_CHECK(slots->Begin(round, attempt, k, &out) == BallotSlots::Place::kWrite);
  FillRandom(out, slots->plan().Count(k), rng);
  std::vector<uint8_t> sent(out.begin(), out.end());
  SIGNVOTE_CHECK(slots->End(round, attempt, k, true));
  return sent;
}

// The verdict on those bits, by the definition.
inline std::vector<uint8_t> Verdict(const std::vector<std::vector<uint8_t>>& ballots,
                                    const ChunkPlan& plan, ChunkIndex k, uint64_t seed,
                                    Round round) {
  std::vector<const uint8_t*> rows;
  for (const auto& ballot : ballots) rows.push_back(ballot.data());
  std::vector<uint8_t> verdict(plan.Bytes(k));
  TallyReference({.ballots = rows,
                  .coordinates = plan.Count(k),
                  .first_coordinate = plan.First(k),
                  .seed = seed,
                  .round = round},
                 verdict.data());
  return verdict;
}

}  // namespace signvote::testing
