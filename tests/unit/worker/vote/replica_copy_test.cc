#include "worker/vote/replica_copy.h"

#include <gtest/gtest.h>

#include <span>
#include <vector>

namespace signvote {
namespace {

TEST(HostReplicaCopyTest, TakesOverTheCoordinatesThatMovedAndNoOthers) {
  const Layout layout = *Layout::Make({{.name = "a", .shape = {3}}, {.name = "b", .shape = {4}}});
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 7};
  HostReplicaMemory replica(x);
  std::vector<float> a(3, 0.0f), b(4, 0.0f);
  float* const pointers[] = {a.data(), b.data()};
  HostReplicaCopy copy(&layout, pointers);
  ASSERT_TRUE(copy.Refresh(&replica, 2, 3).ok());
  EXPECT_EQ(a, (std::vector<float>{0, 0, 3}));
  EXPECT_EQ(b, (std::vector<float>{4, 5, 0, 0}));
  ASSERT_TRUE(copy.Refresh(&replica, 0, 7).ok());
  EXPECT_EQ(a, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(b, (std::vector<float>{4, 5, 6, 7}));
}

TEST(HostReplicaCopyTest, WhatDoesNotFitIsRefused) {
  const Layout layout = *Layout::Make({{.name = "a", .shape = {3}}, {.name = "b", .shape = {4}}});
  std::vector<float> x(7, 1.0f), values(7, 0.0f);
  HostReplicaMemory replica(x);
  float* const pointers[] = {values.data(), values.data() + 3};
  HostReplicaCopy one_short(&layout, std::span(pointers).first(1));
  EXPECT_EQ(one_short.Refresh(&replica, 0, 7).code(), absl::StatusCode::kInvalidArgument);
  HostReplicaCopy copy(&layout, pointers);
  EXPECT_EQ(copy.Refresh(&replica, 1, 7).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(values, std::vector<float>(7, 0.0f));
}

}  // namespace
}  // namespace signvote
