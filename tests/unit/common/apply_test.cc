// Goal: every kernel equals the scalar definition bit for bit, and the definition equals exact
// arithmetic. Method: all lengths 0..4N+3 (N = 64, the kernels' block), three misalignments of x,
// every bit offset, special values; the definition against an independent computation in double
// (TwoSum, rounded to odd, then once to fp32).
#include "common/apply.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/apply_kernels.h"
#include "common/bits.h"
#include "common/half_float.h"
#include "common/payload_plan.h"
#include "common/rng.h"
#include "common/status.h"

namespace signvote {
namespace {

using apply_kernels::Table;

constexpr size_t kBlock = 64;
constexpr size_t kLengthMax = 4 * kBlock + 3;
constexpr uint64_t kSeed = 20240717;

uint32_t Pattern(float x) { return std::bit_cast<uint32_t>(x); }

std::vector<Isa> VectorIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

// fp32 values of every kind: zeros, denormals, infinities, quiet and signalling NaNs with payloads,
// any bit pattern.
float SpecialValue(Rng* rng) {
  static const uint32_t kPatterns[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF,
                                       0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
                                       0x7FC00000, 0xFFC12345, 0x7F800001, 0xFFA0BEEF, 0x3F800000,
                                       0xBF800000, 0x33800800, 0x3F7FFFFF};
  const uint64_t draw = rng->Next();
  if (draw % 3 == 0) return std::bit_cast<float>(kPatterns[(draw >> 8) % std::size(kPatterns)]);
  if (draw % 3 == 1) return std::bit_cast<float>(static_cast<uint32_t>(draw >> 16));
  return static_cast<float>(rng->Uniform() * 2.0 - 1.0);
}

struct Scalars {
  float a, c, rho;
};
const Scalars kScalarSets[] = {
    {0.1f, 0.99f, 0.9f},
    {0.0f, 1.0f, 1.5f},
    {-0.0f, 1.0f, 0.0f},
    {1e-40f, 0.5f, -1.0f},
    {3e38f, -2.0f, 3e38f},
    {std::numeric_limits<float>::infinity(), 1.0f, std::numeric_limits<float>::infinity()},
};

// fma in doubles: the product of two fp32 is exact, TwoSum gives the sum's residue, rounding to odd
// keeps what the last rounding to fp32 needs to know.
float FmaByDoubles(float x, float y, float z) {
  const double product = static_cast<double>(x) * static_cast<double>(y);
  const double addend = static_cast<double>(z);
  double sum = product + addend;
  if (std::isfinite(sum)) {
    const double b = sum - product;
    const double residue = (product - (sum - b)) + (addend - b);
    auto pattern = std::bit_cast<uint64_t>(sum);
    if (residue != 0.0 && pattern % 2 == 0) {
      const bool outwards = std::signbit(residue) == std::signbit(sum);
      pattern += outwards ? uint64_t{1} : ~uint64_t{0};
      sum = std::bit_cast<double>(pattern);
    }
  }
  return static_cast<float>(sum);
}

// A buffer of bits that ends exactly at an unreadable page, so that one byte too many is a crash in
// every build.
class GuardedBits {
 public:
  explicit GuardedBits(size_t bytes)
      : page_(static_cast<size_t>(::sysconf(_SC_PAGESIZE))), bytes_(bytes) {
    base_ = static_cast<uint8_t*>(
        ::mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(static_cast<void*>(base_), MAP_FAILED);
    EXPECT_EQ(::mprotect(base_ + page_, page_, PROT_NONE), 0);
  }
  ~GuardedBits() { ::munmap(base_, 2 * page_); }
  GuardedBits(const GuardedBits&) = delete;
  GuardedBits& operator=(const GuardedBits&) = delete;
  // The last `bytes` readable bytes.
  uint8_t* Last(size_t bytes) { return base_ + page_ - bytes; }
  void Fill(Rng* rng) {
    for (size_t i = 0; i < bytes_; ++i) Last(bytes_)[i] = static_cast<uint8_t>(rng->Next());
  }

 private:
  const size_t page_;
  const size_t bytes_;
  uint8_t* base_;
};

std::vector<float> RandomFloats(size_t n, Rng* rng) {
  std::vector<float> x(n);
  for (float& v : x) v = SpecialValue(rng);
  return x;
}

void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& want,
                    const char* what) {
  ASSERT_EQ(got.size(), want.size());
  if (std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0) return;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(Pattern(got[i]), Pattern(want[i])) << what << " at " << i;
  }
}

// The same where a step's term is a product, which may be NaN of infinities: that it is one is part of
// the definition, its payload is not.
void ExpectSameNumbers(const std::vector<float>& got, const std::vector<float>& want,
                       const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(want[i])) continue;
    ASSERT_EQ(Pattern(got[i]), Pattern(want[i])) << what << " at " << i;
  }
}

