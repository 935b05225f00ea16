#include "common/checksum.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace signvote {
namespace {

TEST(Xxh3, KnownAnswers) {
  // The empty string's XXH3-64 is part of xxHash's published test vectors.
  EXPECT_EQ(Xxh3(nullptr, 0), 0x2D06800538D394C2u);
  EXPECT_NE(Xxh3("a", 1), Xxh3("a", 1, 1));
}

// Computed by xxHash's scalar code. Beyond 240 bytes the library chooses among vector instructions.
TEST(Xxh3, LongInputsHashAsXxHashsScalarCodeDoes) {
  std::string data;
  for (int i = 0; i < 100'000; ++i) data += static_cast<char>(i * 7 + (i >> 8));
  struct Case {
    size_t bytes;
    uint64_t seed;
    uint64_t hash;
  };
  for (const Case& c :
       {Case{241, 0, 0x541B19226F0052E8}, Case{241, 99, 0x162847D2A2BE1FD8},
        Case{1024, 0, 0x71BEE625238ADDB4}, Case{1024, 99, 0x1FF9CBC43768C99B},
        Case{4096, 0, 0x5C722D9CEB6F9064}, Case{4096, 99, 0xBCB8E00A038F216C},
        Case{65537, 0, 0x306EFA3B942CF93F}, Case{65537, 99, 0x78904ACA4AC06FB2},
        Case{100000, 0, 0xB25CEA78018497FF}, Case{100000, 99, 0x39E166054B5D015D}}) {
    EXPECT_EQ(Xxh3(data.data(), c.bytes, c.seed), c.hash) << c.bytes;
    Xxh3Stream stream(c.seed);
    stream.Update(data.data(), 100);
    stream.Update(data.data() + 100, c.bytes - 100);
    EXPECT_EQ(stream.Digest(), c.hash) << c.bytes;
  }
}

TEST(Xxh3Stream, EqualsTheOneShotHashForEverySplit) {
  std::string data;
  for (int i = 0; i < 700; ++i) data += static_cast<char>(i * 7);
  for (const uint64_t seed : {uint64_t{0}, uint64_t{99}}) {
    Xxh3Stream stream(seed);
    for (size_t cut = 0; cut <= data.size(); cut += 13) {
      stream.Reset();
      stream.Update(data.data(), cut);
      stream.Update(data.data() + cut, data.size() - cut);
      EXPECT_EQ(stream.Digest(), Xxh3(data.data(), data.size(), seed)) << cut;
    }
  }
}

TEST(Xxh3Stream, DigestDoesNotEndTheStream) {
  Xxh3Stream stream;
  stream.Update("ab", 2);
  EXPECT_EQ(stream.Digest(), Xxh3("ab", 2));
  stream.Update("c", 1);
  EXPECT_EQ(stream.Digest(), Xxh3("abc", 3));
}

std::vector<float> Ramp(size_t n) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i) * 0.5f;
  return x;
}

TEST(ReplicaDigest, AnySplitAtBlockBordersGivesTheSameSum) {
  const std::vector<float> x = Ramp(5 * kReplicaDigestBlock + 17);
  const uint64_t whole = ReplicaDigest(x.data(), 0, x.size());
  for (uint64_t blocks = 1; blocks <= 6; ++blocks) {
    const uint64_t part = blocks * kReplicaDigestBlock;
    uint64_t sum = 0;
    for (uint64_t first = 0; first < x.size(); first += part) {
      sum += ReplicaDigest(x.data() + first, first, std::min(part, x.size() - first));
    }
    EXPECT_EQ(sum, whole) << blocks;
  }
}

TEST(ReplicaDigest, SeesOneFlippedBitAndSwappedBlocks) {
  std::vector<float> x = Ramp(2 * kReplicaDigestBlock);
  const uint64_t whole = ReplicaDigest(x.data(), 0, x.size());
  x[4097] = -x[4097];
  EXPECT_NE(ReplicaDigest(x.data(), 0, x.size()), whole);
  x[4097] = -x[4097];
  std::swap_ranges(x.begin(), x.begin() + kReplicaDigestBlock, x.begin() + kReplicaDigestBlock);
  EXPECT_NE(ReplicaDigest(x.data(), 0, x.size()), whole);
}

TEST(ReplicaDigest, OfNothingIsZero) { EXPECT_EQ(ReplicaDigest(nullptr, 0, 0), 0u); }

TEST(ReplicaDigestDeathTest, StartInsideABlockIsABug) {
  const std::vector<float> x = Ramp(8);
  EXPECT_DEATH(ReplicaDigest(x.data(), 1, 4), "check failed");
}

}  // namespace
}  // namespace signvote
