#include "worker/codec/pack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/bits.h"
#include "common/coin.h"
#include "common/rng.h"

namespace signvote {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();
constexpr float kMax = std::numeric_limits<float>::max();

std::vector<Isa> VectorIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (DetectIsa() >= isa) isas.push_back(isa);
  }
  return isas;
}

PackContext Context(DirectionCoefficients coefficients) {
  return {.coefficients = coefficients, .seed = 0xC01, .round = Round(5), .share = Share(2)};
}

enum class Values { kPlain, kSpecial };

float Draw(Rng& rng, Values values) {
  if (values == Values::kSpecial && rng.Below(3) == 0) {
    constexpr float kSpecial[] = {0.0f,      -0.0f,      kNan, -kNan, kInf, -kInf,
                                  kDenormal, -kDenormal, kMax, -kMax, 1.0f};
    return kSpecial[rng.Below(std::size(kSpecial))];
  }
  return static_cast<float>((rng.Uniform() - 0.5) *
                            std::exp2(static_cast<double>(rng.Below(40)) - 20.0));
}

// An array in a heap block of exactly its size, `shift` bytes off the start, so that
// AddressSanitizer sees any touch beyond it and every alignment occurs.
template <typename T>
class Exact {
 public:
  Exact(size_t count, size_t shift)
      : count_(count), shift_(shift), block_(new uint8_t[shift + count * sizeof(T)]) {}
  T* data() const { return reinterpret_cast<T*>(block_.get() + shift_); }
  size_t bytes() const { return count_ * sizeof(T); }
  Exact Copy() const {
    Exact copy(count_, shift_);
    std::memcpy(copy.block_.get(), block_.get(), shift_ + bytes());
    return copy;
  }
  bool SameBytes(const Exact& other) const {
    return bytes() == other.bytes() && std::memcmp(data(), other.data(), bytes()) == 0;
  }

 private:
  size_t count_;
  size_t shift_;
  std::unique_ptr<uint8_t[]> block_;
};

// One segment with everything it points to.
struct Case {
  size_t count;
  uint64_t first;       // of the segment
  uint64_t bits_first;  // of the chunk
  uint64_t prev_first;
  size_t float_shift;  // bytes; a multiple of 4
  size_t bits_shift;   // bytes
  bool state, probe, previous;
  Values values;
  bool given = false;    // u is
  bool gradient = true;  // g is
};

class Problem {
 public:
  Problem(const Case& c, Rng rng)
      : c_(c),
        g_(c.count, c.float_shift),
        u_(c.count, c.float_shift),
        m_(c.count, c.float_shift),
        h_(c.count, c.float_shift),
        prev_(BytesForBits(c.first - c.prev_first + c.count), c.bits_shift),
        bits_(BytesForBits(c.first - c.bits_first + c.count), c.bits_shift) {
    for (size_t i = 0; i < c.count; ++i) {
      g_.data()[i] = Draw(rng, c.values);
      const float m = Draw(rng, c.values);
      m_.data()[i] = std::isfinite(m) ? m : 0.0f;
      // Often close to g, as a probe gradient is.
      h_.data()[i] = rng.Below(2) == 0 ? g_.data()[i] : Draw(rng, c.values);
      u_.data()[i] = Draw(rng, c.values);
    }
    for (size_t i = 0; i < prev_.bytes(); ++i) prev_.data()[i] = static_cast<uint8_t>(rng.Next());
    for (size_t i = 0; i < bits_.bytes(); ++i) bits_.data()[i] = static_cast<uint8_t>(rng.Next());
  }
  struct Result {
    PackScalars scalars;
    Exact<float> m;
    Exact<uint8_t> bits;
  };
  PackSegment Segment(const Exact<float>& m, const Exact<uint8_t>& bits) const {
    return {.g = c_.gradient ? g_.data() : nullptr,
            .u = c_.given ? u_.data() : nullptr,
            .state = {c_.state ? m.data() : nullptr},
            .h = c_.probe ? h_.data() : nullptr,
            .prev_bits = c_.previous ? prev_.data() : nullptr,
            .prev_first = c_.prev_first,
            .bits = bits.data(),
            .bits_first = c_.bits_first,
            .first = c_.first,
            .count = c_.count};
  }
  template <typename Function>
  Result Run(const Function& pack) const {
    Result result{.scalars = {}, .m = m_.Copy(), .bits = bits_.Copy()};
    result.scalars = pack(
        Context(c_.state ? DirectionCoefficients{.a = 0.9f, .c = 0.99f} : DirectionCoefficients{}),
        Segment(result.m, result.bits));
    return result;
  }
  const Exact<uint8_t>& bits_before() const { return bits_; }
  const Exact<float>& g() const { return g_; }

