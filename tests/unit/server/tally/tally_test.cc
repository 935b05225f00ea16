#include "server/tally/tally.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/bits.h"
#include "common/coin.h"
#include "common/rng.h"

namespace signvote {
namespace {

constexpr uint64_t kSeed = 0x5EED;

std::vector<Isa> RunnableIsas() {
  std::vector<Isa> isas = {Isa::kScalar};
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (DetectIsa() >= isa) isas.push_back(isa);
  }
  return isas;
}

// Ballots in heap blocks of exactly their own size (plus `shift` bytes before the first), so that
// AddressSanitizer sees any byte that is touched beyond them.
class Ballots {
 public:
  Ballots(size_t n, uint64_t coordinates, size_t shift, Rng rng) : coordinates_(coordinates) {
    const size_t bytes = BytesForBits(coordinates);
    for (size_t j = 0; j < n; ++j) {
      auto block = std::make_unique<uint8_t[]>(shift + bytes);
      uint8_t* const data = block.get() + shift;
      // Every other worker repeats its neighbour now and then, so that all counts occur, ties among
      // them.
      for (size_t i = 0; i < bytes; ++i) {
        data[i] =
            static_cast<uint8_t>(j > 0 && rng.Below(2) == 0 ? pointers_[j - 1][i] : rng.Next());
      }
      if (coordinates % 8 != 0)
        data[bytes - 1] &= static_cast<uint8_t>((1u << (coordinates % 8)) - 1);
      pointers_.push_back(data);
      blocks_.push_back(std::move(block));
    }
  }
  TallyInput Input(uint64_t first = 0) const {
    return {.ballots = pointers_,
            .coordinates = coordinates_,
            .first_coordinate = first,
            .seed = kSeed,
            .round = Round(7)};
  }
  uint8_t* mutable_ballot(size_t j) { return const_cast<uint8_t*>(pointers_[j]); }
  std::vector<const uint8_t*>& pointers() { return pointers_; }

 private:
  uint64_t coordinates_;
  std::vector<std::unique_ptr<uint8_t[]>> blocks_;
  std::vector<const uint8_t*> pointers_;
};

std::vector<uint8_t> Reference(const TallyInput& input) {
  std::vector<uint8_t> verdict(BytesForBits(input.coordinates), 0xFF);
  TallyReference(input, verdict.data());
  return verdict;
}

// The verdict in a heap block of exactly its size, pre-filled with ones so that unwritten bytes
// show.
std::vector<uint8_t> Verdict(const TallyInput& input, Isa isa, size_t shift = 0) {
  const size_t bytes = BytesForBits(input.coordinates);
  auto block = std::make_unique<uint8_t[]>(shift + bytes);
  std::fill_n(block.get(), shift + bytes, uint8_t{0xFF});
  Tally(input, block.get() + shift, isa);
  for (size_t i = 0; i < shift; ++i)
    EXPECT_EQ(block[i], 0xFF) << "a byte before the verdict was written";
  return std::vector<uint8_t>(block.get() + shift, block.get() + shift + bytes);
}

class TallyOnIsa : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Runnable, TallyOnIsa, testing::ValuesIn(RunnableIsas()),
                         [](const auto& param) { return std::string(IsaName(param.param)); });

// Goal: the vote is the naive count for every pattern that n workers can cast on one coordinate, n
// ≤ 9. Method: coordinate p holds pattern p, so 2^n coordinates hold them all; the expected bit is
// computed here by hand.
TEST_P(TallyOnIsa, EveryPatternOfUpToNineBallotsIsTheNaiveCount) {
  for (uint32_t n = 0; n <= 9; ++n) {
    const uint64_t coordinates = uint64_t{1} << n;
    Ballots ballots(n, coordinates, 0, Rng(1, n));
    for (uint32_t j = 0; j < n; ++j) {
      for (uint64_t p = 0; p < coordinates; ++p)
        SetBit(ballots.mutable_ballot(j), p, (p >> j) & 1u);
    }
    const TallyInput input = ballots.Input(/*first=*/640);
    const std::vector<uint8_t> verdict = Verdict(input, GetParam());
    for (uint64_t p = 0; p < coordinates; ++p) {
      const int ones = std::popcount(p);
      const int zeros = static_cast<int>(n) - ones;
      const bool coin = (Mix(kSeed, 7, (640 + p) / 64) >> (p % 64)) & 1u;
      const bool expected = ones > zeros || (ones == zeros && coin);
      ASSERT_EQ(GetBit(verdict.data(), p), expected) << "n = " << n << ", pattern " << p;
    }
    EXPECT_TRUE(PaddingIsZero(verdict.data(), coordinates));
    EXPECT_EQ(verdict, Reference(input));
  }
}

