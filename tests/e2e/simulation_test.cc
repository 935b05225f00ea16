// Goal:   the stepsize is real: it follows the units of the problem, and training works without
//         being given one.
// Method: whole runs in one process (simulation.h) with the real model, directions, vote and rule.
#include "tests/e2e/simulation.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "common/checksum.h"
#include "server/stepsize/robust_mean.h"

namespace signvote {
namespace {

// A corpus with structure to learn: sums written out in words of digits.
std::string WriteCorpus() {
  std::string pattern = (std::filesystem::temp_directory_path() / "signvote_sim_XXXXXX").string();
  EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::string path = pattern + "/corpus.txt";
  std::ofstream file(path);
  for (int a = 0; a < 200; ++a) {
    for (int b = 0; b < 20; ++b)
      file << "the sum of " << a << " and " << b << " is " << a + b << ".\n";
  }
  return path;
}

class SimulationTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = WriteCorpus();
    options_.data.path = path_;
    options_.data.rows = 2;
    options_.data.length = 32;
    options_.rounds = 30;
  }
  void TearDown() override {
    std::filesystem::remove_all(std::filesystem::path(path_).parent_path());
  }
  std::unique_ptr<Simulation> Run(const SimulationOptions& options) {
    auto simulation = Simulation::Create(options);
    EXPECT_TRUE(simulation.ok()) << simulation.status();
    EXPECT_TRUE((*simulation)->Run().ok());
    return *std::move(simulation);
  }
  std::string path_;
  SimulationOptions options_;
};

uint64_t DigestOf(Simulation* simulation) {
  const std::vector<float> x = simulation->Parameters();
  return ReplicaDigest(x.data(), 0, x.size());
}

TEST_F(SimulationTest, TheSameSeedsGiveTheSameBits) {
  const auto first = Run(options_);
  const auto second = Run(options_);
  EXPECT_EQ(DigestOf(first.get()), DigestOf(second.get()));
  options_.seed = 2;
  EXPECT_NE(DigestOf(first.get()), DigestOf(Run(options_).get()));
}

TEST_F(SimulationTest, TrainingInOtherUnitsMultipliesEveryStepsizeExactly) {
  // f(x/128) from 128·x_0: gradients shrink and steps must grow by exactly 128, in every bit.
  for (const char* option : {"I", "II"}) {
    options_.rule.alias_option = option;
    options_.parameter_divisor = 1.0f;
    const auto plain = Run(options_);
    options_.parameter_divisor = 128.0f;
    const auto scaled = Run(options_);
    ASSERT_EQ(plain->rounds().size(), scaled->rounds().size());
    for (size_t t = 0; t < plain->rounds().size(); ++t) {
      EXPECT_EQ(scaled->rounds()[t].stepsize, 128.0f * plain->rounds()[t].stepsize)
          << "option " << option << " round " << t;
      EXPECT_EQ(scaled->rounds()[t].scalars[0].loss, plain->rounds()[t].scalars[0].loss);
    }
    const std::vector<float> x = plain->Parameters();
    const std::vector<float> y = scaled->Parameters();
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], 128.0f * x[i]) << i;
  }
}

TEST_F(SimulationTest, EveryStepsizeFollowsFromTheScalarsByThePublishedFormula) {
  const auto run = Run(options_);
  double eta = 0, f0 = 0, gamma = 0;
  for (size_t t = 0; t < run->rounds().size(); ++t) {
    const SimulatedRound& round = run->rounds()[t];
    std::vector<double> losses, probes;
    for (const WorkerScalars& worker : round.scalars) {
      losses.push_back(worker.loss);
      const auto probe = ScalarOf(worker, round.asked, ScalarKind::kProbeL1);
      if (probe.has_value()) probes.push_back(*probe);
    }
    if (t == 0) {
      f0 = *RobustMean(losses);
      gamma = round.stepsize;
      EXPECT_FLOAT_EQ(round.stepsize, 1e-5f);  // norms start at 1, all else is smaller
      continue;
    }
    ASSERT_EQ(probes.size(), round.scalars.size()) << t;
    eta += *RobustMean(probes) / gamma;  // ‖x_t − x_{t−1}‖_∞ = γ_{t−1}
    EXPECT_EQ(round.stepsize, static_cast<float>(std::sqrt(f0 / eta))) << t;
    gamma = round.stepsize;
  }
}

TEST_F(SimulationTest, TheHeldOutLossFallsWithoutAStepsizeGiven) {
  options_.rounds = 80;
  auto simulation = Simulation::Create(options_);
  ASSERT_TRUE(simulation.ok()) << simulation.status();
  const double before = *(*simulation)->HeldOutLoss();
  ASSERT_TRUE((*simulation)->Run().ok());
  const double after = *(*simulation)->HeldOutLoss();
  EXPECT_NEAR(before, std::log(256.0), 0.2);
  EXPECT_LT(after, before - 1.5);
}

TEST_F(SimulationTest, TheSyntheticTaskIsLearnt) {
  options_.model = "mlp";
  options_.data.rows = 64;
  options_.rounds = 100;
  auto simulation = Simulation::Create(options_);
  ASSERT_TRUE(simulation.ok()) << simulation.status();
  const double before = *(*simulation)->HeldOutLoss();
  ASSERT_TRUE((*simulation)->Run().ok());
  EXPECT_LT(*(*simulation)->HeldOutLoss(), 0.6 * before);
}

}  // namespace
}  // namespace signvote