 private:
  Case c_;
  Exact<float> g_, u_, m_, h_;
  Exact<uint8_t> prev_, bits_;
};

std::string Describe(const Case& c, Isa isa) {
  return std::string(IsaName(isa)) + ": count " + std::to_string(c.count) + ", first " +
         std::to_string(c.first) + ", bits_first " + std::to_string(c.bits_first) +
         ", prev_first " + std::to_string(c.prev_first) + ", shifts " +
         std::to_string(c.float_shift) + "/" + std::to_string(c.bits_shift) +
         ", state/probe/previous " + std::to_string(c.state) + std::to_string(c.probe) +
         std::to_string(c.previous) + ", given/gradient " + std::to_string(c.given) +
         std::to_string(c.gradient);
}

void ExpectEqualToReference(const Case& c, uint64_t stream) {
  const Problem problem(c, Rng(0xAB, stream));
  const auto expected = problem.Run(
      [](const PackContext& context, const PackSegment& s) { return PackReference(context, s); });
  for (const Isa isa : VectorIsas()) {
    const auto actual = problem.Run(
        [isa](const PackContext& context, const PackSegment& s) { return Pack(context, s, isa); });
    // Bit for bit: == would take +0 for −0. Of two NaN the payload is the processor's own business.
    const auto same = [](double a, double b) {
      return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b) ||
             (std::isnan(a) && std::isnan(b));
    };
    ASSERT_TRUE(same(actual.scalars.g_l1, expected.scalars.g_l1)) << Describe(c, isa);
    ASSERT_TRUE(same(actual.scalars.g_l2_squared, expected.scalars.g_l2_squared))
        << Describe(c, isa);
    ASSERT_TRUE(same(actual.scalars.probe_l1, expected.scalars.probe_l1)) << Describe(c, isa);
    ASSERT_TRUE(same(actual.scalars.prev_inner, expected.scalars.prev_inner)) << Describe(c, isa);
    ASSERT_EQ(actual.scalars.nonfinite, expected.scalars.nonfinite) << Describe(c, isa);
    ASSERT_TRUE(actual.m.SameBytes(expected.m)) << Describe(c, isa);
    ASSERT_TRUE(actual.bits.SameBytes(expected.bits)) << Describe(c, isa);
  }
}

TEST(PackTest, EveryLengthEqualsTheReferenceBitForBit) {
  for (size_t count = 0; count <= 4 * 64 + 3; ++count) {
    for (const Values values : {Values::kPlain, Values::kSpecial}) {
      for (unsigned which = 0; which < 32; ++which) {
        ExpectEqualToReference({.count = count,
                                .first = 128,
                                .bits_first = 128,
                                .prev_first = 0,
                                .float_shift = 0,
                                .bits_shift = 0,
                                .state = (which & 4) != 0,
                                .probe = (which & 2) != 0,
                                .previous = (which & 1) != 0,
                                .values = values,
                                .given = (which & 8) != 0,
                                .gradient = (which & 16) == 0},
                               count * 32 + which);
      }
    }
  }
}

