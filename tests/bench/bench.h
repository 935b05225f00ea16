#pragma once
// The harness of every bench: paired repetitions, and figures printed beside their limits.
//
// Paired: what is compared runs in turn, repetition by repetition, so that a machine that slows
// down for a second slows all of them; a ratio is taken within each repetition. A figure is the
// median of its samples with the extremes beside.
//
//   bench::Options options = bench::ParseOptions(argc, argv, "what this bench measures");
//   bench::Report report(options);
//   const auto seconds = bench::RunPaired(options, {[&] { Limit(); }, [&] { Ours(); }});
//   report.AddRatio("tally_n16", "GB/s", bench::Rates(bytes, seconds[0]), bench::Rates(bytes,
//   seconds[1]), 0.6); return report.Finish();

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/clock.h"

namespace signvote::bench {

struct Options {
  bool json = false;     // one JSON object per figure and line, nothing else on stdout
  bool quick = false;    // a smoke run: small inputs, few repetitions; figures mean nothing
  bool check = false;    // exit status 1 when a gate is missed
  int repetitions = 15;  // samples per figure
};

// The harness's own flags; anything else ends the program with status 2 and this text.
inline Options ParseOptions(int argc, char** argv, const char* what, int repetitions = 15) {
  Options options;
  options.repetitions = repetitions;
  bool repetitions_given = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--json") {
      options.json = true;
    } else if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--check") {
      options.check = true;
    } else if (arg == "--repetitions" && i + 1 < argc && std::atoi(argv[i + 1]) > 0) {
      options.repetitions = std::atoi(argv[++i]);
      repetitions_given = true;
    } else {
      const bool help = arg == "--help";
      std::fprintf(help ? stdout : stderr,
                   "%s\nusage: %s [--json] [--quick] [--check] [--repetitions N]\n"
                   "  --json         one JSON object per figure: name, value (median), unit, n "
                   "(samples), spread_min,\n"
                   "                 spread_max\n"
                   "  --quick        small inputs, few repetitions: shows that the bench runs, not "
                   "how fast\n"
                   "  --check        exit with 1 when a gate is missed\n"
                   "  --repetitions  samples per figure, > 0 (default %d)\n",
                   what, argv[0], repetitions);
      std::exit(help ? 0 : 2);
    }
  }
  if (options.quick && !repetitions_given) options.repetitions = 3;
  return options;
}

struct Summary {
  double median = 0, min = 0, max = 0;
  size_t n = 0;
};

inline Summary Summarise(std::vector<double> samples) {
  SIGNVOTE_CHECK(!samples.empty());
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  return {.median = (samples[(n - 1) / 2] + samples[n / 2]) / 2,
          .min = samples.front(),
          .max = samples.back(),
          .n = n};
}

// An interval that holds the median of what the samples are drawn from with a probability of at
// least 95 %, whatever its distribution: two order statistics, by the binomial distribution of how
// many samples lie below the median. Below 6 samples none is wide enough: the extremes.
struct Interval {
  double low = 0, high = 0;
};
inline Interval MedianInterval(std::vector<double> samples) {
  SIGNVOTE_CHECK(!samples.empty());
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  double probability = std::pow(0.5, static_cast<double>(n));  // that exactly `left_out` lie below
  double below = probability;                                  // that at most `left_out` do
  size_t left_out = 0;                                         // samples on each side
  while (below <= 0.025 && 2 * (left_out + 1) < n) {
    ++left_out;
    probability *= static_cast<double>(n - left_out + 1) / static_cast<double>(left_out);
    below += probability;
  }
  // `left_out` is the first count too many, or 0.
  const size_t skip = left_out == 0 ? 0 : left_out - 1;
  return {samples[skip], samples[n - 1 - skip]};
}

// Seconds of one call of each function in each repetition: [function][repetition]. One call of each
// comes before, to touch memory and fill tables. A function that is too quick for the clock is
// called often enough to last 10 ms; its sample is the time per call.
inline std::vector<std::vector<double>> RunPaired(
    const Options& options, const std::vector<std::function<void()>>& functions) {
  Clock* const clock = Clock::System();
  const double least_seconds = options.quick ? 0.0 : 0.010;
  const auto time = [clock](const std::function<void()>& function, int64_t calls) {
    const Time begin = clock->Now();
    for (int64_t k = 0; k < calls; ++k) function();
    return ToSeconds(clock->Now() - begin);
  };
  std::vector<int64_t> calls;
  for (const auto& function : functions) {
    time(function, 1);
    const double once = time(function, 1);
    calls.push_back(1 + static_cast<int64_t>(std::min(1e6, least_seconds / std::max(once, 1e-9))));
  }
  std::vector<std::vector<double>> seconds(functions.size());
  for (int r = 0; r < options.repetitions; ++r) {
    for (size_t f = 0; f < functions.size(); ++f) {
      // Every other repetition runs backwards, so that none always follows the same neighbour.
      const size_t which = r % 2 == 0 ? f : functions.size() - 1 - f;
      seconds[which].push_back(time(functions[which], calls[which]) /
                               static_cast<double>(calls[which]));
    }
  }
  return seconds;
}