TEST_P(TallyOnIsa, EveryLengthAroundEveryWordAndVectorEqualsTheReference) {
  for (const size_t n : {0, 1, 2, 3, 4, 5, 8, 16, 17, 33}) {
    for (uint64_t coordinates = 1; coordinates <= 4 * 512 + 3;
         coordinates += coordinates < 600 ? 1 : 61) {
      Ballots ballots(n, coordinates, 0, Rng(2, coordinates));
      const TallyInput input = ballots.Input();
      const std::vector<uint8_t> verdict = Verdict(input, GetParam());
      ASSERT_EQ(verdict, Reference(input)) << n << " ballots of " << coordinates;
      ASSERT_TRUE(PaddingIsZero(verdict.data(), coordinates));
    }
  }
}

// 1…130 crosses every change of the number of planes up to 7; the larger ones cross the rest up to
// the limit.
TEST_P(TallyOnIsa, EveryNumberOfBallotsEqualsTheReference) {
  std::vector<size_t> counts;
  for (size_t n = 1; n <= 130; ++n) counts.push_back(n);
  for (const size_t n : {254, 255, 256, 257, 510, 511, 512, 513, 1022, 1023, 1024})
    counts.push_back(n);
  for (const size_t n : counts) {
    const uint64_t coordinates = 512 + 8 * n % 512 + n % 8;
    Ballots ballots(n, coordinates, n % 3, Rng(3, n));
    const TallyInput input = ballots.Input(64 * n);
    ASSERT_EQ(Verdict(input, GetParam(), n % 5), Reference(input)) << n << " ballots";
  }
}

// The planes in a heap block of exactly their size, pre-filled with ones.
std::vector<uint8_t> Counts(const TallyInput& input, Isa isa) {
  std::vector<uint8_t> planes(
      CountPlanes(static_cast<uint32_t>(input.ballots.size())) * BytesForBits(input.coordinates),
      0xFF);
  TallyCounts(input, planes.data(), isa);
  return planes;
}
std::vector<uint8_t> ReferenceCounts(const TallyInput& input) {
  std::vector<uint8_t> planes(Counts(input, Isa::kScalar).size(), 0xFF);
  TallyCountsReference(input, planes.data());
  return planes;
}

TEST_P(TallyOnIsa, CountsOfEveryPatternOfUpToNineBallotsAreTheNaiveCount) {
  for (uint32_t n = 1; n <= 9; ++n) {
    const uint64_t coordinates = uint64_t{1} << n;
    Ballots ballots(n, coordinates, 0, Rng(1, n));
    for (uint32_t j = 0; j < n; ++j) {
      for (uint64_t p = 0; p < coordinates; ++p)
        SetBit(ballots.mutable_ballot(j), p, (p >> j) & 1u);
    }
    const TallyInput input = ballots.Input();
    const std::vector<uint8_t> planes = Counts(input, GetParam());
    const size_t bytes = BytesForBits(coordinates);
    for (uint64_t p = 0; p < coordinates; ++p) {
      int ones = 0;
      for (uint32_t k = 0; k < CountPlanes(n); ++k)
        ones += GetBit(planes.data() + k * bytes, p) ? 1 << k : 0;
      ASSERT_EQ(ones, std::popcount(p)) << "n = " << n << ", pattern " << p;
    }
    EXPECT_EQ(planes, ReferenceCounts(input));
  }
}

TEST_P(TallyOnIsa, CountsOfEveryLengthEqualTheReference) {
  for (const size_t n : {1, 2, 3, 4, 7, 8, 15, 16, 17, 18, 33}) {
    for (uint64_t coordinates = 1; coordinates <= 4 * 512 + 3;
         coordinates += coordinates < 600 ? 1 : 61) {
      Ballots ballots(n, coordinates, 0, Rng(5, coordinates));
      const TallyInput input = ballots.Input();
      const std::vector<uint8_t> planes = Counts(input, GetParam());
      ASSERT_EQ(planes, ReferenceCounts(input)) << n << " ballots of " << coordinates;
    }
  }
}