TEST(PackTest, EveryOffsetWithinAWordEqualsTheReferenceBitForBit) {
  for (uint64_t offset = 0; offset < 130; ++offset) {
    for (const size_t count : {1, 5, 63, 64, 65, 130, 200}) {
      ExpectEqualToReference({.count = count,
                              .first = 640 + offset,
                              .bits_first = 640,
                              .prev_first = 640 - offset % 7,
                              .float_shift = 0,
                              .bits_shift = offset % 5,
                              .state = true,
                              .probe = true,
                              .previous = true,
                              .values = Values::kSpecial,
                              .given = offset % 3 == 1,
                              .gradient = offset % 4 != 3},
                             offset * 1000 + count);
    }
  }
}

TEST(PackTest, EveryAlignmentEqualsTheReferenceBitForBit) {
  for (size_t shift = 0; shift < 64; shift += 4) {
    for (size_t bits_shift = 0; bits_shift < 8; ++bits_shift) {
      ExpectEqualToReference({.count = 333,
                              .first = 1000,
                              .bits_first = 960,
                              .prev_first = 3,
                              .float_shift = shift,
                              .bits_shift = bits_shift,
                              .state = true,
                              .probe = true,
                              .previous = true,
                              .values = Values::kSpecial},
                             shift * 8 + bits_shift);
    }
  }
}

TEST(PackTest, BitsOutsideTheSegmentAreKept) {
  const Case c{.count = 70,
               .first = 64 + 13,
               .bits_first = 64,
               .prev_first = 0,
               .float_shift = 0,
               .bits_shift = 0,
               .state = true,
               .probe = false,
               .previous = false,
               .values = Values::kPlain};
  const Problem problem(c, Rng(1, 1));
  for (Isa isa : {Isa::kScalar, ActiveIsa()}) {
    const auto result = problem.Run(
        [isa](const PackContext& context, const PackSegment& s) { return Pack(context, s, isa); });
    for (size_t i = 0; i < 13; ++i)
      EXPECT_EQ(GetBit(result.bits.data(), i), GetBit(problem.bits_before().data(), i));
    for (size_t i = 13 + 70; i < 8 * result.bits.bytes(); ++i) {
      EXPECT_EQ(GetBit(result.bits.data(), i), GetBit(problem.bits_before().data(), i));
    }
  }
}

// pack ∘ unpack = identity: ±1 gradients give the bits that they were unpacked from, for every
// length mod 64.
TEST(PackTest, PackingUnpackedBitsGivesThemBack) {
  Rng rng(2, 0);
  for (size_t count = 1; count <= 192; ++count) {
    std::vector<uint8_t> bits(BytesForBits(count), 0);
    for (size_t i = 0; i < count; ++i) SetBit(bits.data(), i, rng.Below(2) == 1);
    std::vector<float> g(count);
    for (size_t i = 0; i < count; ++i) g[i] = GetBit(bits.data(), i) ? 1.0f : -1.0f;
    for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
      std::vector<uint8_t> packed(bits.size(), 0);
      const PackScalars scalars =
          Pack(Context({}), {.g = g.data(), .bits = packed.data(), .count = count}, isa);
      EXPECT_EQ(packed, bits) << count;
      EXPECT_EQ(scalars.g_l1, static_cast<double>(count));
      EXPECT_EQ(scalars.g_l2_squared, static_cast<double>(count));
    }
  }
}

TEST(PackTest, ZerosOfBothSignsCastTheWorkersOwnCoin) {
  constexpr size_t kCount = 300;
  std::vector<float> g(kCount);
  for (size_t i = 0; i < kCount; ++i) g[i] = i % 2 == 0 ? 0.0f : -0.0f;
  for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
    std::vector<uint8_t> packed(BytesForBits(kCount), 0);
    // A segment that starts within a word: coins belong to coordinates of the model, not of the
    // segment.
    const PackContext context = Context({});
    Pack(context,
         {.g = g.data(), .bits = packed.data(), .bits_first = 0, .first = 0, .count = kCount}, isa);
    for (size_t i = 0; i < kCount; ++i) {
      const uint64_t coins = OwnCoinWord(context.seed, context.round, context.share, i / 64);
      ASSERT_EQ(GetBit(packed.data(), i), ((coins >> (i % 64)) & 1u) != 0) << i;
    }
  }
}

