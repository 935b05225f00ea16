#include "worker/codec/formation.h"

#include <gtest/gtest.h>

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
#include "worker/codec/pack.h"

namespace signvote {
namespace {

using Update = Formation::Update;

std::vector<Isa> VectorIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (DetectIsa() >= isa) isas.push_back(isa);
  }
  return isas;
}

constexpr Envelope kEnvelopes[] = {Envelope::kNone, Envelope::kCoordinate, Envelope::kTensor,
                                   Envelope::kOne};

float Draw(Rng& rng, bool special) {
  if (special && rng.Below(3) == 0) {
    using Limits = std::numeric_limits<float>;
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  Limits::quiet_NaN(),
                                  Limits::infinity(),
                                  -Limits::infinity(),
                                  Limits::denorm_min(),
                                  Limits::max(),
                                  -Limits::max(),
                                  1.0f};
    return kSpecial[rng.Below(std::size(kSpecial))];
  }
  return static_cast<float>((rng.Uniform() - 0.5) *
                            std::exp2(static_cast<double>(rng.Below(40)) - 20.0));
}

// In a heap block of exactly its size, so that AddressSanitizer sees any touch beyond it.
template <typename T>
std::unique_ptr<T[]> Exact(size_t count) {
  return std::unique_ptr<T[]>(new T[count]());
}

struct Case {
  size_t count = 0;
  uint64_t first = 128;  // of the segment; its chunk begins at 128
  DirectionCoefficients coefficients;
  Formation formation;
  float clip = 1.0f;
  bool sparse = false, given = false, gradient = true, momentum = true, special = false;
};

std::string Describe(const Case& c, Isa isa) {
  return std::string(IsaName(isa)) + ": count " + std::to_string(c.count) + ", first " +
         std::to_string(c.first) + ", update " +
         std::to_string(static_cast<int>(c.formation.update)) + ", envelope " +
         std::to_string(static_cast<int>(c.formation.envelope)) + ", bf16 " +
         std::to_string(c.formation.bf16) + ", clip " + std::to_string(c.clip) +
         ", sparse/given/gradient/momentum/special " + std::to_string(c.sparse) +
         std::to_string(c.given) + std::to_string(c.gradient) + std::to_string(c.momentum) +
         std::to_string(c.special);
}

// What packing a segment leaves behind, byte for byte.
struct Left {
  PackScalars scalars;
  float largest = 0;
  std::vector<std::byte> m, v, r;
  std::vector<uint8_t> bits;
};

Left Run(const Case& c, uint64_t stream, Isa isa) {
  Rng rng(0xF0, stream);
  const size_t bytes = c.formation.bf16 ? 2 : 4;
  auto g = Exact<float>(c.count), u = Exact<float>(c.count), v = Exact<float>(c.count);
  auto m = Exact<std::byte>(c.count * bytes), r = Exact<std::byte>(c.count * bytes);
  for (size_t i = 0; i < c.count; ++i) {
    g[i] = Draw(rng, c.special);
    u[i] = Draw(rng, c.special);
    v[i] = std::fabs(Draw(rng, false));
  }
  // Finite bit patterns of either format; the last byte of an element has the sign.
  for (size_t i = 0; i < c.count * bytes; ++i) {
    const uint64_t sign = i % bytes == bytes - 1 ? rng.Below(2) * 128 : 0;
    m[i] = static_cast<std::byte>(rng.Below(127) | sign);
    r[i] = static_cast<std::byte>(rng.Below(127));
  }
  if (c.special && !c.formation.bf16 && c.count > 0) {  // near the end of the range
    for (uint64_t k = 0; k < 4; ++k) {
      const float huge = rng.Below(2) == 0 ? std::numeric_limits<float>::max() : -3e38f;
      const size_t i = rng.Below(c.count);
      g[i] = huge;
      std::memcpy(m.get() + i * bytes, &huge, sizeof(huge));
    }
  }
  const size_t bit_bytes = BytesForBits(c.first - 128 + c.count);
  auto bits = Exact<uint8_t>(bit_bytes);
  const PackContext context{.coefficients = c.coefficients,
                            .formation = c.formation,
                            .clip = c.clip,
                            .seed = 77,
                            .round = Round(3),
                            .share = Share(5)};
  const PackSegment segment{.g = c.gradient ? g.get() : nullptr,
                            .u = c.given ? u.get() : nullptr,
                            .state = {c.momentum ? m.get() : nullptr, v.get(), r.get()},
                            .bits = bits.get(),
                            .bits_first = 128,
                            .first = c.first,
                            .count = c.count,
                            .envelope = 0.5f,
                            .sparse = c.sparse};
  Left left;
  left.largest = Largest(context, segment, isa);
  left.scalars = Pack(context, segment, isa);
  left.m.assign(m.get(), m.get() + c.count * bytes);
  left.r.assign(r.get(), r.get() + c.count * bytes);
  const auto* const squares = reinterpret_cast<const std::byte*>(v.get());
  left.v.assign(squares, squares + c.count * sizeof(float));
  left.bits.assign(bits.get(), bits.get() + bit_bytes);
  return left;
}