// Samples of `amount` per second, in units of 1e9.
inline std::vector<double> Rates(double amount, const std::vector<double>& seconds) {
  std::vector<double> rates;
  for (const double s : seconds) rates.push_back(amount / std::max(s, 1e-12) * 1e-9);
  return rates;
}

// Prints figures as they come. Threads: one.
class Report {
 public:
  explicit Report(Options options) : options_(options) {}

  // One figure by itself.
  void Add(const std::string& name, const std::string& unit, const std::vector<double>& samples) {
    const Summary s = Summarise(samples);
    if (options_.json) {
      Json(name, unit, s);
    } else {
      std::printf("%-34s %10.4g %-6s [%.4g .. %.4g]\n", name.c_str(), s.median, unit.c_str(), s.min,
                  s.max);
    }
    std::fflush(stdout);
  }

  // A ratio with the interval that holds its median.
  void AddWithInterval(const std::string& name, const std::vector<double>& ratios) {
    const Summary s = Summarise(ratios);
    const Interval i = MedianInterval(ratios);
    if (options_.json) {
      Json(name, "ratio", s);
      Json(name + "_low", "ratio", {.median = i.low, .min = i.low, .max = i.low, .n = s.n});
      Json(name + "_high", "ratio", {.median = i.high, .min = i.high, .max = i.high, .n = s.n});
    } else {
      std::printf("%-34s %10.4g ratio  [%.4g .. %.4g]  95 %% interval [%.4g .. %.4g] of %zu\n",
                  name.c_str(), s.median, s.min, s.max, i.low, i.high, s.n);
    }
    std::fflush(stdout);
  }

  // A rate beside its limit, sample by sample from the same repetitions; `gate` is the least ratio,
  // 0 for none. JSON gets three figures: NAME, NAME_limit and NAME_ratio.
  void AddRatio(const std::string& name, const std::string& unit, const std::vector<double>& limit,
                const std::vector<double>& ours, double gate) {
    SIGNVOTE_CHECK(limit.size() == ours.size());
    std::vector<double> ratios;
    for (size_t r = 0; r < ours.size(); ++r) ratios.push_back(ours[r] / limit[r]);
    const Summary l = Summarise(limit), o = Summarise(ours), q = Summarise(ratios);
    const bool met = q.median >= gate;
    if (!met) ++missed_;
    if (options_.json) {
      Json(name, unit, o);
      Json(name + "_limit", unit, l);
      Json(name + "_ratio", "ratio", q);
    } else {
      std::printf(
          "%-34s %8.2f %s [%.2f .. %.2f]   limit %8.2f [%.2f .. %.2f]   ratio %.3f [%.3f .. %.3f]",
          name.c_str(), o.median, unit.c_str(), o.min, o.max, l.median, l.min, l.max, q.median,
          q.min, q.max);
      if (gate > 0) std::printf("   gate %.2f %s", gate, met ? "met" : "MISSED");
      std::printf("\n");
    }
    std::fflush(stdout);
  }

  // The program's exit status.
  int Finish() const { return options_.check && missed_ > 0 ? 1 : 0; }

 private:
  static void Json(const std::string& name, const std::string& unit, const Summary& s) {
    std::printf(
        "{\"name\":\"%s\",\"value\":%.9g,\"unit\":\"%s\",\"n\":%zu,\"spread_min\":%.9g,\"spread_"
        "max\":%.9g}\n",
        name.c_str(), s.median, unit.c_str(), s.n, s.min, s.max);
  }

  Options options_;
  int missed_ = 0;
};

// Memory for a bench: whole huge pages where the system grants them, touched once, so that no
// repetition pays for page faults. Contents are zero.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_((bytes + kHugePage - 1) / kHugePage * kHugePage) {
    void* const memory = std::aligned_alloc(kHugePage, bytes_);
    SIGNVOTE_CHECK(memory != nullptr);
    (void)madvise(memory, bytes_,
                  MADV_HUGEPAGE);  // a wish: without it the figures are a little lower
    std::memset(memory, 0, bytes_);
    data_.reset(static_cast<uint8_t*>(memory));
  }
  uint8_t* data() { return data_.get(); }
  template <typename T>
  T* as() {
    return static_cast<T*>(static_cast<void*>(data_.get()));
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<uint8_t, Free> data_;
};

}  // namespace signvote::bench
