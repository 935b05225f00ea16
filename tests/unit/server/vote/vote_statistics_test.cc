#include "server/vote/vote_statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"

namespace signvote {
namespace {

TEST(SampleOfTest, OneChunkInSixteenIsLookedAt) {
  const ChunkPlan plan(48 * 4096, 4096);
  for (uint64_t r = 0; r < 2 * kSampleRounds; ++r) {
    std::vector<uint32_t> looked;
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      if (SampleOf(plan, Round(r), ChunkIndex(k)).count != 0) looked.push_back(k);
    }
    const auto turn = static_cast<uint32_t>(r % 16);
    EXPECT_EQ(looked, std::vector<uint32_t>({turn, turn + 16, turn + 32})) << r;
  }
}

TEST(SampleOfTest, EveryRoundHasASampleHoweverFewChunksThereAre) {
  for (const uint64_t chunks : {1, 2, 3, 5, 8, 15, 17}) {
    const ChunkPlan plan(chunks * 512 - 100, 512);
    ASSERT_EQ(plan.chunks(), chunks);
    for (uint64_t r = 0; r < kSampleRounds; ++r) {
      uint64_t count = 0;
      for (uint32_t k = 0; k < chunks; ++k) count += SampleOf(plan, Round(r), ChunkIndex(k)).count;
      EXPECT_GT(count, 0u) << chunks << " " << r;
    }
  }
}

TEST(SampleOfTest, InSixtyFourRoundsEveryCoordinateOfALargeModelIsLookedAtOnce) {
  // The last chunk is shorter, and no multiple of what a stretch takes.
  for (const uint32_t chunks : {1u, 2u, 8u, 19u}) {
    const ChunkPlan plan(uint64_t{chunks} * (1 << 19) - 512 + 5 * 64, 1 << 19);
    ASSERT_EQ(plan.chunks(), chunks);
    for (uint32_t k = 0; k < chunks; ++k) {
      const uint64_t count = plan.Count(ChunkIndex(k));
      std::vector<SampleRange> seen;
      for (uint64_t r = 0; r < kSampleRounds; ++r) {
        const SampleRange sample = SampleOf(plan, Round(r), ChunkIndex(k));
        if (sample.count != 0) seen.push_back(sample);
      }
      std::sort(seen.begin(), seen.end(),
                [](const SampleRange& a, const SampleRange& b) { return a.first < b.first; });
      uint64_t next = 0;
      for (const SampleRange& sample : seen) {
        ASSERT_EQ(sample.first, next);
        ASSERT_EQ(sample.first % 64, 0u);
        next += sample.count;
      }
      EXPECT_EQ(next, count) << chunks << " " << k;
    }
  }
}

TEST(SampleOfTest, ARoundLooksAtASixtyFourthOfALargeModel) {
  for (const uint32_t chunks : {1u, 8u, 16u, 48u}) {
    const ChunkPlan plan(uint64_t{chunks} << 20, 1 << 20);
    for (uint64_t r = 0; r < kSampleRounds; ++r) {
      uint64_t count = 0;
      for (uint32_t k = 0; k < chunks; ++k) count += SampleOf(plan, Round(r), ChunkIndex(k)).count;
      EXPECT_EQ(count, plan.coordinates() / 64) << chunks << " " << r;
    }
  }
}

TEST(SampleOfTest, AStretchIsNeverAHandful) {
  const ChunkPlan plan(3 * 8704, 8704);  // 17 · 512
  for (uint64_t r = 0; r < kSampleRounds; ++r) {
    for (uint32_t k = 0; k < 3; ++k) {
      const SampleRange sample = SampleOf(plan, Round(r), ChunkIndex(k));
      EXPECT_TRUE(sample.count == 0 || sample.count >= 4096) << sample.count;
    }
  }
}

TEST(AddStatisticsTest, CountsTiesAndAgreementsOfTheStretch) {
  Rng rng(11, 0);
  constexpr uint64_t kCount = 1003;
  for (const size_t n : {1u, 2u, 3u, 4u, 6u}) {
    std::vector<std::vector<uint8_t>> bits(n, std::vector<uint8_t>(BytesForBits(kCount)));
    std::vector<const uint8_t*> ballots;
    std::vector<uint32_t> places;
    for (size_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < kCount; ++i) SetBit(bits[j].data(), i, rng.Below(2) == 1);
      ballots.push_back(bits[j].data());
      places.push_back(static_cast<uint32_t>(2 * j + 1));
    }
    const TallyInput input{.ballots = ballots, .coordinates = kCount, .seed = 5};
    std::vector<uint8_t> verdict(BytesForBits(kCount));
    Tally(input, verdict.data());
    VoteStatistics statistics;
    statistics.ballots.resize(2 * n + 1);
    const std::vector<SampleRange> samples = {
        {.first = 64, .count = 300}, {.first = 512, .count = 491}, {.first = 0, .count = 0}};
    VoteStatistics expected;
    expected.ballots.resize(2 * n + 1);
    for (const SampleRange& sample : samples) {
      AddStatistics(input, places, verdict.data(), sample, &statistics);
      for (uint64_t i = sample.first; i < sample.first + sample.count; ++i) {
        ++expected.coordinates;
        size_t ones = 0;
        for (size_t j = 0; j < n; ++j) {
          const bool one = GetBit(ballots[j], i);
          ones += one ? 1 : 0;
          auto& ballot = expected.ballots[places[j]];
          ++ballot.coordinates;
          if (one == GetBit(verdict.data(), i)) ++ballot.agreeing;
        }
        if (2 * ones == n) ++expected.ties;
      }
    }
    EXPECT_EQ(statistics.coordinates, expected.coordinates);
    EXPECT_EQ(statistics.ties, expected.ties) << n;
    EXPECT_EQ(statistics.ties > 0, n % 2 == 0);
    for (size_t place = 0; place < expected.ballots.size(); ++place) {
      EXPECT_EQ(statistics.ballots[place].coordinates, expected.ballots[place].coordinates);
      EXPECT_EQ(statistics.ballots[place].agreeing, expected.ballots[place].agreeing);
    }
  }
}

TEST(AddStatisticsDeathTest, AStretchBeyondTheChunkIsABug) {
  const uint8_t byte[16] = {};
  const uint8_t* ballot = byte;
  const uint32_t place = 0;
  VoteStatistics out;
  out.ballots.resize(1);
  EXPECT_DEATH(AddStatistics({.ballots = {&ballot, 1}, .coordinates = 100}, {&place, 1}, byte,
                             {.first = 64, .count = 64}, &out),
               "check failed");
}

}  // namespace
}  // namespace signvote