TEST(Apply, DefinitionEqualsExactArithmetic) {
  Rng rng(kSeed, 1);
  int compared = 0;
  for (int k = 0; k < 300'000; ++k) {
    const float x = SpecialValue(&rng);
    const float a = SpecialValue(&rng);
    const float c =
        k % 2 == 0 ? SpecialValue(&rng) : static_cast<float>(1.0 - rng.Uniform() * 1e-3);
    const uint8_t bit = static_cast<uint8_t>(rng.Next() & 1);
    float got = x;
    apply_kernels::kScalar.step(&got, 1, &bit, 0, a, c);
    const float want = FmaByDoubles(x, c, bit != 0 ? -a : a);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << x << " " << c << " " << a;
    } else {
      ASSERT_EQ(Pattern(got), Pattern(want)) << x << " " << c << " " << a;
      ++compared;
    }
  }
  EXPECT_GT(compared, 200'000);
}

TEST(Apply, RescaledDefinitionEqualsExactArithmetic) {
  Rng rng(kSeed, 2);
  int compared = 0;
  for (int k = 0; k < 300'000; ++k) {
    const float x = SpecialValue(&rng);
    const float x0 = SpecialValue(&rng);
    const float rho = static_cast<float>(rng.Uniform() * 2.0);
    const float a = static_cast<float>(rng.Uniform() * 1e-2);
    const float c = static_cast<float>(1.0 - rng.Uniform() * 1e-3);
    const uint8_t bit = static_cast<uint8_t>(rng.Next() & 1);
    float got = x;
    apply_kernels::kScalar.rescaled_step(&got, &x0, 1, &bit, 0, a, c, rho);
    const float delta = x - x0;
    const float want = FmaByDoubles(FmaByDoubles(rho, delta, x0), c, bit != 0 ? -a : a);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got));
    } else {
      ASSERT_EQ(Pattern(got), Pattern(want)) << x << " " << x0 << " " << rho;
      ++compared;
    }
  }
  EXPECT_GT(compared, 150'000);
}

// The comparison has teeth: plain double arithmetic is not the definition.
TEST(Apply, PlainDoubleArithmeticWouldRoundTwice) {
  const float x = 0x1.001p-24f, c = 1.0f - 0x1p-12f + 0x1p-24f, a = 1.0f;
  const auto plain =
      static_cast<float>(static_cast<double>(x) * static_cast<double>(c) + static_cast<double>(a));
  EXPECT_EQ(plain, 1.0f);
  EXPECT_EQ(FmaByDoubles(x, c, a), 0x1.000002p0f);
  const uint8_t bit = 0;
  float got = x;
  apply_kernels::kScalar.step(&got, 1, &bit, 0, a, c);
  EXPECT_EQ(got, 0x1.000002p0f);
}

TEST(Apply, KernelsEqualTheDefinitionForEveryLengthAndMisalignment) {
  Rng rng(kSeed, 3);
  constexpr size_t kOffsetMax = 16;
  GuardedBits guarded(BytesForBits(kLengthMax + kOffsetMax));
  guarded.Fill(&rng);
  const std::vector<Isa> isas = VectorIsas();
  if (isas.empty()) GTEST_SKIP() << "this machine has only the scalar kernel";
  for (size_t n = 0; n <= kLengthMax; ++n) {
    for (const size_t misalignment : {size_t{0}, size_t{1}, size_t{3}}) {
      const size_t bit_offset = rng.Below(kOffsetMax + 1);
      const Scalars& s = kScalarSets[rng.Below(std::size(kScalarSets))];
      const uint8_t* bits = guarded.Last(BytesForBits(n + bit_offset));
      // Values before and after the range show a write outside it.
      const std::vector<float> x = RandomFloats(misalignment + n + 5, &rng);
      const std::vector<float> x0 = RandomFloats(n, &rng);
      std::vector<float> want = x, want_rescaled = x;
      apply_kernels::kScalar.step(want.data() + misalignment, n, bits, bit_offset, s.a, s.c);
      apply_kernels::kScalar.rescaled_step(want_rescaled.data() + misalignment, x0.data(), n, bits,
                                           bit_offset, s.a, s.c, s.rho);
      for (const Isa isa : isas) {
        const Table& table = apply_kernels::kTables.For(isa);
        std::vector<float> got = x;
        table.step(got.data() + misalignment, n, bits, bit_offset, s.a, s.c);
        ExpectSameBits(got, want, IsaName(isa).data());
        got = x;
        table.rescaled_step(got.data() + misalignment, x0.data(), n, bits, bit_offset, s.a, s.c,
                            s.rho);
        ExpectSameBits(got, want_rescaled, IsaName(isa).data());
        ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "n " << n << " offset " << bit_offset;
      }
    }
  }
}

