#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "server/stepsize/types.h"

namespace signvote {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
const std::vector<ScalarKind> kAsked = {ScalarKind::kPrevInner, ScalarKind::kProbeL1};

WorkerScalars Good() { return {.loss = -1, .g_l1 = 0, .g_l2_squared = 0, .wanted = {-3, 4}}; }

TEST(ScalarsTest, AreFoundByTheirKindInTheOrderThatWasAsked) {
  EXPECT_EQ(ScalarOf(Good(), kAsked, ScalarKind::kProbeL1), 4.0);
  EXPECT_EQ(ScalarOf(Good(), kAsked, ScalarKind::kPrevInner), -3.0);
  EXPECT_FALSE(ScalarOf(Good(), kAsked, ScalarKind::kX0Inner).has_value());
  WorkerScalars s = Good();
  s.wanted = {kNan};
  EXPECT_FALSE(ScalarOf(s, kAsked, ScalarKind::kPrevInner).has_value());
  EXPECT_FALSE(ScalarOf(s, kAsked, ScalarKind::kProbeL1).has_value());
}

TEST(ScalarsTest, EveryOneIsCheckedAndANormIsNeverNegative) {
  EXPECT_TRUE(Plausible(Good(), kAsked));
  const auto refused = [](auto change) {
    WorkerScalars s = Good();
    change(s);
    return !Plausible(s, kAsked);
  };
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.loss = kInf; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.loss = kNan; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.g_l1 = -1; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.g_l1 = kNan; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.g_l2_squared = kInf; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.g_l2_squared = -1; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.wanted = {-3, 4, 5}; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.wanted[1] = -4; }));
  EXPECT_TRUE(refused([](WorkerScalars& s) { s.wanted[0] = -kInf; }));
  EXPECT_FALSE(refused([](WorkerScalars& s) { s.wanted = {kNan, kNan}; }));
  EXPECT_FALSE(refused([](WorkerScalars& s) { s.wanted = {0, 0}; }));
}

TEST(ScalarsTest, WhatIsLeftAwayAtTheEndTheWorkerCannotTell) {
  WorkerScalars s = Good();
  s.wanted = {-3};
  EXPECT_TRUE(Plausible(s, kAsked));
  EXPECT_EQ(ScalarOf(s, kAsked, ScalarKind::kPrevInner), -3.0);
  EXPECT_FALSE(ScalarOf(s, kAsked, ScalarKind::kProbeL1).has_value());
  s.wanted.clear();
  EXPECT_TRUE(Plausible(s, kAsked));
  s.wanted = {kInf};
  EXPECT_FALSE(Plausible(s, kAsked));
}

TEST(ScalarsTest, NormsAreTheProbeTheDistanceAndTheLocalProduct) {
  for (const auto& [kind, norm] :
       {std::pair{ScalarKind::kProbeL1, true}, std::pair{ScalarKind::kPrevInner, false},
        std::pair{ScalarKind::kX0Inner, false}, std::pair{ScalarKind::kX0Distance, true},
        std::pair{ScalarKind::kLocalInner, false}, std::pair{ScalarKind::kLocalProduct, true}}) {
    WorkerScalars s = Good();
    s.wanted = {-1};
    EXPECT_EQ(Plausible(s, std::vector{kind}), !norm) << Words(kind);
  }
}

}  // namespace
}  // namespace signvote
