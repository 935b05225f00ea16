#include "common/bounded_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

namespace signvote {
namespace {

constexpr Duration kLong = std::chrono::seconds(20);

TEST(BoundedQueue, AFullQueueRefusesAndLeavesTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(std::move(second)));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(queue.size(), 1u);
}

TEST(BoundedQueue, PopTimesOutOnAnEmptyQueue) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.Pop(std::chrono::milliseconds(1)), std::nullopt);
}

TEST(BoundedQueue, ClosedQueueDrainsThenEnds) {
  BoundedQueue<int> queue(4);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.Pop(kLong), 1);
  EXPECT_EQ(queue.Pop(kLong), 2);
  EXPECT_EQ(queue.Pop(kLong), std::nullopt);
}

TEST(BoundedQueue, CloseWakesAWaitingConsumer) {
  BoundedQueue<int> queue(4);
  std::jthread consumer([&] { EXPECT_EQ(queue.Pop(kLong), std::nullopt); });
  queue.Close();
}

TEST(BoundedQueue, EveryItemArrivesOnceFromManyThreads) {
  BoundedQueue<int> queue(8);
  constexpr int kItems = 2000;
  std::vector<int> seen(kItems, 0);
  {
    std::jthread consumer([&] {
      while (const auto item = queue.Pop(kLong)) ++seen[static_cast<size_t>(*item)];
    });
    {
      std::vector<std::jthread> producers;
      for (int p = 0; p < 2; ++p) {
        producers.emplace_back([&, p] {
          for (int i = p; i < kItems; i += 2) {
            while (!queue.TryPush(int{i})) std::this_thread::yield();
          }
        });
      }
    }
    queue.Close();
  }
  for (const int count : seen) ASSERT_EQ(count, 1);
}

}  // namespace
}  // namespace signvote