TEST(Apply, KernelsEqualTheDefinitionForEveryBitOffset) {
  Rng rng(kSeed, 4);
  GuardedBits guarded(64);
  guarded.Fill(&rng);
  for (size_t bit_offset = 0; bit_offset < 64; ++bit_offset) {
    for (const size_t n :
         {size_t{1}, size_t{57}, size_t{63}, size_t{64}, size_t{65}, size_t{128}, size_t{191}}) {
      for (const Scalars& s : kScalarSets) {
        const uint8_t* bits = guarded.Last(BytesForBits(n + bit_offset));
        const std::vector<float> x = RandomFloats(n, &rng);
        std::vector<float> want = x;
        apply_kernels::kScalar.step(want.data(), n, bits, bit_offset, s.a, s.c);
        for (const Isa isa : VectorIsas()) {
          std::vector<float> got = x;
          apply_kernels::kTables.For(isa).step(got.data(), n, bits, bit_offset, s.a, s.c);
          ExpectSameBits(got, want, IsaName(isa).data());
        }
      }
    }
  }
}

Layout ThreeTensors() {
  auto layout =
      Layout::Make({{.name = "a", .shape = {7, 11}, .step_scale = 1.0f, .weight_decay = 0.1f},
                    {.name = "b", .shape = {}, .step_scale = 0.25f},
                    {.name = "c", .shape = {300}, .step_scale = 3.0f, .weight_decay = 0.01f}});
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  return *std::move(layout);
}

// Coordinate by coordinate from the page's formula.
std::vector<float> Reference(const Layout& layout, float gamma, float rho, const uint8_t* bits,
                             const std::vector<float>& x0, std::vector<float> x) {
  for (const TensorSpec& t : layout.tensors()) {
    const float a = gamma * t.step_scale;
    const float c = std::fma(-a, t.weight_decay, 1.0f);
    for (uint64_t i = t.first; i < t.first + t.count; ++i) {
      if (rho != 1.0f) x[i] = std::fma(rho, x[i] - x0[i], x0[i]);
      x[i] = std::fma(x[i], c, GetBit(bits, i) ? -a : a);
    }
  }
  return x;
}

TEST(Apply, EveryCutOfTheModelGivesTheSameReplica) {
  const Layout layout = ThreeTensors();
  const uint64_t d = layout.coordinates();
  Rng rng(kSeed, 5);
  std::vector<uint8_t> bits(BytesForBits(d));
  for (uint8_t& b : bits) b = static_cast<uint8_t>(rng.Next());
  std::vector<float> x(d), x0(d);
  for (uint64_t i = 0; i < d; ++i) {
    x[i] = static_cast<float>(rng.Uniform());
    x0[i] = static_cast<float>(rng.Uniform());
  }
  const std::vector<float> want = Reference(layout, 0.013f, 1.0f, bits.data(), x0, x);
  const std::vector<float> want_rescaled = Reference(layout, 0.013f, 0.9f, bits.data(), x0, x);
  for (const uint64_t cut :
       {uint64_t{1}, uint64_t{5}, uint64_t{64}, uint64_t{77}, uint64_t{79}, d}) {
    std::vector<float> whole_bits = x, own_bits = x, rescaled = x;
    for (uint64_t first = 0; first < d; first += cut) {
      const uint64_t count = std::min(cut, d - first);
      ApplyStep(layout, 0.013f, first, count, bits.data(), 0, whole_bits.data() + first);
      // The same with a buffer that starts at the byte of the range.
      const uint64_t bits_first = first / 8 * 8;
      ApplyStep(layout, 0.013f, first, count, bits.data() + first / 8, bits_first,
                own_bits.data() + first);
      ApplyStep(layout, {.gamma = 0.013f, .rho = 0.9f}, first, count, bits.data(), 0,
                x0.data() + first, rescaled.data() + first);
    }
    ExpectSameBits(whole_bits, want, "bits of the whole model");
    ExpectSameBits(own_bits, want, "bits of the range");
    ExpectSameBits(rescaled, want_rescaled, "rescaled");
  }
}

TEST(Apply, ZeroCoordinatesTouchNothing) {
  const Layout layout = ThreeTensors();
  ApplyStep(layout, 0.1f, 0, 0, nullptr, 0, nullptr);
  ApplyStep(layout, 0.1f, layout.coordinates(), 0, nullptr, 0, nullptr);
}

TEST(ApplyDeathTest, RangeOutsideTheModelIsABug) {
  const Layout layout = ThreeTensors();
  std::vector<float> x(layout.coordinates() + 1);
  std::vector<uint8_t> bits(BytesForBits(x.size()));
  EXPECT_DEATH(ApplyStep(layout, 0.1f, 1, layout.coordinates(), bits.data(), 0, x.data()),
               "check failed");
  EXPECT_DEATH(ApplyStep(layout, 0.1f, 0, 8, bits.data(), 8, x.data()), "check failed");
}

