// One committed step against plain loops with the same streams: one core, whole model.

#include <cstdint>
#include <utility>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/rng.h"
#include "tests/bench/bench.h"
#include "tests/bench/stream.h"

namespace signvote {
namespace {

int Main(int argc, char** argv) {
  const bench::Options options =
      bench::ParseOptions(argc, argv,
                          "ApplyStep with and without rescaling, ApplyCounts and ApplyDense "
                          "against one core's stream bandwidth.");
  bench::Report report(options);
  const size_t d = options.quick ? size_t{1} << 18 : size_t{1} << 25;
  std::vector<TensorSpec> tensors = {{.name = "x",
                                      .shape = {d},
                                      .first = 0,
                                      .count = 0,
                                      .step_scale = 1.0f,
                                      .weight_decay = 0.1f}};
  const auto layout = Layout::Make(std::move(tensors));
  SIGNVOTE_CHECK(layout.ok());
  bench::Buffer x(d * 4), x0(d * 4), bits(BytesForBits(d));
  Rng rng(1, 0);
  for (size_t i = 0; i < BytesForBits(d); i += 8) StoreWord(bits.data() + i, rng.Next());
  const double floats = static_cast<double>(d) * 4, packed = static_cast<double>(d) / 8;

  auto seconds = bench::RunPaired(
      options, {[&] { bench::StreamScale(x.as<float>(), d, 1.0f); },
                [&] { ApplyStep(*layout, 1e-3f, 0, d, bits.data(), 0, x.as<float>()); }});
  report.AddRatio("apply_step", "GB/s", bench::Rates(2 * floats, seconds[0]),
                  bench::Rates(2 * floats + packed, seconds[1]), options.quick ? 0 : 0.9);

  seconds =
      bench::RunPaired(options, {[&] { bench::StreamAdd(x.as<float>(), x0.as<float>(), d, 1.0f); },
                                 [&] {
                                   ApplyStep(*layout, {.gamma = 1e-3f, .rho = 0.99f}, 0, d,
                                             bits.data(), 0, x0.as<float>(), x.as<float>());
                                 }});
  report.AddRatio("apply_rescaled_step", "GB/s", bench::Rates(3 * floats, seconds[0]),
                  bench::Rates(3 * floats + packed, seconds[1]), options.quick ? 0 : 0.9);

  // Of four and of seven ballots: three planes.
  bench::Buffer planes(3 * BytesForBits(d)), values(d * 4);
  for (size_t i = 0; i + 8 <= planes.bytes(); i += 8) StoreWord(planes.data() + i, rng.Next());
  for (size_t i = 0; i < d; ++i) values.as<float>()[i] = static_cast<float>(rng.Uniform() - 0.5);
  const CountsView counts{.planes = planes.data(), .plane_bytes = BytesForBits(d), .ballots = 7};
  seconds = bench::RunPaired(
      options,
      {[&] { bench::StreamScale(x.as<float>(), d, 1.0f); },
       [&] { ApplyCounts(*layout, {.gamma = 1e-3f}, 0, d, counts, nullptr, x.as<float>()); }});
  report.AddRatio("apply_counts", "GB/s", bench::Rates(2 * floats, seconds[0]),
                  bench::Rates(2 * floats + 3 * packed, seconds[1]), 0);
  const DenseView dense{.values = values.data()};
  seconds = bench::RunPaired(
      options,
      {[&] { bench::StreamAdd(x.as<float>(), x0.as<float>(), d, 1.0f); },
       [&] { ApplyDense(*layout, {.gamma = 1e-3f}, 0, d, dense, nullptr, x.as<float>()); }});
  report.AddRatio("apply_dense_fp32", "GB/s", bench::Rates(3 * floats, seconds[0]),
                  bench::Rates(3 * floats, seconds[1]), 0);
  return report.Finish();
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
