#include "server/vote/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

namespace signvote {
namespace {

TEST(BufferPoolTest, AReturnedBufferIsUsedAgain) {
  BufferPool pool(1000, 4);
  for (int i = 0; i < 10; ++i) {
    const auto buffer = pool.Acquire();
    std::memset(buffer.get(), i, 1000);
  }
  EXPECT_EQ(pool.allocated(), 1u);
}

TEST(BufferPoolTest, KeepsNoMoreThanItsLimit) {
  BufferPool pool(1000, 2);
  std::vector<std::shared_ptr<uint8_t>> held;
  for (int i = 0; i < 5; ++i) held.push_back(pool.Acquire());
  EXPECT_EQ(pool.allocated(), 5u);
  held.clear();
  EXPECT_EQ(pool.allocated(), 2u);
}

TEST(BufferPoolTest, ABufferOutlivesItsPool) {
  std::shared_ptr<uint8_t> buffer;
  {
    BufferPool pool(64, 1);
    buffer = pool.Acquire();
  }
  std::memset(buffer.get(), 7, 64);
  EXPECT_EQ(buffer.get()[63], 7);
}

TEST(BufferPoolTest, NeighboursAreAlignedAndStartAtDifferentLines) {
  BufferPool pool(size_t{1} << 16, 16);
  std::vector<std::shared_ptr<uint8_t>> held;
  std::set<uintptr_t> offsets;
  for (int i = 0; i < 8; ++i) {
    held.push_back(pool.Acquire());
    const auto address = reinterpret_cast<uintptr_t>(held.back().get());
    EXPECT_EQ(address % 64, 0u);
    offsets.insert(address % 4096);
    std::memset(held.back().get(), i, pool.bytes());
  }
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(held[i].get()[0], i);
    EXPECT_EQ(held[i].get()[pool.bytes() - 1], i);
  }
  EXPECT_GE(offsets.size(), 4u);
}

}  // namespace
}  // namespace signvote