TEST_P(TallyOnIsa, CountsOfEveryNumberOfBallotsEqualTheReference) {
  std::vector<size_t> numbers;
  for (size_t n = 1; n <= 70; ++n) numbers.push_back(n);
  for (const size_t n : {127, 128, 255, 256, 511, 512, 1023, 1024}) numbers.push_back(n);
  for (const size_t n : numbers) {
    const uint64_t coordinates = 512 + 8 * n % 512 + n % 8;
    Ballots ballots(n, coordinates, n % 3, Rng(6, n));
    ASSERT_EQ(Counts(ballots.Input(), GetParam()), ReferenceCounts(ballots.Input()))
        << n << " ballots";
  }
}

TEST_P(TallyOnIsa, ALargeChunksCountsAddUpToItsBallots) {
  // Beyond the block of 8 KiB in which many ballots are counted.
  constexpr uint64_t kCoordinates = 3 * 8192 * 8 + 40;
  for (const size_t n : {5, 40}) {
    Ballots ballots(n, kCoordinates, 0, Rng(7, n));
    ASSERT_EQ(Counts(ballots.Input(), GetParam()), ReferenceCounts(ballots.Input())) << n;
  }
}

TEST_P(TallyOnIsa, UnanimousBallotsWinForEveryNumberOfThem) {
  for (const size_t n : {1, 2, 15, 16, 31, 32, 62, 63, 64, 127, 128, 1023, 1024}) {
    for (const uint8_t value : {uint8_t{0x00}, uint8_t{0xFF}}) {
      const std::vector<uint8_t> ballot(200, value);
      const std::vector<const uint8_t*> pointers(n, ballot.data());
      EXPECT_EQ(Verdict({.ballots = pointers, .coordinates = 1600, .seed = kSeed}, GetParam()),
                ballot)
          << n;
    }
  }
}

// Lengths beyond one block of coins and one block of the blocked kernel, with and without a ragged
// end.
TEST_P(TallyOnIsa, ManyBlocksEqualTheReference) {
  for (const size_t n : {2, 7, 16, 32, 33, 70}) {
    for (const uint64_t coordinates :
         {uint64_t{3} * 65536, uint64_t{65536} + 1, uint64_t{2} * 65536 + 777}) {
      Ballots ballots(n, coordinates, 1, Rng(4, n));
      const TallyInput input = ballots.Input(65536);
      ASSERT_EQ(Verdict(input, GetParam()), Reference(input)) << n << " ballots of " << coordinates;
    }
  }
}

TEST_P(TallyOnIsa, AnyAlignmentGivesTheSameVerdict) {
  for (size_t shift = 0; shift < 64; shift += 7) {
    for (const size_t n : {3, 16, 40}) {
      Ballots ballots(n, 2500, shift, Rng(5, 1));
      const TallyInput input = ballots.Input();
      ASSERT_EQ(Verdict(input, GetParam(), 63 - shift), Reference(input))
          << "shift " << shift << ", n = " << n;
    }
  }
}

TEST_P(TallyOnIsa, TheOrderOfWorkersIsIrrelevant) {
  Rng rng(6, 0);
  for (const size_t n : {3, 4, 16, 41}) {
    Ballots ballots(n, 5000, 0, rng);
    const std::vector<uint8_t> before = Verdict(ballots.Input(), GetParam());
    for (size_t j = n - 1; j > 0; --j)
      std::swap(ballots.pointers()[j], ballots.pointers()[rng.Below(j + 1)]);
    EXPECT_EQ(Verdict(ballots.Input(), GetParam()), before) << n;
  }
}

TEST_P(TallyOnIsa, AChunkOfTheModelIsThatPartOfTheWholeVerdict) {
  Ballots ballots(4, 4096, 0, Rng(7, 0));
  const std::vector<uint8_t> whole = Verdict(ballots.Input(), GetParam());
  std::vector<const uint8_t*> parts;
  for (const uint8_t* ballot : ballots.pointers()) parts.push_back(ballot + 1024 / 8);
  TallyInput part = ballots.Input(/*first=*/1024);
  part.ballots = parts;
  part.coordinates = 2048;
  EXPECT_EQ(Verdict(part, GetParam()),
            std::vector<uint8_t>(whole.begin() + 128, whole.begin() + 384));
}

