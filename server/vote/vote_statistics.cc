#include "server/vote/vote_statistics.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "common/bits.h"
#include "common/check.h"

namespace signvote {
namespace {

constexpr uint64_t kChunksMax = 16;  // one chunk in so many is looked at
// Fewer say little, and cost little.
constexpr uint64_t kStretchMin = 4096;

}  // namespace

SampleRange SampleOf(const ChunkPlan& plan, Round round, ChunkIndex chunk) {
  const uint64_t every = std::bit_floor(std::min<uint64_t>(kChunksMax, plan.chunks()));
  const uint64_t turn = round.value() % kSampleRounds;
  if (chunk.value() % every != turn % every) return {};
  const uint64_t coordinates = plan.Count(chunk);
  const uint64_t stretches =
      std::clamp<uint64_t>(coordinates / kStretchMin, 1, kSampleRounds / every);
  // Whole words, so that a stretch begins where a byte does.
  const uint64_t length =
      (coordinates + stretches * kBitsPerWord - 1) / (stretches * kBitsPerWord) * kBitsPerWord;
  const uint64_t first = turn / every % stretches * length;
  return {.first = first, .count = std::min(length, coordinates - first)};
}

void AddStatistics(const TallyInput& input, std::span<const uint32_t> places,
                   const uint8_t* verdict, const SampleRange& sample, VoteStatistics* out) {
  SIGNVOTE_CHECK(sample.first + sample.count <= input.coordinates);
  if (sample.count == 0) return;
  const size_t skipped = sample.first / kBitsPerByte;
  std::vector<const uint8_t*> ballots;
  ballots.reserve(input.ballots.size());
  for (const uint8_t* ballot : input.ballots) ballots.push_back(ballot + skipped);
  out->coordinates += sample.count;
  out->ties += CountTies({.ballots = ballots, .coordinates = sample.count});
  for (size_t i = 0; i < ballots.size(); ++i) {
    VoteStatistics::Ballot& ballot = out->ballots[places[i]];
    ballot.coordinates += sample.count;
    ballot.agreeing += CountAgreement(ballots[i], verdict + skipped, sample.count);
  }
}

}  // namespace signvote
