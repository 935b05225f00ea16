#pragma once
// How unanimous the votes are: ties, and how often each worker agrees with the verdict. For people,
// so it is measured on a sample that costs a few hundredths of the tally.

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/layout.h"
#include "server/tally/tally.h"

namespace signvote {

// The coordinates of chunk `chunk` that round `round` looks at. One chunk in 16 (in as many as
// there are, rounded down to a power of two, when there are fewer), and of that a stretch: over
// kSampleRounds rounds every coordinate of a large model is looked at once. Chunks of few
// coordinates are looked at in larger stretches.
struct SampleRange {
  uint64_t first = 0;  // within the chunk; a multiple of 64
  uint64_t count = 0;  // 0: this chunk is not looked at in this round
};
inline constexpr uint64_t kSampleRounds = 64;
SampleRange SampleOf(const ChunkPlan& plan, Round round, ChunkIndex chunk);

// What a sample says. Sums of several add up.
struct VoteStatistics {
  uint64_t coordinates = 0;  // looked at
  uint64_t ties = 0;         // of those
  struct Ballot {
    uint64_t coordinates = 0;  // looked at
    uint64_t agreeing = 0;     // of those, equal to the verdict
  };
  std::vector<Ballot> ballots;  // by the ballot's place in its attempt (OpenVote::Open)
};

// Adds what `sample` of a tallied chunk says. `places`: the place of each of input.ballots, below
// out->ballots.size(). `verdict`: the chunk's, as Tally() wrote it.
void AddStatistics(const TallyInput& input, std::span<const uint32_t> places,
                   const uint8_t* verdict, const SampleRange& sample, VoteStatistics* out);

}  // namespace signvote
