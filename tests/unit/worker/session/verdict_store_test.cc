#include "worker/session/verdict_store.h"

#include <gtest/gtest.h>

#include <memory_resource>
#include <vector>

namespace signvote {
namespace {

const ChunkPlan kPlan(1500, 512);  // chunks of 64, 64 and 60 bytes

void Fill(VerdictStore::Slot* slot, Epoch epoch, Attempt attempt) {
  for (auto& origin : slot->chunks) origin = {.present = true, .epoch = epoch, .attempt = attempt};
}

TEST(VerdictStoreTest, AVerdictIsWholeWhenEachChunkIsThereAndOfTheVote) {
  VerdictStore store(PayloadPlan(kPlan), 1, std::pmr::new_delete_resource());
  VerdictStore::Slot* const slot = store.Acquire(Round(3));
  ASSERT_NE(slot, nullptr);
  ASSERT_EQ(slot->chunks.size(), 3u);
  EXPECT_EQ(slot->bits.size(), kPlan.TotalBytes());
  Fill(slot, Epoch(2), Attempt(1));
  EXPECT_TRUE(slot->IsWhole(Epoch(2), Attempt(1)));
  EXPECT_FALSE(slot->IsWhole(Epoch(2), Attempt(0)));
  EXPECT_FALSE(slot->IsWhole(Epoch(1), Attempt(1)));
  slot->chunks[2].attempt = Attempt(0);
  EXPECT_FALSE(slot->IsWhole(Epoch(2), Attempt(1))) << "one chunk of an earlier attempt";
  slot->chunks[2] = {};
  EXPECT_FALSE(slot->IsWhole(Epoch(2), Attempt(1))) << "one chunk missing";
}

TEST(VerdictStoreTest, SlotsAreBoundedAndComeBackEmpty) {
  VerdictStore store(PayloadPlan(kPlan), 2, std::pmr::new_delete_resource());
  VerdictStore::Slot* const a = store.Acquire(Round(1));
  VerdictStore::Slot* const b = store.Acquire(Round(2));
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  EXPECT_NE(a, b);
  EXPECT_EQ(store.Acquire(Round(3)), nullptr);
  Fill(a, Epoch(1), Attempt(0));
  store.Release(a);
  VerdictStore::Slot* const again = store.Acquire(Round(3));
  EXPECT_EQ(again, a);
  EXPECT_EQ(again->round.value(), 3u);
  for (const auto& origin : again->chunks) EXPECT_FALSE(origin.present);
}

// Counts bytes that are out.
class CountedMemory : public std::pmr::memory_resource {
 public:
  size_t out = 0;

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    out += bytes;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, size_t bytes, size_t alignment) override {
    out -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
};

TEST(VerdictStoreTest, ALagCostsMemoryOnlyWhileItLasts) {
  CountedMemory memory;
  VerdictStore store(PayloadPlan(kPlan), 16, &memory);
  for (int lag = 0; lag < 3; ++lag) {
    std::vector<VerdictStore::Slot*> out;
    while (VerdictStore::Slot* const slot = store.Acquire(Round(1))) out.push_back(slot);
    EXPECT_EQ(out.size(), 16u);
    EXPECT_EQ(memory.out, 16 * kPlan.TotalBytes());
    for (VerdictStore::Slot* const slot : out) store.Release(slot);
    EXPECT_EQ(memory.out, VerdictStore::kFreeMax * kPlan.TotalBytes());
  }
}

}  // namespace
}  // namespace signvote
