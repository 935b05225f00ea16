#include "server/round/chunk_buckets.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "common/rng.h"

namespace signvote::round {
namespace {

std::set<uint32_t> Of(const ChunkBuckets& buckets, uint32_t count) {
  std::set<uint32_t> chunks;
  for (uint32_t k = buckets.First(count); k != ChunkBuckets::kNone; k = buckets.Next(k)) {
    EXPECT_TRUE(chunks.insert(k).second);
  }
  return chunks;
}

TEST(ChunkBucketsTest, EveryChunkStartsAtZero) {
  const ChunkBuckets buckets(3, 2);
  EXPECT_EQ(Of(buckets, 0), (std::set<uint32_t>{0, 1, 2}));
  EXPECT_TRUE(Of(buckets, 1).empty());
  EXPECT_TRUE(Of(buckets, 2).empty());
}

// Method: random moves beside plain counts.
TEST(ChunkBucketsTest, AgreesWithPlainCountsWhateverMoves) {
  constexpr uint32_t kChunks = 9, kMax = 5;
  Rng rng(3, 1);
  ChunkBuckets buckets(kChunks, kMax);
  std::vector<uint32_t> counts(kChunks, 0);
  std::vector<bool> removed(kChunks, false);
  for (int move = 0; move < 5000; ++move) {
    const auto k = static_cast<uint32_t>(rng.Below(kChunks));
    if (!removed[k]) {
      if (rng.Below(2) == 0 && counts[k] < kMax) {
        buckets.Increment(k);
        ++counts[k];
      } else if (counts[k] > 0) {
        buckets.Decrement(k);
        --counts[k];
      }
      if (move % 1000 == 999) {
        buckets.Remove(k);
        removed[k] = true;
      }
    }
    for (uint32_t c = 0; c <= kMax; ++c) {
      std::set<uint32_t> expected;
      for (uint32_t i = 0; i < kChunks; ++i) {
        if (counts[i] == c && !removed[i]) expected.insert(i);
      }
      ASSERT_EQ(Of(buckets, c), expected) << "move " << move;
    }
    ASSERT_EQ(buckets.count(k), counts[k]);
  }
}

}  // namespace
}  // namespace signvote::round