void ExpectEqualToReference(const Case& c, uint64_t stream) {
  const Left expected = Run(c, stream, Isa::kScalar);
  for (const Isa isa : VectorIsas()) {
    const Left actual = Run(c, stream, isa);
    ASSERT_EQ(actual.bits, expected.bits) << Describe(c, isa);
    ASSERT_EQ(actual.m, expected.m) << Describe(c, isa);
    ASSERT_EQ(actual.v, expected.v) << Describe(c, isa);
    ASSERT_EQ(actual.r, expected.r) << Describe(c, isa);
    ASSERT_EQ(std::bit_cast<uint32_t>(actual.largest), std::bit_cast<uint32_t>(expected.largest))
        << Describe(c, isa);
    ASSERT_EQ(actual.scalars.nonfinite, expected.scalars.nonfinite) << Describe(c, isa);
    ASSERT_EQ(std::bit_cast<uint64_t>(actual.scalars.g_l1),
              std::bit_cast<uint64_t>(expected.scalars.g_l1))
        << Describe(c, isa);
  }
}

std::vector<Case> Formations() {
  std::vector<Case> cases;
  for (const Update update : {Update::kMean, Update::kSum, Update::kAdam}) {
    for (const Envelope envelope : kEnvelopes) {
      for (const bool bf16 : {false, true}) {
        Case c{.coefficients = {.a = 0.9f, .c = 0.99f}};
        c.formation = {.update = update,
                       .envelope = envelope,
                       .bf16 = bf16,
                       .envelope_decay = 0.75f,
                       .c2 = 0.999f,
                       .mean_correction = 2.5f,
                       .square_correction = 30.0f};
        cases.push_back(c);
      }
    }
  }
  return cases;
}

TEST(FormationTest, EveryLengthAndPlaceEqualsTheReferenceBitForBit) {
  uint64_t stream = 0;
  for (const Case& formation : Formations()) {
    for (size_t count = 0; count <= 4 * 64 + 3; count += count < 70 ? 1 : 13) {
      Case c = formation;
      c.count = count;
      c.first = 128 + stream % 131;
      c.special = stream % 2 == 0;
      c.sparse = stream % 3 == 0;
      c.given = stream % 5 == 0;
      c.gradient = stream % 7 != 0;
      if (stream % 4 == 1) c.clip = 0.3f;
      if (stream % 11 == 0 && c.formation.update != Update::kAdam) {
        c.coefficients = {};
        c.momentum = false;
      }
      ExpectEqualToReference(c, stream++);
    }
  }
}

TEST(FormationTest, WholeGroupsEqualTheReferenceBitForBit) {
  uint64_t stream = 1000000;
  for (Case c : Formations()) {
    for (const bool given : {false, true}) {
      c.count = 3 * kGroupCoordinates + 17;
      c.first = 128 + kGroupCoordinates - 5;
      c.given = given;
      c.special = stream % 2 == 0;
      ExpectEqualToReference(c, stream++);
    }
  }
}

// Bernoulli with P(+1) = (1 + u/R)/2: 65,536 uniforms are as many draws.
TEST(FormationTest, TheNoiseIsUniformSymmetricAndNeverZeroOrOne) {
  double sum = 0;
  for (uint32_t k = 0; k < 65536; ++k) {
    const float n = NoiseOf(static_cast<uint16_t>(k));
    ASSERT_EQ(n, -NoiseOf(static_cast<uint16_t>(65535 - k)));
    ASSERT_LT(std::fabs(n), 1.0f);
    ASSERT_NE(n, 0.0f);
    ASSERT_EQ(static_cast<double>(n), (2.0 * k + 1) / 65536 - 1);
    sum += static_cast<double>(n);
  }
  EXPECT_EQ(sum, 0.0);
}

// docs/algorithms/conversion.md: what the noise's 65,536 values cost. A fair coin counts as nothing.
TEST(FormationTest, TheExpectedSignIsTheQuotientWithinHalfAStepOfTheNoise) {
  for (const float envelope : {1.0f, 3.0f, 0x1.23p-20f}) {
    for (const double quotient :
         {0.0, 1e-30, 1e-5, 0x1p-16, 1.6e-5, 3e-5, 0.001, 0.3, 0.5, 0.99999, 1.0}) {
      for (const float u :
           {static_cast<float>(quotient) * envelope, -static_cast<float>(quotient) * envelope}) {
        int sum = 0;
        for (uint32_t k = 0; k < 65536; ++k) {
          const float s = std::fma(envelope, NoiseOf(static_cast<uint16_t>(k)), u);
          sum += (s > 0) - (s < 0);
        }
        const double expected = static_cast<double>(u) / static_cast<double>(envelope);
        EXPECT_LE(std::fabs(sum / 65536.0 - expected), 0x1p-16) << envelope << ", " << quotient;
        EXPECT_EQ(sum == 0, quotient < 0x1p-16) << envelope << ", " << quotient;
      }
    }
  }
}

