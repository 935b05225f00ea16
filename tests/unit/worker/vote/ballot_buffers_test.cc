#include "worker/vote/ballot_buffers.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>

namespace signvote {
namespace {

// Counts what is out.
class CountedMemory : public std::pmr::memory_resource {
 public:
  explicit CountedMemory(int* out) : out_(out) {}

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    ++*out_;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, size_t bytes, size_t alignment) override {
    --*out_;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
  int* const out_;
};

TEST(BallotBuffersTest, ABufferThatNobodySharesIsUsedAgain) {
  int out = 0;
  BallotBuffers buffers(100, std::make_shared<CountedMemory>(&out));
  uint8_t* const first = buffers.Take().get();
  EXPECT_EQ(buffers.Take().get(), first);
  EXPECT_EQ(out, 1);
}

TEST(BallotBuffersTest, ABufferThatIsStillSentIsNotUsedAgainAndFreedWhenItComesBackLate) {
  int out = 0;
  BallotBuffers buffers(100, std::make_shared<CountedMemory>(&out));
  std::shared_ptr<const uint8_t> sent = buffers.Take();
  std::shared_ptr<uint8_t> next = buffers.Take();
  EXPECT_NE(sent.get(), next.get());
  EXPECT_EQ(out, 2);
  next.reset();
  EXPECT_EQ(out, 2) << "one is kept for the next round";
  sent.reset();
  EXPECT_EQ(out, 1) << "and no second";
}

TEST(BallotBuffersTest, ABufferAndItsMemoryOutliveTheObject) {
  int out = 0;
  std::optional<BallotBuffers> buffers;
  buffers.emplace(100, std::make_shared<CountedMemory>(&out));
  std::shared_ptr<uint8_t> last = buffers->Take();
  buffers.reset();
  last.get()[99] = 7;
  EXPECT_EQ(last.get()[99], 7);
  EXPECT_EQ(out, 1);
  last.reset();
  EXPECT_EQ(out, 0);
}

}  // namespace
}  // namespace signvote
