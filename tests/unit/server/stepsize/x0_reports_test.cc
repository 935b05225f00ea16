#include "server/stepsize/x0_reports.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace signvote {
namespace {

// An honest one of d = 100 coordinates: ‖g‖₁ = 6, ‖g‖₂ = 2, at the distance 3.
WorkerScalars Honest() { return {.loss = 1, .g_l1 = 6, .g_l2_squared = 4, .wanted = {0.5, 3}}; }

std::vector<X0Report> Reports(const std::vector<WorkerScalars>& workers) {
  return X0Reports({.coordinates = 100, .asked = X0ReportScalars(), .workers = workers});
}

TEST(X0ReportsTest, AnHonestReportIsTakenAsItIs) {
  const auto reports = Reports({Honest()});
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].inner, 0.5);
  EXPECT_EQ(reports[0].norm_l1, 6);
  EXPECT_EQ(reports[0].norm_l2, 2);
  EXPECT_EQ(reports[0].distance, 3);
}

TEST(X0ReportsTest, WhatNoGradientHasIsLeftOutWhoeverElseIsThere) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const auto but = [](auto change) {
    WorkerScalars worker = Honest();
    change(worker);
    return worker;
  };
  const std::vector<WorkerScalars> lies = {
      but([](WorkerScalars& w) { w.wanted[0] = 6.1; }),  // beyond ‖g‖₂‖x − x_0‖₂
      but([](WorkerScalars& w) { w.wanted[0] = -6.1; }),
      but([](WorkerScalars& w) { w.g_l1 = 1.9; }),   // below ‖g‖₂
      but([](WorkerScalars& w) { w.g_l1 = 20.1; }),  // above 10·‖g‖₂
      but([&](WorkerScalars& w) { w.g_l1 = inf; }),
      but([&](WorkerScalars& w) { w.g_l2_squared = nan; }),
      but([&](WorkerScalars& w) { w.wanted[0] = nan; }),
      but([&](WorkerScalars& w) { w.wanted[1] = inf; }),
      but([](WorkerScalars& w) { w.wanted[1] = -3; }),
      but([](WorkerScalars& w) { w.wanted.pop_back(); })};
  for (size_t i = 0; i < lies.size(); ++i) {
    EXPECT_TRUE(Reports({lies[i]}).empty()) << i;
    EXPECT_EQ(Reports({Honest(), lies[i], Honest()}).size(), 2u) << i;
  }
  // At the bounds everything is possible.
  EXPECT_EQ(Reports({but([](WorkerScalars& w) { w.wanted[0] = -6; })}).size(), 1u);
  EXPECT_EQ(Reports({but([](WorkerScalars& w) { w.g_l1 = 2; })}).size(), 1u);
  EXPECT_EQ(Reports({but([](WorkerScalars& w) { w.g_l1 = 20; })}).size(), 1u);
}

TEST(X0ReportsTest, AnotherDistanceThanThatOfMoreThanHalfIsLeftOut) {
  WorkerScalars far = Honest(), near = Honest();
  far.wanted[1] = 4;
  near.wanted[1] = 2.5;
  EXPECT_EQ(Reports({far, Honest(), near, Honest(), Honest()}).size(), 3u);
  EXPECT_EQ(Reports({far, far, Honest()}).size(), 2u);
  EXPECT_EQ(Reports({Honest(), Honest()}).size(), 2u);
}

TEST(X0ReportsTest, WhereNoDistanceIsThatOfMoreThanHalfThereIsNoReport) {
  WorkerScalars far = Honest(), near = Honest();
  far.wanted[1] = 1000;
  near.wanted[1] = 2.5;
  EXPECT_TRUE(Reports({far, Honest()}).empty());
  EXPECT_TRUE(Reports({Honest(), far}).empty());
  EXPECT_TRUE(Reports({far, Honest(), far, Honest()}).empty());
  EXPECT_TRUE(Reports({far, Honest(), near}).empty());
  EXPECT_TRUE(Reports({near, Honest(), Honest(), far}).empty()) << "half is not more than half";
}

TEST(X0ReportsTest, AtTheStartNothingHasMoved) {
  WorkerScalars still = Honest();
  still.wanted = {0, 0};
  EXPECT_EQ(Reports({still, still}).size(), 2u);
}

}  // namespace
}  // namespace signvote