TEST(TallyTest, NoBallotAtAllIsDecidedByTheCoins) {
  const std::vector<uint8_t> verdict = Verdict(
      {.ballots = {}, .coordinates = 128, .first_coordinate = 192, .seed = 9, .round = Round(3)},
      Isa::kScalar);
  EXPECT_EQ(LoadWord(verdict.data()), TieCoinWord(9, Round(3), 3));
  EXPECT_EQ(LoadWord(verdict.data() + 8), TieCoinWord(9, Round(3), 4));
}

TEST(TallyTest, TiesFallBothWaysAndDifferFromRoundToRound) {
  const std::vector<uint8_t> ones(1250, 0xFF), zeros(1250, 0x00);
  const std::vector<const uint8_t*> pointers = {ones.data(), zeros.data()};
  TallyInput input{.ballots = pointers, .coordinates = 10000, .seed = kSeed, .round = Round(1)};
  const std::vector<uint8_t> first = Verdict(input, ActiveIsa());
  input.round = Round(2);
  const std::vector<uint8_t> second = Verdict(input, ActiveIsa());
  // 10,000 fair coins: 5,000 ± 4σ with σ = 50.
  EXPECT_NEAR(static_cast<double>(CountAgreement(first.data(), ones.data(), 10000)), 5000, 200);
  EXPECT_NEAR(static_cast<double>(CountAgreement(first.data(), second.data(), 10000)), 5000, 200);
}

TEST(TallyTest, AgreementCountsEqualCoordinatesOnly) {
  Rng rng(8, 0);
  for (uint64_t coordinates = 0; coordinates <= 700; ++coordinates) {
    const size_t bytes = BytesForBits(coordinates);
    // Padding bits are left as they come: they must not count.
    std::vector<uint8_t> a(bytes), b(bytes);
    for (size_t i = 0; i < bytes; ++i) {
      a[i] = static_cast<uint8_t>(rng.Next());
      b[i] = static_cast<uint8_t>(rng.Next());
    }
    uint64_t expected = 0;
    for (uint64_t i = 0; i < coordinates; ++i)
      expected += GetBit(a.data(), i) == GetBit(b.data(), i) ? 1u : 0u;
    ASSERT_EQ(CountAgreement(a.data(), b.data(), coordinates), expected) << coordinates;
    ASSERT_EQ(CountAgreement(a.data(), a.data(), coordinates), coordinates);
  }
}

TEST(TallyTest, TiesAreCountedForEveryEvenNumberOfBallots) {
  std::vector<size_t> counts = {0, 255, 256, 1023, 1024};
  for (size_t n = 1; n <= 70; ++n) counts.push_back(n);
  for (const size_t n : counts) {
    const uint64_t coordinates = n == 6 ? 70000 : 300 + n;
    Ballots ballots(n, coordinates, 1, Rng(10, n));
    // Half of the workers say the opposite of the other half on the first hundred coordinates.
    for (size_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < 100; ++i) SetBit(ballots.mutable_ballot(j), i, j % 2 == 0);
    }
    uint64_t expected = 0;
    for (uint64_t i = 0; i < coordinates && n > 0; ++i) {
      size_t ones = 0;
      for (const uint8_t* ballot : ballots.pointers()) ones += GetBit(ballot, i) ? 1 : 0;
      expected += 2 * ones == n ? 1 : 0;
    }
    if (n > 0 && n % 2 == 0) {
      EXPECT_GE(expected, 100u);
    }
    EXPECT_EQ(CountTies(ballots.Input()), expected) << n;
  }
}

TEST(TallyDeathTest, AChunkThatDoesNotStartAtAWordIsABug) {
  uint8_t bits = 0;
  const std::vector<const uint8_t*> pointers = {&bits};
  EXPECT_DEATH(Tally({.ballots = pointers, .coordinates = 8, .first_coordinate = 8}, &bits),
               "first_coordinate");
}

}  // namespace
}  // namespace signvote