TEST(ApplyDeathTest, ArgumentsThatDoNotFitAreBugs) {
  const Layout layout = ThreeTensors();
  std::vector<float> x(layout.coordinates());
  const std::vector<uint8_t> bits(BytesForBits(x.size()));
  const std::vector<float> scales(2, 1.0f);
  EXPECT_DEATH(
      ApplyStep(layout, {.gamma = 0.1f, .scales = scales}, 0, 8, bits.data(), 0, nullptr, x.data()),
      "check failed");
  EXPECT_DEATH(
      ApplyStep(layout, {.gamma = 0.1f, .rho = 0.5f}, 0, 8, bits.data(), 0, nullptr, x.data()),
      "check failed");
}

TEST(Apply, TensorStepRoundsOncePerLine) {
  const TensorSpec t{
      .name = "t", .shape = {1}, .first = 0, .count = 1, .step_scale = 1.7f, .weight_decay = 0.3f};
  const TensorStep step = MakeTensorStep(0.1f, t);
  EXPECT_EQ(step.a, 0.1f * 1.7f);
  EXPECT_EQ(step.c, FmaByDoubles(-step.a, 0.3f, 1.0f));
}

TEST(Apply, TheDecayMayHaveAStepsizeOfItsOwn) {
  const TensorSpec t{
      .name = "t", .shape = {1}, .count = 1, .step_scale = 1.7f, .weight_decay = 0.3f};
  const TensorStep plain = MakeTensorStep(0.1f, t);
  const TensorStep same = MakeTensorStep({.gamma = 0.1f, .decay_step = 0.1f}, t, 0);
  EXPECT_EQ(Pattern(same.a), Pattern(plain.a));
  EXPECT_EQ(Pattern(same.c), Pattern(plain.c));
  const TensorStep own = MakeTensorStep({.gamma = 0.1f, .decay_step = 0.02f}, t, 0);
  EXPECT_EQ(own.a, 0.1f * 1.7f);
  EXPECT_EQ(own.c, FmaByDoubles(-(0.02f * 1.7f), 0.3f, 1.0f));
  EXPECT_NE(own.c, plain.c);
  const TensorStep none = MakeTensorStep({.gamma = 0.1f, .decay_step = 0.0f}, t, 0);
  EXPECT_EQ(none.c, 1.0f);
}

TEST(Apply, ACommitsScalesStretchTheStepAndNotTheDecay) {
  const TensorSpec t{
      .name = "t", .shape = {1}, .count = 1, .step_scale = 1.7f, .weight_decay = 0.3f};
  const std::vector<float> scales = {5.0f, 0.37f};
  const TensorStep step = MakeTensorStep({.gamma = 0.1f, .scales = scales}, t, 1);
  EXPECT_EQ(step.a, (0.1f * 1.7f) * 0.37f);
  EXPECT_EQ(step.c, MakeTensorStep(0.1f, t).c);
  const std::vector<float> ones = {1.0f, 1.0f};
  EXPECT_EQ(Pattern(MakeTensorStep({.gamma = 0.1f, .scales = ones}, t, 1).a),
            Pattern(MakeTensorStep(0.1f, t).a));
}

TEST(Apply, EachTensorGetsItsOwnScaleAndDecay) {
  const Layout layout = ThreeTensors();
  const uint64_t d = layout.coordinates();
  Rng rng(kSeed, 6);
  std::vector<uint8_t> bits(BytesForBits(d));
  for (uint8_t& b : bits) b = static_cast<uint8_t>(rng.Next());
  std::vector<float> x(d), x0(d);
  for (uint64_t i = 0; i < d; ++i) {
    x[i] = static_cast<float>(rng.Uniform());
    x0[i] = static_cast<float>(rng.Uniform());
  }
  const std::vector<float> scales = {0.5f, 3.0f, 1.25f};
  for (const float rho : {1.0f, 1.1f}) {
    std::vector<float> want = x;
    for (size_t k = 0; k < 3; ++k) {
      const TensorSpec& t = layout.tensors()[k];
      const float a = 0.013f * t.step_scale * scales[k];
      const float c = std::fma(-(0.5f * t.step_scale), t.weight_decay, 1.0f);
      for (uint64_t i = t.first; i < t.first + t.count; ++i) {
        if (rho != 1.0f) want[i] = std::fma(rho, want[i] - x0[i], x0[i]);
        want[i] = std::fma(want[i], c, GetBit(bits.data(), i) ? -a : a);
      }
    }
    std::vector<float> got = x;
    const StepArguments arguments{
        .gamma = 0.013f, .rho = rho, .decay_step = 0.5f, .scales = scales};
    for (const auto& [first, count] :
         {std::pair<uint64_t, uint64_t>{0, 50}, {50, 28}, {78, d - 78}}) {
      ApplyStep(layout, arguments, first, count, bits.data(), 0, x0.data() + first,
                got.data() + first);
    }
    ExpectSameBits(got, want, "scales and decay");
  }
}

