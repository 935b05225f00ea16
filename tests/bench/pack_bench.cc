// Direction, ballot and scalars in one pass against plain loops with the same streams: one core,
// whole model.

#include <cstdint>

#include "common/bits.h"
#include "common/rng.h"
#include "tests/bench/bench.h"
#include "tests/bench/stream.h"
#include "worker/codec/pack.h"

namespace signvote {
namespace {

int Main(int argc, char** argv) {
  const bench::Options options = bench::ParseOptions(
      argc, argv, "Pack (direction + ballot + scalars) against one core's stream bandwidth.");
  bench::Report report(options);
  const size_t d = options.quick ? size_t{1} << 18 : size_t{1} << 25;
  bench::Buffer g(d * 4), h(d * 4), m(d * 4), v(d * 4), r(d * 4), bits(BytesForBits(d)),
      previous(BytesForBits(d));
  Rng rng(1, 0);
  for (size_t i = 0; i < d; ++i) {
    const uint64_t word = rng.Next();
    g.as<float>()[i] = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-40f;
    h.as<float>()[i] = static_cast<float>(static_cast<int32_t>(word >> 32)) * 0x1p-40f;
  }
  for (size_t i = 0; i < BytesForBits(d); i += 8) StoreWord(previous.data() + i, rng.Next());

  double sink = 0;
  const auto pack = [&](DirectionCoefficients coefficients, bool probe) {
    const bool state = coefficients.c != 0.0f;
    const PackScalars scalars = Pack({.coefficients = coefficients, .seed = 1},
                                     {.g = g.as<float>(),
                                      .state = {state ? m.as<float>() : nullptr},
                                      .h = probe ? h.as<float>() : nullptr,
                                      .prev_bits = probe ? previous.data() : nullptr,
                                      .bits = bits.data(),
                                      .count = d});
    sink += scalars.g_l1;
  };
  // Bytes of a kernel and of its limit; both rates count the bytes that memory really moves.
  const double floats = static_cast<double>(d) * 4, packed = static_cast<double>(d) / 8;
  const DirectionCoefficients signum{0.9f, 0.9f};

  auto seconds = bench::RunPaired(
      options, {[&] { sink += static_cast<double>(bench::StreamRead(g.data(), d * 4)); },
                [&] { pack({}, false); }});
  report.AddRatio("pack_signsgd", "GB/s", bench::Rates(floats, seconds[0]),
                  bench::Rates(floats + packed, seconds[1]), 0);

  seconds =
      bench::RunPaired(options, {[&] { bench::StreamAdd(m.as<float>(), g.as<float>(), d, 0.5f); },
                                 [&] { pack(signum, false); }});
  report.AddRatio("pack_signum", "GB/s", bench::Rates(3 * floats, seconds[0]),
                  bench::Rates(3 * floats + packed, seconds[1]), options.quick ? 0 : 0.9);

  seconds = bench::RunPaired(
      options, {[&] { bench::StreamAdd2(m.as<float>(), g.as<float>(), h.as<float>(), d, 0.5f); },
                [&] { pack(signum, true); }});
  report.AddRatio("pack_signum_probe_previous", "GB/s", bench::Rates(4 * floats, seconds[0]),
                  bench::Rates(4 * floats + 2 * packed, seconds[1]), options.quick ? 0 : 0.9);
  // Beyond the linear directions: what they move, against the same limit as Signum.
  const auto formed = [&](const char* name, const Formation& formation, double moved) {
    const auto run = [&] {
      sink += Pack({.coefficients = signum, .formation = formation, .seed = 1},
                   {.g = g.as<float>(),
                    .state = {m.data(), v.data(), r.data()},
                    .bits = bits.data(),
                    .count = d})
                  .g_l1;
    };
    seconds = bench::RunPaired(
        options, {[&] { bench::StreamAdd(h.as<float>(), g.as<float>(), d, 0.5f); }, run});
    report.AddRatio(name, "GB/s", bench::Rates(3 * floats, seconds[0]),
                    bench::Rates(moved * floats + packed, seconds[1]), 0);
  };
  formed("pack_signum_bf16", {.bf16 = true}, 2);
  formed("pack_stosign", {.envelope = Envelope::kCoordinate}, 5);
  formed("pack_stosign_bf16", {.envelope = Envelope::kCoordinate, .bf16 = true}, 3);
  formed("pack_adam", {.update = Formation::Update::kAdam, .envelope = Envelope::kCoordinate}, 7);

  // A result that somebody looks at keeps the reads from being optimised away.
  if (sink == 42) std::fprintf(stderr, "%g\n", sink);
  return report.Finish();
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