TEST(PackTest, NonfiniteCoordinatesCastTheOwnCoinAndTouchNothingElse) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
      std::vector<float> g(100, 2.0f), h(100, 1.5f), m(100, 1.0f);
      g[77] = bad;
      const std::vector<uint8_t> previous(13, 0xFF);
      std::vector<uint8_t> bits(13, 0);
      const PackContext context = Context({.a = 0.5f, .c = 0.5f});
      const PackScalars scalars = Pack(context,
                                       {.g = g.data(),
                                        .state = {m.data()},
                                        .h = h.data(),
                                        .prev_bits = previous.data(),
                                        .bits = bits.data(),
                                        .count = 100},
                                       isa);
      EXPECT_EQ(scalars.nonfinite, 1u);
      EXPECT_EQ(scalars.g_l1, 99 * 2.0);
      EXPECT_EQ(scalars.g_l2_squared, 99 * 4.0);
      EXPECT_EQ(scalars.probe_l1, 99 * 0.5);
      EXPECT_EQ(scalars.prev_inner, 99 * 2.0);
      EXPECT_EQ(m[76], 1.5f);
      EXPECT_EQ(m[77], 1.0f);
      const bool coin = (OwnCoinWord(context.seed, context.round, context.share, 1) >> 13) & 1u;
      EXPECT_EQ(GetBit(bits.data(), 77), coin);
    }
  }
}

TEST(PackTest, ANonfiniteCoordinateOfTheProbeSpoilsTheProbeAlone) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
      std::vector<float> g(100, 2.0f), h(100, 1.5f), m(100, 1.0f);
      h[77] = bad;
      const std::vector<uint8_t> previous(13, 0xFF);
      std::vector<uint8_t> bits(13, 0);
      const PackScalars scalars = Pack(Context({.a = 0.5f, .c = 0.5f}),
                                       {.g = g.data(),
                                        .state = {m.data()},
                                        .h = h.data(),
                                        .prev_bits = previous.data(),
                                        .bits = bits.data(),
                                        .count = 100},
                                       isa);
      EXPECT_EQ(scalars.nonfinite, 0u);
      EXPECT_EQ(scalars.g_l1, 100 * 2.0);
      EXPECT_FALSE(std::isfinite(scalars.probe_l1));
      EXPECT_EQ(scalars.prev_inner, 100 * 2.0);
      EXPECT_EQ(m, std::vector<float>(100, 1.5f));
      for (size_t i = 0; i < 100; ++i) ASSERT_TRUE(GetBit(bits.data(), i)) << i;
    }
  }
}

TEST(PackTest, TheInnerProductWithThePreviousVerdictCarriesItsSigns) {
  const std::vector<float> g = {1.0f, 2.0f, 4.0f, 8.0f};
  const uint8_t previous = 0b10100;  // from coordinate 8: coordinates 10 and 12 went up
  uint8_t bits[2] = {0, 0};
  for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
    const PackScalars scalars = Pack(Context({}),
                                     {.g = g.data(),
                                      .prev_bits = &previous,
                                      .prev_first = 8,
                                      .bits = bits,
                                      .bits_first = 0,
                                      .first = 9,
                                      .count = 4},
                                     isa);
    EXPECT_EQ(scalars.prev_inner, -1.0 + 2.0 - 4.0 + 8.0);
  }
}