// ---- counts

using apply_kernels::Counts;

uint32_t Ones(const Counts& counts, size_t i) {
  uint32_t ones = 0;
  for (uint32_t p = 0; p < counts.planes; ++p)
    ones |= (GetBit(counts.bits + p * counts.plane_bytes, counts.bit_offset + i) ? 1u : 0u) << p;
  return ones;
}

TEST(ApplyCounts, DefinitionEqualsExactArithmetic) {
  Rng rng(kSeed, 8);
  int compared = 0;
  for (int k = 0; k < 200'000; ++k) {
    const auto ballots = static_cast<uint32_t>(1 + rng.Below(k % 2 == 0 ? 9 : 1024));
    const auto ones = static_cast<uint32_t>(rng.Below(ballots + 1));
    uint8_t planes[apply_kernels::kCountPlanesMax];
    for (uint32_t p = 0; p < apply_kernels::kCountPlanesMax; ++p)
      planes[p] = static_cast<uint8_t>((ones >> p) & 1);
    const Counts counts{.bits = planes,
                        .plane_bytes = 1,
                        .planes = CountPlanes(ballots),
                        .ballots = ballots,
                        .bit_offset = 0};
    const float x = SpecialValue(&rng), a = SpecialValue(&rng);
    const float c = static_cast<float>(1.0 - rng.Uniform() * 1e-3);
    float got = x;
    apply_kernels::kScalar.counts(&got, 1, counts, a, c);
    // A quotient, and a product, of two fp32 rounded in double and then to fp32 is the fp32 one: a
    // double has more than twice its digits.
    const auto w = static_cast<float>((2.0 * ones - ballots) / static_cast<double>(ballots));
    const auto t = static_cast<float>(static_cast<double>(a) * static_cast<double>(w));
    const float want = FmaByDoubles(x, c, -t);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << x << " " << c << " " << a;
    } else {
      ASSERT_EQ(Pattern(got), Pattern(want)) << x << " " << a << " " << ones << "/" << ballots;
      ++compared;
    }
  }
  EXPECT_GT(compared, 120'000);
}

TEST(ApplyCounts, KernelsEqualTheDefinitionForEveryLengthOffsetAndNumberOfBallots) {
  Rng rng(kSeed, 9);
  constexpr size_t kOffsetMax = 63;
  const std::vector<Isa> isas = VectorIsas();
  if (isas.empty()) GTEST_SKIP() << "this machine has only the scalar kernel";
  GuardedBits guarded(2048);
  guarded.Fill(&rng);
  for (size_t n = 0; n <= kLengthMax; ++n) {
    const size_t misalignment = rng.Below(4);
    const size_t bit_offset = rng.Below(kOffsetMax + 1);
    const auto ballots =
        static_cast<uint32_t>(n % 3 == 0 ? 1024 : 1 + rng.Below(n % 3 == 1 ? 8 : 200));
    const size_t plane_bytes = BytesForBits(n + bit_offset);
    const uint32_t planes = CountPlanes(ballots);
    const Scalars& s = kScalarSets[rng.Below(std::size(kScalarSets))];
    // The last plane ends where nothing may be read any more.
    const Counts counts{.bits = guarded.Last(planes * plane_bytes),
                        .plane_bytes = plane_bytes,
                        .planes = planes,
                        .ballots = ballots,
                        .bit_offset = bit_offset};
    const std::vector<float> x = RandomFloats(misalignment + n + 5, &rng);
    const std::vector<float> x0 = RandomFloats(n, &rng);
    std::vector<float> want = x, want_rescaled = x;
    const apply_kernels::Table& scalar = apply_kernels::kScalar;
    scalar.counts(want.data() + misalignment, n, counts, s.a, s.c);
    scalar.rescaled_counts(want_rescaled.data() + misalignment, x0.data(), n, counts, s.a, s.c,
                           s.rho);
    for (const Isa isa : isas) {
      const Table& table = apply_kernels::kTables.For(isa);
      std::vector<float> got = x;
      table.counts(got.data() + misalignment, n, counts, s.a, s.c);
      ExpectSameNumbers(got, want, IsaName(isa).data());
      got = x;
      table.rescaled_counts(got.data() + misalignment, x0.data(), n, counts, s.a, s.c, s.rho);
      ExpectSameNumbers(got, want_rescaled, IsaName(isa).data());
      ASSERT_FALSE(::testing::Test::HasFatalFailure())
          << "n " << n << " offset " << bit_offset << " ballots " << ballots;
    }
  }
}

