#include "worker/session/backoff.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace signvote {
namespace {

TEST(BackoffTest, WaitsDoubleWithinTheirBoundsAndDifferFromWorkerToWorker) {
  Backoff a(1), b(2);
  bool differ = false;
  Duration bound = Backoff::kFirst;
  for (int i = 0; i < 20; ++i) {
    const Duration wait = a.Next();
    EXPECT_GE(wait, bound / 2);
    EXPECT_LE(wait, bound);
    differ |= wait != b.Next();
    bound = std::min(Backoff::kLongest, bound * 2);
  }
  EXPECT_TRUE(differ);
  a.Reset();
  EXPECT_LE(a.Next(), Backoff::kFirst);
}

}  // namespace
}  // namespace signvote
