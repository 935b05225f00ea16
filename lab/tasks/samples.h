#pragma once
// Data sets of labelled feature rows, drawn on the spot: sample = f(seed, share, data step, row) for
// training, of which there is no end, and a fixed set for measuring, the same for every run.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/rng.h"
#include "worker/data/dataset.h"

namespace signvote::lab {

// How one sample comes about. Threads: thread-safe; a pure function of the generator's numbers.
class SampleSource {
 public:
  virtual ~SampleSource() = default;
  virtual uint64_t features() const = 0;
  virtual uint64_t classes() const = 0;
  virtual std::string description() const = 0;  // one line
  // Fills `features` and returns the class.
  virtual int64_t Draw(Rng* rng, std::span<float> features) const = 0;
};

// Classes that a random two-layer network, the teacher, sees in bell-shaped inputs, some of them wrong:
// its logits are perturbed, so that no student's loss reaches zero.
std::unique_ptr<SampleSource> MakeTeacherSource(uint64_t features, uint64_t classes, uint64_t seed);

// Two classes, separated by a random plane with noise, of features whose scales go from 1 down to
// 1/√condition: the loss's curvatures differ by `condition`. REQUIRES: features > 1, condition >= 1.
std::unique_ptr<SampleSource> MakePlaneSource(uint64_t features, double condition, uint64_t seed);

// Grey pictures of side × side numbers about 0: as many glyphs as classes, each of a few random strokes,
// moved, stretched and slanted a little and with noise; one in twenty has a random class.
std::unique_ptr<SampleSource> MakeGlyphSource(uint64_t side, uint64_t classes, uint64_t seed);

struct SamplesOptions {
  uint64_t rows = 16;        // of a micro-batch
  uint64_t held_out = 1024;  // samples; 0: none
};
std::unique_ptr<Dataset> MakeSampleDataset(std::unique_ptr<SampleSource> source,
                                           const SamplesOptions& options);

}  // namespace signvote::lab