TEST(ApplyCounts, WhereAllAgreeItIsTheStepOfSignsBitForBit) {
  const Layout layout = ThreeTensors();
  const uint64_t d = layout.coordinates();
  Rng rng(kSeed, 10);
  std::vector<uint8_t> bits(BytesForBits(d));
  for (uint8_t& b : bits) b = static_cast<uint8_t>(rng.Next());
  const std::vector<float> x = RandomFloats(d, &rng), x0 = RandomFloats(d, &rng);
  for (const uint32_t ballots : {1u, 2u, 3u, 5u, 64u, 1023u}) {
    std::vector<uint8_t> planes;  // each coordinate has all ones or none
    for (uint32_t p = 0; p < CountPlanes(ballots); ++p) {
      for (const uint8_t b : bits) planes.push_back(((ballots >> p) & 1u) != 0 ? b : uint8_t{0});
    }
    for (const float rho : {1.0f, 0.75f}) {
      std::vector<float> signs = x, counts = x;
      ApplyStep(layout, {.gamma = 0.013f, .rho = rho}, 0, d, bits.data(), 0, x0.data(),
                signs.data());
      ApplyCounts(layout, {.gamma = 0.013f, .rho = rho}, 0, d,
                  {.planes = planes.data(), .plane_bytes = bits.size(), .ballots = ballots},
                  x0.data(), counts.data());
      ExpectSameNumbers(counts, signs, "unanimous");
    }
  }
}

TEST(ApplyCounts, EveryCutOfTheModelGivesTheSameReplica) {
  const Layout layout = ThreeTensors();
  const uint64_t d = layout.coordinates();
  Rng rng(kSeed, 11);
  const size_t plane_bytes = BytesForBits(d);
  std::vector<uint8_t> planes(3 * plane_bytes);
  for (uint8_t& b : planes) b = static_cast<uint8_t>(rng.Next());
  const std::vector<float> scales = {0.5f, 3.0f, 1.25f};
  std::vector<float> x = RandomFloats(d, &rng), whole = x;
  const std::vector<float> x0 = RandomFloats(d, &rng);
  const StepArguments step{.gamma = 0.013f, .rho = 0.9f, .decay_step = 0.5f, .scales = scales};
  const CountsView counts{.planes = planes.data(), .plane_bytes = plane_bytes, .ballots = 7};
  ApplyCounts(layout, step, 0, d, counts, x0.data(), whole.data());
  for (uint64_t i = 0; i < d; ++i) {
    const size_t k = i < 77 ? 0 : i < 78 ? 1 : 2;
    const TensorStep of_tensor = MakeTensorStep(step, layout.tensors()[k], k);
    const Counts here{.bits = planes.data(),
                      .plane_bytes = plane_bytes,
                      .planes = 3,
                      .ballots = 7,
                      .bit_offset = i};
    const float w = (2.0f * static_cast<float>(Ones(here, 0)) - 7.0f) / 7.0f;
    const float back = std::fma(0.9f, x[i] - x0[i], x0[i]);
    const float want = std::fma(back, of_tensor.c, -(of_tensor.a * w));
    if (std::isnan(want) && std::isnan(whole[i])) continue;
    ASSERT_EQ(Pattern(whole[i]), Pattern(want)) << i;
  }
  for (const uint64_t cut : {uint64_t{1}, uint64_t{5}, uint64_t{64}, uint64_t{77}}) {
    std::vector<float> cut_up = x;
    for (uint64_t first = 0; first < d; first += cut) {
      ApplyCounts(layout, step, first, std::min(cut, d - first), counts, x0.data() + first,
                  cut_up.data() + first);
    }
    ExpectSameNumbers(cut_up, whole, "cut up");
  }
}