TEST(PackTest, ScalingGradientsByAPowerOfTwoLeavesTheBallotsUnchanged) {
  constexpr size_t kCount = 5000;
  for (const DirectionCoefficients coefficients :
       {DirectionCoefficients{}, DirectionCoefficients{0.9f, 0.9f},
        DirectionCoefficients{0.9f, 0.99f}}) {
    std::vector<float> m(kCount, 0.0f), m_scaled(kCount, 0.0f), g(kCount), g_scaled(kCount);
    Rng rng(3, 0);
    for (uint64_t round = 0; round < 10; ++round) {
      for (size_t i = 0; i < kCount; ++i) {
        g[i] = rng.Below(20) == 0 ? 0.0f : static_cast<float>(rng.Uniform() - 0.5);
        g_scaled[i] = std::ldexp(g[i], 37);
      }
      std::vector<uint8_t> bits(BytesForBits(kCount), 0), bits_scaled(BytesForBits(kCount), 0);
      const PackScalars one =
          Pack(Context(coefficients),
               {.g = g.data(), .state = {m.data()}, .bits = bits.data(), .count = kCount});
      const PackScalars scaled = Pack(Context(coefficients), {.g = g_scaled.data(),
                                                              .state = {m_scaled.data()},
                                                              .bits = bits_scaled.data(),
                                                              .count = kCount});
      ASSERT_EQ(bits, bits_scaled) << "round " << round;
      ASSERT_EQ(scaled.g_l1, std::ldexp(one.g_l1, 37));
    }
  }
}

// The order of pack_sums.h, restated level by level over terms that stand where their coordinates
// do in the chunk.
double SumInStatedOrder(const std::vector<double>& terms) {
  double segment = 0;
  for (size_t tile = 0; tile < terms.size(); tile += 4096) {
    double tile_sum = 0;
    for (size_t group = tile; group < std::min(tile + 4096, terms.size()); group += 256) {
      double lanes[16] = {};
      for (size_t i = group; i < std::min(group + 256, terms.size()); ++i)
        lanes[i % 16] += terms[i];
      for (const size_t step : {8, 4, 2, 1}) {
        for (size_t l = 0; l < step; ++l) lanes[l] += lanes[l + step];
      }
      tile_sum += lanes[0];
    }
    segment += tile_sum;
  }
  return segment;
}

TEST(PackTest, SumsFollowTheStatedOrder) {
  Rng rng(4, 0);
  int distinct = 0;
  for (const size_t begin : {size_t{0}, size_t{1}, size_t{300}, size_t{4095}, size_t{5000}}) {
    for (const size_t count : {size_t{1}, size_t{255}, size_t{4096}, size_t{4097}, size_t{13000}}) {
      constexpr uint64_t kBitsFirst = 1 << 20;
      std::vector<float> g(count);
      std::vector<double> magnitudes(begin + count), squares(begin + count);
      double plain = 0;
      for (size_t i = 0; i < count; ++i) {
        g[i] = Draw(rng, Values::kPlain);
        magnitudes[begin + i] = std::fabs(static_cast<double>(g[i]));
        squares[begin + i] = static_cast<double>(g[i]) * static_cast<double>(g[i]);
        plain += magnitudes[begin + i];
      }
      std::vector<uint8_t> bits(BytesForBits(begin + count), 0);
      for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
        const PackScalars scalars = Pack(Context({}),
                                         {.g = g.data(),
                                          .bits = bits.data(),
                                          .bits_first = kBitsFirst,
                                          .first = kBitsFirst + begin,
                                          .count = count},
                                         isa);
        EXPECT_EQ(scalars.g_l1, SumInStatedOrder(magnitudes)) << begin << " " << count;
        EXPECT_EQ(scalars.g_l2_squared, SumInStatedOrder(squares)) << begin << " " << count;
        distinct += scalars.g_l1 != plain;
      }
    }
  }
  EXPECT_GT(distinct, 10);  // else any order would pass
}

