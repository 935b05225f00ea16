#include "worker/data/held_out_windows.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(HeldOutWindowsTest, AreSpreadOverThePartAndDoNotOverlap) {
  for (const uint64_t tokens : {129u, 1000u, 12'345u, 1'000'000u}) {
    for (const uint64_t length : {1u, 7u, 128u}) {
      for (const uint64_t targets : {1u, 500u, 8192u, 10'000'000u}) {
        const HeldOutWindows windows(tokens, length, targets);
        ASSERT_GE(windows.count(), 1u);
        ASSERT_LE((windows.count() - 1) * length, targets);
        uint64_t end = 0;
        for (uint64_t k = 0; k < windows.count(); ++k) {
          ASSERT_GE(windows.First(k), end);
          end = windows.First(k) + length;
        }
        ASSERT_LT(end, tokens) << "the last target lies in the part";
        // The last lies as near to the end as the distance between two allows.
        const uint64_t whole = (tokens - 1) / length;
        ASSERT_GE(windows.First(windows.count() - 1),
                  (whole - (whole - 1) / windows.count() - 1) * length);
      }
    }
  }
}

TEST(HeldOutWindowsTest, AreAllWhereMoreAreWantedThanThereAre) {
  const HeldOutWindows windows(1001, 10, 5000);
  ASSERT_EQ(windows.count(), 100u);
  for (uint64_t k = 0; k < 100; ++k) EXPECT_EQ(windows.First(k), 10 * k);
}

}  // namespace
}  // namespace signvote