TEST(ApplyCounts, GoldenVectorsOfTheScaledLocalVote) {
  // Two tensors of two, x = [1, −1, .5, 0], three workers, S the mean displacements, counts 2 2 2 1.
  for (const double decay : {0.0, 0.1}) {
    const auto layout =
        Layout::Make({{.name = "a", .shape = {2}, .weight_decay = static_cast<float>(decay)},
                      {.name = "b", .shape = {2}, .weight_decay = static_cast<float>(decay)}});
    ASSERT_TRUE(layout.ok());
    const std::vector<float> scales = {0.0175f, 0.03166667f};
    const StepArguments step{.gamma = 1.0f, .decay_step = 0.05f, .scales = scales};
    const uint8_t planes[2] = {0b1000, 0b0111};
    const uint8_t verdict = 0b0111;
    const float x[4] = {1.0f, -1.0f, 0.5f, 0.0f};
    const double S[4] = {0.0175, 0.0175, 0.95 / 30, 0.95 / 30};
    const double b[4] = {1, 1, 1, -1};
    float average[4], voted[4];
    std::copy(x, x + 4, average);
    std::copy(x, x + 4, voted);
    ApplyCounts(*layout, step, 0, 4, {.planes = planes, .plane_bytes = 1, .ballots = 3}, nullptr,
                average);
    ApplyStep(*layout, step, 0, 4, &verdict, 0, nullptr, voted);
    for (int i = 0; i < 4; ++i) {
      const double kept = static_cast<double>(x[i]) * (1 - 0.05 * decay);
      EXPECT_NEAR(static_cast<double>(average[i]), kept - S[i] * b[i] / 3, 1e-7) << i;
      EXPECT_NEAR(static_cast<double>(voted[i]), kept - S[i] * b[i], 1e-7) << i;
    }
    if (decay > 0) continue;
    const double want_average[4] = {0.99416667, -1.00583333, 0.48944444, 0.01055556};
    const double want_verdict[4] = {0.9825, -1.0175, 0.46833333, 0.03166667};
    for (int i = 0; i < 4; ++i) {
      EXPECT_NEAR(static_cast<double>(average[i]), want_average[i], 1e-7);
      EXPECT_NEAR(static_cast<double>(voted[i]), want_verdict[i], 1e-7);
    }
  }
}

// ---- dense