TEST(PackTest, EveryEdgeOfGroupsAndTilesEqualsTheReferenceBitForBit) {
  for (const uint64_t begin : {0, 1, 63, 64, 200, 255, 256, 257, 4032, 4095}) {
    for (const size_t count : {1, 2, 192, 255, 256, 257, 511, 513, 3840, 4095, 4096, 4097, 8200}) {
      ExpectEqualToReference({.count = count,
                              .first = 512 + begin,
                              .bits_first = 512,
                              .prev_first = begin % 2 == 0 ? uint64_t{0} : uint64_t{511},
                              .float_shift = 4,
                              .bits_shift = 1,
                              .state = count % 3 != 0,
                              .probe = true,
                              .previous = true,
                              .values = Values::kSpecial,
                              .given = count % 5 == 0,
                              .gradient = count % 7 != 1},
                             begin * 10000 + count);
    }
  }
}

TEST(PackTest, WhatIsGivenIsSignedAndTheStateIsLeftAlone) {
  for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
    std::vector<float> g(100, 2.0f), u(100, -0.25f), m(100, 1.0f);
    u[3] = 0.5f;
    u[70] = kInf;
    u[71] = -0.0f;
    std::vector<uint8_t> bits(13, 0);
    const PackContext context = Context({.a = 0.5f, .c = 0.5f});
    const PackScalars scalars =
        Pack(context,
             {.g = g.data(), .u = u.data(), .state = {m.data()}, .bits = bits.data(), .count = 100},
             isa);
    for (size_t i = 0; i < 70; ++i) ASSERT_EQ(GetBit(bits.data(), i), i == 3) << i;
    const uint64_t coins = OwnCoinWord(context.seed, context.round, context.share, 1);
    EXPECT_EQ(GetBit(bits.data(), 70), ((coins >> 6) & 1u) != 0);
    EXPECT_EQ(GetBit(bits.data(), 71), ((coins >> 7) & 1u) != 0);
    EXPECT_EQ(scalars.nonfinite, 1u);
    EXPECT_EQ(scalars.g_l1, 99 * 2.0);  // the sums are those of g
    EXPECT_EQ(m, std::vector<float>(100, 1.0f));
  }
}

TEST(PackTest, ATensorWithoutGradientCastsCoinsAndKeepsItsState) {
  for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
    std::vector<float> h(300, -0.5f), m(300, 1.0f);
    const std::vector<uint8_t> previous(38, 0xFF);
    std::vector<uint8_t> bits(38, 0xFF);
    const PackContext context = Context({.a = 0.5f, .c = 0.5f});
    const PackScalars scalars = Pack(context,
                                     {.state = {m.data()},
                                      .h = h.data(),
                                      .prev_bits = previous.data(),
                                      .bits = bits.data(),
                                      .first = 1,
                                      .count = 300},
                                     isa);
    for (size_t i = 1; i <= 300; ++i) {
      const uint64_t coins = OwnCoinWord(context.seed, context.round, context.share, i / 64);
      ASSERT_EQ(GetBit(bits.data(), i), ((coins >> (i % 64)) & 1u) != 0) << i;
    }
    EXPECT_TRUE(GetBit(bits.data(), 0) && GetBit(bits.data(), 301)) << "not of the segment";
    EXPECT_EQ(m, std::vector<float>(300, 1.0f));
    EXPECT_EQ(scalars.g_l1, 0.0);
    EXPECT_EQ(scalars.g_l2_squared, 0.0);
    EXPECT_EQ(scalars.prev_inner, 0.0);
    EXPECT_EQ(scalars.probe_l1, 300 * 0.5);  // ‖0 − h‖₁
    EXPECT_EQ(scalars.nonfinite, 0u);
  }
}

TEST(PackDeathTest, ADirectionWithMomentumNeedsItsState) {
  const float g = 1.0f;
  uint8_t bits = 0;
  EXPECT_DEATH(Pack(Context({.a = 0.9f, .c = 0.9f}), {.g = &g, .bits = &bits, .count = 1}),
               "s.state");
}

}  // namespace
}  // namespace signvote