TEST(FormationTest, AStateOfBfloat16IsRoundedAsTheHeaderSays) {
  struct {
    float g, m, r;
  } const kCases[] = {{1.0f, 1.0f, 1.0f},
                      {1.00390625f, 1.0f, 1.0078125f},      // half way: to even; upwards
                      {1.01171875f, 1.015625f, 1.015625f},  // half way, to even the other way
                      {1.001f, 1.0f, 1.0078125f},
                      {-1.00390625f, -1.0f, 1.0078125f},
                      {std::numeric_limits<float>::max(), 0x1.FEp127f, 0x1.FEp127f},
                      {-std::numeric_limits<float>::max(), -0x1.FEp127f, 0x1.FEp127f}};
  for (const auto& c : kCases) {
    for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
      uint16_t m = 0, r = 0;
      uint8_t bits = 0;
      // kSum from zero: m = u = g.
      Pack({.coefficients = {.a = 0.5f, .c = 0.5f},
            .formation = {.update = Update::kSum, .envelope = Envelope::kCoordinate, .bf16 = true}},
           {.g = &c.g, .state = {&m, nullptr, &r}, .bits = &bits, .count = 1}, isa);
      EXPECT_EQ(std::bit_cast<float>(uint32_t{m} << 16), c.m) << c.g;
      EXPECT_EQ(std::bit_cast<float>(uint32_t{r} << 16), c.r) << c.g;
      // Half of the largest fp32 and more may pass it with its noise, and casts the coin then.
      if (std::fabs(c.g) > 1e38f) continue;
      EXPECT_EQ(bits & 1, c.g > 0 ? 1 : 0) << "a new maximum is signed as it is";
    }
  }
}

TEST(FormationTest, WhatIsNotANumberInAnEnvelopeDoesNotStay) {
  for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
    float m = 0.0f, r = std::numeric_limits<float>::quiet_NaN();
    const float g = 2.0f;
    uint8_t bits = 0;
    Pack({.coefficients = {.a = 0.5f, .c = 0.5f}, .formation = {.envelope = Envelope::kCoordinate}},
         {.g = &g, .state = {&m, nullptr, &r}, .bits = &bits, .count = 1}, isa);
    EXPECT_EQ(r, 1.0f);
  }
}

// A finite gradient of no size that a state can follow: its square, its sum or what it is divided by
// passes the largest number. An infinite state would be infinite for ever.
TEST(FormationTest, NoFiniteGradientMakesAStateInfiniteAndItComesBackAfterASpike) {
  struct {
    Update update;
    float spike;
    int rounds;  // until the noise is small again: the state decays by 0.9, Adam's v by 0.5
  } const kCases[] = {{Update::kSum, 3e38f, 1000},
                      {Update::kAdam, 1e20f, 1000},
                      {Update::kMean, std::numeric_limits<float>::max(), 1000}};
  for (const auto& c : kCases) {
    for (const Isa isa : {Isa::kScalar, ActiveIsa()}) {
      float m = 0.0f, v = 0.0f, r = 0.0f;
      const auto pack = [&](float g, uint64_t round) {
        uint8_t bits = 0;
        Pack({.coefficients = {.a = 0.9f, .c = 0.9f},
              .formation = {.update = c.update,
                            .envelope = Envelope::kCoordinate,
                            .envelope_decay = 0.9f,
                            .c2 = 0.5f},
              .round = Round(round)},
             {.g = &g, .state = {&m, &v, &r}, .bits = &bits, .count = 1}, isa);
        return bits & 1;
      };
      for (uint64_t t = 0; t < 20; ++t) pack(c.spike, t);
      EXPECT_TRUE(std::isfinite(m) && std::isfinite(v) && std::isfinite(r))
          << static_cast<int>(c.update) << ": " << m << ", " << v << ", " << r;
      int ones = 0;
      for (int t = 0; t < c.rounds + 100; ++t) {
        const int bit = pack(-1.0f, 20 + static_cast<uint64_t>(t));
        if (t >= c.rounds) ones += bit;
      }
      // |m| is nearly R by now: hardly any chance is left.
      EXPECT_EQ(ones, 0) << static_cast<int>(c.update) << ": " << m << ", " << v << ", " << r;
    }
  }
}

}  // namespace
}  // namespace signvote
