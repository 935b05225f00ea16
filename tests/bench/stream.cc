#include "tests/bench/stream.h"

#include "common/cpu.h"

// The vector extension of GCC and Clang, compiled once per instruction set: a limit must not be
// handicapped by the flags of the rest.
namespace signvote::bench {
namespace {

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef uint64_t Words __attribute__((vector_size(64), aligned(8)));
constexpr size_t kFloats = 16;

#define SIGNVOTE_STREAMS(suffix, isa)                                                          \
  __attribute__((target(isa))) uint64_t Read##suffix(const uint8_t* data, size_t bytes) {      \
    Words s0 = {}, s1 = {}, s2 = {}, s3 = {}, s4 = {}, s5 = {}, s6 = {}, s7 = {};              \
    const auto* words = static_cast<const Words*>(static_cast<const void*>(data));             \
    for (size_t i = 0; i < bytes / 64; i += 8) {                                               \
      s0 += words[i];                                                                          \
      s1 += words[i + 1];                                                                      \
      s2 += words[i + 2];                                                                      \
      s3 += words[i + 3];                                                                      \
      s4 += words[i + 4];                                                                      \
      s5 += words[i + 5];                                                                      \
      s6 += words[i + 6];                                                                      \
      s7 += words[i + 7];                                                                      \
    }                                                                                          \
    const Words all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;                                   \
    uint64_t sum = 0;                                                                          \
    for (int k = 0; k < 8; ++k) sum += all[k];                                                 \
    return sum;                                                                                \
  }                                                                                            \
  __attribute__((target(isa))) void Scale##suffix(float* x, size_t n, float k) {               \
    auto* vx = static_cast<Floats*>(static_cast<void*>(x));                                    \
    for (size_t i = 0; i < n / kFloats; ++i) vx[i] = vx[i] * k;                                \
  }                                                                                            \
  __attribute__((target(isa))) void Add##suffix(float* x, const float* b, size_t n, float k) { \
    auto* vx = static_cast<Floats*>(static_cast<void*>(x));                                    \
    const auto* vb = static_cast<const Floats*>(static_cast<const void*>(b));                  \
    for (size_t i = 0; i < n / kFloats; ++i) vx[i] = vx[i] * k + vb[i];                        \
  }                                                                                            \
  __attribute__((target(isa))) void AddTwo##suffix(float* x, const float* b, const float* c,   \
                                                   size_t n, float k) {                        \
    auto* vx = static_cast<Floats*>(static_cast<void*>(x));                                    \
    const auto* vb = static_cast<const Floats*>(static_cast<const void*>(b));                  \
    const auto* vc = static_cast<const Floats*>(static_cast<const void*>(c));                  \
    for (size_t i = 0; i < n / kFloats; ++i) vx[i] = vx[i] * k + vb[i] + vc[i];                \
  }

SIGNVOTE_STREAMS(Scalar, "sse2")
SIGNVOTE_STREAMS(Avx2, "avx2,fma")
SIGNVOTE_STREAMS(Avx512, "avx512f")

}  // namespace

#define SIGNVOTE_PICK(name, ...)        \
  switch (DetectIsa()) {                \
    case Isa::kAvx512:                  \
      return name##Avx512(__VA_ARGS__); \
    case Isa::kAvx2:                    \
      return name##Avx2(__VA_ARGS__);   \
    case Isa::kScalar:                  \
      break;                            \
  }                                     \
  return name##Scalar(__VA_ARGS__)

uint64_t StreamRead(const uint8_t* data, size_t bytes) { SIGNVOTE_PICK(Read, data, bytes); }
void StreamScale(float* x, size_t n, float k) { SIGNVOTE_PICK(Scale, x, n, k); }
void StreamAdd(float* x, const float* b, size_t n, float k) { SIGNVOTE_PICK(Add, x, b, n, k); }
void StreamAdd2(float* x, const float* b, const float* c, size_t n, float k) {
  SIGNVOTE_PICK(AddTwo, x, b, c, n, k);
}

}  // namespace signvote::bench