TEST(ApplyDense, DefinitionEqualsExactArithmetic) {
  Rng rng(kSeed, 12);
  int compared = 0;
  for (int k = 0; k < 100'000; ++k) {
    const float x = SpecialValue(&rng), a = SpecialValue(&rng), v = SpecialValue(&rng);
    const float c = static_cast<float>(1.0 - rng.Uniform() * 1e-3);
    const uint16_t narrow = NarrowBf16(v);
    for (const bool bf16 : {false, true}) {
      const float value = bf16 ? WidenBf16(narrow) : v;
      float got = x;
      const auto* const bytes =
          bf16 ? reinterpret_cast<const uint8_t*>(&narrow) : reinterpret_cast<const uint8_t*>(&v);
      (bf16 ? apply_kernels::kScalar.bf16 : apply_kernels::kScalar.fp32)(&got, 1, bytes, a, c);
      const auto t = static_cast<float>(static_cast<double>(a) * static_cast<double>(value));
      const float want = FmaByDoubles(x, c, -t);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << x << " " << a << " " << value;
      } else {
        ASSERT_EQ(Pattern(got), Pattern(want)) << x << " " << a << " " << value;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 100'000);
}

TEST(ApplyDense, KernelsEqualTheDefinitionForEveryLengthAndMisalignment) {
  Rng rng(kSeed, 13);
  const std::vector<Isa> isas = VectorIsas();
  if (isas.empty()) GTEST_SKIP() << "this machine has only the scalar kernel";
  GuardedBits guarded(4 * kLengthMax + 8);
  guarded.Fill(&rng);
  const Table& scalar = apply_kernels::kScalar;
  for (size_t n = 0; n <= kLengthMax; ++n) {
    const size_t misalignment = rng.Below(4);
    const Scalars& s = kScalarSets[rng.Below(std::size(kScalarSets))];
    const std::vector<float> x = RandomFloats(misalignment + n + 5, &rng);
    const std::vector<float> x0 = RandomFloats(n, &rng);
    for (const bool bf16 : {false, true}) {
      const uint8_t* const v = guarded.Last(n * (bf16 ? 2 : 4));
      std::vector<float> want = x, want_rescaled = x;
      (bf16 ? scalar.bf16 : scalar.fp32)(want.data() + misalignment, n, v, s.a, s.c);
      (bf16 ? scalar.rescaled_bf16 : scalar.rescaled_fp32)(want_rescaled.data() + misalignment,
                                                           x0.data(), n, v, s.a, s.c, s.rho);
      const auto expect_same = [](const std::vector<float>& got, const std::vector<float>& want_) {
        for (size_t i = 0; i < got.size(); ++i) {
          // Which of two NaNs comes out of a product is the machine's affair.
          if (std::isnan(want_[i]) && std::isnan(got[i])) continue;
          ASSERT_EQ(Pattern(got[i]), Pattern(want_[i])) << i;
        }
      };
      for (const Isa isa : isas) {
        const Table& table = apply_kernels::kTables.For(isa);
        std::vector<float> got = x;
        (bf16 ? table.bf16 : table.fp32)(got.data() + misalignment, n, v, s.a, s.c);
        expect_same(got, want);
        got = x;
        (bf16 ? table.rescaled_bf16 : table.rescaled_fp32)(got.data() + misalignment, x0.data(), n,
                                                           v, s.a, s.c, s.rho);
        expect_same(got, want_rescaled);
        ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "n " << n << IsaName(isa);
      }
    }
  }
}

TEST(ApplyDense, WithPlusAndMinusOneItIsTheStepOfSignsBitForBit) {
  const Layout layout = ThreeTensors();
  const uint64_t d = layout.coordinates();
  Rng rng(kSeed, 14);
  std::vector<uint8_t> bits(BytesForBits(d));
  for (uint8_t& b : bits) b = static_cast<uint8_t>(rng.Next());
  std::vector<float> values(d);
  std::vector<uint16_t> narrow(d);
  for (uint64_t i = 0; i < d; ++i) {
    values[i] = GetBit(bits.data(), i) ? 1.0f : -1.0f;
    narrow[i] = NarrowBf16(values[i]);
  }
  const std::vector<float> x = RandomFloats(d, &rng), x0 = RandomFloats(d, &rng);
  const std::vector<float> scales = {0.5f, 3.0f, 1.25f};
  for (const float rho : {1.0f, 0.75f}) {
    const StepArguments step{.gamma = 0.013f, .rho = rho, .scales = scales};
    std::vector<float> signs = x, fp32 = x, bf16 = x;
    ApplyStep(layout, step, 0, d, bits.data(), 0, x0.data(), signs.data());
    for (uint64_t first = 0; first < d; first += 100) {  // in cuts
      const uint64_t count = std::min<uint64_t>(100, d - first);
      ApplyDense(layout, step, first, count,
                 {.values = reinterpret_cast<const uint8_t*>(values.data())}, x0.data() + first,
                 fp32.data() + first);
      ApplyDense(layout, step, first, count,
                 {.values = reinterpret_cast<const uint8_t*>(narrow.data() + first),
                  .bf16 = true,
                  .first = first},
                 x0.data() + first, bf16.data() + first);
    }
    ExpectSameNumbers(fp32, signs, "fp32");
    ExpectSameNumbers(bf16, signs, "bf16");
  }
}

TEST(ApplyDeathTest, CountsThatCannotBeAreBugs) {
  const Layout layout = ThreeTensors();
  std::vector<float> x(layout.coordinates());
  const std::vector<uint8_t> planes(BytesForBits(x.size()) * 11);
  const auto apply = [&](const CountsView& counts) {
    ApplyCounts(layout, {.gamma = 0.1f}, 0, 8, counts, nullptr, x.data());
  };
  const size_t bytes = BytesForBits(x.size());
  EXPECT_DEATH(apply({.planes = planes.data(), .plane_bytes = bytes, .ballots = 0}),
               "check failed");
  EXPECT_DEATH(apply({.planes = planes.data(), .plane_bytes = bytes, .ballots = 2048}),
               "check failed");
  EXPECT_DEATH(apply({.planes = planes.data(), .plane_bytes = bytes, .ballots = 3, .first = 1}),
               "check failed");
}

TEST(Apply, ARewindIsACopyBitForBit) {
  Rng rng(kSeed, 7);
  const std::vector<float> x0 = RandomFloats(100, &rng);
  std::vector<float> x = RandomFloats(102, &rng);
  std::vector<float> want = x;
  std::copy(x0.begin(), x0.end(), want.begin() + 1);
  ApplyRewind(100, x0.data(), x.data() + 1);
  ExpectSameBits(x, want, "rewind");
  ApplyRewind(0, nullptr, nullptr);
}

TEST(Apply, GoldenVectorsOfTheVotedStep) {
  // algorithms, "Golden vectors": t = 1, x0 = [1, −1, .5, 0], γ = .1, decay .1, verdict + + − +,
  // double precision there.
  const auto layout = Layout::Make({{.name = "x", .shape = {4}, .weight_decay = 0.1f}});
  ASSERT_TRUE(layout.ok());
  float x[4] = {1.0f, -1.0f, 0.5f, 0.0f};
  const uint8_t verdict = 0b1011;
  ApplyStep(*layout, 0.1f, 0, 4, &verdict, 0, x);
  const double want[4] = {0.89, -1.09, 0.595, -0.1};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(static_cast<double>(x[i]), want[i], 3e-7);
}

TEST(MaxAbs, IsTheLargestMagnitude) {
  EXPECT_EQ(MaxAbs({}), 0.0f);
  for (size_t n = 1; n < 70; ++n) {
    for (size_t at = 0; at < n; ++at) {
      std::vector<float> x(n, 0.25f);
      x[at] = -3.5f;
      ASSERT_EQ(MaxAbs(x), 3.5f) << n << " " << at;
      x[at] = -std::numeric_limits<float>::infinity();
      ASSERT_EQ(MaxAbs(x), std::numeric_limits<float>::infinity());
      x[at] = -std::numeric_limits<float>::quiet_NaN();
      x[(at + 1) % n] = n > 1 ? std::numeric_limits<float>::infinity() : x[at];
      ASSERT_TRUE(std::isnan(MaxAbs(x))) << n << " " << at;
    }
  }
}

}  // namespace
}  // namespace signvote
